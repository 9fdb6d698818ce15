"""What commands share: output, registering a command, options of models and of images."""

import argparse
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from tunalab.errors import UserError
from tunalab.redaction import redacted

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    from tunalab.inference.requests import GenerationRequest
    from tunalab.trained.model import Model


class Unread:
    """A text stream that is thrown away once its terminal (EIO) or pipe (EPIPE) has no reader. Other errors are errors.

    ``clean``: what becomes of each text on its way.
    """

    def __init__(self, stream: TextIO, clean: Callable[[str], str] = str) -> None:
        self._stream, self._clean = stream, clean

    def write(self, text: str) -> int:
        try:
            self._stream.write(self._clean(text))
            return len(text)
        except OSError as error:
            self._throw_away(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._throw_away(error)

    def _throw_away(self, error: OSError) -> None:
        number = self._stream.fileno()
        unread = error.errno == errno.EPIPE or (error.errno == errno.EIO and not stat.S_ISREG(os.fstat(number).st_mode))
        if not unread:
            raise error
        self.throw_away()

    def throw_away(self) -> None:
        """From here on, below everything that writes there: C libraries and Python's own last flush included."""
        number = self._stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def nobody_need_read() -> Iterator[None]:
    """Inside, standard output and error are :class:`Unread`; where the caller closed one, what is printed goes nowhere.

    Warnings and errors, also those of libraries, pass without credentials; what a command prints as its result passes as it is.
    """
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = cast(TextIO, Unread(before[0] or nowhere))
        sys.stderr = cast(TextIO, Unread(before[1] or nowhere, redacted))
        try:
            yield
        finally:
            written = cast(Unread, sys.stdout), cast(Unread, sys.stderr)
            sys.stdout, sys.stderr = before
            _end(written[1], suppress(OSError))
            _end(written[0], nullcontext())


def _end(stream: Unread, errors: AbstractContextManager[None]) -> None:
    """What it still holds is written here, where a reader who went away is no error. What cannot be is tried no second time."""
    with errors:
        try:
            stream.flush()
        except OSError:
            stream.throw_away()
            raise


def add_command(commands: "Commands", run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    """A sub-command named after the function that carries it out, underscores as dashes."""
    sub = commands.add_parser(run.__name__.replace("_", "-"), help=text, description=text)
    sub.set_defaults(run=run)
    return sub


def add_settings(parser: argparse.ArgumentParser) -> None:
    # A default, or argparse counts them among what is missing.
    parser.add_argument("settings", nargs="*", default=[], metavar="key=value", help="settings over experiment and variant")


def check_out(path: Path, folder: bool = False, option: str = "--out") -> None:
    """Whether ``option`` can be a file, or a ``folder``, to be made if it is missing; checked before anything is computed.

    Raises:
        UserError: it is the other kind of thing, lies below a file, or may not be written.
    """
    if path.exists() and path.is_dir() != folder:
        raise UserError(
            f"{option} {path} is a {'file' if folder else 'folder'}: a {'folder' if folder else 'file'} is to be written"
        )
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not (nearest.is_dir() or nearest == path):
        raise UserError(f"{option} {path} cannot be written: {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{option} {path} cannot be written: {nearest} is not writable")


MODEL_HELP = "run directory (RUN@TOKENS: at a checkpoint that it keeps) or exported folder"
RAW_HELP = "use the raw weights of training, not their moving averages"


def add_sampling(sub: argparse.ArgumentParser, n: int | None, images: str) -> None:
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the images; existing ones are kept")
    sub.add_argument("--n", type=int, default=n, help=images)
    sub.add_argument("--seed", type=int, default=0, help="of the first image (default: 0)")
    sub.add_argument("--steps", type=int, help="sampling steps (default here and for the next five: as the model's settings say)")
    sub.add_argument("--guidance", type=float, help="scale of classifier-free guidance (1: none)")
    sub.add_argument("--negative", metavar="TEXT", help="negative prompt")
    sub.add_argument("--sampler", choices=("euler", "heun"))
    sub.add_argument("--shift", type=float, help="of the sampling times: above 1, more steps near the noise")
    sub.add_argument("--clamp", choices=("none", "official"), help="of 1 - t; official leaves noise in more than 20 steps")


def add_model_options(sub: argparse.ArgumentParser) -> None:
    add_weights(sub)
    sub.add_argument("--batch-tokens", type=int, metavar="N", help="tokens held at a time: fewer take less memory")


def add_weights(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--size", metavar="SIZE", help="64, or HEIGHTxWIDTH such as 384x512 (default: as the model was trained)")
    sub.add_argument("--raw", action="store_true", help=RAW_HELP)
    add_device(sub)


def add_device(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")


def load_model(arguments: argparse.Namespace) -> "Model":
    from tunalab.inference.requests import find_device
    from tunalab.trained.model import load

    return load(arguments.model, find_device(arguments.device), arguments.raw)


def request_of(arguments: argparse.Namespace) -> "GenerationRequest":
    """Its errors name options."""
    from tunalab.inference.requests import GenerationRequest

    class Options(GenerationRequest):
        prefix = "--"

    return Options(**{item.name: getattr(arguments, item.name) for item in fields(GenerationRequest)})


def bounds_of(arguments: argparse.Namespace) -> dict[str, int]:
    """``batch_tokens``, where it is given."""
    given = arguments.batch_tokens
    return {} if given is None else {"batch_tokens": positive("--batch-tokens", given)}


def positive(option: str, given: int) -> int:
    if given < 1:
        raise UserError(f"{option}={given} is out of range (from 1)")
    return given
