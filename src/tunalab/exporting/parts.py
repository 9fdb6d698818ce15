"""The pretrained parts of a model that is read back: frozen ones with their weights, of the trained ones the architecture alone."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunalab.config import DecoderConfig, RunConfig
from tunalab.data.pretrained import locate
from tunalab.data.pretrained_tokenizer import pretrained_tokenizer
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.components.handle import TINY, Components
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.frontends.components.siglip import EncoderConfig
from tunalab.frontends.components.tokenizer import TokenizerConfig
from tunalab.frontends.components.vae import VaeConfig, load_vae, save_vae
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.latents import LatentCodec
from tunalab.frontends.pretrained_encoder import TRANSFORMERS
from tunalab.frontends.pretrained_vae import pretrained_vae
from tunalab.frontends.registry import frontend_class
from tunalab.frontends.siglip_transformers import read_config

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
        read_config(source, published=True).save_pretrained(str(folder / ENCODER))
    elif name not in ("", TINY) and Path(name).is_dir():
        (folder / ENCODER).mkdir()
        shutil.copyfile(Path(name) / "config.json", folder / ENCODER / "config.json")


def settings_from_plain(plain: dict[str, Any]) -> ComponentSettings:
    """The settings that ``asdict`` made plain."""
    tokenizer = TokenizerConfig(**plain["tokenizer"])
    encoder = EncoderConfig(**{**plain["encoder"], "tokenizer": tokenizer})
    return ComponentSettings(tokenizer=tokenizer, vae=VaeConfig(**plain["vae"]), encoder=encoder)
