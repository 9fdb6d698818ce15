"""What the weights of an exported folder mean beyond their shapes: settings, frozen parts and tokenizer that they learnt with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunalab.config import RunConfig, read_config
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.components.handle import Components
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.loading import read_json
from tunalab.frontends.origin import frozen_origin
from tunalab.official.configuration import refuse_contradictions, setting
from tunalab.results.records import CONFIG_FILE
from tunalab.training.checkpoints import MANIFEST

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


def refuse_other_meaning(folder: Path, config: RunConfig, components: Components, frontend: VisualFrontEnd) -> None:
    """Raises UserError, one line with both sides, where a run would read the weights of an undamaged export as something else."""
    trained = read_config(folder / CONFIG_FILE)
    refuse_contradictions({key: setting(trained, key) for key in SETTINGS}, config)
    manifest = read_json(folder / MANIFEST, f"start.checkpoint={folder}")
    if not isinstance(manifest.get("tunalab"), dict):
        raise UserError(f"start.checkpoint={folder} is not an exported folder (its {MANIFEST} says otherwise)")
    _refuse_other_frozen(folder, manifest, frozen_origin(config, components.settings, frontend))
    if (folder / "tokenizer").is_dir():
        _refuse_other_tokenizer(Tokenizer.load(folder / "tokenizer"), components.tokenizer_for(config.decoder))


def _refuse_other_frozen(folder: Path, manifest: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """A frozen part is the same by the hashes of its files: those it had where it came from, or those of its copy in the export.

    By its name where no file lies here, or none lay there: on the Hub.
    """
    for part, there in manifest["tunalab"]["frozen"].items():
        mine = here[part]
        held, known = set(mine["sha256"].values()), set(there["sha256"].values())
        copies = {
            entry["sha256"]
            for name, entry in manifest["files"].items()
            if name.startswith(f"frozen/{part}/") and name.endswith(".safetensors")
        }
        same = held in (known, copies) if held and (known or mine["name"] != there["name"]) else mine["name"] == there["name"]
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
