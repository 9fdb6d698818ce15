"""What a checkpoint holds, and how ranks write and read their shares of it.

tensors/      torch.distributed.checkpoint: ``model.<name>``, ``ema.<name>``, ``optimizer.<name>.<what>``. Whole tensors and shards
              are stored alike, so that any number of ranks reads them, one included.
progress.pt   plain numbers and words: how far the run is, and where every rank stood in the stream.

Frozen parts are rebuilt from their component, never stored. A table under two names is stored under the first.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from tunalab.training.module import Harness, Progress
from tunalab.training.ranks import ALONE, Ranks

TENSORS, PROGRESS = "tensors", "progress.pt"
MODEL, EMA, OPTIMIZER = "model.", "ema.", "optimizer."


@dataclass(frozen=True)
class Saved:
    """``progress.pt``: ``progress`` of the run; ``lanes`` and ``next_lane`` of every rank."""

    progress: dict[str, Any]
    lanes: list[dict[int, dict[str, Any]]]
    next_lane: list[int]
    ema_updates: int

    @property
    def world_size(self) -> int:
        return len(self.lanes)


def write_state(folder: Path, module: Harness, optimizer: torch.optim.Optimizer) -> None:
    """All ranks call it, each writes its share."""
    module.note_memory()
    ranks = module.ranks
    progress = asdict(module.progress)
    positions = ranks.gather((progress.pop("lanes"), progress.pop("next_lane"), progress["peak_memory"]))
    progress["peak_memory"] = max(peak for _, _, peak in positions)
    tensors = {**_model(module), **_averages(module), **_optimizer(module, optimizer)}
    writer = FileSystemWriter(folder / TENSORS)
    with _alone_is_fine():
        save(tensors, storage_writer=writer, process_group=ranks.group, no_dist=ranks.world_size == 1)
    if ranks.first:
        saved = Saved(progress, [lanes for lanes, _, _ in positions], [at for _, at, _ in positions], module.ema.updates)
        torch.save(asdict(saved), folder / PROGRESS)


def read_saved(folder: Path) -> Saved:
    """The numbers of an undamaged checkpoint."""
    return Saved(**torch.load(folder / PROGRESS, weights_only=True))


def restore(folder: Path, module: Harness, optimizer: torch.optim.Optimizer) -> None:
    """Put model, averages, optimiser and progress where they were. Every rank reads what it holds, however many wrote.

    Lanes are not put back here: they depend on the number of ranks. Raises ValueError when names do not fit.
    """
    saved = read_saved(folder)
    stored = FileSystemReader(folder / TENSORS).read_metadata().state_dict_metadata
    tensors = {**_model(module), **_averages(module)}
    _make_moments(module, optimizer, [name for name in stored if name.startswith(OPTIMIZER)])
    tensors |= _optimizer(module, optimizer)
    if tensors.keys() != stored.keys():
        raise ValueError(f"checkpoint {folder} does not fit; they differ in {sorted(tensors.keys() ^ stored.keys())}")
    read_tensors(folder, tensors, module.ranks)
    module.ema.updates = saved.ema_updates
    module.progress = Progress(**saved.progress)
    module.enter_stage(module.progress.stage)


def read_tensors(folder: Path, into: dict[str, Tensor], ranks: Ranks = ALONE) -> None:
    """Fill the tensors (shards of them) in place, by their names in the checkpoint."""
    reader = FileSystemReader(folder / TENSORS)
    with _alone_is_fine():
        load(into, storage_reader=reader, process_group=ranks.group, no_dist=ranks.world_size == 1)


def read_whole(folder: Path, prefix: str) -> dict[str, Tensor]:
    """Whole tensors on the CPU, by the names that follow ``prefix``."""
    stored = FileSystemReader(folder / TENSORS).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    read_tensors(folder, tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _model(module: Harness) -> dict[str, Tensor]:
    known = {name for name, _ in module.model.named_parameters(remove_duplicate=False)}
    buffers = {name: tensor for name, tensor in module.model.state_dict().items() if name not in known}
    learnt = {**module.learnt(), **{name: tensor for name, tensor in buffers.items() if not module.is_frozen(name)}}
    return {f"{MODEL}{name}": tensor.detach() for name, tensor in learnt.items()}


def _averages(module: Harness) -> dict[str, Tensor]:
    return {f"{EMA}{name}": tensor for name, tensor in module.ema.shadow.items()}


def _optimizer(module: Harness, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of every parameter that has been trained; those of later stages have none yet."""
    return {
        f"{OPTIMIZER}{name}.{what}": value
        for name, parameter in module.learnt().items()
        for what, value in optimizer.state.get(parameter, {}).items()
    }


def _make_moments(module: Harness, optimizer: torch.optim.Optimizer, names: list[str]) -> None:
    """Room for the state that a checkpoint holds: moments are laid out as their parameter, counts of steps are one number."""
    learnt = module.learnt()
    optimizer.state.clear()
    for name in names:
        parameter, what = name.removeprefix(OPTIMIZER).rsplit(".", 1)
        if parameter not in learnt:
            raise ValueError(f"checkpoint has {name}, this model no such parameter")
        optimizer.state[learnt[parameter]][what] = _room(learnt[parameter], what)


def _room(parameter: nn.Parameter, what: str) -> Tensor:
    if what == "step":
        return torch.zeros((), dtype=torch.float32, device=parameter.device)
    return torch.zeros_like(parameter, memory_format=torch.preserve_format).detach()
