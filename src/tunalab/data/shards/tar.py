"""Tar shards of the WebDataset convention: members that follow each other and share a name up to its first dot are one sample."""

import io
import tarfile
from collections.abc import Sequence

import numpy as np

from tunalab.data.documents import Reject
from tunalab.data.shards.corpus import Sample
from tunalab.data.shards.files import ShardFile, beside, open_file, read_range, stat_file
from tunalab.data.shards.indexing import Damaged, index_files
from tunalab.data.shards.ranges import RangeReader

_BLOCK = 512  # tar writes headers and contents in blocks, and at least one block of zeros at the end
_LONGEST_END = 2 * 20 * _BLOCK  # ends are padded to a record of 20 blocks
_SIDECAR = ".idx"
# A caption and an image of a few megabytes; reading much more could fill the memory.
MAX_SAMPLE_BYTES = 512 * 2**20


def tar_reader(name: str, files: Sequence[ShardFile]) -> RangeReader:
    """Samples ``{"__key__": name, "jpg": bytes, ...}`` of tar shards, endings in lower case. A shard is a block.

    A ``.tar.idx`` beside a shard, as ``energon prepare`` writes it, is taken as its index; other shards are read through once.

    Raises:
        UserError: a shard is no tar, is compressed, damaged or cut off, or does not fit its ``.tar.idx``.
    """
    return RangeReader(files, index_files(name, files, "tar 1", _index), parse_sample, "sample", MAX_SAMPLE_BYTES)


def parse_sample(data: bytes) -> Sample:
    """The members of one sample.

    Raises:
        Reject: they cannot be read, or two have the same ending.
    """
    sample: dict[str, bytes | str] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                parts = split_name(member)
                if parts is None:
                    continue
                key, ending = parts
                if ending in sample:
                    raise Reject(f"{key}: two members .{ending}")
                content = tar.extractfile(member)
                assert content is not None  # split_name passes regular files only
                sample["__key__"] = key
                sample[ending] = content.read()
    except (tarfile.TarError, ValueError) as error:
        raise Reject(f"damaged since the run began: {error}") from error
    return sample


def split_name(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Key and ending of a member; None for what is no part of a sample: folders, links, hidden files, ``__such__`` names."""
    folder, slash, file = member.name.rpartition("/")
    stem, dot, ending = file.partition(".")
    special = any(part.startswith("__") and part.endswith("__") for part in member.name.split("/"))
    if not member.isreg() or not stem or not dot or special:
        return None
    return f"{folder}{slash}{stem}", ending.lower()


def _index(file: ShardFile) -> np.ndarray:
    sidecar = stat_file(beside(file.url, _SIDECAR))
    return _scan(file) if sidecar is None else _read_sidecar(file, sidecar)


def _scan(file: ShardFile) -> np.ndarray:
    starts: list[int] = []
    key: str | None = None
    with open_file(file.url) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    parts = split_name(member)
                    if parts is not None and parts[0] != key:
                        key = parts[0]
                        starts.append(member.offset)
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps every header
                end = tar.offset
        except (tarfile.TarError, ValueError) as error:
            # One exception stands for "no tar" and for "a tar that ends too early".
            if not starts:
                raise Damaged(f"not an uncompressed tar: {error}") from error
            raise Damaged(f"cut off or damaged after {len(starts)} samples, at most byte {file.size}: {error}") from error
        stream.seek(end)
        zeros = stream.read(_BLOCK)
    # tarfile takes a damaged header, and a file cut between two members, for the end of the archive.
    if zeros != bytes(_BLOCK):
        what = "damaged" if len(zeros) == _BLOCK else "cut off"
        raise Damaged(f"{what} at byte {end}, after {len(starts)} samples: no end of archive")
    return np.array([*starts, end], np.int64)


def _read_sidecar(file: ShardFile, sidecar: ShardFile) -> np.ndarray:
    index = np.frombuffer(read_range(sidecar.url, 0, sidecar.size - sidecar.size % 8), "<u8").astype(np.int64)
    whole = sidecar.size % 8 == 0 and len(index) > 0 and not np.any(np.diff(index) <= 0)
    if not whole or not file.size - _LONGEST_END <= index[-1] <= file.size - _BLOCK:
        raise Damaged(f"cut off, or its index {sidecar.shown} does not fit: prepare it again, or delete it")
    return index
