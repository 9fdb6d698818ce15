"""Files of a source, here or elsewhere: found by name, glob or range, and read by ranges of bytes.

A place is a path or a URL that fsspec knows (s3://, gs://, hf://, https://, memory://). How to reach it (keys, endpoints, anonymous
access) is fsspec's own configuration, ``~/.config/fsspec`` or ``FSSPEC_*`` variables, and never part of a run's settings.
File systems are asked for at every read: fsspec keeps one a process, so that none is shared with a forked data process.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
from braceexpand import braceexpand
from fsspec import AbstractFileSystem

from tunalab.data.documents import Reject
from tunalab.errors import UserError

_GLOB = frozenset("*?[")

# What file systems tell of a file that changes with its content. Their names for it differ.
_STAMPS = ("blob_id", "mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "last_commit", "created")

# Errors that speak of one file. Others (a dead disk, a lost network) are not the sample's fault: counting them as rejects would
# make the order of documents depend on the machine.
GONE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class ShardFile:
    """A file as it was found. ``stamp``: what changes when its content does; empty where the place does not say."""

    url: str
    size: int
    stamp: str


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
            raise UserError(f"{name}: {given}: unbalanced braces") from error
        for url in expanded:
            for file in _matches(url, name):
                if file.url in found:
                    raise UserError(f"{name}: {file.url} is named twice: its samples would count twice")
                found[file.url] = file
    return list(found.values())


def read_range(url: str, start: int, end: int) -> bytes:
    """Bytes ``start`` to ``end``.

    Raises:
        Reject: the file is gone or shorter than it was.
    """
    with _gone_is_a_reject(url):
        system, path = _system(url)
        data = system.cat_file(path, start=start, end=end)
    if len(data) != end - start:
        raise Reject(f"{url} is shorter than it was when the run began")
    return cast(bytes, data)


@contextmanager
def open_file(url: str) -> Iterator[BinaryIO]:
    """The file, open for reading and seeking.

    Raises:
        Reject: it is gone.
    """
    with _gone_is_a_reject(url):
        system, path = _system(url)
        file = system.open(path, "rb")
    with file:
        yield file


def stat_file(url: str) -> ShardFile | None:
    """The file as it is now; None if there is none."""
    system, path = _system(url)
    try:
        return _shard_file(system, system.info(path))
    except FileNotFoundError:
        return None


def _matches(url: str, name: str) -> list[ShardFile]:
    if "::" in url:
        raise UserError(f"{name}: {url}: chained URLs (::) are not supported")
    try:
        system, path = _system(url)
    except (ValueError, ImportError) as error:  # no such protocol, or the package it needs is not installed
        raise UserError(f"{name}: {url}: {first_line(error)}") from error
    try:
        if _GLOB & set(path):
            infos = [info for _, info in sorted(system.glob(path, detail=True).items()) if info["type"] == "file"]
            if not infos:
                raise UserError(f"{name}: no files match {url}")
        else:
            infos = [system.info(path)]
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file: {url}") from error
    except OSError as error:
        raise UserError(f"{name}: {url} cannot be reached: {first_line(error)}") from error
    if infos[0]["type"] == "directory":
        raise UserError(f"{name}: {url} is a folder: name its files, such as {url.rstrip('/')}/*.tar")
    for info in infos:
        # Also a pipe, which would wait for ever, and a server that does not tell sizes.
        if info["type"] != "file" or not isinstance(info.get("size"), int):
            raise UserError(f"{name}: {info['name']} is no file of known size")
    return [_shard_file(system, info) for info in infos]


def _shard_file(system: AbstractFileSystem, info: dict[str, Any]) -> ShardFile:
    stamp = next((f"{key}={info[key]}" for key in _STAMPS if info.get(key) is not None), "")
    path = info["name"]
    local = "file" in _protocols(system)
    return ShardFile(path if local else system.unstrip_protocol(path), info["size"], stamp)


def _protocols(system: AbstractFileSystem) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _system(url: str) -> tuple[AbstractFileSystem, str]:
    system, path = fsspec.core.url_to_fs(url)
    return system, path


@contextmanager
def _gone_is_a_reject(url: str) -> Iterator[None]:
    try:
        yield
    except GONE as error:
        raise Reject(f"{url} cannot be read: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
