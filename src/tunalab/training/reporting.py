"""How a run tells where it is: a progress bar or log lines, the status file, the training log and its copy in MLflow."""

import sys
import time
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from tqdm import tqdm

from tunalab.results.mlflow.tracking import Tracker
from tunalab.results.status import Status, write_status
from tunalab.results.training_log import Row, append_row, is_due
from tunalab.training.module import Harness, Progress


class Reporting(Callback):
    """Averages the training losses between reports, so that a report is not one lucky step.

    What people watch comes by the clock, rows of the training log by tokens: these must be the same in a run that was interrupted.
    """

    status_seconds = 3.0
    line_seconds = 30.0

    def __init__(self, run_dir: Path, budget: int) -> None:
        self.run_dir = run_dir
        self.budget = budget
        self.tracker: Tracker | None = None  # set once the run is known to begin
        self._bar: Any = None
        self._sums: dict[str, float] = {}
        self._count = 0
        self._last_status = self._last_line = 0.0
        self._began: tuple[float, int] | None = None
        self._before = 0  # tokens at the start of the step

    def on_train_start(self, trainer: Trainer, pl_module: Harness) -> None:  # type: ignore[override]
        self._began = (time.monotonic(), pl_module.progress.tokens)
        if sys.stderr.isatty():
            self._bar = tqdm(total=self.budget, initial=pl_module.progress.tokens, unit="tok", unit_scale=True, smoothing=0.05)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Harness, *_: Any) -> None:  # type: ignore[override]
        self._before = pl_module.progress.tokens

    def on_train_batch_end(self, trainer: Trainer, pl_module: Harness, outputs: Any, *_: Any) -> None:  # type: ignore[override]
        self._log(pl_module.progress, outputs)
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
            self._bar.update(tokens - self._bar.n)
            self._bar.set_postfix_str(f"{pl_module.progress.stage}  {text}")
        elif now - self._last_line >= self.line_seconds:
            self._last_line = now
            speed, left = self._speed(tokens)
            print(f"{tokens:>11,} of {self.budget:,} tokens  {speed:,.0f}/s  {left or 0:,.0f} s left  {text}", flush=True)

    def _log(self, progress: Progress, outputs: dict[str, float]) -> None:
        for name, value in outputs.items():
            progress.window[name] = progress.window.get(name, 0.0) + float(value)
        progress.window_steps += 1
        if not is_due(self._before, progress.tokens, self.budget):
            return
        means = {f"train/{name}": value / progress.window_steps for name, value in progress.window.items()}
        progress.window, progress.window_steps = {}, 0
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
            print(f"warning: the status file cannot be written: {error.strerror}", file=sys.stderr, flush=True)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()

    def _speed(self, tokens: int) -> tuple[float, float | None]:
        began, first = self._began or (time.monotonic(), tokens)
        speed = (tokens - first) / max(time.monotonic() - began, 1e-9)
        return speed, (self.budget - tokens) / speed if speed > 0 else None
