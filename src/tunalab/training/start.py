"""Starting a run from weights: an exported or converted folder, or an official checkpoint as it was released.

Settings, frozen parts and tokenizer with which weights were trained are part of what they mean, beyond their
shapes: a run that would read them as something else is refused.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.components.store import (
    SHIPPED,
    Collection,
    Component,
    Components,
    collections,
    components_root,
    earlier_vae,
    find_component,
    frozen_origin,
)
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.loading import Weight, read_json
from tunalab.frontends.registry import frontend_class
from tunalab.model.unified import UnifiedModel
from tunalab.official.layout import (
    detect,
    open_tensors,
    refuse_contradictions,
    setting,
    settings_of_shapes,
    without_prefix,
    without_vae,
)
from tunalab.official.weights import Converted, initial_weights, match_ours, to_ours
from tunalab.records.record import CONFIG_FILE, RECORD_FILE, read_record
from tunalab.redaction import redacted
from tunalab.settings.loading import read_config
from tunalab.settings.schema import RunConfig
from tunalab.training.blocks import fill
from tunalab.training.checkpoints import MANIFEST, damage

# What shapes do not tell of a model of ours, and without which its weights would mean something else.
SETTINGS = (
    "decoder.heads",
    "decoder.rope_theta",
    "decoder.image_positions",
    "head.heads",
    "frontend.name",
    "frontend.vae_statistics",
    "objective.prediction",
    "objective.target_layout",
)
ROLES = ("bos", "eos", "boi", "eoi", "image_pad", "pad", "prefix_space")


def vae_of(run_dir: Path, config: RunConfig) -> Component | None:
    """The VAE that a run directory's record names, where it is not the one that its settings name now: an earlier version's, which
    lies in :func:`components_root` still. A frozen VAE is in no checkpoint, and with another one all that was learnt is wrong.

    Raises UserError when it is gone.
    """
    if "vae" not in frontend_class(config.frontend.name).frozen_parts or not (run_dir / RECORD_FILE).is_file():
        return None
    began = read_record(run_dir / RECORD_FILE).components.get("vae", {}).get("folder")
    now = find_component("vae", config.frontend.vae, config.components_seed, "frontend.vae")
    if began is None or now is None or began == now.path.name:
        return None
    for collection in (Collection(SHIPPED), *collections().values()):
        for name in collection.names("vae"):
            if collection.index[name].get("file") == began:
                return collection.component(name)
    folder = components_root() / began
    if not folder.is_dir():
        raise UserError(
            f"{run_dir} was trained with the VAE {began}, and {config.frontend.vae} is {now.path.name}: {folder} is missing"
        )
    return earlier_vae(folder)


def refuse_other_meaning(folder: Path, config: RunConfig, components: Components, frontend: VisualFrontEnd) -> None:
    """Raises UserError, one line with both sides, where a run would read the weights of an undamaged export as something else."""
    trained = read_config(folder / CONFIG_FILE)
    refuse_contradictions({key: setting(trained, key) for key in SETTINGS}, config)
    _refuse_other_encoder(folder, trained, config)
    manifest = read_json(folder / MANIFEST, f"start.checkpoint={folder}")
    if not isinstance(manifest.get("tunalab"), dict):
        raise UserError(f"start.checkpoint={folder} is not an exported folder (its {MANIFEST} says otherwise)")
    _refuse_other_frozen(folder, manifest, frozen_origin(config, components, frontend))
    if (folder / "tokenizer").is_dir():
        _refuse_other_tokenizer(Tokenizer.load(folder / "tokenizer"), components.tokenizer_for(config.decoder))


def _refuse_other_encoder(folder: Path, trained: RunConfig, config: RunConfig) -> None:
    """Its weights come from the checkpoint: a record, and what is said over encoders, would name one that had no part."""
    sides = []
    for one in (trained, config):
        try:
            found = find_component("encoder", one.frontend.encoder, one.components_seed, "frontend.encoder")
        except UserError:  # of a collection that is not here: its name has to do
            found = None
        sides.append(found.path.name if found else one.frontend.encoder)
    there, here = sides
    if there and here and there != here:
        raise UserError(
            f"start.checkpoint={folder}: its encoder began as {there}, here it is {here} (frontend.encoder, components_seed)"
        )


def _refuse_other_frozen(folder: Path, manifest: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """A frozen part is the same by the hashes of its files: those it had where it came from, or those of its copy in the export.

    By its name where no file lies here, or none lay there: on the Hub.
    """
    for part, there in manifest["tunalab"]["frozen"].items():
        mine = here[part]
        held, expected = set(mine["sha256"].values()), set(there["sha256"].values())
        copies = {
            entry["sha256"]
            for name, entry in manifest["files"].items()
            if name.startswith(f"frozen/{part}/") and name.endswith(".safetensors")
        }
        same = held in (expected, copies) if held and (expected or mine["name"] != there["name"]) else mine["name"] == there["name"]
        if not same:
            raise UserError(
                f"the checkpoint does not fit: frontend.{part} is {_named(there)} in the checkpoint, {_named(mine)} in the "
                f"configuration (its own lies in {folder}/frozen/{part})"
            )


def _named(part: Mapping[str, Any]) -> str:
    hashes = ", ".join(digest[:12] for digest in part["sha256"].values())
    return f"{part['name']} (sha256 {hashes})" if hashes else str(part["name"])


def _refuse_other_tokenizer(there: Tokenizer, here: Tokenizer) -> None:
    """Ids may be added behind those of the checkpoint; those it has must mean what they meant."""
    ids = here.backend.get_vocab()
    moved = sorted((number, token) for token, number in there.backend.get_vocab().items() if ids.get(token) != number)
    wrong = [
        f"token {token!r} is {number} in the checkpoint, {ids.get(token, 'none')} in the configuration" for number, token in moved
    ]
    wrong += [
        f"{role} is {getattr(there, role)} in the checkpoint, {getattr(here, role)} in the configuration"
        for role in ROLES
        if getattr(there, role) != getattr(here, role)
    ]
    if wrong:
        more = f" ({len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"the checkpoint does not fit: of the tokenizer (decoder.tokenizer), {wrong[0]}{more}")


def load_start(model: UnifiedModel, config: RunConfig, say: Callable[[str], None] = print) -> None:
    """Copy the weights that ``config.start`` names into a model as :func:`build_model` made it; without a name nothing happens.

    ``say`` and what it raises: as :func:`start_weights`.
    """
    fill(model, start_weights(model, config, say))


def start_weights(model: UnifiedModel, config: RunConfig, say: Callable[[str], None] = print) -> dict[str, Weight]:
    """The weights that ``config.start`` names, of everything in ``model`` that is not frozen; without a name none. Of ``model``
    names and shapes are used: it may be without memory. Values are read when they are asked for.

    What the checkpoint may lack (``allow_missing``) starts from scratch, also where the run's own parts are pretrained, and ``say``
    is told which it is.

    Raises UserError, one line: damaged or unknown checkpoint, names missing or unexpected; shapes, settings, frozen parts or a
    tokenizer that contradict.
    """
    if not config.start.checkpoint:
        return {}
    path = Path(config.start.checkpoint)
    frozen = tuple(f"frontend.{part}." for part in model.frontend.frozen_parts)
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(frozen)}
    components = Components(config.components_seed)
    if (path / MANIFEST).is_file():
        converted = _ours(path, config, own, components, model.frontend)
    else:
        converted = _official(path, config, own)
    drawn = initial_weights(config, components, model.decoder.config.vocab_size, converted.missing)
    say(f"started from {redacted(str(path))}: {len(converted.weights)} weights")
    if converted.missing:
        say(f"not in the checkpoint, started from scratch: {', '.join(converted.missing)}")
    return {**converted.weights, **drawn}


def _ours(path: Path, config: RunConfig, own: dict[str, Tensor], components: Components, frontend: VisualFrontEnd) -> Converted:
    problem = damage(path)
    if problem is not None:
        raise UserError(f"start.checkpoint={path} is damaged: {problem}")
    refuse_other_meaning(path, config, components, frontend)
    return match_ours(
        open_tensors(path), own, config.decoder.tie_embeddings, config.start.allow_missing, f"start.checkpoint={path}"
    )


def _official(path: Path, config: RunConfig, own: dict[str, Tensor]) -> Converted:
    tensors, _ = without_vae(without_prefix(open_tensors(path)))
    official = detect(tensors)
    refuse_contradictions({**settings_of_shapes(tensors, official, config.decoder.heads), **official.computes}, config)
    return to_ours(tensors, own, config.decoder.tie_embeddings, config.start.allow_missing, f"start.checkpoint={path}")
