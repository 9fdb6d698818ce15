"""A run that begins where another was: a branch of a sweep's trunk, or a run with ``start.fork``.

Runs whose settings begin to differ only at some place of the training are one run until there. A sweep trains that part once, as
a trunk, and each branch goes on from the trunk's checkpoint: bit for bit what it would have been alone, as data, noise and masks
are functions of (seed, place in the stream). ``start.fork`` does the same by hand, with whatever settings the shapes of the
weights allow.

The parent is only read. Its log, samples and points until there are copied, so that the child's curve is whole; what the child has
of it stands in ``lineage.json`` and in the record.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from tunalab.errors import UserError
from tunalab.files import DATA_FILE, listed, write_atomically
from tunalab.frontends.loading import check_fit
from tunalab.records.log import TRAINING_LOG
from tunalab.records.record import CONFIG_FILE, RECORD_FILE, read_record
from tunalab.redaction import redacted_settings
from tunalab.settings.layers import unequal
from tunalab.settings.loading import config_hash, read_config, sources_of, to_plain
from tunalab.settings.schema import SETTINGS, RunConfig
from tunalab.settings.timeline import Place, shared
from tunalab.training import kept_at
from tunalab.training.checkpoints import MODEL, CheckpointStore, Saved, damage, read_saved, stored_tensors
from tunalab.training.claiming import END_FILE
from tunalab.training.points import hand_points

LINEAGE_FILE = "lineage.json"  # of a run that began where another was
SAMPLES = "samples"


@dataclass(frozen=True)
class Lineage:
    """What a run has of its parent: ``tokens``, ``steps``, ``seconds`` and ``flops`` until there.

    ``kind``: "trunk" of a sweep, or "fork" by hand. ``config_hash``: of the parent; of a trunk, of what its branches share.
    ``settings``: that differ, dotted key -> [parent's value, child's value]. ``trunks``: of a branch, name and end (tokens) of
    each trunk behind it, the nearest first.
    """

    kind: Literal["trunk", "fork"]
    run: str
    config_hash: str
    tokens: int
    steps: int
    seconds: float
    flops: float
    settings: dict[str, list[Any]] = field(default_factory=dict)
    trunks: list[list[Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Parent:
    """An undamaged checkpoint of another run, and what the child has of it."""

    run_dir: Path
    checkpoint: Path
    lineage: Lineage

    def saved(self, config: RunConfig) -> Saved:
        """The numbers of the checkpoint, for the child's sources: those that only the child reads begin at their start."""
        saved = read_saved(self.checkpoint)
        names = sources_of(config.stages)
        return replace(saved, lanes=[{at: _for_sources(lane, names) for at, lane in lanes.items()} for lanes in saved.lanes])

    def hand_over(self, run_dir: Path) -> None:
        """Copy what makes the child's curve whole, and write down where it comes from."""
        for name in (TRAINING_LOG, DATA_FILE, "rejects.jsonl"):
            if (self.run_dir / name).is_file():
                shutil.copyfile(self.run_dir / name, run_dir / name)
        for path in listed(self.run_dir / SAMPLES, "tokens-*.png"):
            if int(path.stem.removeprefix("tokens-")) <= self.lineage.tokens:
                (run_dir / SAMPLES).mkdir(exist_ok=True)
                shutil.copyfile(path, run_dir / SAMPLES / path.name)
        hand_points(self.run_dir, run_dir, self.lineage.tokens)
        write_atomically(run_dir / LINEAGE_FILE, json.dumps(asdict(self.lineage), indent=1) + "\n")


def _for_sources(lane: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    counts = lane["mixer"]["counts"]
    if set(counts) == names:
        return dict(lane)
    return {
        **lane,
        "sources": {name: fingerprint for name, fingerprint in lane.get("sources", {}).items() if name in names},
        "mixer": {**lane["mixer"], "counts": {name: counts.get(name, 0) for name in names}},
        "waiting": [pick for pick in lane["waiting"] if pick[1] in names],
    }


def read_lineage(run_dir: Path) -> dict[str, Any]:
    """Plain, for the record; empty for a run that began at its start."""
    try:
        plain = json.loads((run_dir / LINEAGE_FILE).read_text(encoding="utf-8"))
        return asdict(Lineage(**plain))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{run_dir / LINEAGE_FILE} is damaged: remove the run directory and start the run again") from error


def trunk_of(folder: Path, config: RunConfig, components: Mapping[str, Any]) -> Parent | None:
    """The end of a sweep's trunk for one of its branches; None where the trunk is not there, not finished, or another's.

    ``components``: as the branch's record will describe them. The trunk's must be the same files.
    """
    try:
        end = json.loads((folder / END_FILE).read_text(encoding="utf-8"))
        theirs = read_config(folder / CONFIG_FILE)
        until = Place(**end["until"])
        checkpoint = folder / "checkpoints" / f"step-{end['steps']:09d}"
        of_trunk = read_record(folder / RECORD_FILE).components
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
    files = [{kind: part["folder"] for kind, part in described.items()} for described in (of_trunk, components)]
    if shared(theirs, until) != shared(config, until) or files[0] != files[1] or damage(checkpoint):
        return None
    return _parent("trunk", folder, checkpoint, shared(config, until), theirs, config)


def end_trunk(folder: Path, until: Place, steps: int) -> None:
    write_atomically(folder / END_FILE, json.dumps({"until": asdict(until), "steps": steps}) + "\n")


def fork_of(config: RunConfig, components: Mapping[str, Any]) -> Parent:
    """The checkpoint that ``start.fork`` names: RUN@TOKENS, or the newest of RUN.

    ``components``: as the child's record describes them. Raises UserError: there is none, the child's stages are not the parent's
    until there, or its encoder, its frozen VAE, its tokenizer or its data processes are others, so that weights or places in the
    data would mean something else.
    """
    given = config.start.fork
    run_dir, tokens = kept_at(given)
    if not (run_dir / CONFIG_FILE).is_file():
        raise UserError(f"start.fork={given}: there is no run in {run_dir}")
    store = CheckpointStore(run_dir / "checkpoints")
    found = {read_saved(path).progress["tokens"]: path for path in store.steps() if damage(path) is None}
    if not found or (tokens is not None and tokens not in found):
        choices = ", ".join(f"{run_dir}@{number}" for number in found) or "none"
        raise UserError(f"start.fork={given}: no undamaged checkpoint there (choices: {choices})")
    checkpoint = found[max(found) if tokens is None else tokens]
    theirs = read_config(run_dir / CONFIG_FILE)
    stage = read_saved(checkpoint).progress["stage"]
    behind = list(theirs.stages)[: list(theirs.stages).index(stage) + 1] if stage else []
    ours = list(config.stages)[: len(behind)]
    if ours != behind:
        raise UserError(
            f"start.fork={given}: at that checkpoint the stages {', '.join(behind)} have begun, and this run's first are "
            f"{', '.join(ours)}: name those of the parent first, and add others behind them"
        )
    for name in behind[:-1]:
        if config.stages[name].tokens != theirs.stages[name].tokens:
            raise UserError(
                f"start.fork={given}: stages.{name}.tokens is over at that checkpoint, and stays {theirs.stages[name].tokens}"
            )
    if config.data.workers != theirs.data.workers:
        raise UserError(f"start.fork={given}: data.workers={config.data.workers} must be the parent's, {theirs.data.workers}")
    of_parent = read_record(run_dir / RECORD_FILE).components if (run_dir / RECORD_FILE).is_file() else {}
    for kind in ("vae", "tokenizer", "encoder"):
        there, here = (described.get(kind, {}).get("folder") for described in (of_parent, components))
        if there and here and there != here:
            why = "its weights come from there, and count as that one" if kind == "encoder" else "what was learnt means another one"
            raise UserError(f"start.fork={given}: the {kind} there is {there}, here {here}: {why}")
    return _parent("fork", run_dir, checkpoint, config_hash(theirs), theirs, config)


def refuse_other_shapes(checkpoint: Path, parameters: Mapping[str, Tensor]) -> None:
    """Raises UserError, listing both sides, where a checkpoint lacks one of the ``parameters`` or has it in another shape."""
    stored = stored_tensors(checkpoint)
    own = {f"{MODEL}{name}": tensor for name, tensor in parameters.items()}
    check_fit(own, {name: stored[name] for name in own if name in stored}, f"checkpoint {checkpoint}")


def _parent(kind: Any, folder: Path, checkpoint: Path, hashed: str, theirs: RunConfig, ours: RunConfig) -> Parent:
    progress = read_saved(checkpoint).progress
    parent, child = to_plain(theirs), to_plain(ours)
    differ = {
        key: redacted_settings([there, here])
        for key, there, here in unequal(parent, child)
        if key != "start.fork" and (key not in SETTINGS or SETTINGS[key].identity)
    }
    reached = {name: progress[name] for name in ("tokens", "steps", "seconds", "flops")}
    trunks = [[folder.name, progress["tokens"]], *read_lineage(folder).get("trunks", [])] if kind == "trunk" else []
    return Parent(folder, checkpoint, Lineage(kind, folder.name, hashed, **reached, settings=differ, trunks=trunks))
