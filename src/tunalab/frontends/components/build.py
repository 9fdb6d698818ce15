"""Training the components of a collection: `tunalab components train`."""

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from tunalab import terminal
from tunalab.data.scenes.vocabulary import CORPUS_VERSION
from tunalab.data.tokenizer import Tokenizer, train_tokenizer
from tunalab.errors import UserError, first_line
from tunalab.frontends.components import siglip, vae
from tunalab.frontends.components.siglip import EncoderConfig
from tunalab.frontends.components.store import INDEX, Collection, Component, encoder_weights, plain, store, tiny_tokenizer
from tunalab.frontends.components.training import MIX, SHORT, TRAIN_SPLIT, CaptionSource, TextSource, trainer_device
from tunalab.frontends.components.vae import VaeConfig
from tunalab.frontends.vae import LatentCodec

PARTS = ("tokenizer", "vae", "encoder")
VERSIONS = ("torch", "timm", "diffusers", "open_clip_torch", "transformers", "tokenizers")
TOKENIZER_HELD_OUT_SEED = 13


@dataclass(frozen=True)
class TokenizerConfig:
    seed: int = 0
    vocabulary: int = 512
    texts: int = 20000
    corpus: int = CORPUS_VERSION


@dataclass(frozen=True)
class Recipe:
    """How the tiny tokenizer, VAE and encoder of micro scale are trained."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def seeded(self, seed: int) -> "Recipe":
        """The same recipe from another seed. The tokenizer stays: vocabularies must not differ by seed."""
        return Recipe(self.tokenizer, replace(self.vae, seed=seed), replace(self.encoder, seed=seed))

    def changed(self, settings: Sequence[str]) -> "Recipe":
        """The recipe with settings like "encoder.width=192". Raises UserError naming the one that is wrong."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        recipe: Any = OmegaConf.structured(self)
        for given in settings:
            try:
                OmegaConf.set_readonly(recipe, False)
                recipe = OmegaConf.merge(recipe, OmegaConf.from_dotlist([given]))
            except (OmegaConfBaseException, ValueError) as error:
                keys = [f"{part.name}.{key.name}" for part in fields(self) for key in fields(getattr(self, part.name))]
                raise UserError(f"{given}: {first_line(error)} (choices: {', '.join(keys)})") from error
        changed = OmegaConf.to_object(recipe)
        assert isinstance(changed, Recipe)
        return changed


def train_components(
    folder: Path,
    parts: Sequence[str] = ("vae", "encoder"),
    recipe: Recipe = Recipe(),
    log: Callable[[str], None] = print,
    captions: CaptionSource | None = None,
    texts: TextSource | None = None,
    art: str = "",
) -> Collection:
    """Train what of ``parts`` is not in the collection yet, and store it there.

    A training that was stopped goes on from its last minute. Of two processes that train the same part the second waits, and
    finds the work done. On one thread: sums are split over threads, so another number of them gives other weights. ``captions``
    and ``texts`` default to the scenes corpus. ``art``: what the index says of the captions' art, where they have one.
    """
    if captions is None or texts is None:
        from tunalab.data import scenes

        captions, texts = captions or scenes.caption_examples, texts or scenes.text_sample
    for part in parts:
        if part not in PARTS:
            raise UserError(f"part {part} is unknown (choices: {', '.join(PARTS)})")
    folder.mkdir(parents=True, exist_ok=True)
    data = {**SEEN, "art": art} if art else SEEN
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for part in parts:
            config = getattr(recipe, part)
            with FileLock(folder / f".{part}-seed{config.seed}.lock"):
                _TRAINERS[part](folder, recipe, log, captions, texts, data)
    finally:
        torch.set_num_threads(threads)
    return Collection(folder)


def _is_there(folder: Path, name: str, config: Any, log: Callable[[str], None], data: dict[str, Any] | None = None) -> bool:
    """Whether a component of the same recipe and ``data`` lies there undamaged."""
    own = Collection(folder) if (folder / INDEX).is_file() else None
    entry = own.index.get(name) if own else None
    same = entry is not None and entry.get("config") == plain(config) and entry.get("data") == json.loads(json.dumps(data))
    there = same and own is not None and _undamaged(own.component(name))
    log(f"component {name}: " + (f"{folder / entry['file']} is there" if there and entry else f"training, into {folder}"))
    return there


def _undamaged(component: Component) -> bool:
    try:
        component.verified()
    except UserError:
        return False
    return True


def _refuse_other_snapshots(folder: Path, config: EncoderConfig, data: dict[str, Any]) -> None:
    """Raises UserError: the collection holds an encoder of this seed by another recipe. Without a number of steps its longest
    training is read, whichever that is.
    """
    index = Collection(folder).index if (folder / INDEX).is_file() else {}
    for name, entry in index.items():
        if name.startswith(f"encoder/seed{config.seed}@"):
            there, here = ({**recipe, "snapshots": None} for recipe in (entry.get("config", {}), plain(config)))
            differing = [key for key in {**there, **here} if there.get(key) != here.get(key)]
            differing += ["its data"] if entry.get("data") != json.loads(json.dumps(data)) else []
            if differing:
                what = f"{folder} holds {name} of another recipe ({', '.join(differing)})"
                raise UserError(f"{what}: another --seed or --collection, or remove that folder")


def build_tokenizer(config: TokenizerConfig, texts: TextSource) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and how many tokens a lower-case word of further texts takes."""
    tokenizer = train_tokenizer(texts(config.seed, config.texts), config.vocabulary)
    sample = texts(TOKENIZER_HELD_OUT_SEED, 1000)
    words = [word for text in sample for word in text.split() if word.isalpha() and word.islower()]
    pieces = sum(len(tokenizer.encode(word)) for word in words)
    return tokenizer, {
        "tokens_per_word": round(pieces / max(1, len(words)), 4),
        "tokens_per_text": round(sum(len(tokenizer.encode(text)) for text in sample) / max(1, len(sample)), 2),
        "n": len(sample),
        "split": "components",
    }


def _train_tokenizer(
    folder: Path, recipe: Recipe, log: Callable[[str], None], captions: CaptionSource, texts: TextSource, data: dict[str, Any]
) -> None:
    if not _is_there(folder, "tokenizer", recipe.tokenizer, log):
        trained, quality = build_tokenizer(recipe.tokenizer, texts)
        store(folder, "tokenizer", trained, _about(recipe.tokenizer, {"ids": trained.vocabulary, "quality": quality}))


def _train_vae(
    folder: Path, recipe: Recipe, log: Callable[[str], None], captions: CaptionSource, texts: TextSource, data: dict[str, Any]
) -> None:
    config, name = recipe.vae, f"vae/seed{recipe.vae.seed}"
    if _is_there(folder, name, config, log, data):
        return

    def keep(codec: LatentCodec, record: dict[str, Any]) -> None:
        latents = {"mean": codec.mean_C.tolist(), "std": codec.std_C.tolist()}
        store(folder, name, codec.vae.state_dict(), _about(config, record | latents | {"data": data}))
        log(f"component {name}: {record['quality']}")

    vae.train_vae(config, captions, keep, folder / f".vae-seed{config.seed}.state", _bar(name, config.steps), data)


def _train_encoder(
    folder: Path, recipe: Recipe, log: Callable[[str], None], captions: CaptionSource, texts: TextSource, data: dict[str, Any]
) -> None:
    config, name = recipe.encoder, f"encoder/seed{recipe.encoder.seed}"
    _refuse_other_snapshots(folder, config, data)
    if _is_there(folder, f"{name}@{config.snapshots[-1]}", config, log, data):
        return
    own = Collection(folder) if (folder / INDEX).is_file() else None
    words = own.component("tokenizer") if own and "tokenizer" in own.index else tiny_tokenizer()

    def keep(steps: int, tower: nn.Module, record: dict[str, Any]) -> None:
        about = _about(config, record | {"data": data}) | {"tokenizer": words.entry["sha256"]}
        store(folder, f"{name}@{steps}", encoder_weights(config, tower), about)
        log(f"component {name}@{steps}: {record['quality']}")

    state = folder / f".encoder-seed{config.seed}.state"
    text = Tokenizer.load(words.verified())
    siglip.train_encoder(config, text, captions, keep, state, _bar(name, config.snapshots[-1]), data)


_TRAINERS = {"tokenizer": _train_tokenizer, "vae": _train_vae, "encoder": _train_encoder}


SEEN: dict[str, Any] = {"split": TRAIN_SPLIT, "kinds": MIX, "short": SHORT}


def _about(config: Any, record: dict[str, Any]) -> dict[str, Any]:
    """What the index says of a component: its recipe, what it saw, took and reached."""
    return {
        "config": plain(config),
        **record,
        "device": trainer_device().type,
        "versions": {package: importlib.metadata.version(package) for package in VERSIONS},
    }


def _bar(name: str, steps: int) -> Callable[[Iterable[int]], Iterable[int]]:
    """A bar with the time left, on stderr."""
    return partial(terminal.progress_bar, total=steps, desc=f"component {name}", unit="step", mininterval=1.0, leave=True)
