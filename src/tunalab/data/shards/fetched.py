"""Shards of the Hub that lie in its local cache: with HF_HUB_OFFLINE set, hf:// addresses are read from there.

The address stays the name of a file, so a source is the same source with and without a network. What is not in the cache is not
there: a glob matches the files that were fetched, and nobody is asked.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

HF = "hf://"
_ADDRESS = re.compile(r"hf://(datasets/)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")


def is_offline(url: str) -> bool:
    """Whether this address is read from the cache alone."""
    return url.startswith(HF) and constants.HF_HUB_OFFLINE


def repository(url: str) -> tuple[str, str, str | None, str]:
    """Type (dataset, model), OWNER/NAME, revision and path within it, which may be a glob.

    Raises FileNotFoundError: it is no address of a file.
    """
    found = _ADDRESS.fullmatch(url)
    if found is None:
        raise FileNotFoundError(url)
    datasets, name, revision, path = found.groups()
    return "dataset" if datasets else "model", name, revision, path


def fetched(url: str) -> "tuple[FetchedFiles, str]":
    """The files of the repository that lie in the cache, and the path of ``url`` among them.

    Raises FileNotFoundError: nothing of it was fetched.
    """
    kind, name, revision, path = repository(url)
    return FetchedFiles(
        path=str(_snapshot(kind, name, revision, constants.HF_HUB_CACHE)), address=url[: len(url) - len(path)]
    ), path


@cache
def _snapshot(kind: str, name: str, revision: str | None, folder: str) -> Path:
    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision, cache_dir=folder, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(name) from error


class FetchedFiles(DirFileSystem):
    """A folder of the cache under its address. Its files are links to blobs, which are named by their content."""

    protocol = "hf"

    def __init__(self, path: str, address: str, **more: Any) -> None:
        super().__init__(path=path, fs=LocalFileSystem(), **more)
        self.address = address

    def unstrip_protocol(self, name: str) -> str:
        return f"{self.address}{name}"

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        place = Path(self._join(path))
        kind = "directory" if place.is_dir() else "file"
        content = os.path.basename(os.path.realpath(place))  # large files are named by sha256, others as git names them
        told = {"lfs": {"sha256": content}} if len(content) == 64 else {"blob_id": content}
        return {"name": path, "size": place.stat().st_size, "type": kind, **told}

    def glob(self, path: str, **_: Any) -> dict[str, dict[str, Any]]:
        return {name: self.info(name) for name in super().glob(path)}
