"""Commands on a trained model: `tunalab generate`, `edit`, `ask` and `attention`."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import (
    MODEL_HELP,
    add_command,
    add_model_options,
    add_sampling,
    add_weights,
    bounds_of,
    load_model,
    positive,
    request_of,
)
from tunalab.errors import UserError
from tunalab.trained import check_folder

if TYPE_CHECKING:
    from tunalab.cli.common import Commands
    from tunalab.inference.requests import GenerationRequest, Source

TEXTS_HELP = "file with more of them, one per line"
MADE_BY = "attention"  # the key of what pictures say about themselves


def add(commands: "Commands") -> None:
    # The free words of a command are its ``settings``: as such they may also stand behind options (cli/__init__.py).
    sub = add_command(commands, generate, "make images of prompts; every PNG holds the settings that it was made with")
    sub.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    sub.add_argument("settings", nargs="*", metavar="PROMPT", help='description of the image ("": without one)')
    sub.add_argument("--prompts", type=Path, metavar="FILE", help=TEXTS_HELP)
    _add_images(sub)
    sub = add_command(commands, edit, "edit an image by instructions; every PNG holds the settings that it was made with")
    sub.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    sub.add_argument("image", type=Path, metavar="IMAGE", help="image file")
    sub.add_argument("settings", nargs="*", metavar="INSTRUCTION", help="what to change; each starts from IMAGE")
    sub.add_argument("--prompts", type=Path, metavar="FILE", help=TEXTS_HELP)
    _add_images(sub)
    sub = add_command(commands, ask, "answer questions about images: one line per answer, image by image")
    sub.add_argument("model", type=Path, metavar="MODEL", help=MODEL_HELP)
    sub.add_argument("settings", nargs="*", metavar="IMAGE QUESTION ...", help="one image, or a folder of images; then questions")
    sub.add_argument("--questions", type=Path, metavar="FILE", help=TEXTS_HELP)
    sub.add_argument("--no-image", action="store_true", help="questions without an image: there is no IMAGE")
    sub.add_argument("--json", action="store_true", help="print lines of JSON: image, question, answer")
    sub.add_argument("--max-tokens", type=int, metavar="N", default=512, help="longest answer (default: 512)")
    add_model_options(sub)
    text = "show where a model looks while it reads a word of a question; or the same questions for several models"
    sub = add_command(commands, attention, text)
    sub.add_argument("settings", nargs="+", metavar="MODEL", help="run directories or exported folders")
    sub.add_argument("--image", type=Path, metavar="FILE", help="image file")
    sub.add_argument("--question", metavar="TEXT", help="about the image")
    sub.add_argument("--word", help="a word of the question")
    examples = "instead of an image: N questions about scenes, rows of pictures per model"
    sub.add_argument("--examples", type=int, metavar="N", help=examples)
    sub.add_argument("--layer", type=int, help="from 0 (default: the mean of all)")
    sub.add_argument("--head", type=int, help="of that layer, from 0 (default: the mean of all)")
    sub.add_argument("--grid", action="store_true", help="also every head by itself, one row per layer, in NAME-grid.png")
    sub.add_argument("--out", type=Path, metavar="FILE.png", default=Path("attention.png"), help="default: attention.png")
    add_weights(sub)


def _add_images(sub: argparse.ArgumentParser) -> None:
    add_sampling(sub, n=1, images="images per prompt, with seeds SEED, SEED+1, ... (default: 1)")
    sub.add_argument("--grid", action="store_true", help="also all images in grid.png: one row per prompt, one column per seed")
    add_model_options(sub)


def generate(arguments: argparse.Namespace) -> int:
    check_folder(arguments.model)
    from tunalab.trained.model import model_config

    texts, request = _texts(arguments.settings, arguments.prompts, "prompt"), request_of(arguments)
    config = model_config(arguments.model)
    request.sampling(config), request.output_size(config)  # a mistake is an error before the weights are read
    return _make(arguments, texts, request)


def edit(arguments: argparse.Namespace) -> int:
    check_folder(arguments.model)
    from tunalab.trained.model import model_config

    texts, request = _texts(arguments.settings, arguments.prompts, "instruction"), request_of(arguments)
    config = model_config(arguments.model)
    request.sampling(config, edits=True)
    return _make(arguments, texts, request, request.source(arguments.image, config))


def _make(arguments: argparse.Namespace, texts: list[str], request: "GenerationRequest", source: "Source | None" = None) -> int:
    bounds, grid = bounds_of(arguments), arguments.out / "grid.png" if arguments.grid else None
    files, kept = load_model(arguments).write_images(texts, request, arguments.out, source, grid=grid, **bounds)
    names = files[0].name if len(files) == 1 else f"{files[0].name} to {files[-1].name}"
    there = f", of which {kept} were there" if kept else ""
    print(f"{len(files)} images in {arguments.out}, {names}{there}")
    if grid is not None:
        print(f"wrote {grid}")
    return 0


def ask(arguments: argparse.Namespace) -> int:
    check_folder(arguments.model)
    from tunalab.inference.images import ENDINGS, find_images, input_buckets
    from tunalab.trained.model import model_config

    words = arguments.settings
    if not (words or arguments.no_image):
        raise UserError("no image: name a file or a folder, or ask with --no-image")
    questions = _texts(words if arguments.no_image else words[1:], arguments.questions, "question")
    for text in questions:
        if Path(text).suffix.lower() in ENDINGS:
            raise UserError(f"{text} is no question: one image, or a folder of images, then questions")
    images = [None] if arguments.no_image else find_images(Path(words[0]))
    max_tokens, bounds = positive("--max-tokens", arguments.max_tokens), bounds_of(arguments)
    input_buckets(model_config(arguments.model).data, arguments.size)
    pairs = [(image, question) for image in images for question in questions]
    answers = load_model(arguments).answers(pairs, max_tokens, arguments.size, **bounds)
    for (image, question), answer in zip(pairs, answers, strict=True):
        line = {"image": None if image is None else str(image), "question": question, "answer": answer}
        print(json.dumps(line, ensure_ascii=False) if arguments.json else " ".join(answer.split()), flush=True)
    return 0


def _texts(words: list[str], file: Path | None, what: str) -> list[str]:
    from tunalab.inference.images import check_utf8, read_texts

    texts = [*words, *(read_texts(file, what) if file else [])]
    if not texts:
        raise UserError(f"no {what}: give at least one, or a file of them (--help)")
    for text in words:
        check_utf8(what, text)
    return texts


def attention(arguments: argparse.Namespace) -> int:
    from tunalab.inference.images import check_utf8, read_settings, save_image
    from tunalab.inference.requests import find_device
    from tunalab.trained.evaluation import attention_examples, track_pictures
    from tunalab.trained.model import load

    of, out = arguments, arguments.out
    if out.suffix != ".png":
        raise UserError(f"--out {out}: pictures are written as .png")
    if of.examples is None:
        missing = [f"--{name}" for name in ("image", "question", "word") if getattr(of, name) is None]
        if missing:
            raise UserError(f"{', '.join(missing)}: missing (or --examples N, for questions about scenes)")
        if len(of.settings) > 1:
            raise UserError(f"one model at a time, not {len(of.settings)}, unless --examples N compares them")
        for name in ("question", "word"):
            check_utf8(f"--{name}", getattr(of, name))
    else:
        given = [f"--{name}" for name in ("image", "question", "word", "grid", "size") if getattr(of, name) not in (None, False)]
        if given:
            raise UserError(f"--examples brings its own images and questions: leave out {', '.join(given)}")
        positive("--examples", of.examples)
    outputs = [out, *([out.with_stem(f"{out.stem}-grid")] if of.grid else [])]
    for path in outputs:  # what this command drew is drawn anew, anything else is kept
        if path.exists() and MADE_BY not in (read_settings(path) or {}):
            raise UserError(f"{path} is there and was not made by `tunalab attention`: choose another --out, or remove it")
    device, where, paths = find_device(of.device), {"layer": of.layer, "head": of.head}, [Path(path) for path in of.settings]
    models = ((path.name, load(path, device, of.raw)) for path in paths)  # one at a time in memory
    if of.examples is None:
        ((_, model),) = models
        found = model.attention(of.image, of.question, of.word, of.layer, of.head, of.size)
        answer = model.ask(of.image, of.question, model.config.evaluation.max_answer_tokens, of.size)
        pictures = [found.overlay, *([found.every_head] if of.grid else [])]
        about = {"image": of.image.name, "question": of.question, "word": of.word, **where, "model": model.identity}
    else:
        picture, identities = attention_examples(models, of.examples, of.layer, of.head)
        pictures, about = [picture], {"examples": of.examples, **where, "models": identities}
    for path, picture in zip(outputs, pictures, strict=True):
        save_image(path, picture, {MADE_BY: about})
        print(f"wrote {path}")
    for path in paths:
        track_pictures(path, outputs, "attention")
    if of.examples is None:
        print(f"answer: {' '.join(answer.split())}")
        print(f"at the word {of.word!r} (token {found.token}) {found.map_RK.sum():.0%} of the attention goes to the image")
    return 0
