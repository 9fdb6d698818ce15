"""Checkpoints of earlier versions: converted by `tunalab convert-checkpoints`, or read for their weights alone.

They hold pickles, of which nothing but tensors and plain values is allowed: one that names anything else is
refused before it runs.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from tunalab.errors import UserError
from tunalab.training.checkpoints import (
    EARLIER,
    TENSORS,
    CheckpointStore,
    Saved,
    alone_is_fine,
    damage,
    reading,
    write_saved,
    write_tensors,
    write_whole,
)

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
