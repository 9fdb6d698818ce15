"""A run's checkpoints: what they hold, how ranks write and read their shares, and how damage is found.

    checkpoints/step-<n>/
        manifest.json   size and hash of every file: what is damaged is found before it is loaded
        tensors/        safetensors: ``model.<name>``, ``ema.<name>``, ``optimizer.<name>.<what>``. Whole tensors and
                        shards are stored alike, so that any number of ranks reads them, one included
        progress.json   plain numbers and words: how far the run is, where every rank stood in the stream, its configuration

A checkpoint is written aside, flushed, then renamed: it is there whole or not at all. Nothing in it is a pickle: reading a
stranger's runs no code of theirs. Frozen parts are rebuilt from their component, never stored. A table under two names is stored
under the first. Those of earlier versions: earlier.py.
"""

import json
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
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
from tunalab.files import remove, sha256, whole_folder, write_atomically
from tunalab.frontends.loading import check_fit
from tunalab.settings.loading import from_plain, to_plain
from tunalab.settings.schema import RunConfig
from tunalab.training.claiming import refuse_other_settings
from tunalab.training.distribution import ALONE, Ranks
from tunalab.training.module import Harness, Progress
from tunalab.training.optimisation import is_frozen

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

    def save(self, step: int, write: Callable[[Path], None], stays: bool = False, **about: str) -> Path:
        """``write`` fills an empty folder; it becomes a checkpoint in one rename, after everything has reached the disk. Its
        manifest says ``about`` as well. ``stays``: it is kept whatever comes after it.

        A crash or a full disk at any moment leaves the earlier checkpoints as they were. Older ones go only afterwards; one that
        cannot go (a file of it is in use on NFS) is named through ``warn``, and the next save tries again.
        """
        final = self.folder / f"step-{step:09d}"
        with self.ranks.together():
            for stale in self.folder.glob(".step-*") if self.ranks.first else ():
                with suppress(OSError):
                    remove(stale)
        write_whole(final, write, {"step": step, **({"stays": True} if stays else {}), **about}, self.ranks)
        with self.ranks.together():
            # What lies behind this step was damaged when the run went on: it would push out those that are whole.
            reached = [path for path in self.steps() if step_of(path) <= step and not _stays(path)]
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


def _stays(path: Path) -> bool:
    try:
        return json.loads((path / MANIFEST).read_text(encoding="utf-8")).get("stays") is True
    except (OSError, ValueError, AttributeError):
        return False


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
        with reading(checkpoint):
            state = torch.load(checkpoint / FIRST_FORMAT, weights_only=True, map_location="cpu", mmap=True)
            weights = {name.removeprefix(MODEL): tensor for name, tensor in state["state_dict"].items()}
            weights |= {} if raw else state["tunalab"]["ema"]["shadow"]
            progress = state["tunalab"]["progress"]
            return LearntWeights(weights, progress["steps"], progress["tokens"])
    weights = read_whole(checkpoint, MODEL)
    if not raw:
        # Averages exist of parameters alone; what else a module stores is the same for both.
        weights |= read_whole(checkpoint, EMA)
    progress = read_saved(checkpoint).progress
    return LearntWeights(weights, progress["steps"], progress["tokens"])
