"""A trained model and what one does with it: ask, generate, edit, look where it looks, save.

Shapes: H W image pixels; R K rows and columns of an image's visual tokens, T = R K; Y layers, A attention heads.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.evaluation.attention import draw_heads
from tunalab.evaluation.samples import draw_grid
from tunalab.inference.attention import averaged, cut_prompt, draw_map, image_columns, last_rows, tokens_through
from tunalab.inference.images import (
    ImageLike,
    check_size,
    check_utf8,
    each_image,
    input_buckets,
    read_input,
    read_settings,
    save_image,
)
from tunalab.inference.prompts import device_of
from tunalab.inference.requests import (
    GenerationRequest,
    ImageFile,
    Source,
    answers,
    computing,
    find_device,
    image_bar,
    made_images,
    make_missing,
    precision,
)
from tunalab.model.unified import UnifiedModel
from tunalab.records.record import CONFIG_FILE
from tunalab.settings.loading import config_hash, read_config
from tunalab.settings.schema import RunConfig
from tunalab.trained import check_folder
from tunalab.trained.folder import (
    TOKENIZER,
    ExportedParts,
    RunParts,
    assemble,
    check_tokenizer,
    learnt_state,
    read_about,
    read_weights,
    stored_once,
    write_export,
)
from tunalab.training import kept_at
from tunalab.training.checkpoints import MANIFEST, CheckpointStore, damage, learnt_weights, read_saved, refuse_foreign
from tunalab.training.points import kept_points, point_weights
from tunalab.training.start import vae_of

Images = ImageLike | Sequence[ImageLike]


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Where a model looks. Unpacks into map and overlay: ``map_RK, overlay = model.attention(...)``.

    ``map_RK``: attention weights to the visual tokens of the image, (R, K) float32; their sum is the share of all attention that
    goes to the image. ``heads_YAT``: the same of every layer and head. ``token``: place in the prompt of the token that looks.
    ``image_HWC``: the image as the model sees it, uint8.
    """

    map_RK: np.ndarray
    heads_YAT: np.ndarray
    token: int
    image_HWC: np.ndarray

    @property
    def overlay(self) -> Image.Image:
        """The map in colours over the image, enlarged."""
        return Image.fromarray(draw_map(self.image_HWC, self.map_RK.ravel(), self.grid))

    @property
    def every_head(self) -> Image.Image:
        """The overlay of every head by itself, one row per layer."""
        return draw_heads(self.image_HWC, self.heads_YAT, self.grid)

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.map_RK.shape
        return rows, columns

    def __iter__(self) -> Iterator[Any]:
        return iter((self.map_RK, self.overlay))


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model with its tokenizer and its configuration, as :func:`tunalab.load` returns it.

    An image may be a path (str or Path), a PIL image, an array (H, W, 3) or (H, W), or a tensor (3, H, W); arrays and tensors hold
    uint8, or real numbers from 0 to 1. It is cropped and resized to the size that images had in training, or to ``size``: 64, or
    "384x512" for height x width in pixels. Lists of images, and arrays and tensors with one dimension more, are batches.

    Every method raises UserError, one line that names the thing and the choices, for a value that may not be, an image that cannot
    be read, and a device with too little memory.

    ``model``: the network (``torch.nn.Module``), in evaluation mode, float32. ``origin``, plain: the
    run or checkpoint it comes from, which weights (averaged | raw | official), steps, tokens.
    ``parts``: its components, from where they were read.
    """

    model: UnifiedModel
    tokenizer: Tokenizer
    config: RunConfig
    origin: dict[str, Any]
    parts: RunParts | None = None

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        name, weights = self.identity["name"], self.origin["weights"]
        return f"<tunalab model {name}: {self.config.frontend.name}, {millions:.1f}M parameters, {weights} weights>"

    @overload
    def ask(self, image: ImageLike | None, question: str, max_tokens: int = ..., size: str | int | None = ...) -> str: ...

    @overload
    def ask(
        self, image: Images | None, question: str | Sequence[str], max_tokens: int = ..., size: str | int | None = ...
    ) -> str | list[str]: ...

    def ask(
        self,
        image: Images | None,
        question: str | Sequence[str],
        max_tokens: int = 512,
        size: str | int | None = None,
    ) -> str | list[str]:
        """The most likely answer to a question about an image, or, of ``None``, about none.

        A list of either gives a list of answers: images and questions of equal number belong together one by one, a single one
        belongs to all of the others. An answer ends after ``max_tokens`` tokens at the latest.
        """
        pairs, several = paired(image, question, "question")
        found = list(self.answers(pairs, max_tokens, size))
        return found if several else found[0]

    def answers(
        self,
        questions: Sequence[tuple[ImageLike | None, str]],
        max_tokens: int = 512,
        size: str | int | None = None,
        batch_tokens: int = 4096,
    ) -> Iterator[str]:
        """As :meth:`ask` of (image or None, question) pairs, answer by answer. ``batch_tokens``: prompt tokens held at a time."""
        buckets = input_buckets(self.config.data, size)
        return answers(self.model, self.tokenizer, questions, buckets, max_tokens, self.precision, batch_tokens)

    def generate(
        self,
        text: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        guidance: float | None = None,
        steps: int | None = None,
        size: str | int | None = None,
        **more: Any,
    ) -> list[Image.Image]:
        """``n`` images of a text, of the seeds ``seed``, ``seed`` + 1, ...; of a list of texts, text by text.

        Text, seed and settings determine an image, whatever is made beside it. ``guidance``: scale of classifier-free guidance (1:
        none). ``steps``: of the sampler. ``more``: the other fields of :class:`tunalab.GenerationRequest`. What is not given is as
        the model's own configuration says.
        """
        request = GenerationRequest(n, seed, guidance=guidance, steps=steps, size=size, **more)
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise UserError("no text: the list is empty")
        for one in texts:
            check_utf8("the text", one)
        return self._made(self.files(texts, request, Path()))

    def edit(
        self,
        image: Images,
        instruction: str | Sequence[str],
        seed: int = 0,
        guidance: float | None = None,
        steps: int | None = None,
        size: str | int | None = None,
        **more: Any,
    ) -> Image.Image | list[Image.Image]:
        """The image, changed as the instruction says; lists of either give a list, as in :meth:`ask`.

        Settings as in :meth:`generate`.
        """
        if "n" in more:
            raise UserError("n is not for edits: a list of instructions, or one call per seed, gives several")
        request = GenerationRequest(1, seed, guidance=guidance, steps=steps, size=size, **more)
        pairs, several = paired(image, instruction, "instruction")
        sources = {id(one): request.source(one, self.config) for one, _ in pairs if one is not None}
        if len(sources) < len({id(one) for one, _ in pairs}):
            raise UserError("image is None: an edit needs an image")
        files = [self.files([text], request, Path(str(number)), sources[id(one)])[0] for number, (one, text) in enumerate(pairs)]
        made = self._made(files)
        return made if several else made[0]

    def attention(
        self,
        image: ImageLike,
        question: str,
        word: str | None = None,
        layer: int | None = None,
        head: int | None = None,
        size: str | int | None = None,
    ) -> AttentionMap:
        """Where the model looks when it has read ``word`` of the question, or all of the question (which may be one word).

        The mean over all layers and heads, or over the heads of one ``layer``, or of one ``head`` of it (both from 0).
        """
        image_HWC = read_input(image, input_buckets(self.config.data, size))
        space = self.model.frontend.space
        check_size(space, (image_HWC.shape[0], image_HWC.shape[1]))
        read = len(self.tokenizer.encode(question)) if word is None else tokens_through(self.tokenizer, question, word)
        if not read:
            raise UserError("the question is empty: a word is needed")
        prompt = cut_prompt(self.tokenizer, space, image_HWC, question, read)
        with self.computing():
            ((_, weights_YAS),) = last_rows(self.model, [prompt])
        heads_YAT, grid = image_columns(weights_YAS, prompt.spans[0]), space.grid(*image_HWC.shape[:2])
        map_RK = averaged(heads_YAT, layer, head).reshape(grid)
        return AttentionMap(map_RK, heads_YAT, len(prompt.ids_L) - 1, image_HWC)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model into ``folder``, which must not exist: safetensors, configuration, tokenizer.

        The folder is whole or not there, and needs nothing else: the frozen parts are copied into it.
        :func:`tunalab.load` reads it.
        """
        assert self.parts is not None, "of a model that was loaded"
        parts = self.parts
        about, weights = parts.about(self.config, self.model, self.origin), stored_once(self.config, learnt_state(self.model))
        write_export(Path(folder), about, self.config, weights, self.tokenizer, parts, self.model.frontend)

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

    @property
    def precision(self) -> str:
        """bf16 or fp32: what products are computed in."""
        return precision(self.config, device_of(self.model))

    def computing(self) -> AbstractContextManager[None]:
        """Inside, the model computes in its precision, and a device with too little memory is a UserError."""
        return computing(self.precision, device_of(self.model))

    def files(
        self, texts: Sequence[str], request: GenerationRequest, folder: Path, source: Source | None = None
    ) -> list[ImageFile]:
        """The files of a request, text by text: one per text and seed, edits of ``source`` where there is one."""
        size = request.output_size(self.config) if source is None else source.size
        sampling = request.sampling(self.config, edits=source is not None)
        return [
            ImageFile(folder / f"{number:04d}-seed{seed}.png", text, [seed], size, sampling, self.precision, self.identity, source)
            for number, text in enumerate(texts, start=1)
            for seed in request.seeds
        ]

    def write_images(
        self,
        texts: Sequence[str],
        request: GenerationRequest,
        folder: Path,
        source: Source | None = None,
        batch_tokens: int = 16384,
        grid: Path | None = None,
    ) -> tuple[list[Path], int]:
        """Write the images of a request as PNG files that hold their settings; returns the files, and how many were there.

        Files that are there with the same settings are kept. ``grid``: also one picture of all, one row per text.

        Raises UserError, before anything is made, when something else is in the place of a file.
        """
        if grid is not None and grid.exists() and "grid" not in (read_settings(grid) or {}):
            raise UserError(f"{grid} is there and no grid of tunalab: choose another folder, or remove it")
        files = self.files(texts, request, folder, source)
        kept = make_missing(self.model, self.tokenizer, self.config.objective, files, batch_tokens)
        if grid is not None:
            _write_grid(grid, files, len(request.seeds))
        return [one.path for one in files], kept

    def _made(self, files: Sequence[ImageFile]) -> list[Image.Image]:
        for one in files:
            check_size(self.model.frontend.space, one.size)
        with image_bar(len(files), files[0].sampling) as bar:
            made = dict(made_images(self.model, self.tokenizer, self.config.objective, files, progress=bar.update))
        return [Image.fromarray(made[one]) for one in files]


def _write_grid(path: Path, files: Sequence[ImageFile], columns: int) -> None:
    """One row per text: the image that is edited, where there is one, then the images of all seeds."""
    images, captions = [], []
    for number, one in enumerate(files):
        first = number % columns == 0
        if first and one.source is not None:
            images.append(one.source.pixels_HWC)
            captions.append(one.text)
        with Image.open(one.path) as image:
            images.append(np.asarray(image))
        seed = f"seed {one.seeds[0]}"
        captions.append(f"{one.text} ({seed})" if first and one.source is None else seed)
    drawn = draw_grid(np.stack(images), captions, columns=len(images) * columns // len(files))
    save_image(path, np.asarray(drawn), {"grid": [one.path.name for one in files]})


def paired(images: Images | None, texts: str | Sequence[str], what: str) -> tuple[list[tuple[ImageLike | None, str]], bool]:
    """(image, text) pairs, and whether either was a list. Raises UserError: lists of different lengths, or empty ones."""
    every, many = each_image(images)
    words = [texts] if isinstance(texts, str) else list(texts)
    several = many or not isinstance(texts, str)
    if not every or not words:
        raise UserError(f"no {'image' if not every else what}: the list is empty")
    if len(every) != len(words) and 1 not in (len(every), len(words)):
        raise UserError(f"{len(every)} images and {len(words)} {what}s do not belong together: as many of each, or one of either")
    for text in words:
        check_utf8(f"the {what}", text)
    count = max(len(every), len(words))
    return list(zip(every * (count // len(every)), words * (count // len(words)), strict=True)), several


def load(path: str | Path, device: str | torch.device | None = None, raw: bool = False) -> Model:
    """The trained model at ``path``: an exported folder, or a run directory at its newest undamaged checkpoint.

    ``RUN@TOKENS``: a run at that kept point or checkpoint. ``device``: cpu, cuda or cuda:N; by default a GPU if there is any.
    ``raw``: the weights that training goes on with, not their averages. Computes in the precision of its training: bfloat16
    products on a GPU, float32 on a CPU, unless its configuration says otherwise. Of an exported folder nothing outside it is read.

    Raises UserError, one line: no model there, no undamaged checkpoint, none kept at so many tokens, a file or component is missing
    or was altered, weights do not fit the configuration (both sides are listed), no such device; and for ``raw`` of an export of
    averaged weights.
    """
    place, tokens = kept_at(path)
    device = find_device(device, "device=") if device is None or isinstance(device, str) else device
    export = is_export(place)
    config = read_config(place / CONFIG_FILE)
    if not export:
        kept = None if raw or tokens is None else kept_points(place).get(tokens)
        checkpoint = kept or find_checkpoint(place, config, tokens)
        parts = RunParts(config.components_seed, vae_of(place, config))
        tokenizer = parts.tokenizer_for(config.decoder)
        learnt = learnt_weights(checkpoint, raw) if kept is None else point_weights(kept)
        model = assemble(config, parts, tokenizer.vocabulary, learnt.weights, str(checkpoint))
        origin = {
            "run": place.resolve().name,
            "config_hash": config_hash(config),
            "weights": "raw" if raw else "averaged",
            "steps": learnt.steps,
            "tokens": learnt.tokens,
        }
        return Model(model.to(device), tokenizer, config, origin, parts)
    about = read_about(place)
    if raw and (held := about.origin["weights"]) != "raw":
        raise UserError(f"{place} holds {held} weights alone: raw ones have the run's directory, and exports made with --raw")
    if not (place / TOKENIZER).is_dir():
        raise UserError(f"{place} holds no tokenizer: convert the checkpoint again with decoder.tokenizer=FOLDER")
    tokenizer = Tokenizer.load(place / TOKENIZER).with_chat(config.decoder.chat)
    check_tokenizer(tokenizer, about.vocabulary, str(place))
    parts = ExportedParts(place, about)
    model = assemble(config, parts, about.vocabulary, read_weights(place), str(place))
    return Model(model.to(device), tokenizer, config, about.origin, parts)


def model_config(path: str | Path) -> RunConfig:
    """The configuration of a model, without its weights. Raises UserError as :func:`load`."""
    place, _ = kept_at(path)
    is_export(place)
    return read_config(place / CONFIG_FILE)


def is_export(path: Path) -> bool:
    """Whether ``path`` is an exported folder rather than a run directory. Raises UserError when it is neither."""
    check_folder(path)
    if not (path / MANIFEST).is_file() and not (path / CONFIG_FILE).is_file():
        raise UserError(
            f"{path} is neither an exported folder ({MANIFEST} is missing) nor a run directory ({CONFIG_FILE} is missing)"
        )
    return (path / MANIFEST).is_file()


def load_weights(path: str | Path) -> tuple[RunConfig, dict[str, Tensor], list[str]]:
    """Configuration, learnt weights by our names (a tied table once), and the names of those that started from scratch where an
    official checkpoint lacked them. Raises UserError as :func:`load`.
    """
    place, tokens = kept_at(path)
    config = model_config(place)
    if is_export(place):
        about = read_about(place)  # first, as it finds damage
        return config, read_weights(place), about.initialised
    return config, stored_once(config, learnt_weights(find_checkpoint(place, config, tokens)).weights), []


def find_checkpoint(run_dir: Path, config: RunConfig, tokens: int | None = None) -> Path:
    """The checkpoint of a run at so many tokens, or the newest undamaged one; damaged ones are named.

    Raises UserError when there is none, or it is of a run with other settings.
    """
    store = CheckpointStore(run_dir / "checkpoints")
    if tokens is None:
        found = store.newest_valid(warn=lambda line: print(f"warning: {line}", file=sys.stderr, flush=True))
        if found is None:
            state = "every checkpoint in it is damaged" if store.steps() else "it holds no checkpoint"
            raise UserError(f"run {run_dir} cannot be loaded: {state}")
    else:
        kept: dict[int, Path] = {}
        for folder in store.steps():
            with suppress(UserError):  # one that cannot be read
                kept[read_saved(folder).progress["tokens"]] = folder
        if tokens not in kept:
            choices = ", ".join(f"{run_dir.name}@{number}" for number in kept) or "none"
            raise UserError(f"run {run_dir} keeps no checkpoint at {tokens} tokens (kept: {choices})")
        found = kept[tokens]
        if problem := damage(found):
            raise UserError(f"checkpoint {found} is damaged ({problem})")
    refuse_foreign(found, config)
    return found
