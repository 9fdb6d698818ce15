"""Built components, loaded when asked for."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.components import siglip, vae
from tunalab.frontends.components.cache import components_root, folder_of, verify
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.frontends.latents import LatentCodec, load_diffusers_vae
from tunalab.frontends.loading import read_json

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

NAMES = ("tokenizer", "vae", "encoder")
TINY = "tiny"


def load_component(name: str, settings: ComponentSettings, root: Path) -> Any:
    """A fresh Tokenizer, LatentCodec or VisionTransformer.

    Raises UserError: unknown name, not built (naming the command), damaged file, or weights that do not fit.
    """
    if name not in NAMES:
        raise UserError(f"component '{name}' is not known (choices: {', '.join(NAMES)})")
    folder = folder_of(root, name, getattr(settings, name))
    verify(folder, name)
    if name == "tokenizer":
        return Tokenizer.load(folder)
    # Whatever the default device is, weights are read on the CPU and moved with the model.
    with torch.device("cpu"):
        return vae.load_vae(folder, settings.vae) if name == "vae" else siglip.load_encoder(folder, settings.encoder)


class Components:
    """Lazy access to the pretrained parts of a run.

    Every call gives a fresh module that belongs to the caller. Under ``torch.device("meta")`` modules are architectures
    without weights and nothing is read.
    """

    def __init__(self, settings: ComponentSettings | None = None, root: Path | None = None) -> None:
        """``root``: folder of built components, by default TUNALAB_COMPONENTS or ./components."""
        self.settings = settings or ComponentSettings()
        self.root = root or components_root()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = load_component("tokenizer", self.settings, self.root)
        assert isinstance(tokenizer, Tokenizer)
        return tokenizer

    def vae(self, name: str = TINY) -> LatentCodec:
        """``tiny``, or the folder of a VAE saved by diffusers. Raises UserError when there is none of that name."""
        if not name:
            raise UserError(f"frontend.vae is empty: this front-end needs one ({TINY}, or a diffusers folder)")
        if name != TINY:
            if not Path(name).is_dir():
                raise UserError(f"frontend.vae={name} is neither '{TINY}' nor a folder")
            return load_diffusers_vae(Path(name))
        if on_meta():
            config = self.settings.vae
            return vae.codec(config, vae.architecture(config), [0.0] * config.latent_channels, [1.0] * config.latent_channels)
        loaded = load_component("vae", self.settings, self.root)
        assert isinstance(loaded, LatentCodec)
        return loaded

    def encoder(self, name: str = TINY, pretrained: bool = True) -> "VisionTransformer":
        """``tiny``, or a timm VisionTransformer by name; random weights only when ``pretrained`` is False.

        Raises UserError when there is none of that name, or its weights cannot be had.
        """
        if not name:
            raise UserError(f"frontend.encoder is empty: this front-end needs one ({TINY}, or a timm model name)")
        if name != TINY:
            return timm_encoder(name, pretrained and not on_meta())
        if on_meta() or not pretrained:
            return siglip.architecture(self.settings.encoder)
        loaded: VisionTransformer = load_component("encoder", self.settings, self.root)
        return loaded

    def describe(self) -> dict[str, Any]:
        """Folder name and held-out quality of each built component, for the record of a run."""
        described = {}
        for name in NAMES:
            folder = folder_of(self.root, name, getattr(self.settings, name))
            verify(folder, name)
            described[name] = {"folder": folder.name, "quality": read_json(folder / "quality.json", f"component '{name}'")}
        return described


def timm_encoder(name: str, pretrained: bool) -> "VisionTransformer":
    """Raises UserError when timm has no such model, it is not a plain VisionTransformer, or its weights do not come."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (RuntimeError, ValueError, OSError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"frontend.encoder={name}: timm cannot build it ({reason}; or '{TINY}')") from error
    if not isinstance(model, VisionTransformer):
        raise UserError(f"frontend.encoder={name} is a {type(model).__name__}, not a plain VisionTransformer")
    return model


def on_meta() -> bool:
    return torch.get_default_device().type == "meta"
