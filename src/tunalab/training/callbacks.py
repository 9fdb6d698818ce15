"""What a run does around its steps: stop on a signal, go on from a checkpoint, evaluate, report and save.

Every part is a Lightning callback, in the order in which run.py lists them. On Ctrl-C, SIGTERM or
SIGHUP the handler only sets a flag: at the end of the step all ranks save and leave together.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from tunalab.data.stream import COUNTS
from tunalab.errors import stop_signals_heeded
from tunalab.records.log import Row, Status, append_row, is_due, write_status
from tunalab.settings.loading import config_hash
from tunalab.settings.schema import StageConfig
from tunalab.terminal import redraws
from tunalab.tracking.tracker import Tracker
from tunalab.training.checkpoints import CheckpointStore, restore, write_state
from tunalab.training.claiming import Holding
from tunalab.training.clock import awake
from tunalab.training.distribution import ALONE, Ranks
from tunalab.training.module import Harness, Progress


class StopSignal(Callback):
    """``stopped`` turns true at the first step end after a signal on any rank. A second Ctrl-C interrupts at once.

    ``holding``, on the first rank: the run's directory. When it is lost, nothing can be saved, and every rank raises UserError.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.holding: Holding | None = None
        self.flag = False
        self.stopped = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Installed here because Lightning installs its own earlier, whose SIGTERM exits 0 without a checkpoint.
        for number in stop_signals_heeded():
            signal.signal(number, self._raise_flag)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        lost = self.holding is not None and self.holding.lost()
        flags = self.ranks.numbers([self.flag, lost])
        if flags[:, 1].any():
            with self.ranks.together():
                if self.holding is not None:
                    self.holding.check()
        if flags[:, 0].any():
            self.stopped = True
            trainer.should_stop = True

    @contextmanager
    def handlers_restored(self) -> Iterator[None]:
        """Around the whole fit: whatever handled the signals before does so again after it, also after an error.

        Raises KeyboardInterrupt: of it Lightning makes an exit with code 1, which is that of a run that failed.
        """
        before = {number: signal.getsignal(number) for number in stop_signals_heeded()}
        try:
            yield
        except SystemExit as end:
            if not isinstance(end.__context__, KeyboardInterrupt):
                raise
            raise KeyboardInterrupt from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        if self.flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.flag = True


class Resuming(Callback):
    """Stands first among the callbacks, so that the others start with the run where it was.

    ``lanes`` and ``next_lane``: where this rank's stream begins, which is also what the next checkpoint says of lanes that have
    given no step by then.
    """

    def __init__(self) -> None:
        self.checkpoint: Path | None = None
        self.lanes: dict[int, dict[str, Any]] = {}
        self.next_lane = 0

    def on_train_start(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        # Here, not before: shards and moments are made on their devices by now, and are filled in place.
        if self.checkpoint is not None:
            restore(self.checkpoint, pl_module, trainer.optimizers[0])
            pl_module.progress.lanes, pl_module.progress.next_lane = dict(self.lanes), self.next_lane


class Checkpointing(Callback):
    """Stands last among the callbacks, so that a checkpoint holds what the others did at the same step."""

    def __init__(self, store: CheckpointStore, seconds: float, stop: StopSignal, kept: Sequence[int] = ()) -> None:
        """``kept``: counts of tokens whose checkpoints stay."""
        self.store = store
        self.seconds = seconds
        self.stop = stop
        self.kept = kept
        self.requested = False  # set by other callbacks: save at the end of this step
        self._last = time.monotonic()
        self._saved_step = -1
        self._tokens = 0  # before the step

    def on_train_start(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        self._tokens = pl_module.progress.tokens

    def on_train_batch_end(self, trainer: Trainer, pl_module: Harness, *_: Any) -> None:  # type: ignore[override]
        due = time.monotonic() - self._last >= self.seconds
        due = bool(self.store.ranks.numbers([due])[0, 0])  # one clock decides, else ranks would wait for each other
        before, self._tokens = self._tokens, pl_module.progress.tokens
        stays = any(before < tokens <= self._tokens for tokens in self.kept)
        if due or stays or self.requested or self.stop.stopped:
            self.save(trainer, pl_module, stays)

    def on_train_end(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        if pl_module.progress.steps != self._saved_step:
            self.save(trainer, pl_module)

    def save(self, trainer: Trainer, pl_module: Harness, stays: bool = False) -> None:
        def write(folder: Path) -> None:
            write_state(folder, pl_module, trainer.optimizers[0])

        self.store.save(pl_module.progress.steps, write, stays, config_hash=config_hash(pl_module.config))
        self._saved_step = pl_module.progress.steps
        self._last = time.monotonic()
        self.requested = False
        pl_module.pause_clock()


class Evaluating(Callback):
    """Runs ``evaluate`` (under EMA weights) when the run has passed the next token count, and hands its points on.

    The first rank evaluates while the others wait, and every rank keeps its points: plain dictionaries in the run's progress, and
    so in its checkpoints: a resumed run has the whole curve.
    """

    def __init__(
        self,
        at_tokens: list[int],
        evaluate: Callable[[Harness], dict[str, Any]],
        on_point: Callable[[Harness], None],
        checkpointing: Checkpointing,
        at_end: bool = True,
    ) -> None:
        """``at_end``: the end of the training is a point too."""
        self.at_end = at_end
        self.at_tokens = at_tokens
        self.evaluate = evaluate
        self.on_point = on_point
        self.checkpointing = checkpointing

    def on_train_batch_end(self, trainer: Trainer, pl_module: Harness, *_: Any) -> None:  # type: ignore[override]
        if self._due(pl_module.progress):
            self._point(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        # The last step may end just short of the last count; the end of training is always a point.
        points = pl_module.progress.points
        spent = self.at_end and not self.checkpointing.stop.stopped
        if spent and (not points or points[-1]["steps"] != pl_module.progress.steps):
            self._point(pl_module)

    def _due(self, progress: Progress) -> bool:
        last = progress.points[-1]["tokens"] if progress.points else 0
        return any(last < at <= progress.tokens for at in self.at_tokens)

    def _point(self, module: Harness) -> None:
        p, ranks = module.progress, module.ranks
        module.pause_clock()
        point: dict[str, Any] = {}
        with module.ema.applied(), module.gathered(), ranks.together(patient=True):
            if ranks.first:
                counters = {"tokens": p.tokens, "steps": p.steps, "images": p.images, "flops": p.flops, "seconds": p.seconds}
                point = {**counters, **self.evaluate(module)}
        p.points.append(ranks.broadcast(point))
        with ranks.together():
            if ranks.first:
                self.on_point(module)
        self.checkpointing.requested = True
        module.pause_clock()


NOTICED = 0.01  # share of a source's documents left out because they do not fit, from which it is said
FEW = 10  # of them decide nothing yet while the run goes on


def what_was_read(progress: Progress, stages: Mapping[str, StageConfig]) -> dict[str, Any]:
    """For the record: of every stage the mix that was requested and the one that came of it, of every source what was left out.

    Empty for a run that began before this was counted.
    """
    if sum(numbers[COUNTS.index("tokens")] for stage in progress.read.values() for numbers in stage.values()) != progress.tokens:
        return {}
    mix = {
        stage: {
            "requested": {source: weight for source, weight in stages[stage].mix.items() if weight > 0},
            **{kind: {source: numbers[COUNTS.index(kind)] for source, numbers in read.items()} for kind in ("documents", "tokens")},
        }
        for stage, read in progress.read.items()
    }
    return {"mix": mix, "left_out": left_out(progress)} if mix else {}


def left_out(progress: Progress) -> dict[str, dict[str, int]]:
    """Source -> documents requested over all stages, and of these the broken ones and those that do not fit."""
    totals: dict[str, dict[str, int]] = {}
    for read in progress.read.values():
        for source, numbers in read.items():
            counts = dict(zip(COUNTS, numbers, strict=True))
            so_far = totals.setdefault(source, {"asked": 0, "broken": 0, "unfit": 0})
            totals[source] = {kind: number + counts[kind] for kind, number in so_far.items()}
    return totals


class Reporting(Callback):
    """Averages the training losses between reports, so that a report is not one lucky step.

    What people watch is shown by :class:`Printing`, after the step has been saved: a print that blocks or fails must not cost
    it. It comes by the clock, rows of the training log by tokens: these must be the same in a run that was interrupted.
    """

    status_seconds = 3.0
    line_seconds = 30.0

    def __init__(self, run_dir: Path, budget: int) -> None:
        self.run_dir = run_dir
        self.budget = budget
        self.tracker: Tracker | None = None  # set once the run is known to begin
        self._bar: Any = None
        self._lines: list[Callable[[], object]] = []
        self._sums: dict[str, float] = {}
        self._count = 0
        self._last_status = self._last_line = 0.0
        self._began: tuple[float, int] | None = None
        self._before = 0  # tokens at the start of the step
        self._warned: set[str] = set()  # sources

    def on_train_start(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        self._began = (awake(), pl_module.progress.tokens)
        if redraws(sys.stderr):
            self._bar = tqdm(
                total=self.budget,
                initial=pl_module.progress.tokens,
                unit="tok",
                unit_scale=True,
                smoothing=0.05,
                dynamic_ncols=True,
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: Harness, *_: Any) -> None:  # type: ignore[override]
        self._before = pl_module.progress.tokens

    def on_train_batch_end(self, trainer: Trainer, pl_module: Harness, outputs: Any, *_: Any) -> None:  # type: ignore[override]
        self._log(pl_module.progress, outputs)
        self._warn(pl_module.progress, FEW)
        for name, value in outputs.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._count += 1
        now, tokens = time.monotonic(), pl_module.progress.tokens
        if now - self._last_status < self.status_seconds:
            return
        self._last_status = now
        means = {name: value / self._count for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        self.status(pl_module, pl_module.progress.stage)
        text = "  ".join(f"{name} {means[name]:.3f}" for name in ("text", "flow") if name in means)
        if self._bar is not None:
            bar, stage = self._bar, pl_module.progress.stage
            self._lines += [lambda: bar.update(tokens - bar.n), lambda: bar.set_postfix_str(f"{stage}  {text}")]
        elif now - self._last_line >= self.line_seconds:
            self._last_line = now
            speed, left = self._speed(tokens)
            self.later(f"{tokens:>11,} of {self.budget:,} tokens  {speed:,.0f}/s  {left or 0:,.0f} s left  {text}")

    def later(self, line: str, stream: TextIO | None = None) -> None:
        """To be printed once the step is saved."""
        self._lines.append(lambda: print(line, file=stream, flush=True))

    def print_lines(self) -> None:
        lines, self._lines = self._lines, []
        for one in lines:
            one()

    def on_train_end(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        self._warn(pl_module.progress, 1)

    def _warn(self, progress: Progress, least: int) -> None:
        """Once a start and source."""
        for source, counts in left_out(progress).items():
            unfit, of = counts["unfit"], counts["asked"]
            if source not in self._warned and unfit >= max(least, NOTICED * of):
                self._warned.add(source)
                self.later(
                    f"warning: {source}: {unfit:,} of {of:,} documents do not fit and are left out ({unfit / of:.1%}; "
                    f"reasons in {self.run_dir / 'rejects.jsonl'}); others of {source} take their places"
                )

    def _log(self, progress: Progress, outputs: dict[str, float]) -> None:
        for name, value in outputs.items():
            progress.window[name] = progress.window.get(name, 0.0) + float(value)
        progress.window_steps += 1
        if not is_due(self._before, progress.tokens, self.budget):
            return
        means = {f"train/{name}": value / progress.window_steps for name, value in progress.window.items()}
        progress.window, progress.window_steps = {}, 0
        for source, counts in left_out(progress).items():
            if counts["unfit"]:  # up to here
                means[f"data/unfit/{source}"] = counts["unfit"] / counts["asked"]
        row = Row(progress.tokens, time.time(), means)
        append_row(self.run_dir, row)
        if self.tracker is not None:
            self.tracker.log_metrics(row.metrics, row.tokens, row.time)

    def status(self, module: Harness, phase: str) -> None:
        """Write the status file. It is for watchers: a full disk stops the run where there is something to save, not here."""
        speed, left = self._speed(module.progress.tokens)
        try:
            write_status(self.run_dir, Status(module.progress.tokens, self.budget, speed, left, phase))
        except OSError as error:
            self.later(f"warning: the status file cannot be written: {error.strerror}", sys.stderr)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()

    def _speed(self, tokens: int) -> tuple[float, float | None]:
        began, first = self._began or (awake(), tokens)
        speed = (tokens - first) / max(awake() - began, 1e-9)
        return speed, (self.budget - tokens) / speed if speed > 0 else None


class Printing(Callback):
    """Stands last of all callbacks: the lines of a step are printed when it has been saved."""

    def __init__(self, reporting: Reporting) -> None:
        self.reporting = reporting

    def on_train_batch_end(self, *_: Any) -> None:
        self.reporting.print_lines()

    def on_train_end(self, *_: Any) -> None:
        self.reporting.print_lines()
