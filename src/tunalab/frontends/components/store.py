"""The folder of built components: one sub-folder per name and configuration, written whole or not at all.

    <root>/<name>-<hash of its configuration>/   config.json, the component's own files, quality.json, manifest.json

The manifest holds the sha256 of every other file: zeroed weights load without any error otherwise.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunalab.data.tokenizer import Tokenizer, pretrained_tokenizer
from tunalab.errors import UserError
from tunalab.files import listed, sha256, write_folder
from tunalab.frontends.components import siglip, vae
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.encoder import FORMS, pretrained_encoder
from tunalab.frontends.loading import read_json
from tunalab.frontends.vae import LatentCodec, pretrained_vae
from tunalab.settings.loading import digest
from tunalab.settings.schema import DecoderConfig, RunConfig

if TYPE_CHECKING:
    from tunalab.frontends.encoder import TimmViT


MANIFEST = "manifest.json"


def components_root() -> Path:
    """TUNALAB_COMPONENTS, or ``components`` in the working directory."""
    return Path(os.environ.get("TUNALAB_COMPONENTS") or "components")


def plain(config: Any) -> dict[str, Any]:
    """A configuration dataclass as JSON would give it back."""
    loaded = json.loads(json.dumps(asdict(config)))
    assert isinstance(loaded, dict)
    return loaded


def folder_of(root: Path, name: str, config: Any) -> Path:
    return root / f"{name}-{digest(plain(config))}"


def is_built(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def write_component(folder: Path, config: Any, write: Callable[[Path], None]) -> None:
    """Create ``folder`` from what ``write`` puts into an empty one, plus configuration and manifest, whole or not at all.

    A folder without a manifest that is there already is what an older, interrupted copy left, and is replaced.
    """

    def fill(fresh: Path) -> None:
        (fresh / "config.json").write_text(json.dumps(plain(config), indent=1) + "\n", encoding="utf-8")
        write(fresh)
        sums = {path.name: sha256(path) for path in sorted(fresh.iterdir())}
        (fresh / MANIFEST).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")

    write_folder(folder, fill)


def verify(folder: Path, name: str) -> None:
    """Raises UserError, naming the component and the remedy, when it is not built or a file of it is damaged."""
    if not is_built(folder):
        raise UserError(f"component '{name}' is not built ({folder} is missing): run `tunalab components`")
    for file, expected in read_json(folder / MANIFEST, f"component '{name}'").items():
        path = folder / file
        if not path.is_file() or sha256(path) != expected:
            state = "damaged" if path.is_file() else "missing"
            raise UserError(f"component '{name}': {path} is {state}: delete {folder} and run `tunalab components`")


# Built components, loaded when asked for.

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

    def tokenizer_for(self, decoder: DecoderConfig) -> Tokenizer:
        """The tokenizer that a decoder's settings name: its own, that of its checkpoint, or the tiny one.

        Raises UserError when there is none of that name, its files are damaged, or it lacks the tokens of the decoder's chat.
        """
        if decoder.tokenizer:
            tokenizer = pretrained_tokenizer(decoder.tokenizer, "decoder.tokenizer")
        elif decoder.pretrained:
            tokenizer = pretrained_tokenizer(decoder.pretrained, "decoder.pretrained")
        else:
            tokenizer = self.tokenizer
        return tokenizer.with_chat(decoder.chat)

    def vae(self, name: str = TINY) -> LatentCodec:
        """``tiny``, or a VAE of diffusers by folder or name. Raises UserError when there is none of that name."""
        if not name:
            raise UserError(
                f"frontend.vae is empty: this front-end needs one ({TINY}, a diffusers folder, or OWNER/NAME/SUBFOLDER)"
            )
        if name != TINY:
            return pretrained_vae(name)
        if on_meta():
            config = self.settings.vae
            return vae.codec(config, vae.architecture(config), [0.0] * config.latent_channels, [1.0] * config.latent_channels)
        loaded = load_component("vae", self.settings, self.root)
        assert isinstance(loaded, LatentCodec)
        return loaded

    def encoder(self, name: str = TINY, pretrained: bool = True) -> "TimmViT":
        """``tiny``, or a ViT as frontends/encoder.py reads its name; random weights only when ``pretrained`` is False.

        Raises UserError when there is none of that name, or its weights cannot be had.
        """
        if not name:
            raise UserError(f"frontend.encoder is empty: this front-end needs one ({TINY}, {FORMS})")
        if name != TINY:
            return pretrained_encoder(name, pretrained)
        if on_meta() or not pretrained:
            return siglip.architecture(self.settings.encoder)
        loaded: TimmViT = load_component("encoder", self.settings, self.root)
        return loaded

    def describe(self, config: RunConfig | None = None) -> dict[str, Any]:
        """Folder name and held-out quality of built components, for the record of a run: of all, or of those that a run with
        a tokenizer of its own uses.
        """
        names: tuple[str, ...] = NAMES
        if config is not None and (config.decoder.tokenizer or config.decoder.pretrained):
            names = tuple(name for name in ("vae", "encoder") if getattr(config.frontend, name) == TINY)
        described = {}
        for name in names:
            folder = folder_of(self.root, name, getattr(self.settings, name))
            verify(folder, name)
            described[name] = {"folder": folder.name, "quality": read_json(folder / "quality.json", f"component '{name}'")}
        return described


def on_meta() -> bool:
    return torch.get_default_device().type == "meta"


# Where the frozen parts of a model come from: what is kept with exported weights, and compared before others start from
# them.


def frozen_origin(config: RunConfig, settings: ComponentSettings, frontend: VisualFrontEnd) -> dict[str, Any]:
    """Of each frozen part: its name in the configuration and, of a file that lies here, its hash."""
    if not frontend.frozen_parts:
        return {}
    name = config.frontend.vae
    folder = folder_of(components_root(), "vae", settings.vae) if name == TINY else Path(name)
    files = listed(folder, "*.safetensors")
    return {"vae": {"name": folder.name if name == TINY else name, "sha256": {file.name: sha256(file) for file in files}}}
