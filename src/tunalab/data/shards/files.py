"""Files of a source, here or elsewhere: found by name, glob or range, and read by ranges of bytes.

A place is a path or a URL that fsspec knows (s3://, gs://, hf://, https://, memory://). How to reach it (keys, endpoints, anonymous
access) is fsspec's own configuration, ``~/.config/fsspec`` or ``FSSPEC_*`` variables, and never part of a run's settings.
File systems are asked for at every read: fsspec keeps one a process, so that none is shared with a forked data process.

A server that fails is asked again, with growing waits; what then still fails ends the run in one line and is never a reject.
"""

import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from braceexpand import braceexpand
from fsspec import AbstractFileSystem
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from tunalab.data.documents import Reject, printed
from tunalab.data.shards.fetched import fetched, is_offline
from tunalab.errors import UserError, first_line
from tunalab.files import is_clutter
from tunalab.redaction import redacted

_GLOB = frozenset("*?[")

# What file systems tell of a file that changes with its content, and only with it; and what every writing of it changes too.
# Their names for it differ.
_CONTENT = ("sha256", "blob_id", "md5Hash", "Content-MD5", "ETag", "etag")
_STAMPS = (*_CONTENT, "mtime", "LastModified", "last_modified", "Last-Modified", "updated", "last_commit", "created")

# Errors that speak of one file. Others (a dead disk, a lost network) are not the sample's fault: counting them as rejects would
# make the order of documents depend on the machine.
GONE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

TRIES = 7  # of a request
_GROWING = wait_exponential_jitter(initial=1, max=30, jitter=1)  # seconds between two: half a minute to a minute in all
_LONGEST = 300.0  # seconds that a server may ask to wait (Retry-After)
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that another try may change
_SILENCE = 60.0  # seconds without a byte after which a connection is dead
_BUFFER = 5 * 2**20  # bytes asked for at a time of a file that is read from its start to its end
_CLIENTS = (("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError"), ("gcsfs.retry", "HttpError"))
_sleep = time.sleep  # tests do not wait

T = TypeVar("T")


class _Short(Exception):
    """Fewer bytes arrived than the file has in that range."""


@dataclass(frozen=True)
class ShardFile:
    """A file as it was found. ``stamp``: what changes when its content does; empty where the place does not say."""

    url: str
    size: int
    stamp: str

    @property
    def content(self) -> str:
        """The stamp, if copies of a file have the same; else empty."""
        return self.stamp if self.stamp.partition("=")[0] in _CONTENT else ""

    @property
    def is_local(self) -> bool:
        return "://" not in self.url

    @property
    def shown(self) -> str:
        return shown(self.url)


def shown(url: str) -> str:
    """A place for people and logs: on one line, without user-info and, on the web, without its query."""
    return redacted(printed(_parts(url)[0]))


def beside(url: str, ending: str) -> str:
    """The place of a file with that ending behind the name of another."""
    path, query = _parts(url)
    return f"{path}{ending}{query}"


def _parts(url: str) -> tuple[str, str]:
    """Path and query of a web address; elsewhere a ? is part of a name."""
    if not url.startswith(("http://", "https://")):
        return url, ""
    path, mark, query = url.partition("?")
    return path, f"{mark}{query}"


def find_files(urls: Sequence[str], name: str) -> list[ShardFile]:
    """The files that ``urls`` stand for, in their order, those of a glob by name.

    Raises:
        UserError: a place that is not known or not there, a glob that nothing matches, a file that is named twice.
    """
    found: dict[str, ShardFile] = {}
    for given in urls:
        try:
            expanded = list(braceexpand(given))
        except ValueError as error:
            raise UserError(f"{name}: {shown(given)}: unbalanced braces") from error
        for url in expanded:
            for file in _matches(url, name):
                if file.url in found:
                    raise UserError(f"{name}: {file.shown} is named twice: its samples would count twice")
                found[file.url] = file
    return list(found.values())


def read_range(url: str, start: int, end: int) -> bytes:
    """Bytes ``start`` to ``end``.

    Raises:
        Reject: the file is gone or shorter than it was.
        UserError: its server does not give them.
    """
    with _gone_is_a_reject(url):
        path = url
        if "://" in url:
            system, path = _system(url)
            if _is_remote(system):
                return _retried(url, lambda: _fetch(system, path, start, end))
        with open(path, "rb", buffering=0) as file:  # through fsspec a sample takes a third of a millisecond more
            file.seek(start)
            data = file.read(end - start)
    if len(data) != end - start:
        raise Reject(f"{url} is shorter than it was when the run began")
    return data


@contextmanager
def open_file(url: str) -> Iterator[BinaryIO]:
    """The file, open for reading and seeking.

    Raises:
        Reject: it is gone.
        UserError: its server does not give it, now or at a later read.
    """
    with _gone_is_a_reject(url):
        system, path = _system(url)
        if _is_remote(system):
            size = _retried(url, lambda: system.info(path)["size"])
            file: BinaryIO = io.BufferedReader(_Ranges(url, size), _BUFFER)
        else:
            file = system.open(path, "rb")
    with file:
        yield file


def stat_file(url: str) -> ShardFile | None:
    """The file as it is now; None if there is none, or its server gives none (which it may say of one that is not there)."""
    system, path = _system(url)
    try:
        return _shard_file(system, _retried(url, lambda: system.info(path), refused=(FileNotFoundError,)))
    except FileNotFoundError:
        return None


class _Ranges(io.RawIOBase):
    """A remote file: every read is a request of its own, tried again by itself."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size, self._at = url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = read_range(self._url, self._at, max(self._at, min(self._at + len(buffer), self._size)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _fetch(system: AbstractFileSystem, path: str, start: int, end: int) -> bytes:
    if start == end:
        return b""
    if "http" in _protocols(system):
        # Not cat_file, which takes the whole file for the range when a server knows no ranges.
        with system.open(path, "rb", size=end, cache_type="none") as file:
            file.seek(start)
            try:
                data = cast(bytes, file.read(end - start))
            except ValueError as error:
                if "range requests" not in str(error):
                    raise
                raise UserError(
                    f"{shown(path)}: its server does not give parts of a file (HTTP ranges), which reading at random needs: "
                    "copy the files here, or use a server that does"
                ) from error
    else:
        data = cast(bytes, system.cat_file(path, start=start, end=end))
    if len(data) < end - start:
        size = system.info(path)["size"]
        if size is not None and size < end:
            raise Reject(f"{shown(path)} is shorter than it was when the run began")
        raise _Short(f"it sends {len(data):,} of {end - start:,} bytes")
    return data


def _retried(url: str, request: Callable[[], T], refused: tuple[type[Exception], ...] = ()) -> T:
    """What ``ask`` returns, asked again while it fails in a way that may pass.

    Raises FileNotFoundError where the server says so, and for any refusal if that is in ``refused``; else UserError, one line.
    """
    tries = Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(TRIES),
        wait=_wait,
        sleep=lambda seconds: _sleep(seconds),
        reraise=True,
    )
    try:
        return tries(request)
    except (OSError, _Short, *_client_errors()) as error:  # type: ignore[misc]  # a tuple of all
        cause = _cause(error)
        status = _status(cause)
        gone = status in (404, 410) or (status is None and isinstance(cause, FileNotFoundError))
        if gone or (FileNotFoundError in refused and not _may_pass(cause)):
            raise FileNotFoundError(shown(url)) from error
        raise UserError(f"{shown(url)}: {_diagnosis(cause, status, url)}") from error


def _may_pass(error: BaseException) -> bool:
    cause = _cause(error)
    status = _status(cause)
    if status is not None:
        return status in _PASSING
    # An address or a certificate that is wrong stays wrong.
    if isinstance(cause, (*GONE, ValueError)) or hasattr(cause, "certificate_error"):
        return False
    return isinstance(cause, (OSError, _Short, *_client_errors()))


def _wait(state: RetryCallState) -> float:
    assert state.outcome is not None
    error = state.outcome.exception()
    headers = getattr(_cause(error), "headers", None) if error else None
    return max(_GROWING(state), min(_retry_after(headers), _LONGEST))


def _retry_after(headers: Any) -> float:
    """Seconds that an answer asks to wait: a number or a date; 0 if it does not say, or nothing that can be read."""
    text = str((headers or {}).get("Retry-After", "")).strip()
    if text.isdecimal():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def _diagnosis(cause: BaseException, status: int | None, url: str) -> str:
    answer = f"{status} {getattr(cause, 'message', '')}".strip() if status else ""
    if status in (401, 403) or isinstance(cause, PermissionError):
        return (
            f"its server refuses it{f' ({answer})' if answer else ''}: a signed link that has expired, or a login that is missing"
        )
    tries = f", {TRIES} times" if _may_pass(cause) else ""
    if status:
        return f"its server answers {answer}{tries}"
    if isinstance(cause, TimeoutError):
        return f"its server does not answer within {_SILENCE:.0f} s{tries}"
    if isinstance(cause, _Short):
        return f"its server breaks off: {cause}{tries}"
    return f"it cannot be reached: {redacted(first_line(cause), url)}{tries}"


def _cause(error: BaseException) -> BaseException:
    """fsspec says of every failure of a web server that there is no such file; what happened is the reason of that."""
    reason = error.__cause__
    if isinstance(error, FileNotFoundError) and reason is not None and isinstance(reason, (OSError, *_client_errors())):
        return reason
    return error


def _status(error: BaseException) -> int | None:
    found = getattr(error, "status", None)
    return found if isinstance(found, int) else None


def _client_errors() -> tuple[type[BaseException], ...]:
    """Those of the libraries that were needed so far: what they raise is no OSError."""
    return tuple(getattr(sys.modules[module], name) for module, name in _CLIENTS if module in sys.modules)


def _matches(url: str, name: str) -> list[ShardFile]:
    if "::" in url:
        raise UserError(f"{name}: {shown(url)}: chained URLs (::) are not supported")
    try:
        system, path = _system(url)
    except FileNotFoundError as error:
        raise UserError(f"{name}: {shown(url)} is not in the local cache, and HF_HUB_OFFLINE is set: `tunalab fetch`") from error
    except (ValueError, ImportError) as error:  # no such protocol, or the package it needs is not installed
        raise UserError(f"{name}: {shown(url)}: {redacted(first_line(error), url)}") from error
    try:
        infos = _retried(url, lambda: _infos(system, path)) if _is_remote(system) else _infos(system, path)
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file: {shown(url)}") from error
    except OSError as error:
        raise UserError(f"{name}: {shown(url)} cannot be reached: {first_line(error)}") from error
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    if not infos:
        raise UserError(f"{name}: no files match {shown(url)}")
    if infos[0]["type"] == "directory":
        raise UserError(f"{name}: {shown(url)} is a folder: name its files, such as {shown(url).rstrip('/')}/*.tar")
    for info in infos:
        # Also a pipe, which would wait for ever, and a server that does not tell sizes.
        if info["type"] != "file" or not isinstance(info.get("size"), int):
            raise UserError(f"{name}: {shown(info['name'])} is no file of known size")
    return [_shard_file(system, info) for info in infos]


def _infos(system: AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    """What is known of the file, or of those that a glob names."""
    if not _GLOB & set(_parts(path)[0]):
        return [system.info(path)]
    found = [info for _, info in sorted(system.glob(path, detail=True).items()) if not is_clutter(info["name"].rpartition("/")[2])]
    found = [info for info in map(partial(_followed, system), found) if info["type"] == "file"]
    if not found and not _is_remote(system) and system.exists(path):
        return [system.info(path)]  # brackets that are part of its name
    # A page of links does not tell sizes.
    return [info if info.get("size") is not None else system.info(info["name"]) for info in found]


def _followed(system: AbstractFileSystem, info: dict[str, Any]) -> dict[str, Any]:
    """What a link leads to. A glob calls every link of a disk "other", also those of the Hub's cache, which lead to shards."""
    if not info.get("islink"):
        return info
    try:
        return cast(dict[str, Any], system.info(info["name"]))
    except OSError as error:
        raise UserError(f"{shown(info['name'])} is a link that leads nowhere: remove it, or make what it leads to") from error


def _shard_file(system: AbstractFileSystem, info: dict[str, Any]) -> ShardFile:
    if lfs := info.get("lfs"):  # of the Hub, which is read with a network and without one
        info = {**info, "sha256": lfs["sha256"]}
    stamp = next((f"{key}={info[key]}" for key in _STAMPS if info.get(key) is not None), "")
    path = info["name"]
    return ShardFile(system.unstrip_protocol(path) if _is_remote(system) else path, info["size"], stamp)


def _is_remote(system: AbstractFileSystem) -> bool:
    return "file" not in _protocols(system)


def _protocols(system: AbstractFileSystem) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _system(url: str) -> tuple[AbstractFileSystem, str]:
    if "::" in url and "://" not in url:  # of an image's name; in the settings chains are refused
        return fsspec.filesystem("file"), url
    if is_offline(url):
        return fetched(url)
    protocol = url.partition("://")[0]
    more: dict[str, Any] = {}
    if protocol in ("http", "https") and "client_kwargs" not in fsspec.config.conf.get(protocol, {}):
        from aiohttp import ClientTimeout  # here: local data need none of it

        # Its own is five minutes for all of a file, however fast it comes.
        more["client_kwargs"] = {"timeout": ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)}
    system, path = fsspec.core.url_to_fs(url, **more)
    return system, path


@contextmanager
def _gone_is_a_reject(url: str) -> Iterator[None]:
    try:
        yield
    except GONE as error:
        raise Reject(f"{shown(url)} cannot be read: {redacted(first_line(error), url)}") from error
