"""Checkpoints on disk: written aside, flushed, listed with their hashes, then renamed; damage is found before it is loaded."""

import json
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from tunalab.errors import UserError
from tunalab.files import remove, sha256, whole_folder, write_atomically
from tunalab.training.distribution import ALONE, Ranks
from tunalab.training.state import EARLIER, TENSORS, Saved, alone_is_fine, reading, write_saved, write_tensors

MANIFEST = "manifest.json"
_NAME = re.compile("step-[0-9]+")  # others are the user's: copies under names of their own


class CheckpointStore:
    """The checkpoints of one run, ``<folder>/step-<n>``. The newest ``keep`` are kept.

    All ``ranks`` write a checkpoint together, each its share of the files: it is there whole or not at all.
    """

    def __init__(self, folder: Path, keep: int = 2, ranks: Ranks = ALONE, warn: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.warn = warn
        self.keep = keep
        self.ranks = ranks

    def save(self, step: int, write: Callable[[Path], None], **about: str) -> Path:
        """``write`` fills an empty folder; it becomes a checkpoint in one rename, after everything has reached the disk. Its
        manifest says ``about`` as well.

        A crash or a full disk at any moment leaves the earlier checkpoints as they were. Older ones go only afterwards; one that
        cannot go (a file of it is in use on NFS) is named through ``warn``, and the next save tries again.
        """
        final = self.folder / f"step-{step:09d}"
        with self.ranks.together():
            for stale in self.folder.glob(".step-*") if self.ranks.first else ():
                with suppress(OSError):
                    remove(stale)
        write_whole(final, write, {"step": step, **about}, self.ranks)
        with self.ranks.together():
            # What lies behind this step was damaged when the run went on: it would push out those that are whole.
            reached = [path for path in self.steps() if step_of(path) <= step]
            for old in reached[: -self.keep] if self.ranks.first else ():
                try:
                    remove(old)
                except OSError as error:
                    self.warn(f"old checkpoint {old} cannot be deleted yet ({error.strerror}); the next save tries again")
        return final

    def steps(self) -> list[Path]:
        """Checkpoint folders, oldest first, valid or not."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted((path for path in found if _NAME.fullmatch(path.name)), key=step_of)

    def newest_valid(self, warn: Callable[[str], None] = print) -> Path | None:
        """The newest undamaged checkpoint, the same on every rank; damaged ones are named through ``warn`` on the first rank,
        with what is wrong, and passed over. Ranks share the reading.
        """
        for name in reversed(self.ranks.broadcast([path.name for path in self.steps()])):
            path = self.folder / name
            problem = next((found for found in self.ranks.gather(damage(path, self.ranks)) if found), None)
            if problem is None:
                return path
            if self.ranks.first:
                warn(f"checkpoint {path} is damaged ({problem}); trying the one before it")
        return None


def step_of(path: Path) -> int:
    """Of a checkpoint, by its name."""
    return int(path.name.removeprefix("step-"))


def write_whole(final: Path, write: Callable[[Path], None], about: dict[str, Any], ranks: Ranks = ALONE) -> None:
    """A folder of what ``write`` puts into it, whole or not at all. Its manifest: ``about``, and size and hash of every file.

    Several ranks all write into the one folder, on a file system they share; the first renames it when all are done.
    """
    with ExitStack() as stack:
        folder = final
        with ranks.together():
            if ranks.first:
                folder = stack.enter_context(whole_folder(final))
        folder = ranks.broadcast(folder)
        with ranks.together(), _disk_errors(folder):
            write(folder)
        with ranks.together():
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            own = {str(p.relative_to(folder)): _described(p) for p in files[ranks.rank :: ranks.world_size]}
        listed = {name: entry for share in ranks.gather(own) for name, entry in share.items()}
        with ranks.together():
            if ranks.first:
                unseen = {str(p.relative_to(folder)) for p in files} ^ listed.keys()
                if unseen:
                    raise OSError(f"{folder} does not look the same to every rank: {', '.join(sorted(unseen))}")
                (folder / MANIFEST).write_text(
                    json.dumps({**about, "files": dict(sorted(listed.items()))}, indent=1), encoding="utf-8"
                )
            stack.close()


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """PyTorch's writers lose the number of the disk's error: after one of theirs the disk is asked once more.

    Raises:
        OSError: the disk is full or not writable; else what was raised inside.
    """
    try:
        yield
    except (RuntimeError, CheckpointException) as error:
        try:
            write_atomically(folder / "probe", bytes(2**20))
        except OSError as reason:
            raise OSError(reason.errno, reason.strerror, str(folder)) from error
        raise


def damage(path: Path, ranks: Ranks = ALONE) -> str | None:
    """What is wrong with a checkpoint folder, None if every file (of this rank's share) is there with its hash."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest unreadable: {type(error).__name__}"
    for name, expected in list(files.items())[ranks.rank :: ranks.world_size]:
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if sha256(file) != expected["sha256"]:
            return f"{name} does not match its hash"
    return None


def _described(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


# Checkpoints of an earlier format, which held pickles, written anew without any: `tunalab convert-checkpoints`.
#
# They are read with nothing but tensors and plain values allowed: a pickle that names anything else is refused before
# it runs.

# Plain containers of numbers and names, all of them: calling one with anything does nothing but hold it.
_METADATA = (
    *("Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties", "MetadataIndex", "StorageMeta"),
    "_MEM_FORMAT_ENCODING",
)
ALLOWED = {
    *(("torch.distributed.checkpoint.metadata", name) for name in _METADATA),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),  # looks a name up in a table
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    *(("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
}


def convert_checkpoints(run_dir: Path, say: Callable[[str], None] = print) -> None:
    """Write every undamaged checkpoint of an earlier format anew, in its place. ``say`` hears of each, and of damaged ones.

    Raises UserError: there is no checkpoint, or one holds more than tensors and plain values.
    """
    store = CheckpointStore(run_dir / "checkpoints")
    if not store.steps():
        raise UserError(f"{run_dir} holds no checkpoints")
    for folder in store.steps():
        problem = damage(folder)
        if problem is not None:
            say(f"{folder} is damaged ({problem}) and stays as it is")
        elif not (folder / EARLIER).is_file():
            say(f"{folder} is in today's format already")
        else:
            saved, tensors = read_earlier(folder)

            def write(fresh: Path, saved: Saved = saved, tensors: dict[str, Tensor] = tensors) -> None:
                write_tensors(fresh, tensors)
                write_saved(fresh, saved)

            write_whole(folder, write, {"step": saved.progress["steps"]})
            say(f"{folder} is converted")


def read_earlier(folder: Path) -> tuple[Saved, dict[str, Tensor]]:
    """Numbers and whole tensors. Raises UserError: unreadable, or more than tensors and plain values."""
    with reading(folder):
        saved = Saved(**torch.load(folder / EARLIER, weights_only=True))
        reader = _Reader(folder / TENSORS)
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)  # type: ignore[union-attr]
            for name, entry in reader.read_metadata().state_dict_metadata.items()
        }
        with alone_is_fine():
            load(tensors, storage_reader=reader, no_dist=True)
    return saved, tensors


class _Reader(FileSystemReader):
    """PyTorch's reader of tensors, which unpickles its table of contents as it is."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as stream:
            metadata = _Plain(stream).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("its table of contents is something else")
        for name, entry in metadata.state_dict_metadata.items():
            if type(entry) is not TensorStorageMetadata:
                raise pickle.UnpicklingError(f"'{name}' is no tensor")
        for entry in metadata.storage_data.values():
            if Path(entry.relative_path).name != entry.relative_path:
                raise pickle.UnpicklingError(f"it points at {entry.relative_path}, outside its folder")
        metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it holds more than tensors and plain values ({module}.{name})")
        return super().find_class(module, name)
