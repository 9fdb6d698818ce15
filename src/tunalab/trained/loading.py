"""The pretrained parts of a model that is read back: frozen ones with their weights, of the trained ones the architecture alone."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from torch import Tensor

from tunalab.data.pretrained import locate
from tunalab.data.tokenizer import Tokenizer, pretrained_tokenizer
from tunalab.errors import UserError
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.frontends.components.siglip import EncoderConfig
from tunalab.frontends.components.store import TINY, Components, frozen_origin
from tunalab.frontends.components.tokenizer import TokenizerConfig
from tunalab.frontends.components.vae import VaeConfig, load_vae, save_vae
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.encoder import TRANSFORMERS
from tunalab.frontends.loading import check_fit
from tunalab.frontends.registry import frontend_class
from tunalab.frontends.siglip_transformers import read_siglip_config
from tunalab.frontends.vae import LatentCodec, pretrained_vae
from tunalab.model.unified import UnifiedModel, build_model
from tunalab.official.weights import architecture_config
from tunalab.records.record import CONFIG_FILE
from tunalab.settings.schema import DecoderConfig, RunConfig, config_hash, read_config
from tunalab.trained.folder import TOKENIZER, About, check_tokenizer, read_about, read_weights, write_export
from tunalab.training.checkpoints import MANIFEST, CheckpointStore
from tunalab.training.state import learnt_weights, refuse_foreign

if TYPE_CHECKING:
    from tunalab.frontends.encoder import TimmViT


FROZEN_VAE, ENCODER = "frozen/vae", "encoder"


class RunParts(Components):
    """The components of a run, from where the run had them."""

    def __init__(self, settings: ComponentSettings, root: Path | None = None) -> None:
        super().__init__(settings, root)
        self._vae: LatentCodec | None = None

    def prepare(self, config: RunConfig) -> None:
        """Read the frozen parts now, before parameters are made without storage."""
        if "vae" in frontend_class(config.frontend.name).frozen_parts:
            self._vae = self.frozen_vae(config)

    def own_tokenizer(self, decoder: DecoderConfig) -> Tokenizer | None:
        """Of a checkpoint that was trained elsewhere: the tokenizer that the settings name, as it is; None when they name none.

        Raises UserError when there is none of that name, or it lacks the image tokens: ids of new ones would mean nothing.
        """
        name = decoder.tokenizer or decoder.pretrained
        return pretrained_tokenizer(name, "decoder.tokenizer", add=False).with_chat(decoder.chat) if name else None

    def frozen_vae(self, config: RunConfig) -> LatentCodec:
        return super().vae(config.frontend.vae)

    def vae(self, name: str = TINY) -> LatentCodec:
        assert self._vae is not None, "prepare() reads it"
        return self._vae

    def encoder(self, name: str = TINY, pretrained: bool = False) -> "TimmViT":
        return super().encoder(name, pretrained=False)


class ExportedParts(RunParts):
    """Of an exported folder: nothing outside it is read."""

    def __init__(self, folder: Path, components: dict[str, Any]) -> None:
        super().__init__(settings_from_plain(components))
        self.folder = folder

    def frozen_vae(self, config: RunConfig) -> LatentCodec:
        if config.frontend.vae == TINY:
            return load_vae(self.folder / FROZEN_VAE, self.settings.vae)
        return pretrained_vae(str(self.folder / FROZEN_VAE))

    def encoder(self, name: str = TINY, pretrained: bool = False) -> "TimmViT":
        own = self.folder / ENCODER
        return super().encoder(str(own) if own.is_dir() else name, pretrained)


def write_parts(folder: Path, config: RunConfig, frontend: VisualFrontEnd) -> None:
    """Put the front-end's frozen parts, and what its architecture is read from, where :class:`ExportedParts` finds them.

    Raises UserError: a front-end with a frozen part that is no VAE, for which nobody has said how it is stored.
    """
    write_encoder_config(folder, config)
    for part in frontend.frozen_parts:
        codec = frontend.get_submodule(part)
        if not isinstance(codec, LatentCodec):
            raise UserError(f"frozen part '{part}' of {type(frontend).__name__} cannot be exported: it is no VAE")
        target = folder / FROZEN_VAE
        target.mkdir(parents=True)
        if config.frontend.vae == TINY:
            save_vae(target, codec)
        else:
            codec.vae.save_pretrained(str(target))  # type: ignore[operator]


def write_encoder_config(folder: Path, config: RunConfig) -> None:
    """What the encoder's architecture is read from, where its name alone does not say it."""
    name = config.frontend.encoder
    if name.startswith(TRANSFORMERS):
        source = locate(name.removeprefix(TRANSFORMERS), "frontend.encoder", TRANSFORMERS)
        read_siglip_config(source, published=True).save_pretrained(str(folder / ENCODER))
    elif name not in ("", TINY) and Path(name).is_dir():
        (folder / ENCODER).mkdir()
        shutil.copyfile(Path(name) / "config.json", folder / ENCODER / "config.json")


def settings_from_plain(plain: dict[str, Any]) -> ComponentSettings:
    """The settings that ``asdict`` made plain."""
    tokenizer = TokenizerConfig(**plain["tokenizer"])
    encoder = EncoderConfig(**{**plain["encoder"], "tokenizer": tokenizer})
    return ComponentSettings(tokenizer=tokenizer, vae=VaeConfig(**plain["vae"]), encoder=encoder)


# A model put together from its configuration, its frozen parts and its learnt weights, without any random start.
#
# Parameters are made without storage and replaced by the loaded tensors: at full scale a start that is thrown away
# would cost as much memory as the model. Buffers are computed as always.

# With tied embeddings the output table is another name of the input table, stored once.
TIED, TABLE = "decoder.lm_head.weight", "decoder.model.embed_tokens.weight"


def assemble(config: RunConfig, parts: RunParts, vocabulary: int, weights: Mapping[str, Tensor], what: str) -> UnifiedModel:
    """The model in evaluation mode, on the CPU, in float32. ``weights``: what is learnt, by our names; a tied table once or twice.

    Raises UserError when a name or a shape does not fit, listing both sides; ``what`` names where the weights come from.
    """
    parts.prepare(config)
    with init_empty_weights(include_buffers=False):
        model = build_model(architecture_config(config), parts, vocabulary)
    own, learnt = model.state_dict(), learnt_state(model)
    # Copied even where nothing is converted: tensors lie in files at any address, and on a CPU the last bit of a product depends on
    # how its factors are aligned.
    given = {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()}
    if config.decoder.tie_embeddings and TABLE in given:
        given[TIED] = given[TABLE]
    check_fit(learnt, given, what)
    model.load_state_dict({**own, **given}, assign=True)
    model.decoder.tie_weights()
    return model.eval()


def learnt_state(model: UnifiedModel) -> dict[str, Tensor]:
    """The model's state without the front-end's frozen parts."""
    frozen = tuple(f"frontend.{part}." for part in model.frontend.frozen_parts)
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(frozen)}


def stored_once(config: RunConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights to be written: a tied table under its first name alone."""
    return {name: tensor for name, tensor in weights.items() if not (config.decoder.tie_embeddings and name == TIED)}


# A model ready for use, in one call: from an exported folder, or from the directory of a run.


@dataclass(frozen=True, eq=False)
class Loaded:
    """``model`` in evaluation mode and float32, on the device asked for, with the tokenizer and the configuration it learnt with.

    ``origin``, plain: the run or checkpoint it comes from, which weights (averaged | raw | official), steps, tokens.
    """

    model: UnifiedModel
    tokenizer: Tokenizer
    config: RunConfig
    origin: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """Which model it is, plain, the same from a run and from its export: what is kept beside everything that it makes.

        An official checkpoint does not say how long it was trained: its ``steps`` and ``tokens`` are None.
        """
        return {
            "name": self.origin["run"] if "run" in self.origin else self.origin["checkpoint"],
            "config_hash": config_hash(self.config),
            "revision": self.config.revision,
            "weights": self.origin["weights"],
            "steps": self.origin.get("steps"),
            "tokens": self.origin.get("tokens"),
        }


def load(path: Path, device: str | torch.device = "cpu", raw: bool = False) -> Loaded:
    """An exported folder or a run directory, whichever ``path`` is. ``raw``: the weights that go on training, not their averages.

    Raises UserError as the two functions below do, and for ``raw`` of an export of averaged weights.
    """
    if not is_export(path):
        return load_run(path, device, raw)
    if raw and (held := read_about(path).origin["weights"]) != "raw":
        raise UserError(f"{path} holds {held} weights alone: raw ones have the run's directory, and exports made with --raw")
    return load_exported(path, device)


def model_config(path: Path) -> RunConfig:
    """The configuration of an exported folder or a run directory, without its weights. Raises UserError as :func:`load`."""
    is_export(path)
    return read_config(path / CONFIG_FILE)


def is_export(path: Path) -> bool:
    """Whether ``path`` is an exported folder rather than a run directory. Raises UserError when it is neither."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder (a model is a run directory or an exported folder)")
    if not (path / MANIFEST).is_file() and not (path / CONFIG_FILE).is_file():
        raise UserError(
            f"{path} is neither an exported folder ({MANIFEST} is missing) nor a run directory ({CONFIG_FILE} is missing)"
        )
    return (path / MANIFEST).is_file()


def load_weights(path: Path) -> tuple[RunConfig, dict[str, Tensor], list[str]]:
    """Of an exported folder or a run directory: configuration, learnt weights by our names (a tied table once), and the names
    of those that started from scratch where the checkpoint lacked them. Raises UserError as :func:`load`.
    """
    if is_export(path):
        about = read_about(path)
        return model_config(path), read_weights(path), about.initialised
    config = model_config(path)
    return config, stored_once(config, learnt_weights(newest_checkpoint(path, config)).weights), []


def load_exported(folder: Path, device: str | torch.device = "cpu") -> Loaded:
    """The model that `tunalab export` or `tunalab convert` wrote. Nothing outside the folder is read.

    Raises UserError, one line: no such folder, a file is missing or was altered, weights do not fit the configuration (both
    sides listed), the tokenizer is missing or lacks image tokens.
    """
    about = read_about(folder)
    config = read_config(folder / CONFIG_FILE)
    if not (folder / TOKENIZER).is_dir():
        raise UserError(f"{folder} holds no tokenizer: convert the checkpoint again with decoder.tokenizer=FOLDER")
    tokenizer = Tokenizer.load(folder / TOKENIZER).with_chat(config.decoder.chat)
    check_tokenizer(tokenizer, about.vocabulary, str(folder))
    parts = ExportedParts(folder, about.components)
    model = assemble(config, parts, about.vocabulary, read_weights(folder), str(folder))
    return Loaded(model.to(device), tokenizer, config, about.origin)


def load_run(run_dir: Path, device: str | torch.device = "cpu", raw: bool = False) -> Loaded:
    """The model of a run at its newest undamaged checkpoint: the averaged weights, or with ``raw`` those that go on training.

    Raises UserError, one line: no run there, no undamaged checkpoint, a component is missing, weights do not fit.
    """
    if not (run_dir / CONFIG_FILE).is_file():
        raise UserError(f"{run_dir} is not a run directory ({CONFIG_FILE} is missing)")
    config = read_config(run_dir / CONFIG_FILE)
    newest = newest_checkpoint(run_dir, config)
    parts = RunParts(ComponentSettings.seeded(config.components_seed))
    tokenizer = parts.tokenizer_for(config.decoder)
    learnt = learnt_weights(newest, raw)
    model = assemble(config, parts, tokenizer.vocabulary, learnt.weights, str(newest))
    origin = {
        "run": run_dir.resolve().name,
        "config_hash": config_hash(config),
        "weights": "raw" if raw else "averaged",
        "steps": learnt.steps,
        "tokens": learnt.tokens,
    }
    return Loaded(model.to(device), tokenizer, config, origin)


def newest_checkpoint(run_dir: Path, config: RunConfig) -> Path:
    """The newest undamaged checkpoint of a run; damaged ones are named.

    Raises UserError when there is none, or it is of a run with other settings.
    """
    store = CheckpointStore(run_dir / "checkpoints")
    newest = store.newest_valid(warn=lambda line: print(f"warning: {line}", file=sys.stderr, flush=True))
    if newest is None:
        state = "every checkpoint in it is damaged" if store.steps() else "it holds no checkpoint"
        raise UserError(f"run {run_dir} cannot be loaded: {state}")
    refuse_foreign(newest, config)
    return newest


# `tunalab export`: the model of a run as a folder that stands alone.


def export_run(run_dir: Path, folder: Path, raw: bool = False) -> None:
    """Write the model of a run, at its newest undamaged checkpoint, into ``folder``, which must not exist.

    Averaged weights, or with ``raw`` those that go on training. The folder is whole or not there, and needs nothing else:
    tokenizer and frozen parts are copied into it. Raises UserError as :func:`load_run`, and when ``folder`` is there.
    """
    loaded = load_run(run_dir, raw=raw)
    config, model = loaded.config, loaded.model
    settings = ComponentSettings.seeded(config.components_seed)
    about = About(
        origin=loaded.origin,
        vocabulary=model.decoder.config.vocab_size,
        components=asdict(settings),
        frozen=frozen_origin(config, settings, model.frontend),
        initialised=[],
    )
    write_export(
        folder,
        about,
        config,
        stored_once(config, learnt_state(model)),
        loaded.tokenizer,
        lambda fresh: write_parts(fresh, config, model.frontend),
    )
