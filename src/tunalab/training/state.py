"""What a checkpoint holds, and how ranks write and read their shares of it.

tensors/        safetensors: ``model.<name>``, ``ema.<name>``, ``optimizer.<name>.<what>``. Whole tensors and shards are stored
                alike, so that any number of ranks reads them, one included.
progress.json   plain numbers and words: how far the run is, where every rank stood in the stream, and the configuration.

Nothing in it is a pickle: reading a stranger's checkpoint runs no code of theirs. Frozen parts are rebuilt from their component,
never stored. A table under two names is stored under the first.
"""

import json
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from tunalab.data.pretrained import LOAD_ERRORS
from tunalab.errors import UserError, one_line
from tunalab.frontends.loading import check_fit
from tunalab.settings.loading import from_plain, to_plain
from tunalab.settings.schema import RunConfig
from tunalab.training.claiming import refuse_other_settings
from tunalab.training.distribution import ALONE, Ranks
from tunalab.training.module import Harness, Progress
from tunalab.training.optimisation import is_frozen

TENSORS, PROGRESS = "tensors", "progress.json"
FIRST_FORMAT = "state.ckpt"  # one file, written by Lightning, before checkpoints could be sharded
EARLIER = "progress.pt"  # of checkpoints that held pickles; `tunalab convert-checkpoints` makes them readable
PART = 2**30  # bytes of one file at most, unless a tensor is larger: a file is made in memory before it is written
MODEL, EMA, OPTIMIZER = "model.", "ema.", "optimizer."


@dataclass(frozen=True)
class Saved:
    """``progress.json``: ``progress`` of the run; ``lanes`` and ``next_lane`` of every rank; ``config``, plain, of the run that
    wrote it (None in checkpoints from before it was kept).
    """

    progress: dict[str, Any]
    lanes: list[dict[int, dict[str, Any]]]
    next_lane: list[int]
    ema_updates: int
    config: dict[str, Any] | None = None

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
    write_tensors(folder, {**_model(module), **_averages(module), **_optimizer(module, optimizer)}, ranks)
    if ranks.first:
        lanes, next_lane = [lanes for lanes, _, _ in positions], [at for _, at, _ in positions]
        write_saved(folder, Saved(progress, lanes, next_lane, module.ema.updates, to_plain(module.config)))


def write_saved(folder: Path, saved: Saved) -> None:
    (folder / PROGRESS).write_text(json.dumps(asdict(saved)) + "\n", encoding="utf-8")


def read_saved(folder: Path) -> Saved:
    """The numbers of an undamaged checkpoint. Raises UserError: they are not there, or are something else."""
    if not (folder / PROGRESS).is_file() and (folder / EARLIER).is_file():
        run_dir = folder.parent.parent
        raise UserError(f"checkpoint {folder} is of an earlier format: `tunalab convert-checkpoints {run_dir}` makes it readable")
    try:
        plain = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        plain["lanes"] = [{int(lane): state for lane, state in lanes.items()} for lanes in plain["lanes"]]
        saved = Saved(**plain)
        Progress(**saved.progress)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint {folder}: {PROGRESS} cannot be read: {one_line(error)}") from error
    return saved


def refuse_foreign(folder: Path, config: RunConfig) -> None:
    """Raises UserError, with what differs, when another configuration made the checkpoint. The first ones do not say which did."""
    if (folder / FIRST_FORMAT).is_file():
        return
    saved = read_saved(folder)
    if saved.config is not None:
        refuse_other_settings(
            from_plain(saved.config), config, f"checkpoint {folder} is of a run", "remove it, or train in another directory"
        )


def restore(folder: Path, module: Harness, optimizer: torch.optim.Optimizer) -> None:
    """Put model, averages, optimiser and progress where they were. Every rank reads what it holds, however many wrote.

    Lanes are not put back here: they depend on the number of ranks. Raises UserError when names do not fit.
    """
    saved = read_saved(folder)
    stored = stored_tensors(folder)
    tensors = {**_model(module), **_averages(module)}
    _make_moments(module, optimizer, [name for name in stored if name.startswith(OPTIMIZER)], folder)
    tensors |= _optimizer(module, optimizer)
    check_fit(tensors, stored, f"checkpoint {folder}")
    read_tensors(folder, tensors, module.ranks)
    module.ema.updates = saved.ema_updates
    module.progress = Progress(**saved.progress)
    module.enter_stage(module.progress.stage)


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks = ALONE) -> None:
    """All ranks call it with the same names, each with its shards, and write each a share of the files."""
    parts, part, size = {}, 1, 0
    for name, tensor in tensors.items():  # a shard names its whole tensor's size, so that all ranks divide alike
        if size and size + tensor.nbytes > PART:
            part, size = part + 1, 0
        parts[name], size = part, size + tensor.nbytes
    writer = HuggingFaceStorageWriter(str(folder / TENSORS), fqn_to_index_mapping=parts, save_distributed=True)
    packed = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with alone_is_fine():
        save(packed, storage_writer=writer, process_group=ranks.group, no_dist=ranks.world_size == 1)


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """Name, size and type of every tensor of a checkpoint, without its values (device meta). Raises UserError: unreadable."""
    with reading(folder):
        entries = HuggingFaceStorageReader(str(folder / TENSORS)).read_metadata().state_dict_metadata
        return {
            name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")  # type: ignore[union-attr]
            for name, entry in entries.items()
        }


def read_tensors(folder: Path, into: dict[str, Tensor], ranks: Ranks = ALONE) -> None:
    """Fill the tensors (shards of them) in place, by their names in the checkpoint. Raises UserError: unreadable."""
    reader = HuggingFaceStorageReader(str(folder / TENSORS))
    with alone_is_fine(), reading(folder):
        load(into, storage_reader=reader, process_group=ranks.group, no_dist=ranks.world_size == 1)


def read_whole(folder: Path, prefix: str) -> dict[str, Tensor]:
    """Whole tensors on the CPU, by the names that follow ``prefix``. Raises UserError: unreadable."""
    stored = stored_tensors(folder)
    tensors = {name: torch.empty_like(stored[name], device="cpu") for name in stored if name.startswith(prefix)}
    read_tensors(folder, tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """What the readers say of files that are none of ours, as one line."""
    try:
        yield
    except (*LOAD_ERRORS, CheckpointException) as error:  # type: ignore[misc]  # a tuple of both
        reason = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        # PyTorch's own message on a pickle advises loading it all the same.
        pickled = isinstance(reason, pickle.UnpicklingError)
        message = "it holds more than tensors and plain values" if pickled else one_line(Exception(reason))
        raise UserError(f"checkpoint {folder} cannot be read: {message}") from error


@contextmanager
def alone_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _model(module: Harness) -> dict[str, Tensor]:
    parameters = {name for name, _ in module.model.named_parameters(remove_duplicate=False)}
    buffers = {
        name: tensor
        for name, tensor in module.model.state_dict().items()
        if name not in parameters and not is_frozen(module.model, name)
    }
    return {f"{MODEL}{name}": tensor.detach() for name, tensor in {**module.learnt(), **buffers}.items()}


def _averages(module: Harness) -> dict[str, Tensor]:
    return {f"{EMA}{name}": tensor for name, tensor in module.ema.shadow.items()}


def _optimizer(module: Harness, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of every parameter that has been trained; those of later stages have none yet."""
    return {
        f"{OPTIMIZER}{name}.{what}": value
        for name, parameter in module.learnt().items()
        for what, value in optimizer.state.get(parameter, {}).items()
    }


def _make_moments(module: Harness, optimizer: torch.optim.Optimizer, names: list[str], folder: Path) -> None:
    """Empty tensors for the state in a checkpoint: moments are laid out as their parameter, counts of steps are one number."""
    learnt = module.learnt()
    optimizer.state.clear()
    for name in names:
        parameter, _, what = name.removeprefix(OPTIMIZER).rpartition(".")
        if parameter not in learnt:
            raise UserError(f"checkpoint {folder} has {name}, this model no such parameter")
        p = learnt[parameter].detach()
        count = torch.zeros((), dtype=torch.float32, device=p.device)
        optimizer.state[learnt[parameter]][what] = count if what == "step" else torch.zeros_like(p)


@dataclass(frozen=True, eq=False)
class LearntWeights:
    """Whole, whatever number of ranks wrote them: ``weights`` by the model's names, without frozen parts
    (a tied table may appear under both of its names), at ``steps`` optimiser steps and ``tokens`` tokens.
    """

    weights: dict[str, Tensor]
    steps: int
    tokens: int


def learnt_weights(checkpoint: Path, raw: bool = False) -> LearntWeights:
    """Of an undamaged checkpoint folder: the averaged weights, or with ``raw`` those that go on training."""
    if (checkpoint / FIRST_FORMAT).exists():
        return _first_format(checkpoint / FIRST_FORMAT, raw)
    weights = read_whole(checkpoint, MODEL)
    if not raw:
        # Averages exist of parameters alone; what else a module stores is the same for both.
        weights |= read_whole(checkpoint, EMA)
    progress = read_saved(checkpoint).progress
    return LearntWeights(weights, progress["steps"], progress["tokens"])


def _first_format(path: Path, raw: bool) -> LearntWeights:
    with reading(path.parent):
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        weights = {name.removeprefix("model."): tensor for name, tensor in state["state_dict"].items()}
        if not raw:
            weights |= state["tunalab"]["ema"]["shadow"]
        progress = state["tunalab"]["progress"]
        return LearntWeights(weights, progress["steps"], progress["tokens"])
