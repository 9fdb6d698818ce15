"""Where a pretrained part comes from: a folder on this machine, or a name on the Hub; and what reading one may raise."""

import pickle
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event, Thread

from httpx2 import HTTPError
from huggingface_hub import constants
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils._http import get_session
from safetensors import SafetensorError

from tunalab.errors import UserError, one_line

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
NO_WAY = (403, 407, 502, 503, 504, 511)  # of a proxy that lets nothing through, or of a Hub that is down
ANSWER_SECONDS, KEPT_SECONDS = 4.0, 60.0  # how long the Hub has to answer at all, and how long that is taken to hold


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
def reading(source: Source, hub: bool = True) -> Iterator[None]:
    """What a library says of files that it cannot read becomes one line on the setting. ``asks``: for files, of the Hub too."""
    try:
        with nullcontext() if source.folder or not hub else from_hub(source.what, source.name):
            yield
    except LOAD_ERRORS as error:
        where = "cannot be read" if source.folder else "is no folder here and does not come from the Hub"
        raise UserError(f"{source.what} {where}: {one_line(error)}") from error


@contextmanager
def from_hub(what: str, repository: str | None) -> Iterator[None]:
    """Inside, the Hub is asked only if it answers at all: its client would try again for minutes.

    Without it, files of the local cache serve. Raises UserError, in seconds, when they are not there.
    """
    if not constants.HF_HUB_OFFLINE and hub_answers():
        try:
            yield
        except LOAD_ERRORS as error:
            if repository is None or _is_cached(repository) or _is_hub(constants.ENDPOINT):
                raise
            missing = f"{what} is no folder here and not in the local cache, and the Hub cannot be reached"
            raise UserError(f"{missing} ({constants.ENDPOINT} answers, but not as the Hub does): {one_line(error)}") from error
        return
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else constants.ENDPOINT
    missing = f"{what} is no folder here and not in the local cache, and the Hub cannot be reached ({why})"
    if repository is not None and not _is_cached(repository):
        raise UserError(missing)
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    except LOAD_ERRORS as error:
        raise UserError(f"{missing}: {one_line(error)}") from error
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_answers() -> bool:
    """Whether the Hub is in reach; an answer is taken to hold for a minute."""
    return _answers(constants.ENDPOINT, int(time.monotonic() / KEPT_SECONDS))


@cache
def _answers(endpoint: str, _: int) -> bool:
    """Whether a server is there, whatever it answers, by the client's own ways (proxies, certificates)."""
    answered = Event()

    def request() -> None:
        try:
            status = get_session().head(endpoint, timeout=ANSWER_SECONDS).status_code
        except (HTTPError, OSError):
            return
        if status not in NO_WAY:
            answered.set()

    thread = Thread(target=request, daemon=True)  # for a resolver of names keeps to no time
    thread.start()
    thread.join(2 * ANSWER_SECONDS)
    return answered.is_set()


def _is_hub(endpoint: str) -> bool:
    """Whether what answers has a first page, as the Hub has and a closed network's server of refusals has not."""
    try:
        return get_session().head(endpoint, timeout=ANSWER_SECONDS, follow_redirects=True).status_code < 400
    except (HTTPError, OSError):
        return False


def _is_cached(repository: str) -> bool:
    """Whether anything of it is."""
    snapshots = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "snapshots"
    return snapshots.is_dir() and any(snapshots.iterdir())
