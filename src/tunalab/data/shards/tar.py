"""Samples that are a range of bytes of their file: WebDataset tar members, or a line.

Members of a tar that follow each other and share a name up to its first dot are one sample.
"""

import io
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import BinaryIO

import numpy as np

from tunalab.data.documents import Reject
from tunalab.data.shards.corpus import Damaged, Sample, StoredIndex, index_files
from tunalab.data.shards.files import ShardFile, beside, open_file, read_range, stat_file
from tunalab.errors import UserError

_LOADED = 64  # indices of files held in memory


class RangeReader:
    """Reads one range a sample; every range is a request of its own at a remote place.

    ``indices``: for each file the starts of its samples and the end of the last one. ``parse`` makes a sample of its bytes.
    ``noun``: what a sample is called. ``largest``: bytes of a sample beyond which it is rejected unread. ``block``: the most
    samples a block has; blocks end with their file.
    """

    def __init__(
        self,
        files: Sequence[ShardFile],
        indices: Sequence[StoredIndex],
        parse: Callable[[bytes], Sample],
        noun: str,
        largest: int,
        block: int | None = None,
    ) -> None:
        self.files = files
        self._indices = indices
        self._parse = parse
        self._noun = noun
        self._largest = largest
        counts = [max(0, index.length - 1) for index in indices]
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        inner = [
            np.arange(first, first + count, block or max(1, count)) for first, count in zip(self._first[:-1], counts, strict=True)
        ]
        self.starts = np.concatenate([*inner, self._first[-1:]])
        self._loaded: dict[int, np.ndarray] = {}

    def read(self, row: int) -> Sample:
        number, place = self._place(row)
        index = self._index(number)
        start, end = int(index[place]), int(index[place + 1])
        if end - start > self._largest:
            raise Reject(f"{self._noun} of more than {self._largest // 2**20} MiB")
        return self._parse(read_range(self.files[number].url, start, end))

    def where(self, row: int) -> str:
        number, place = self._place(row)
        return f"{self.files[number].shown} {self._noun} {place + 1}"

    def _place(self, row: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._first, row, side="right")) - 1
        return number, row - int(self._first[number])

    def _index(self, number: int) -> np.ndarray:
        offsets = self._loaded.get(number)
        if offsets is None:
            offsets = self._indices[number].load()
            if np.any(np.diff(offsets) <= 0) or offsets[0] < 0 or offsets[-1] > self.files[number].size:
                raise UserError(f"{self._indices[number].path}: this index is damaged, delete it ({self.files[number].shown})")
            while len(self._loaded) >= _LOADED:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[number] = offsets
        return offsets


_BLOCK = 512  # tar writes headers and contents in blocks, and at least one block of zeros at the end
_LONGEST_END = 2 * 20 * _BLOCK  # ends are padded to a record of 20 blocks
_ZEROS = 2**20  # bytes of an archive's end looked at together
_SIDECAR = ".idx"
# Names that break it are common: keys with dots, members sorted by their endings.
RULE = " (a sample is members that follow each other and share a name up to its first dot)"
LINKS = ": write the shard with the file itself (tar --dereference --hard-dereference)"
# A caption and an image of a few megabytes; reading much more could fill the memory.
MAX_SAMPLE_BYTES = 512 * 2**20


def tar_reader(name: str, files: Sequence[ShardFile]) -> RangeReader:
    """Samples ``{"__key__": name, "jpg": bytes, ...}`` of tar shards, endings in lower case. A shard is a block.

    Shards that ``cat`` put end to end are read to their end.

    A ``.tar.idx`` beside a shard, as ``energon prepare`` writes it, is taken as its index; other shards are read through once.

    Raises:
        UserError: a shard is no tar, is compressed, damaged or cut off, or does not fit its ``.tar.idx``.
    """
    return RangeReader(files, index_files(name, files, "tar 3", _index), parse_sample, "sample", MAX_SAMPLE_BYTES)


def parse_sample(data: bytes) -> Sample:
    """The members of one sample.

    Raises:
        Reject: they cannot be read, two have the same ending, or one is a link: what it leads to is elsewhere.
    """
    sample: dict[str, bytes | str] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                parts = split_name(member)
                if parts is None:
                    continue
                key, ending = parts
                if _is_link(member):
                    links.setdefault(key, f"{key}.{ending} is a link to {member.linkname}{LINKS}")
                    continue
                if ending in sample:
                    raise Reject(f"{key}: two members .{ending}{RULE}")
                content = tar.extractfile(member)
                assert content is not None  # it is a regular file
                sample["__key__"] = key
                sample[ending] = content.read()
    except (tarfile.TarError, ValueError) as error:
        raise Reject(f"damaged since the run began: {error}") from error
    # An index of energon's knows no links: those of another name are in the range of the sample before them.
    key = str(sample.get("__key__") or next(iter(links), ""))
    if key in links:
        raise Reject(links[key])
    return sample


def split_name(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Key and ending of a file or of a link; None for what is no part of a sample: folders, hidden files, ``__such__`` names."""
    folder, slash, file = member.name.rpartition("/")
    stem, dot, ending = file.partition(".")
    special = any(part.startswith("__") and part.endswith("__") for part in member.name.split("/"))
    if not (member.isreg() or _is_link(member)) or not stem or not dot or special:
        return None
    return f"{folder}{slash}{stem}", ending.lower()


def _is_link(member: tarfile.TarInfo) -> bool:
    return member.islnk() or member.issym()


def _index(file: ShardFile) -> np.ndarray:
    sidecar = stat_file(beside(file.url, _SIDECAR))
    return _scan(file) if sidecar is None else _read_sidecar(file, sidecar)


def _scan(file: ShardFile) -> np.ndarray:
    starts: list[int] = []
    begin: int | None = 0
    with open_file(file.url) as stream:
        while begin is not None:  # more than once for archives that `cat` put end to end
            end = _read_members(stream, begin, starts)
            stream.seek(end)
            if stream.read(_BLOCK) != bytes(_BLOCK):
                # tarfile takes a damaged header, and a file cut between two members, for the end.
                if end == 0 and _content_size(stream, 0) is None:
                    raise Damaged("not an uncompressed tar")
                what = _what_is_wrong(stream, end, file.size)
                raise Damaged(f"{what} at byte {end}, after {len(starts)} samples: no end of archive")
            begin = _next_archive(stream, end, file.size, len(starts))
    return np.array([*starts, end], np.int64)


def _read_members(stream: BinaryIO, begin: int, starts: list[int]) -> int:
    """Adds where the samples of the archive at ``begin`` start; where it ends, or tarfile gave up."""
    key: str | None = None
    tar: tarfile.TarFile | None = None
    stream.seek(begin)
    # Its errors are judged by what stands where it stopped: their texts differ between versions.
    with suppress(tarfile.TarError, ValueError):
        tar = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 (it leaves the stream open)
        for member in tar:
            parts = split_name(member)
            if parts is not None and parts[0] != key:
                key = parts[0]
                starts.append(member.offset)
            tar.members = []  # type: ignore[attr-defined]  # else it keeps every header
    return begin if tar is None else tar.offset


def _content_size(stream: BinaryIO, at: int) -> int | None:
    """Bytes of the member whose header stands there; None where none does."""
    stream.seek(at)
    try:
        return tarfile.TarInfo.frombuf(stream.read(_BLOCK), "utf-8", "surrogateescape").size
    except (tarfile.TarError, ValueError):
        return None


def _what_is_wrong(stream: BinaryIO, at: int, size: int) -> str:
    """Whether the file ends within a member from ``at`` on, or something else stands there."""
    while at + _BLOCK <= size:
        content = _content_size(stream, at)
        if content is None:
            return "damaged"
        at += _BLOCK + -(-content // _BLOCK) * _BLOCK
    return "cut off"


def _next_archive(stream: BinaryIO, end: int, size: int, samples: int) -> int | None:
    """Where another archive begins behind the zeros at ``end``; None if nothing does."""
    stream.seek(end)
    at = end
    while chunk := stream.read(_ZEROS):
        if any(chunk):
            at += len(chunk) - len(chunk.lstrip(b"\0"))
            at -= at % _BLOCK
            if _content_size(stream, at) is None:
                raise Damaged(f"damaged at byte {at}, after {samples} samples: what follows the end of the archive is no tar")
            return at
        at += len(chunk)
    return None


def _read_sidecar(file: ShardFile, sidecar: ShardFile) -> np.ndarray:
    index = np.frombuffer(read_range(sidecar.url, 0, sidecar.size - sidecar.size % 8), "<u8").astype(np.int64)
    whole = sidecar.size % 8 == 0 and len(index) > 0 and not np.any(np.diff(index) <= 0)
    if not whole or not file.size - _LONGEST_END <= index[-1] <= file.size - _BLOCK:
        raise Damaged(f"cut off, or its index {sidecar.shown} does not fit: prepare it again, or delete it")
    return index
