"""A trained model and what one does with it: ask, generate, edit, look where it looks, save.

Shapes: H W image pixels; R K rows and columns of an image's visual tokens, T = R K; Y layers, A attention heads.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.inference.attention import averaged, cut_prompt, draw_map, image_columns, last_rows, tokens_through
from tunalab.inference.orders import (
    GenerationRequest,
    ImageLike,
    ImageOrder,
    Source,
    answers,
    check_size,
    each_image,
    enough_memory,
    find_device,
    image_bar,
    input_buckets,
    made_images,
    make_images,
    mixed,
    precision,
    read_input,
)
from tunalab.inference.prompts import device_of
from tunalab.model.unified import UnifiedModel
from tunalab.records.record import CONFIG_FILE
from tunalab.settings.loading import config_hash, read_config
from tunalab.settings.schema import RunConfig
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
from tunalab.training.checkpoints import MANIFEST, CheckpointStore, learnt_weights, refuse_foreign

Images = ImageLike | Sequence[ImageLike]


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Where a model looks: unpacks into the two things one wants of it, ``map_RK, overlay = model.attention(...)``.

    ``map_RK``: attention weights to the visual tokens of the image, (R, K) float32; their sum is the share of all attention that
    goes to the image. ``overlay``: the map in colours over the image, enlarged. ``heads_YAT``: the same of every layer and head.
    ``token``: place in the prompt of the token that looks.
    """

    map_RK: np.ndarray
    overlay: Image.Image
    heads_YAT: np.ndarray
    token: int

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
        return [Image.fromarray(pixels_HWC) for pixels_HWC in self._made(self.order(texts, request))]

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
        made = [Image.fromarray(self._made(self.order([text], request, sources[id(one)]))[0]) for one, text in pairs]
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
        map_T = averaged(heads_YAT, layer, head)
        overlay = Image.fromarray(draw_map(image_HWC, map_T, grid))
        return AttentionMap(map_T.reshape(grid), overlay, heads_YAT, len(prompt.ids_L) - 1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model into ``folder``, which must not exist: safetensors, configuration, tokenizer.

        The folder is whole or not there, and needs nothing else: the frozen parts are copied into it.
        :func:`tunalab.load` reads it.
        """
        assert self.parts is not None, "of a model that was loaded"
        parts = self.parts
        write_export(
            Path(folder),
            parts.about(self.config, self.model, self.origin),
            self.config,
            stored_once(self.config, learnt_state(self.model)),
            self.tokenizer,
            lambda fresh: parts.write(fresh, self.config, self.model.frontend),
        )

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

    def computing(self) -> AbstractContextManager[Any]:
        """Inside, the model computes in its precision, and a device with too little memory is a UserError."""
        stack = ExitStack()
        stack.enter_context(mixed(self.precision, device_of(self.model)))
        stack.enter_context(enough_memory())
        return stack

    def order(self, texts: Sequence[str], request: GenerationRequest, source: Source | None = None) -> ImageOrder:
        """The images that a request asks for: of every text with every seed, edits of ``source`` where there is one."""
        size = request.output_size(self.config) if source is None else source.size
        sampling = request.sampling(self.config, edits=source is not None)
        return ImageOrder(self.identity, texts, request.seeds, size, sampling, self.precision, source)

    def write_images(self, order: ImageOrder, folder: Path, batch_tokens: int = 16384) -> tuple[list[Path], int]:
        """As PNG files that hold the settings they were made with; those that are there are kept. All files, and how many were."""
        return make_images(self.model, self.tokenizer, self.config.objective, order, folder, batch_tokens)

    def _made(self, order: ImageOrder) -> list[np.ndarray]:
        """The images of an order, uint8 (H, W, 3)."""
        check_size(self.model.frontend.space, order.size)
        wanted = order.images(Path())
        with image_bar(len(wanted), order.sampling) as bar:
            made = made_images(self.model, self.tokenizer, self.config.objective, order.manner, wanted, progress=bar.update)
            pixels = {one.path: pixels_HWC for one, pixels_HWC in made}
        return [pixels[one.path] for one in wanted]


def paired(images: Images | None, texts: str | Sequence[str], what: str) -> tuple[list[tuple[ImageLike | None, str]], bool]:
    """(image, text) pairs, and whether either was a list. Raises UserError: lists of different lengths, or empty ones."""
    every, many = each_image(images)
    words = [texts] if isinstance(texts, str) else list(texts)
    several = many or not isinstance(texts, str)
    if not every or not words:
        raise UserError(f"no {'image' if not every else what}: the list is empty")
    if len(every) != len(words) and 1 not in (len(every), len(words)):
        raise UserError(f"{len(every)} images and {len(words)} {what}s do not belong together: as many of each, or one of either")
    count = max(len(every), len(words))
    return list(zip(every * (count // len(every)), words * (count // len(words)), strict=True)), several


# A trained model, ready for use, from the directory of a run or from an exported folder: :func:`load`.


def load(path: str | Path, device: str | torch.device | None = None, raw: bool = False) -> Model:
    """The trained model at ``path``, ready to be used: of a run directory its newest undamaged checkpoint, or an exported folder.

    ``device``: cpu, cuda or cuda:N; without one a GPU if there is any. ``raw``: the weights that training goes on with, not their
    averages. Computes in the precision of its training: bfloat16 products on a GPU, float32 on a CPU, unless its configuration
    says otherwise.

    Raises UserError, one line: no model there, no undamaged checkpoint, a file is missing or was altered, weights do not fit the
    configuration, no such device; and for ``raw`` of an export of averaged weights.
    """
    path = Path(path)
    if device is None or isinstance(device, str):
        device = find_device(device, "device=")
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


def load_exported(folder: Path, device: str | torch.device = "cpu") -> Model:
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
    parts = ExportedParts(folder, about)
    model = assemble(config, parts, about.vocabulary, read_weights(folder), str(folder))
    return Model(model.to(device), tokenizer, config, about.origin, parts)


def load_run(run_dir: Path, device: str | torch.device = "cpu", raw: bool = False) -> Model:
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
    return Model(model.to(device), tokenizer, config, origin, parts)


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


def export_run(run_dir: Path, folder: Path, raw: bool = False) -> None:
    """Write the model of a run into ``folder``, as :meth:`Model.save_pretrained`. Raises UserError as :func:`load_run` too."""
    load_run(run_dir, raw=raw).save_pretrained(folder)
