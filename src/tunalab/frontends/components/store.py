"""The tiny tokenizer, VAEs and encoders by name: those that come with tunalab, and a user's own.

A collection is a folder with an index:

    index.json                       name -> file, sha256, configuration, what its training saw, took and reached
    tokenizer-<hash>/                a name is "tokenizer", "vae/seed0" or "encoder/seed0@3000"
    vae-<hash>.safetensors           half precision: it becomes float32 when it is read, so that every machine computes with
    encoder-<hash>.safetensors       the same numbers

`tiny` comes with the package. Others lie in TUNALAB_COMPONENTS, by default ``components`` in the working directory, or anywhere by
path; `tunalab components train` makes them. A setting names a component as COLLECTION, COLLECTION/seed1 or COLLECTION/seed1@3000:
without a seed it is the run's ``components_seed``, without a number of steps the longest training.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor, nn

from tunalab.data.tokenizer import Tokenizer, pretrained_tokenizer
from tunalab.errors import UserError, first_line
from tunalab.files import below, listed, remove, sha256, whole_folder, write_atomically
from tunalab.frontends.components import siglip, vae
from tunalab.frontends.components.siglip import EncoderConfig
from tunalab.frontends.components.vae import VaeConfig
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.encoder import FORMS, pretrained_encoder
from tunalab.frontends.loading import load_strictly, read_json, read_safetensors
from tunalab.frontends.vae import LatentCodec, pretrained_vae
from tunalab.settings.schema import DecoderConfig, RunConfig

if TYPE_CHECKING:
    from tunalab.frontends.encoder import TimmViT

TINY = "tiny"
SHIPPED = Path(__file__).parent / "shipped"
INDEX = "index.json"
_REFERENCE = re.compile(r"(?P<collection>.+?)(/seed(?P<seed>\d+))?(@(?P<steps>\d+))?$")


def components_root() -> Path:
    """TUNALAB_COMPONENTS, or ``components`` in the working directory: where a user's own collections lie."""
    return Path(os.environ.get("TUNALAB_COMPONENTS") or "components")


@dataclass(frozen=True)
class Component:
    """``name`` in the index of ``folder``, and what stands there of it."""

    folder: Path
    name: str
    entry: dict[str, Any]

    @property
    def path(self) -> Path:
        path = below(self.folder, str(self.entry.get("file", "")), links=True)
        if path is None:
            raise UserError(f"component '{self.name}': {self.folder / INDEX} names no file in its folder")
        return path

    def verified(self) -> Path:
        """The path of its file. Raises UserError when that is missing or damaged: zeroed weights load without any error."""
        if not self.path.exists() or content_hash(self.path) != self.entry.get("sha256"):
            state = "damaged" if self.path.exists() else "missing"
            remedy = "install tunalab again" if self.folder == SHIPPED else "train it again with `tunalab components train`"
            raise UserError(f"component '{self.name}': {self.path} is {state}: {remedy}")
        return self.path


def content_hash(path: Path) -> str:
    """The sha256 of a file; of a folder that of its files' names and hashes."""
    if path.is_file():
        return sha256(path)
    lines = [f"{file.name} {sha256(file)}\n" for file in sorted(path.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Collection:
    """The components of one folder. Raises UserError when there is no index, or a broken one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, dict[str, Any]] = read_json(folder / INDEX, f"components in {folder}")
        if not all(isinstance(entry, dict) for entry in self.index.values()):
            raise UserError(f"components in {folder}: {INDEX} is damaged (an entry is no JSON object)")

    def names(self, kind: str) -> list[str]:
        """Those of a kind: "vae", "encoder"."""
        return [name for name in self.index if name.partition("/")[0] == kind]

    def component(self, name: str) -> Component:
        return Component(self.folder, name, self.index[name])

    def seeds(self, kind: str) -> list[int]:
        return sorted({int(name.partition("@")[0].removeprefix(f"{kind}/seed")) for name in self.names(kind)})

    def find(self, kind: str, seed: int, steps: int | None) -> Component | None:
        """``steps``: of the snapshot, None for the last one."""
        found = {self.steps(name): name for name in self.names(kind) if name.partition("@")[0] == f"{kind}/seed{seed}"}
        name = found.get(max(found, default=0) if steps is None else steps)
        return None if name is None else self.component(name)

    @staticmethod
    def steps(name: str) -> int:
        return int(name.partition("@")[2] or 0)


def collections() -> dict[str, Collection]:
    """The collection that comes with tunalab, and those in :func:`components_root`, by name."""
    folders = {path.parent.name: path.parent for path in sorted(components_root().glob(f"*/{INDEX}"))}
    return {name: Collection(folder) for name, folder in {TINY: SHIPPED, **folders}.items()}


def find_component(kind: str, given: str, seed: int, setting: str) -> Component | None:
    """The component that a setting names; None where ``given`` names no collection at all, such as a model of timm.

    Without a seed of its own it is number ``seed`` of the collection's, counted around: with ``components_seed: ${seed}`` run
    seed s uses encoder s mod 3 and VAE s mod 2 of the shipped ones.

    Raises UserError naming the seeds and snapshots that there are.
    """
    match = _REFERENCE.match(given)
    if match is None:
        return None
    folders = [components_root() / match["collection"], Path(match["collection"])]
    if match["collection"] == TINY:
        folders = [components_root() / TINY, SHIPPED]
    folder = next((folder for folder in folders if (folder / INDEX).is_file()), None)
    if folder is None:
        return None
    collection = Collection(folder)
    seeds = collection.seeds(kind)
    if match["seed"] is not None:
        seed = int(match["seed"])
    elif seeds:
        seed = seeds[seed % len(seeds)]
    found = collection.find(kind, seed, None if match["steps"] is None else int(match["steps"]))
    if found is None:
        choices = ", ".join(f"{match['collection']}/{name.partition('/')[2]}" for name in collection.names(kind))
        raise UserError(f"{setting}={given}: no such {kind} (choices: {choices or 'none'})")
    return found


def store(folder: Path, name: str, content: dict[str, Tensor] | Tokenizer, about: dict[str, Any]) -> None:
    """Put weights (in half precision) or a tokenizer into a collection, in a file named by its hash; ``about``: for the index."""
    kind, suffix = name.partition("/")[0], ".safetensors" if isinstance(content, dict) else ""
    staging = folder / f".{name.replace('/', '-')}"  # of its own, as other seeds may be stored at the same time
    with whole_folder(staging) as fresh:
        made = fresh / kind
        if isinstance(content, dict):
            save_file({key: tensor.detach().to("cpu", torch.float16).contiguous() for key, tensor in content.items()}, made)
        else:
            made.mkdir()
            content.save(made)
    made = staging / kind
    digest = content_hash(made)
    file = f"{kind}-{digest[:12]}{suffix}"
    if not (folder / file).exists():
        os.replace(made, folder / file)
    remove(staging)
    with FileLock(folder / ".index.lock"):
        index = Collection(folder).index if (folder / INDEX).is_file() else {}
        index[name] = {"file": file, "sha256": digest, **about}
        write_atomically(folder / INDEX, json.dumps(dict(sorted(index.items(), key=_order)), indent=1) + "\n")


def _order(item: tuple[str, Any]) -> tuple[str, int]:
    name, _, steps = item[0].partition("@")
    return name, int(steps or 0)


def encoder_weights(config: EncoderConfig, tower: nn.Module) -> dict[str, Tensor]:
    """A trained image tower without its pooling."""
    kept = siglip.architecture(config).state_dict()
    return {name: tensor for name, tensor in tower.state_dict().items() if name in kept}


def _float32(path: Path, what: str) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in read_safetensors(path, what).items()}


def load_encoder(component: Component, pretrained: bool = True) -> "TimmViT":
    """The image tower, without pooling; on the meta device without weights, with random ones unless ``pretrained``."""
    with _reading(component):
        vit = siglip.architecture(EncoderConfig(**_tuples(component.entry["config"])))
    if pretrained and not on_meta():
        what = f"component '{component.name}' in {component.folder}"
        load_strictly(vit, _float32(component.verified(), what), what)
    return vit


def load_vae(component: Component) -> LatentCodec:
    """The codec; on the meta device without weights."""
    with _reading(component):
        config = VaeConfig(**component.entry["config"])
        network = vae.architecture(config)
        codec = vae.codec(config, network.eval().requires_grad_(False), component.entry["mean"], component.entry["std"])
    if not on_meta():
        what = f"component '{component.name}' in {component.folder}"
        load_strictly(network, _float32(component.verified(), what), what)
    return codec


@contextmanager
def _reading(component: Component) -> Iterator[None]:
    """Whatever a damaged entry of an index leads to is one line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise UserError(f"component '{component.name}': {component.folder / INDEX} is damaged ({first_line(error)})") from error


def _tuples(config: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}


def plain(config: Any) -> dict[str, Any]:
    """A configuration dataclass as JSON would give it back."""
    loaded = json.loads(json.dumps(asdict(config)))
    assert isinstance(loaded, dict)
    return loaded


def on_meta() -> bool:
    return torch.get_default_device().type == "meta"


class Components:
    """Lazy access to the pretrained parts of a run.

    Every call gives a fresh module that belongs to the caller. Under ``torch.device("meta")`` modules are architectures
    without weights and no weights are read.
    """

    def __init__(self, seed: int = 0, vae: Component | None = None) -> None:
        """``seed``: of the components whose name gives none (the run's ``components_seed``). ``vae``: instead of the one that the
        settings name (:func:`earlier_vae`).
        """
        self.seed = seed
        self._vae_instead = vae

    def find(self, kind: str, given: str) -> Component | None:
        """As :func:`find_component`."""
        instead = self._vae_instead if kind == "vae" else None
        return instead or find_component(kind, given, self.seed, f"frontend.{kind}")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(tiny_tokenizer().verified())

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
        """One of a collection, or a VAE of diffusers by folder or name. Raises UserError when there is none of that name."""
        if not name:
            raise UserError(
                f"frontend.vae is empty: this front-end needs one ({TINY}, a diffusers folder, or OWNER/NAME/SUBFOLDER)"
            )
        component = self.find("vae", name)
        return load_vae(component) if component else pretrained_vae(name)

    def encoder(self, name: str = TINY, pretrained: bool = True) -> "TimmViT":
        """One of a collection, or a ViT as frontends/encoder.py reads its name; random weights only when ``pretrained`` is False.

        Raises UserError when there is none of that name, or its weights cannot be had.
        """
        if not name:
            raise UserError(f"frontend.encoder is empty: this front-end needs one ({TINY}, {FORMS})")
        component = self.find("encoder", name)
        return load_encoder(component, pretrained) if component else pretrained_encoder(name, pretrained)

    def used(self, config: RunConfig) -> dict[str, Component]:
        """The components of collections that a run uses, by kind."""
        found = {} if config.decoder.tokenizer or config.decoder.pretrained else {"tokenizer": tiny_tokenizer()}
        for kind in ("vae", "encoder"):
            name = getattr(config.frontend, kind)
            if name and (component := self.find(kind, name)):
                found[kind] = component
        return found

    def describe(self, config: RunConfig) -> dict[str, Any]:
        """Name, file and held-out quality of the components that a run uses, for its record."""
        return {
            kind: {"name": one.name, "folder": one.verified().name, "quality": one.entry.get("quality", {})}
            for kind, one in self.used(config).items()
        }


def tiny_tokenizer() -> Component:
    """That of a user's own collection "tiny" where it has one, else the shipped one."""
    own = components_root() / TINY
    collection = Collection(own) if (own / INDEX).is_file() else Collection(SHIPPED)
    return (collection if "tokenizer" in collection.index else Collection(SHIPPED)).component("tokenizer")


def earlier_vae(folder: Path) -> Component:
    """A VAE that an earlier version trained into a folder of its own: config.json, vae.safetensors, latents.json, manifest.json."""
    what = f"component 'vae' in {folder}"
    config, latents = read_json(folder / "config.json", what), read_json(folder / "latents.json", what)
    known = {key: value for key, value in config.items() if key in {field.name for field in fields(VaeConfig)}}
    digest = read_json(folder / "manifest.json", what).get("vae.safetensors")
    return Component(folder, folder.name, {**latents, "file": "vae.safetensors", "sha256": digest, "config": known})


# Where the frozen parts of a model come from: what is kept with exported weights, and compared before others start from
# them.


def frozen_origin(config: RunConfig, components: Components, frontend: VisualFrontEnd) -> dict[str, Any]:
    """Of each frozen part: its name in the configuration and, of a file that lies here, its hash."""
    if not frontend.frozen_parts:
        return {}
    name = config.frontend.vae
    component = components.find("vae", name)
    if component:
        return {"vae": {"name": component.name, "sha256": {component.path.name: component.entry["sha256"]}}}
    return {"vae": {"name": name, "sha256": {file.name: sha256(file) for file in listed(Path(name), "*.safetensors")}}}
