"""Whether the data of a run are those it began with: versions of sources, digests of files.

A file is the same as long as its size and its content are: when it was written does not matter.
Its content is told by

- its digest, where a source has up to :data:`WHOLE` bytes, or on request (data.full_digests);
- else a digest of :data:`RANGES` ranges spread over it: a change between them that keeps the size is not noticed (elsewhere than
  on disks :data:`REMOTE_RANGES`, where nothing better is said);
- what its place says of the content (an ETag), elsewhere than on disks: nothing is read for it.

Of the images that a manifest or easy-VQA names, :data:`IMAGES` are looked at, spread evenly; all
of them on request. Sources that are drawn have no files: what draws them is the version
(:func:`data_versions`).
"""

import hashlib
import json
import stat
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunalab.data.documents import PREFIX, Corpus, Reject, fingerprint_of
from tunalab.data.shards.files import ShardFile, open_file, read_range
from tunalab.errors import UserError
from tunalab.files import DATA_FILE, write_atomically
from tunalab.redaction import redacted
from tunalab.settings.loading import digest
from tunalab.settings.schema import DataConfig


def data_versions(sources: Mapping[str, Corpus], data: DataConfig, revision: int) -> dict[str, str]:
    """Source name -> version: of shards their sizes, of a manifest its hash, of easy-VQA the package, of scenes what draws them."""
    versions: dict[str, str] = {}
    for name, corpus in sources.items():
        own = fingerprint_of(corpus) or getattr(corpus, "source", None)  # of a class from outside
        if own is not None:
            versions[name] = own
            continue
        family, _, key = name.removeprefix(PREFIX).partition("/")
        if family == "manifest":
            with Path(data.manifests[key].path).open("rb") as stream:
                versions[name] = hashlib.file_digest(stream, "sha256").hexdigest()[:32]
        elif family == "easy_vqa":
            versions[name] = version("easy-vqa")
        else:
            versions[name] = f"{revision}-{digest([data.image_size, data.levels, data.questions_per_image])}"
    return versions


WHOLE = 256 * 2**20  # bytes of a source's files that are read in a second or less
RANGES, RANGE_BYTES = 16, 2**14
REMOTE_RANGES = 3  # of a file elsewhere whose place says nothing of its content: each is a request
IMAGES = 256
FILES_AND_IMAGES = ("files", "images")

_THREADS = 16  # they mostly wait for the disk
_NAMED = 3
_TOLD = 20  # changes that a record holds of one start

Look = dict[str, list[Any]]  # place -> its size, and "kind:" with what tells its content


@dataclass
class DataDigests:
    """``sources``: source -> "files" and "images" -> what was seen of each; ``full``: of all bytes of all of them. ``accepted``:
    changes that a run went on with.
    """

    sources: dict[str, dict[str, Look]]
    full: bool = False
    accepted: list[dict[str, Any]] = field(default_factory=list)


def look_at(sources: Mapping[str, Corpus], full: bool = False, like: DataDigests | None = None) -> DataDigests:
    """The files of all sources as they are now, in ``full`` or in parts; or as ``like`` looked at them, to be compared with it.

    Raises UserError when a server does not give a file.
    """
    found: dict[str, dict[str, Look]] = {}
    full = full if like is None else like.full
    for name, corpus in sources.items():
        name = name.removeprefix(PREFIX)
        if name in found:
            continue
        found[name], corpus = {}, getattr(corpus, "copied", corpus)
        for part in FILES_AND_IMAGES:
            files: Sequence[ShardFile] = getattr(corpus, f"{part}_read", lambda every: [])(full)
            found[name][part] = _look(files, full, {} if like is None else like.sources.get(name, {}).get(part, {}))
    return DataDigests(found, full)


def changes(before: DataDigests, now: DataDigests) -> list[str]:
    """What differs, a text for each file. Images only where the files that name them are the same."""
    found_changes: list[str] = []
    for name in sorted(before.sources.keys() & now.sources.keys()):
        for part in FILES_AND_IMAGES:
            old, new = before.sources[name].get(part, {}), now.sources[name].get(part, {})
            differ = [
                f"{name}: {place} {what}"
                for place in sorted(old.keys() | new.keys())
                if (what := _difference(old.get(place), new.get(place)))
            ]
            if differ:
                found_changes += differ
                break
    return found_changes


def checked_data(run_dir: Path, sources: Mapping[str, Corpus], full: bool, accept: bool, tokens: int | None) -> DataDigests:
    """What to write (:func:`keep`) once the run begins, or goes on from ``tokens``.

    Raises UserError, one line, when a run goes on and files changed since, unless ``accept``.
    """
    path = run_dir / DATA_FILE
    if tokens is None or not path.exists():  # a run from before this was kept goes on as it did
        return look_at(sources, full)
    before = _read(path)
    now = look_at(sources, like=before)
    differ = changes(before, now)
    if differ and not accept:
        more = f" (and {len(differ) - _NAMED} more)" if len(differ) > _NAMED else ""
        raise UserError(
            f"data changed since this run stopped: {'; '.join(differ[:_NAMED])}{more}: put them back, or go on with them by "
            "start.accept_changed_data=true"
        )
    kept = look_at(sources, full) if differ or full != before.full else now
    kept.accepted = before.accepted
    if differ:
        kept.accepted = [*kept.accepted, {"tokens": tokens, "count": len(differ), "changes": differ[:_TOLD]}]
    return kept


def keep(run_dir: Path, data: DataDigests) -> None:
    write_atomically(run_dir / DATA_FILE, json.dumps(asdict(data)) + "\n")


def sampled(count: int, every: bool) -> Iterable[int]:
    """Of ``count`` numbered things those that are looked at."""
    return range(count) if every or count <= IMAGES else (number * count // IMAGES for number in range(IMAGES))


def local_file(path: Path) -> ShardFile | None:
    """None for a file that is not there, and for what is none: a pipe would be waited for, a device has no end."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # a name with a null byte
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return ShardFile(str(path), status.st_size, "")


def _read(path: Path) -> DataDigests:
    try:
        return DataDigests(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it to go on without looking whether data changed") from error


def _look(files: Sequence[ShardFile], full: bool, before: Look) -> Look:
    small = sum(file.size for file in files if file.is_local) <= WHOLE

    def look(file: ShardFile) -> tuple[str, list[Any]]:
        place = redacted(file.url)
        kind = before[place][1].partition(":")[0] if place in before else _kind(file, full, small)
        return place, [file.size, f"{kind}:{_content(file, kind)}"]

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(pool.map(look, files))


def _kind(file: ShardFile, full: bool, small: bool) -> str:
    if full:
        return "sha256"
    if not file.is_local and file.content:
        return "stamp"
    return "sha256" if small and file.is_local else "sampled"


def _content(file: ShardFile, kind: str) -> str:
    if kind == "stamp":
        return file.content
    hashed = hashlib.sha256()
    try:
        if kind == "sha256":
            with open_file(file.url) as stream:
                while chunk := stream.read(2**20):
                    hashed.update(chunk)
            return hashed.hexdigest()
        count = RANGES if file.is_local else REMOTE_RANGES
        # The first begins with the file, the last ends with it.
        starts = [number * max(0, file.size - RANGE_BYTES) // (count - 1) for number in range(count)]
        if file.is_local:
            with open(file.url, "rb", buffering=0) as raw:  # once: there may be thousands of files
                for start in starts:
                    raw.seek(start)
                    hashed.update(raw.read(RANGE_BYTES))
        else:
            for start in starts:
                hashed.update(read_range(file.url, start, min(start + RANGE_BYTES, file.size)))
        return hashed.hexdigest()
    except (Reject, OSError):
        return "unreadable"


def _difference(old: list[Any] | None, new: list[Any] | None) -> str:
    if old is None or new is None:
        return "was added" if old is None else "is gone"
    if old[0] != new[0]:
        return f"has {new[0]:,} bytes, had {old[0]:,}"
    stamps = [text.removeprefix("stamp:").partition("=")[0] for text in (old[1], new[1]) if text.startswith("stamp:")]
    # Its place says no longer what its content is, or says it in another way: then the size is all that compares.
    if old[1] == new[1] or new[1] == "stamp:" or (len(stamps) == 2 and stamps[0] != stamps[1]):
        return ""
    return "has another content of the same size"
