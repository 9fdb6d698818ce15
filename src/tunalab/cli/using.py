"""Commands on a trained model: `tunalab generate`, `tunalab edit`, `tunalab ask`."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import (
    MODEL_HELP,
    add_command,
    add_model_options,
    add_sampling,
    bounds_of,
    load_model,
    positive,
    request_of,
)
from tunalab.errors import UserError

if TYPE_CHECKING:
    from tunalab.cli.common import Commands
    from tunalab.inference.orders import GenerationRequest, Source

TEXTS_HELP = "more of them, one a line"


def add(commands: "Commands") -> None:
    # The free words of a command are its ``settings``: as such they may also stand behind options (cli/__init__.py).
    sub = add_command(commands, generate, "make images of prompts; every PNG holds the settings that it was made with")
    sub.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    sub.add_argument("settings", nargs="*", metavar="PROMPT", help='what is to be seen ("": whatever the model likes)')
    sub.add_argument("--prompts", type=Path, metavar="FILE", help=TEXTS_HELP)
    _add_images(sub)
    sub = add_command(commands, edit, "edit an image by instructions; every PNG holds the settings that it was made with")
    sub.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    sub.add_argument("image", type=Path, metavar="IMAGE", help="image file")
    sub.add_argument("settings", nargs="*", metavar="INSTRUCTION", help="what is to change; each starts from IMAGE")
    sub.add_argument("--prompts", type=Path, metavar="FILE", help=TEXTS_HELP)
    _add_images(sub)
    sub = add_command(commands, ask, "answer questions about images: an answer a line, image by image")
    sub.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    sub.add_argument("settings", nargs="*", metavar="IMAGE QUESTION", help="an image file or a folder of them; then questions")
    sub.add_argument("--questions", type=Path, metavar="FILE", help=TEXTS_HELP)
    sub.add_argument("--no-image", action="store_true", help="questions of text alone: there is no IMAGE")
    sub.add_argument("--json", action="store_true", help="lines of JSON: image, question, answer")
    sub.add_argument("--max-tokens", type=int, metavar="N", default=512, help="longest answer (default: 512)")
    add_model_options(sub)


def _add_images(sub: argparse.ArgumentParser) -> None:
    add_sampling(sub, n=1, images="images a prompt, of seeds SEED, SEED+1, ... (default: 1)")
    sub.add_argument("--grid", action="store_true", help="also all in one picture, grid.png: a row a prompt, a column a seed")
    add_model_options(sub)


def generate(arguments: argparse.Namespace) -> int:
    from tunalab.trained.model import model_config

    texts, request = _texts(arguments.settings, arguments.prompts, "prompt"), request_of(arguments)
    config = model_config(arguments.model)
    request.sampling(config), request.output_size(config)  # a mistake is known before the weights are read
    return _make(arguments, texts, request)


def edit(arguments: argparse.Namespace) -> int:
    from tunalab.trained.model import model_config

    texts, request = _texts(arguments.settings, arguments.prompts, "instruction"), request_of(arguments)
    config = model_config(arguments.model)
    request.sampling(config, edits=True)
    return _make(arguments, texts, request, request.source(arguments.image, config))


def ask(arguments: argparse.Namespace) -> int:
    from tunalab.inference.orders import find_images, input_buckets
    from tunalab.trained.model import model_config

    words = arguments.settings
    if not (words or arguments.no_image):
        raise UserError("no image: name a file or a folder, or ask with --no-image")
    questions = _texts(words if arguments.no_image else words[1:], arguments.questions, "question")
    images = [None] if arguments.no_image else find_images(Path(words[0]))
    max_tokens, bounds = positive("--max-tokens", arguments.max_tokens), bounds_of(arguments)
    input_buckets(model_config(arguments.model).data, arguments.size)
    pairs = [(image, question) for image in images for question in questions]
    answers = load_model(arguments).answers(pairs, max_tokens, arguments.size, **bounds)
    for (image, question), answer in zip(pairs, answers, strict=True):
        line = {"image": None if image is None else str(image), "question": question, "answer": answer}
        print(json.dumps(line, ensure_ascii=False) if arguments.json else " ".join(answer.split()), flush=True)
    return 0


def _make(arguments: argparse.Namespace, texts: list[str], request: "GenerationRequest", source: "Source | None" = None) -> int:
    bounds, grid = bounds_of(arguments), _grid(arguments)
    model = load_model(arguments)
    files, kept = model.write_images(model.order(texts, request, source), arguments.out, **bounds)
    shown = files[0].name if len(files) == 1 else f"{files[0].name} to {files[-1].name}"
    there = f", of which {kept} were there" if kept else ""
    print(f"{len(files)} images in {arguments.out}, {shown}{there}")
    if grid is not None:
        _draw_grid(grid, files, texts, request.seeds, source)
        print(f"wrote {grid}")
    return 0


def _grid(arguments: argparse.Namespace) -> Path | None:
    """The file of the picture of all images, if there is to be one. What this command drew is drawn anew, anything else kept.

    Raises UserError when something else is there.
    """
    from tunalab.inference.orders import read_settings

    path: Path = arguments.out / "grid.png"
    if arguments.grid and path.exists() and "grid" not in (read_settings(path) or {}):
        raise UserError(f"{path} is there and no grid of tunalab: choose another folder, or remove it")
    return path if arguments.grid else None


def _draw_grid(path: Path, files: list[Path], texts: list[str], seeds: list[int], source: "Source | None") -> None:
    """A row a text: the image that is edited, where there is one, then the images of all seeds."""
    import numpy as np
    from PIL import Image

    from tunalab.evaluation.samples import draw_grid
    from tunalab.inference.orders import save_image

    images, captions = [], []
    for row, text in enumerate(texts):
        if source is not None:
            images.append(source.pixels_HWC)
            captions.append(text)
        for column, seed in enumerate(seeds):
            with Image.open(files[row * len(seeds) + column]) as image:
                images.append(np.asarray(image))
            captions.append(f"seed {seed}" if column or source else f"{text} (seed {seed})")
    drawn = draw_grid(np.stack(images), captions, columns=len(images) // len(texts))
    save_image(path, np.asarray(drawn), {"grid": [file.name for file in files]})


def _texts(words: list[str], file: Path | None, what: str) -> list[str]:
    from tunalab.inference.orders import check_utf8, read_texts

    texts = [*words, *(read_texts(file, what) if file else [])]
    if not texts:
        raise UserError(f"no {what}: give at least one, or a file of them (--help)")
    for text in words:
        check_utf8(what, text)
    return texts
