"""The pretrained parts of a model that is read back: frozen ones with their weights, of the trained ones the architecture alone."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunalab.config import RunConfig
from tunalab.data.tokenizer import QWEN25_SPECIALS, SIDECAR, Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.components.handle import TINY, Components
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.frontends.components.siglip import EncoderConfig
from tunalab.frontends.components.tokenizer import TokenizerConfig
from tunalab.frontends.components.vae import VaeConfig, load_vae, save_vae
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.latents import LatentCodec, load_diffusers_vae

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

FROZEN_VAE = "frozen/vae"


class RunParts(Components):
    """The components of a run, from where the run had them."""

    def __init__(self, settings: ComponentSettings, root: Path | None = None) -> None:
        super().__init__(settings, root)
        self._vae: LatentCodec | None = None

    def prepare(self, config: RunConfig) -> None:
        """Read the frozen parts now, before parameters are made without storage."""
        if config.frontend.name == "vae_siglip" or config.frontend.vae:
            self._vae = self.frozen_vae(config)

    def tokenizer_of(self, config: RunConfig) -> Tokenizer | None:
        """The tokenizer that the configuration names; None when it names none."""
        name = config.decoder.tokenizer or config.decoder.pretrained
        if not name:
            return None
        own = (Path(name) / SIDECAR).is_file()
        return Tokenizer.load(Path(name), None if own else QWEN25_SPECIALS)

    def frozen_vae(self, config: RunConfig) -> LatentCodec:
        return super().vae(config.frontend.vae)

    def vae(self, name: str = TINY) -> LatentCodec:
        assert self._vae is not None, "prepare() reads it"
        return self._vae

    def encoder(self, name: str = TINY, pretrained: bool = False) -> "VisionTransformer":
        return super().encoder(name, pretrained=False)


class ExportedParts(RunParts):
    """Of an exported folder: nothing outside it is read."""

    def __init__(self, folder: Path, components: dict[str, Any]) -> None:
        super().__init__(settings_from_plain(components))
        self.folder = folder

    def frozen_vae(self, config: RunConfig) -> LatentCodec:
        if config.frontend.vae == TINY:
            return load_vae(self.folder / FROZEN_VAE, self.settings.vae)
        return load_diffusers_vae(self.folder / FROZEN_VAE)


def write_frozen(folder: Path, config: RunConfig, frontend: VisualFrontEnd) -> None:
    """Put the front-end's frozen parts where :class:`ExportedParts` finds them.

    Raises UserError: a front-end with a frozen part that is no VAE, for which nobody has said how it is stored.
    """
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


def settings_from_plain(plain: dict[str, Any]) -> ComponentSettings:
    """The settings that ``asdict`` made plain."""
    tokenizer = TokenizerConfig(**plain["tokenizer"])
    encoder = EncoderConfig(**{**plain["encoder"], "tokenizer": tokenizer})
    return ComponentSettings(tokenizer=tokenizer, vae=VaeConfig(**plain["vae"]), encoder=encoder)


def architecture_config(config: RunConfig) -> RunConfig:
    """The same model, nothing of it read from where its pretrained parts once came from."""
    return replace(config, frontend=replace(config.frontend, encoder_pretrained=False))
