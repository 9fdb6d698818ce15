"""An exported folder, whole or not there, every file of it known by its hash; and the model put together from its parts.

- model.safetensors: learnt weights by our names (above 5 GB shards, and model.safetensors.index.json)
- config.yaml: the configuration
- tokenizer/: as transformers saves it, with the names of the image tokens
- frozen/vae/: the frozen VAE, where the front-end has one
- encoder/config.json: the encoder's architecture, where it does not follow from its name
- manifest.json: where it all comes from, and the size and hash of every other file
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor

from tunalab.data.pretrained import locate
from tunalab.data.tokenizer import Tokenizer, pretrained_tokenizer
from tunalab.errors import UserError
from tunalab.frontends.components import siglip, vae
from tunalab.frontends.components.siglip import EncoderConfig
from tunalab.frontends.components.store import TINY, Component, Components, frozen_origin
from tunalab.frontends.components.vae import VaeConfig
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.encoder import TRANSFORMERS, read_siglip_config
from tunalab.frontends.loading import check_fit, load_strictly, read_json, read_safetensors
from tunalab.frontends.registry import frontend_class
from tunalab.frontends.vae import LatentCodec, pretrained_vae
from tunalab.model.unified import UnifiedModel, build_model
from tunalab.official.layout import INDEX, read_tensors
from tunalab.official.weights import architecture_config
from tunalab.records.record import CONFIG_FILE
from tunalab.redaction import redacted_settings
from tunalab.settings.loading import to_yaml
from tunalab.settings.schema import DecoderConfig, RunConfig
from tunalab.training.checkpoints import MANIFEST, damage, write_whole

if TYPE_CHECKING:
    from tunalab.frontends.encoder import TimmViT

TOKENIZER, WEIGHTS = "tokenizer", "model.safetensors"
FORMAT = 1
MAX_SHARD = "5GB"


@dataclass(frozen=True)
class About:
    """What the manifest says besides the files.

    ``origin``: the run or the checkpoint that the weights come from, which of them they are, and how far it was.
    ``vocabulary``: rows of the embedding table. ``components``: configurations of the tiny parts, by which they are built.
    ``frozen``: of each frozen part the name it has in the configuration and, where there is one, the hash of its files there.
    ``initialised``: weights that were not in the checkpoint and start from scratch.
    """

    origin: dict[str, Any]
    vocabulary: int
    components: dict[str, Any]
    frozen: dict[str, Any]
    initialised: list[str]
    format: int = FORMAT


def write_export(
    folder: Path,
    about: About,
    config: RunConfig,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer | None,
    parts: "RunParts",
    frontend: VisualFrontEnd,
) -> None:
    """Write ``folder``, whole or not at all, with what ``parts`` put there of ``frontend``.

    Raises UserError when something is there already: an export is never written over.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already: choose another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)

    def write(fresh: Path) -> None:
        save_torch_state_dict(dict(weights), fresh, max_shard_size=MAX_SHARD)
        (fresh / CONFIG_FILE).write_text(to_yaml(config), encoding="utf-8")
        if tokenizer is not None:
            (fresh / TOKENIZER).mkdir()
            tokenizer.save(fresh / TOKENIZER)
        parts.write(fresh, config, frontend)

    write_whole(folder, write, {"tunalab": redacted_settings(asdict(about))})


def check_tokenizer(tokenizer: Tokenizer, vocabulary: int, what: str) -> None:
    """Raises UserError when a tokenizer has more ids than the embedding table has rows."""
    if tokenizer.vocabulary > vocabulary:
        raise UserError(
            f"{what}: the tokenizer has {tokenizer.vocabulary} ids, the model's table {vocabulary}: not the model's own"
        )


def read_about(folder: Path) -> About:
    """The manifest of an undamaged export.

    Raises UserError: no export there, another format, a file missing, truncated or altered.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is not an exported folder ({MANIFEST} is missing)")
    problem = damage(folder)
    if problem is not None:
        raise UserError(f"export {folder} is damaged: {problem}")
    plain = read_json(folder / MANIFEST, f"export {folder}").get("tunalab")
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise UserError(f"{folder} is not an exported folder of format {FORMAT} (its {MANIFEST} says otherwise)")
    expected = {field.name for field in fields(About)}
    if plain.keys() != expected:
        raise UserError(f"export {folder} is damaged: {MANIFEST} differs in {', '.join(sorted(plain.keys() ^ expected))}")
    return About(**plain)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The learnt weights, by our names, of an export that :func:`read_about` found undamaged."""
    listed = read_json(folder / MANIFEST, f"export {folder}")["files"]
    name = f"model{INDEX}" if f"model{INDEX}" in listed else WEIGHTS
    return read_tensors(folder / name)


FROZEN_VAE, ENCODER = "frozen/vae", "encoder"
VAE_WEIGHTS, STATISTICS = "vae.safetensors", "latents.json"


class RunParts(Components):
    """The components of a run, from where the run had them."""

    def __init__(self, seed: int = 0, vae: Component | None = None) -> None:
        super().__init__(seed, vae)
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

    def frozen_vae(self, run: RunConfig) -> LatentCodec:
        return super().vae(run.frontend.vae)

    def vae(self, name: str = TINY) -> LatentCodec:
        assert self._vae is not None, "prepare() reads it"
        return self._vae

    def encoder(self, name: str = TINY, pretrained: bool = False) -> "TimmViT":
        return super().encoder(name, pretrained=False)

    def about(self, config: RunConfig, model: UnifiedModel, origin: dict[str, Any]) -> About:
        """What the manifest of an export of ``model`` says."""
        return About(
            origin=origin,
            vocabulary=model.decoder.config.vocab_size,
            components={kind: one.entry["config"] for kind, one in self.used(config).items() if kind != "tokenizer"},
            frozen=frozen_origin(config, self, model.frontend),
            initialised=[],
        )

    def write(self, folder: Path, config: RunConfig, frontend: VisualFrontEnd) -> None:
        """Put what an export holds besides weights and tokenizer where :class:`ExportedParts` finds it."""
        self.write_encoder_config(folder, config)
        self.write_frozen(folder, config, frontend)

    def write_frozen(self, folder: Path, config: RunConfig, frontend: VisualFrontEnd) -> None:
        """Raises UserError: a front-end with a frozen part that is no VAE, for which there is no way to store."""
        for part in frontend.frozen_parts:
            codec = frontend.get_submodule(part)
            if not isinstance(codec, LatentCodec):
                raise UserError(f"frozen part '{part}' of {type(frontend).__name__} cannot be exported: it is no VAE")
            target = folder / FROZEN_VAE
            target.mkdir(parents=True)
            if self.find("vae", config.frontend.vae):
                save_file({name: tensor.contiguous() for name, tensor in codec.vae.state_dict().items()}, target / VAE_WEIGHTS)
                statistics = {"mean": codec.mean_C.tolist(), "std": codec.std_C.tolist()}
                (target / STATISTICS).write_text(json.dumps(statistics, indent=1) + "\n", encoding="utf-8")
            else:
                codec.vae.save_pretrained(str(target))  # type: ignore[operator]

    def write_encoder_config(self, folder: Path, config: RunConfig) -> None:
        """The encoder's architecture, where it follows neither from its name nor from the manifest."""
        name = config.frontend.encoder
        if name.startswith(TRANSFORMERS):
            source = locate(name.removeprefix(TRANSFORMERS), "frontend.encoder", TRANSFORMERS)
            read_siglip_config(source, published=True).save_pretrained(str(folder / ENCODER))
        elif name and not self.find("encoder", name) and Path(name).is_dir():
            (folder / ENCODER).mkdir()
            shutil.copyfile(Path(name) / "config.json", folder / ENCODER / "config.json")


class ExportedParts(RunParts):
    """Of an exported folder: nothing outside it is read. ``exported``: what its manifest says."""

    def __init__(self, folder: Path, exported: About) -> None:
        super().__init__()
        self.folder = folder
        self.exported = exported

    def find(self, kind: str, given: str) -> Component | None:
        held = self.exported.components
        ours = given == TINY if "tokenizer" in held else bool(given)  # earlier versions put all three there, whether used or not
        return Component(self.folder, kind, {"config": held[kind]}) if ours and kind in held else None

    def about(self, config: RunConfig, model: UnifiedModel, origin: dict[str, Any]) -> About:
        return self.exported

    def write(self, folder: Path, config: RunConfig, frontend: VisualFrontEnd) -> None:
        if (self.folder / ENCODER).is_dir():
            shutil.copytree(self.folder / ENCODER, folder / ENCODER)
        self.write_frozen(folder, config, frontend)

    def frozen_vae(self, run: RunConfig) -> LatentCodec:
        if not (self.folder / FROZEN_VAE / STATISTICS).is_file():
            return pretrained_vae(str(self.folder / FROZEN_VAE))
        config = known(VaeConfig, self.exported.components["vae"])
        network = vae.architecture(config)
        what = f"export {self.folder}"
        load_strictly(network, read_safetensors(self.folder / FROZEN_VAE / VAE_WEIGHTS, what), what)
        statistics = read_json(self.folder / FROZEN_VAE / STATISTICS, what)
        return vae.codec(config, network.eval().requires_grad_(False), statistics["mean"], statistics["std"])

    def encoder(self, name: str = TINY, pretrained: bool = False) -> "TimmViT":
        own = self.folder / ENCODER
        tiny = self.find("encoder", name)
        if tiny and not own.is_dir():
            return siglip.architecture(known(EncoderConfig, tiny.entry["config"]))
        return super().encoder(str(own) if own.is_dir() else name, pretrained)


def known(kind: Any, plain: dict[str, Any]) -> Any:
    """A configuration of a component as an export of this or an earlier version holds it: how it was trained does not matter."""
    names = {field.name for field in fields(kind)} - {"snapshots"}
    return kind(**{name: value for name, value in plain.items() if name in names})


# With tied embeddings the output table is another name of the input table, stored once.
TIED, TABLE = "decoder.lm_head.weight", "decoder.model.embed_tokens.weight"


def assemble(config: RunConfig, parts: RunParts, vocabulary: int, weights: Mapping[str, Tensor], what: str) -> UnifiedModel:
    """The model put together from its parts, in evaluation mode, on the CPU, in float32.

    ``weights``: what is learnt, by our names; a tied table once or twice. ``what`` names where they come from.

    Raises UserError when a name or a shape does not fit, listing both sides.
    """
    parts.prepare(config)
    # Without storage: at full scale a random start that is thrown away would cost as much memory as the model.
    with init_empty_weights(include_buffers=False):
        model = build_model(architecture_config(config), parts, vocabulary)
    own, learnt = model.state_dict(), learnt_state(model)
    # Copied even where nothing is converted: tensors lie in files at any address, and on a CPU the last bit of a product depends on
    # how its factors are aligned.
    given = {
        name: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)  # a buffer may hold places
        for name, tensor in weights.items()
    }
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
