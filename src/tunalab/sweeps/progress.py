"""One progress bar over a whole sweep: tokens of all cells, time left, who is running."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from tqdm import tqdm

from tunalab.records.log import Status, read_status
from tunalab.sweeps.grid import Cell
from tunalab.terminal import LINE_SECONDS, amount, duration, redraws, share


class Progress:
    """Shows how far a sweep is, on a terminal as a bar, elsewhere (a log, a pipe) as a line now and then.

    ``total_tokens`` gives a cell's budget; without it, a cell counts once its status file says how much it will consume.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        total_tokens: Callable[[Cell], int] | None = None,
        stream: TextIO | None = None,
        line_seconds: float = LINE_SECONDS,
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.line_seconds = line_seconds
        self.cells = list(cells)
        self.totals = {cell.name: total_tokens(cell) for cell in cells} if total_tokens else {}
        self.done: dict[str, int] = {}
        self._start = self._last_line = time.monotonic()
        self._first: int | None = None
        self._bar: tqdm | None = None  # type: ignore[type-arg]
        if redraws(self.stream):
            # smoothing=0: the mean speed so far, with imports and evaluations in it, is what the rest will run at.
            self._bar = tqdm(total=0, unit="tok", unit_scale=True, smoothing=0, dynamic_ncols=True, file=self.stream)

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def update(self, running: Sequence[Cell], ended: Mapping[str, bool]) -> None:
        """Show the state now. ``ended``: cell name -> whether it is complete (the others of it ended early)."""
        for cell in self.cells:
            if ended.get(cell.name):
                self.done[cell.name] = self.totals.get(cell.name, self.done.get(cell.name, 0))
            elif cell in running or self._first is None:
                self._read(cell, read_status(cell.run_dir))
        done, total = sum(self.done.values()), sum(self.totals.values())
        if self._first is None:
            self._first = done  # what was there before: no measure of today's speed
        names = ", ".join(cell.name for cell in running)
        finished = f"{sum(ended.values())}/{len(self.cells)} cells"
        if self._bar is not None:
            self._bar.total, self._bar.n, self._bar.initial = max(total, done), done, self._first
            self._bar.set_description(finished, refresh=False)
            self._bar.set_postfix_str(names, refresh=True)
        elif time.monotonic() - self._last_line >= self.line_seconds:
            self._last_line = time.monotonic()
            far = f"{share(done, total)} of {amount(total)} tokens" if total else "tokens not known yet"
            self.say(f"sweep: {finished}, {far}, {self._left(done, total)}; running: {names or 'none'}")

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    def _read(self, cell: Cell, status: Status | None) -> None:
        if status is not None:
            self.done[cell.name] = min(status.tokens, status.total_tokens)  # the last step goes beyond
            self.totals[cell.name] = status.total_tokens

    def _left(self, done: int, total: int) -> str:
        gained = done - (self._first or 0)
        if gained <= 0 or total <= done:
            return "time left not known yet"
        return f"{duration((time.monotonic() - self._start) / gained * (total - done))} left"
