"""`tunalab attention`: where a model looks while it reads a word of a question about an image."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunalab.cli.common import add_command
from tunalab.errors import UserError
from tunalab.library import tracking_uri

if TYPE_CHECKING:
    import numpy as np

    from tunalab.cli.common import Commands
    from tunalab.evaluation.attention import Captioned
    from tunalab.trained.model import Model

MADE_BY = "attention"  # the key of what pictures say about themselves


def add(commands: "Commands") -> None:
    text = "where a model looks while it reads a word of a question: an image of it, or the same questions for several models"
    sub = add_command(commands, attention, text)
    sub.add_argument("settings", nargs="+", metavar="MODEL", help="run directories or exported folders")
    sub.add_argument("--image", type=Path, metavar="FILE")
    sub.add_argument("--question", metavar="TEXT")
    sub.add_argument("--word", help="a word of the question")
    sub.add_argument("--examples", type=int, metavar="N", help="instead: N questions about scenes, a row of pictures a model")
    sub.add_argument("--layer", type=int, help="from 0 (default: the mean of all)")
    sub.add_argument("--head", type=int, help="of that layer, from 0 (default: the mean of all)")
    sub.add_argument("--grid", action="store_true", help="also every head by itself, a row a layer, in NAME-grid.png")
    sub.add_argument("--out", type=Path, metavar="FILE.png", default=Path("attention.png"), help="default: attention.png")
    sub.add_argument("--size", metavar="SIZE", help="64, or HEIGHTxWIDTH such as 384x512 (default: as the model was trained)")
    sub.add_argument("--raw", action="store_true", help="the weights that go on training, not their averages")
    sub.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")


def attention(arguments: argparse.Namespace) -> int:
    models = [Path(word) for word in arguments.settings]
    if arguments.out.suffix != ".png":
        raise UserError(f"--out {arguments.out}: pictures are written as .png")
    if arguments.examples is None:
        _check_question(arguments, models)
    else:
        _check_examples(arguments)
    for path in _outputs(arguments):
        _check_free(path)
    return _one(arguments, models[0]) if arguments.examples is None else _examples(arguments, models)


def _check_question(arguments: argparse.Namespace, models: list[Path]) -> None:
    missing = [f"--{name}" for name in ("image", "question", "word") if getattr(arguments, name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)}: missing (or --examples N, for questions about scenes)")
    if len(models) > 1:
        raise UserError(f"one model at a time, not {len(models)}, unless --examples N compares them")
    for name in ("question", "word"):
        try:
            getattr(arguments, name).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"--{name} {ascii(getattr(arguments, name))} is not text in UTF-8") from error


def _check_examples(arguments: argparse.Namespace) -> None:
    given = [f"--{name}" for name in ("image", "question", "word", "grid", "size") if getattr(arguments, name) not in (None, False)]
    if given:
        raise UserError(f"--examples brings its own images and questions: leave out {', '.join(given)}")
    if arguments.examples < 1:
        raise UserError(f"--examples={arguments.examples} is out of range (from 1)")


def _one(arguments: argparse.Namespace, path: Path) -> int:
    import numpy as np

    from tunalab.evaluation.attention import draw_heads
    from tunalab.inference.orders import input_buckets, read_input
    from tunalab.trained.model import model_config

    config = model_config(path)
    size, question, word = arguments.size, arguments.question, arguments.word
    image_HWC = read_input(arguments.image, input_buckets(config.data, size))
    model = _load(arguments, path)
    found = model.attention(arguments.image, question, word, arguments.layer, arguments.head, size)
    (answered,) = model.answers([(arguments.image, question)], config.evaluation.max_answer_tokens, size)
    pictures = [np.asarray(found.overlay)]
    if arguments.grid:
        pictures.append(np.asarray(draw_heads(image_HWC, found.heads_YAT, found.map_RK.shape)))
    of = {"image": arguments.image.name, "question": question, "word": word}
    _write(arguments, pictures, {**of, "layer": arguments.layer, "head": arguments.head, "model": model.identity})
    _track([path], _outputs(arguments))
    print(f"answer: {' '.join(answered.split())}")
    print(f"at the word {word!r} (token {found.token}) {found.map_RK.sum():.0%} of the attention goes to the image")
    return 0


def _examples(arguments: argparse.Namespace, models: list[Path]) -> int:
    import numpy as np

    from tunalab.evaluation.attention import draw_examples, example_questions, shown_attention, shown_questions
    from tunalab.trained.model import model_config

    sizes = {path: model_config(path).data.image_size for path in models}
    if len(set(sizes.values())) > 1:
        raise UserError(f"models of different image sizes in one picture: {', '.join(f'{p} {size}' for p, size in sizes.items())}")
    rows: list[Captioned] = []
    identities = []
    for path in models:
        loaded = _load(arguments, path)
        asked = example_questions(arguments.examples, sizes[path], loaded.model.frontend.space.token_pixels)
        tokens = loaded.config.evaluation.max_answer_tokens
        with loaded.computing():
            shown = shown_attention(path.name, loaded.model, loaded.tokenizer, asked, tokens, arguments.layer, arguments.head)
        rows += [*([] if rows else [shown_questions(asked)]), *shown]
        identities.append(loaded.identity)
    said = {"examples": arguments.examples, "layer": arguments.layer, "head": arguments.head, "models": identities}
    _write(arguments, [np.asarray(draw_examples(rows))], said)
    _track(models, _outputs(arguments))
    return 0


def _load(arguments: argparse.Namespace, path: Path) -> "Model":
    from tunalab.inference.orders import find_device
    from tunalab.trained.model import load

    return load(path, find_device(arguments.device), arguments.raw)


def _track(models: list[Path], pictures: list[Path]) -> None:
    """Into the runs of the models in MLflow, of those that are run directories."""
    from tunalab.tracking.tracker import RUN_ID, log_files
    from tunalab.trained.model import model_config

    for path in models:
        tracking, known = model_config(path).tracking, path / RUN_ID
        if tracking.enabled and known.is_file():
            log_files(tracking_uri(tracking), known.read_text(encoding="utf-8").strip(), pictures, "attention")


def _outputs(arguments: argparse.Namespace) -> list[Path]:
    out: Path = arguments.out
    return [out, *([out.with_stem(f"{out.stem}-grid")] if arguments.grid else [])]


def _check_free(path: Path) -> None:
    """What this command drew is drawn anew, anything else kept. Raises UserError when something else is there."""
    from tunalab.inference.orders import read_settings

    if path.exists() and MADE_BY not in (read_settings(path) or {}):
        raise UserError(f"{path} is there and was not made by `tunalab attention`: choose another --out, or remove it")


def _write(arguments: argparse.Namespace, pictures: "list[np.ndarray]", said: dict[str, Any]) -> None:
    from tunalab.inference.orders import save_image

    for path, picture_HWC in zip(_outputs(arguments), pictures, strict=True):
        save_image(path, picture_HWC, {MADE_BY: said})
        print(f"wrote {path}")
