"""What a sweep shows: its dry run, its progress bar, and with `--status` what the disk says about its runs."""

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from tunalab.records.log import Status, read_status
from tunalab.sweeps.cells import RETRIES, Attempt, History, How, is_finished, is_locked, read_history
from tunalab.sweeps.grid import Cell, Resolved
from tunalab.terminal import LINE_SECONDS, amount, columns, duration, redraws, share, wrapped

if TYPE_CHECKING:
    from tunalab.sweeps.trunks import Tree

ADDED_UP = ("tokens", "flops", "minutes")


def dry_run(tree: "Tree", describe: Callable[[Cell], Mapping[str, Any]], parallel: int = 1) -> str:
    """Print, and return, a table of every run: ``describe(cell)`` gives its columns (parameters, tokens, flops, minutes, ...).

    What is trained for a run, and added up in the last row, is what it does not have from its trunk, under which it stands. Minutes
    are also divided by ``parallel``; trunks come before their branches, so that it can take somewhat longer.
    """
    described = [_own(tree, cell, describe(cell)) for cell in tree.cells]
    keys = list(dict.fromkeys(key for row in described for key in row))
    lines = [["run", *keys]]
    for cell, row in zip(tree.cells, described, strict=True):
        until = f" until {cell.until}" if cell.until else ""
        lines.append(["  " * tree.depth(cell) + cell.name + until, *(_text(row.get(key)) for key in keys)])
    sums = {key: sum(row[key] for row in described) for key in keys if key in ADDED_UP and all(key in row for row in described)}
    runs = sum(not cell.until for cell in tree.cells)
    lines.append([f"{runs} runs", *(_text(sums.get(key)) for key in keys)])
    text = columns(lines)
    alone, together = tree.totals()
    if tree.trunks:
        text += f"\n{together:,} tokens are trained, {together / alone:.2f} of {alone:,} with each run alone (trunks=off)"
    if "minutes" in sums:
        text += f"\nabout {_text(sums['minutes'] / parallel)} minutes with {parallel} run(s) at a time"
    print(text)
    return text


def _own(tree: "Tree", cell: Cell, described: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a run for the tokens between its trunk's end and its own."""
    row = dict(described)
    own = tree.tokens[cell.name] - tree.begins_at(cell)
    whole = row.get("tokens") or 0
    if whole and own != whole:
        row.update({key: row[key] * own / whole for key in ADDED_UP if key in row and key != "tokens"}, tokens=own)
    return row


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value >= 1e7 and isinstance(value, float):
        return f"{value:.2e}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


State = Literal["done", "queued", "running", "failed"]
STATES: tuple[State, ...] = ("done", "queued", "running", "failed")  # in this order: what matters last, where the eye is
SILENT = 60.0  # seconds without a sign of life that are worth a word; evaluations are silent too
COUNTED: tuple[How, ...] = ("preempted", "killed", "failed", "stopped")


@dataclass(frozen=True)
class CellState:
    """``tokens`` of ``total`` are consumed (of a run that died: were, when it last told); ``speed`` in tokens per second, while it
    runs.
    """

    cell: Cell
    state: State
    tokens: int
    total: int
    speed: float = 0.0
    seconds_left: float | None = None
    note: str = ""
    depth: int = 0  # of trunks above it
    begins: int = 0  # tokens that it has from its trunk

    def row(self) -> list[str]:
        speed = f"{self.speed:,.0f}" if self.speed else ""
        left = "" if self.seconds_left is None else duration(self.seconds_left)
        return ["  " * self.depth + self.cell.name, self.state, f"{self.tokens:,}", share(self.tokens, self.total), speed, left]


def look(tree: "Tree", resolved: Mapping[str, Resolved], records: Path | None = None, retries: int = RETRIES) -> list[CellState]:
    """The state of every cell and trunk, now. Raises UserError: a published record is damaged."""
    now, host = time.time(), socket.gethostname()
    every = {**tree.resolved, **resolved}
    found: dict[str, CellState] = {}
    for cell in tree.cells:
        state = _look(cell, every[cell.name], records, retries, now, host, tree.tokens[cell.name])
        if state.state == "queued" and cell.after and found[cell.after].state == "failed":
            state = replace(state, state="failed", note=_joined(f"its trunk {cell.after} failed", state.note))
        found[cell.name] = replace(state, depth=tree.depth(cell), begins=tree.begins_at(cell))
    return list(found.values())


def _look(cell: Cell, resolved: Resolved, records: Path | None, retries: int, now: float, host: str, total: int) -> CellState:
    history = read_history(cell.run_dir)
    before = _happened(history)
    if is_finished(cell, resolved.hash, records):
        return CellState(cell, "done", total, total, note=before)
    status = read_status(cell.run_dir)
    tokens = 0 if status is None else status.tokens
    if _runs(cell, history.open, status, now, host):
        began = None if history.open is None else history.open.began
        if status is None or (began is not None and status.time < began):  # the file is of an attempt before
            return CellState(cell, "running", tokens, total, note=_joined("starting", before))
        silent = f"silent for {duration(now - status.time)}" if now - status.time > SILENT else ""
        note = _joined(status.phase, silent, before)
        return CellState(cell, "running", tokens, total, status.tokens_per_second, status.seconds_left, note)
    reason = history.given_up(retries)
    if reason is not None:
        return CellState(cell, "failed", tokens, total, note=_joined(reason, before))
    died = "died without a word" if history.open is not None else ""
    return CellState(cell, "queued", tokens, total, note=_joined(died, before))


def _runs(cell: Cell, attempt: Attempt | None, status: Status | None, now: float, host: str) -> bool:
    """The lock tells; of another machine's run, where file systems may keep locks to themselves, also its signs of life."""
    if is_locked(cell.run_dir):
        return True
    if attempt is None or attempt.host == host:
        return False
    return now - max(attempt.began or 0.0, 0.0 if status is None else status.time) < SILENT


def _happened(history: History) -> str:
    times = {how: history.count(how) for how in COUNTED}
    counts = [f"{how} {'once' if count == 1 else f'{count} times'}" for how, count in times.items() if count]
    torn = f"{history.unreadable} unreadable line(s) in its history" if history.unreadable else ""
    return _joined(*counts, torn)


def table(states: Sequence[CellState], most: int | None = None) -> str:
    """A row per cell, of ``most`` those that matter most, and a line that sums up. With trunks the order is that of the tree."""
    trees = any(one.depth for one in states) and (most is None or len(states) <= most)
    ranked = list(states) if trees else sorted(states, key=lambda one: STATES.index(one.state))
    hidden = 0 if most is None else max(0, len(ranked) - most)
    rows = [["run", "state", "tokens", "", "tokens/s", "left"], *(one.row() for one in ranked[hidden:])]
    lines = columns(rows).splitlines()
    width = max(map(len, lines))
    lines[1:] = [f"{line.ljust(width)}  {one.note}".rstrip() for line, one in zip(lines[1:], ranked[hidden:], strict=True)]
    if hidden:
        kinds = {state: sum(one.state == state for one in ranked[:hidden]) for state in STATES}
        lines.insert(1, f"({', '.join(f'{count} {state}' for state, count in kinds.items() if count)}: not shown)")
    return "\n".join([*lines, summary(states)])


def summary(states: Sequence[CellState]) -> str:
    """How many cells are in which state, and how far all are together."""
    counts = {state: sum(one.state == state for one in states if not one.cell.until) for state in STATES}
    done = sum(max(0, min(one.tokens, one.total) - one.begins) for one in states)  # last steps go beyond
    total = sum(one.total - one.begins for one in states)
    speed = sum(one.speed for one in states)
    open_tokens = sum(max(0, one.total - max(one.tokens, one.begins)) for one in states if one.state in ("queued", "running"))
    left = f", about {duration(open_tokens / speed)} left" if speed and open_tokens else ""
    far = f"{share(done, total)} of {amount(total)} tokens" if total else ""
    runs = sum(not one.cell.until for one in states)
    return f"{runs} runs: {', '.join(f'{count} {state}' for state, count in counts.items() if count)}; {far}{left}"


def show(
    look_again: Callable[[], list[CellState]],
    once: bool,
    watch: bool = False,
    stream: TextIO | None = None,
    seconds: float = 2.0,
    line_seconds: float = LINE_SECONDS,
) -> None:
    """Print the table; on a terminal (unless ``once``) again and again in its own place, until nothing is left to do or Ctrl-C.

    ``watch``: elsewhere too, a line that sums up at intervals, and the table at the end.
    """
    stream = sys.stdout if stream is None else stream
    if watch and not redraws(stream):
        with suppress(KeyboardInterrupt):
            while any(one.state in ("queued", "running") for one in look_again()):
                print(summary(look_again()), file=stream, flush=True)
                time.sleep(line_seconds)
    if once or not redraws(stream):
        print(table(look_again()), file=stream)
        return
    lines = 0
    try:
        while True:
            states = look_again()
            size = os.get_terminal_size(stream.fileno())
            rows = size.lines - 4
            text = wrapped(table(states, most=rows), size.columns - 1)
            while len(text) >= size.lines and rows > 1:  # what has left the screen is not drawn over
                rows -= 1
                text = wrapped(table(states, most=rows), size.columns - 1)
            stream.write((f"\x1b[{lines}F" if lines else "") + "\x1b[J" + "\n".join(text) + "\n")
            stream.flush()
            lines = len(text)
            if not stream.isatty() or not any(one.state in ("queued", "running") for one in states):  # a terminal may close
                return
            time.sleep(seconds)
    except KeyboardInterrupt:
        return


def _joined(*notes: str) -> str:
    return ", ".join(filter(None, notes))


class Progress:
    """Shows how far a sweep is, on a terminal as a bar, elsewhere (a log, a pipe) as a line now and then.

    ``total_tokens`` gives a cell's budget; without it, a cell counts once its status file says how much it will consume.
    ``begins_at``: tokens that it has from its trunk, which are not its own.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        total_tokens: Callable[[Cell], int] | None = None,
        stream: TextIO | None = None,
        line_seconds: float = LINE_SECONDS,
        begins_at: Callable[[Cell], int] = lambda cell: 0,
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.line_seconds = line_seconds
        self.cells = list(cells)
        self.begins = {cell.name: begins_at(cell) for cell in cells}
        self.totals = {cell.name: total_tokens(cell) - self.begins[cell.name] for cell in cells} if total_tokens else {}
        self.known = frozenset(self.totals)
        self.done: dict[str, int] = {}
        self._start = self._last_line = time.monotonic()
        self._first: int | None = None
        self._bar: Any = None
        if redraws(self.stream):
            from tqdm import tqdm  # not for a look at the states

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
            if cell.name not in self.known:
                self.totals[cell.name] = status.total_tokens
            own = status.tokens - self.begins[cell.name]
            self.done[cell.name] = max(0, min(own, self.totals[cell.name]))  # the last step goes beyond

    def _left(self, done: int, total: int) -> str:
        gained = done - (self._first or 0)
        if gained <= 0 or total <= done:
            return "time left not known yet"
        return f"{duration((time.monotonic() - self._start) / gained * (total - done))} left"
