"""How a run tells where it is: a progress bar or log lines, the status file, the training log and its copy in MLflow."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from lightning import Callback, Trainer
from tqdm import tqdm

from tunalab.data.stream import COUNTS
from tunalab.records.log import Row, Status, append_row, is_due, write_status
from tunalab.settings.schema import StageConfig
from tunalab.terminal import redraws
from tunalab.tracking.tracker import Tracker
from tunalab.training.clock import awake
from tunalab.training.module import Harness, Progress

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
    """Source -> documents asked for over all stages, and of these the broken ones and those that do not fit."""
    totals: dict[str, dict[str, int]] = {}
    for read in progress.read.values():
        for source, numbers in read.items():
            counts = dict(zip(COUNTS, numbers, strict=True))
            so_far = totals.setdefault(source, {"asked": 0, "broken": 0, "unfit": 0})
            totals[source] = {kind: number + counts[kind] for kind, number in so_far.items()}
    return totals


class Reporting(Callback):
    """Averages the training losses between reports, so that a report is not one lucky step.

    What people watch is shown by :class:`Telling`, after the step has been saved: a print that blocks or fails must not cost it. It
    comes by the clock, rows of the training log by tokens: these must be the same in a run that was interrupted.
    """

    status_seconds = 3.0
    line_seconds = 30.0

    def __init__(self, run_dir: Path, budget: int) -> None:
        self.run_dir = run_dir
        self.budget = budget
        self.tracker: Tracker | None = None  # set once the run is known to begin
        self._bar: Any = None
        self._untold: list[Callable[[], object]] = []
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
            self._untold += [lambda: bar.update(tokens - bar.n), lambda: bar.set_postfix_str(f"{stage}  {text}")]
        elif now - self._last_line >= self.line_seconds:
            self._last_line = now
            speed, left = self._speed(tokens)
            self.say(f"{tokens:>11,} of {self.budget:,} tokens  {speed:,.0f}/s  {left or 0:,.0f} s left  {text}")

    def say(self, line: str, stream: TextIO | None = None) -> None:
        """To be printed once the step is saved."""
        self._untold.append(lambda: print(line, file=stream, flush=True))

    def tell(self) -> None:
        untold, self._untold = self._untold, []
        for one in untold:
            one()

    def on_train_end(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        self._warn(pl_module.progress, 1)

    def _warn(self, progress: Progress, least: int) -> None:
        """Once a start and source."""
        for source, counts in left_out(progress).items():
            unfit, asked = counts["unfit"], counts["asked"]
            if source not in self._warned and unfit >= max(least, NOTICED * asked):
                self._warned.add(source)
                self.say(
                    f"warning: {source}: {unfit:,} of {asked:,} documents do not fit and are left out ({unfit / asked:.1%}; "
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
            self.say(f"warning: the status file cannot be written: {error.strerror}", sys.stderr)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()

    def _speed(self, tokens: int) -> tuple[float, float | None]:
        began, first = self._began or (awake(), tokens)
        speed = (tokens - first) / max(awake() - began, 1e-9)
        return speed, (self.budget - tokens) / speed if speed > 0 else None


class Telling(Callback):
    """Stands last of all callbacks: what the others had to say of a step is shown when it has been saved."""

    def __init__(self, reporting: Reporting) -> None:
        self.reporting = reporting

    def on_train_batch_end(self, *_: Any) -> None:
        self.reporting.tell()

    def on_train_end(self, *_: Any) -> None:
        self.reporting.tell()
