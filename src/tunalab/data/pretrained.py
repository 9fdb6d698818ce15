"""Where a pretrained part comes from: a folder on this machine, or a name on the Hub; and what reading one may raise."""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from tunalab.errors import UserError

# Of timm, transformers, diffusers and the Hub's client, for what is missing, damaged, of another kind or out of reach.
LOAD_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AssertionError,
    AttributeError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)+")
LONGEST = 300


@dataclass(frozen=True)
class Source:
    """``name``: a folder, or OWNER/NAME on the Hub, as ``from_pretrained`` takes it; ``subfolder`` of the Hub's repository, or ''.

    ``what``: the setting with its value, for messages.
    """

    name: str
    subfolder: str
    what: str

    @property
    def folder(self) -> Path | None:
        return Path(self.name) if Path(self.name).is_dir() else None


def locate(given: str, setting: str, prefix: str = "") -> Source:
    """A folder where there is one of that name, else OWNER/NAME[/SUBFOLDER] on the Hub. ``prefix``: what stood before the name.

    Raises UserError when ``given`` can be neither.
    """
    what = f"{setting}={prefix}{given}"
    if Path(given).is_dir():
        return Source(given, "", what)
    if not HUB_NAME.fullmatch(given):
        raise UserError(f"{what} is neither a folder nor OWNER/NAME on the Hub")
    parts = given.split("/")
    return Source("/".join(parts[:2]), "/".join(parts[2:]), what)


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Whatever a library says of files that it cannot read becomes one line about the setting."""
    try:
        yield
    except LOAD_ERRORS as error:
        where = "cannot be read" if source.folder else "is no folder here and does not come from the Hub"
        raise UserError(f"{source.what} {where}: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
