"""What a sweep survives, with cells that count instead of training: kills, a full disk, histories cut short."""

import errno
import hashlib
import io
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby

import pytest
from tests.sweeps.driving import start_driver, wait_for

from tunalab.records.record import read_record
from tunalab.sweeps import cells as attempts
from tunalab.sweeps import local
from tunalab.sweeps.cells import begin, is_locked, read_history
from tunalab.sweeps.grid import Cell
from tunalab.sweeps.launcher import Result, Work
from tunalab.sweeps.local import LocalLauncher

STEPS = 40
# Every step depends on the one before; a checkpoint every fifth, whole or not at all.
COUNTS = f"""
import hashlib
store = run_dir / 'checkpoints'
store.mkdir(exist_ok=True)
saved = sorted(store.glob('step-*'))
step, value = (int(saved[-1].name[5:]), (saved[-1] / 'value').read_bytes()) if saved else (0, b'')
while step < {STEPS}:
    step += 1
    value = hashlib.sha256(value + str(step).encode()).digest()
    note(str(os.getpid()))
    time.sleep(0.02)
    if step % 5 == 0:
        fresh = store / f'.step-{{step:09d}}.{{os.getpid()}}'
        fresh.mkdir()
        (fresh / 'value').write_bytes(value)
        fresh.rename(store / f'step-{{step:09d}}')
(run_dir / 'value').write_bytes(value)
"""

Trains = Callable[..., Callable[[Cell], list[str]]]


def last_value() -> bytes:
    value = b""
    for step in range(1, STEPS + 1):
        value = hashlib.sha256(value + str(step).encode()).digest()
    return value


def run(cells: list[Cell], command: Callable[[Cell], list[str]], **work: int) -> Result:
    return LocalLauncher(1, stream=io.StringIO()).run(Work(cells, command, {cell.name: "hash" for cell in cells}, **work))  # type: ignore[arg-type]


def ends(cell: Cell) -> list[str | None]:
    return [attempt.how for attempt in read_history(cell.run_dir).attempts]


@pytest.mark.slow
def test_cells_and_drivers_may_be_killed_at_any_time(cells: list[Cell], trains: Trains) -> None:
    cells, draws, lost = cells[:3], random.Random(0), 0
    driver = start_driver(cells, trains(COUNTS), retries=9)

    def pids() -> list[int]:
        found = [read_history(cell.run_dir).open for cell in cells if is_locked(cell.run_dir)]
        return [int(attempt.job) for attempt in found if attempt is not None and attempt.job]

    for what in ("cell", "both", "cell", "driver", "cell"):
        wait_for(pids)
        time.sleep(draws.uniform(0.05, 0.4))
        alive = pids()
        if what != "driver" and alive:
            with suppress(ProcessLookupError):  # it has ended by itself just now
                os.kill(draws.choice(alive), signal.SIGKILL)
                lost += 1
        if what != "cell":
            driver.kill()
            driver.communicate()
            driver = start_driver(cells, trains(COUNTS), retries=9)
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 0, out + err
    # What had its record already is finished; of a driver that dies while it starts a cell, that attempt is lost too.
    assert 1 <= sum(ends(cell).count("killed") for cell in cells) <= lost + 2
    for cell in cells:
        assert (cell.run_dir / "value").read_bytes() == last_value()
        assert ends(cell)[-1] == "finished" and ends(cell).count("finished") == 1
        starts = [pid for pid, _ in groupby((cell.run_dir / "notes.txt").read_text().split())]
        assert len(starts) == len(set(starts)), "two processes trained it at the same time"


def test_a_cell_that_is_killed_is_started_again_so_often_and_then_when_asked(cells: list[Cell], trains: Trains) -> None:
    dies = trains("note('start'); os.kill(os.getpid(), signal.SIGKILL)")
    result = run(cells[:1], dies, retries=2)
    assert [outcome.state for outcome in result.outcomes] == ["failed"] and ends(cells[0]) == ["killed"] * 3
    assert "signal 9" in result.outcomes[0].reason and "3 times without getting further" in result.outcomes[0].reason
    again = run(cells[:1], dies, retries=2)
    assert again.exit_code == 1 and "--retry starts it again" in again.outcomes[0].reason and len(ends(cells[0])) == 3
    attempts.forgive(cells[0].run_dir)
    assert run(cells[:1], trains(), retries=2).exit_code == 0 and ends(cells[0])[-1] == "finished"


def test_a_cell_that_gets_further_each_time_is_started_again_without_end(cells: list[Cell], trains: Trains) -> None:
    saves = "fresh.rename(store / f'step-{step:09d}')\n"
    further = COUNTS.replace(saves, saves + f"        if step < {STEPS}: os.kill(os.getpid(), signal.SIGKILL)\n")
    result = run(cells[:1], trains(further), retries=1)
    assert result.exit_code == 0 and ends(cells[0]) == ["killed"] * 7 + ["finished"]
    assert (cells[0].run_dir / "value").read_bytes() == last_value()


def test_a_full_disk_starts_nothing_and_loses_nothing(cells: list[Cell], trains: Trains, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(attempts.os, "write", full)
        result = run(cells[:2], trains("time.sleep(0.3); note('trained')"))
    assert [outcome.reason for outcome in result.outcomes] == ["does not start: No space left on device"] * 2
    assert not any((cell.run_dir / "record.json").exists() or is_locked(cell.run_dir) for cell in cells[:2])
    assert run(cells[:2], trains("note('trained')")).exit_code == 0
    assert [(cell.run_dir / "notes.txt").read_text() for cell in cells[:2]] == ["trained\n"] * 2


def test_an_end_that_cannot_be_written_is_told_and_recognised_later(
    cells: list[Cell], trains: Trains, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stream = io.StringIO()
    with monkeypatch.context() as broken:
        broken.setattr(local, "end", full)
        LocalLauncher(1, stream=stream).run(Work(cells[:1], trains("sys.exit(75)"), {cells[0].name: "hash"}))
    assert "how it ended cannot be written down: No space left on device" in stream.getvalue() and ends(cells[0]) == [None]
    assert run(cells[:1], trains()).exit_code == 0 and ends(cells[0]) == ["killed", "finished"]


def test_a_cell_that_finished_alone_is_recorded_so(cells: list[Cell], trains: Trains) -> None:
    run(cells[:1], trains())
    begin(cells[0].run_dir, "local", "1")
    assert attempts.settle(cells[0].run_dir, finished=True).count("finished") == 2
    assert read_record(cells[0].run_dir / "record.json").run.finished


def test_a_torn_history_is_told_and_the_cell_trained(cells: list[Cell], trains: Trains) -> None:
    cells[0].run_dir.mkdir(parents=True)
    (cells[0].run_dir / attempts.ATTEMPTS_FILE).write_text('{"event": "begun", "ti')
    stream = io.StringIO()
    LocalLauncher(1, stream=stream).run(Work(cells[:1], trains(), {cells[0].name: "hash"}))
    assert "1 line(s) of attempts.jsonl are torn" in stream.getvalue() and ends(cells[0]) == ["finished"]


def test_a_cell_costs_its_driver_little(cells: list[Cell], trains: Trains) -> None:
    before = time.process_time()
    assert run(cells, trains()).exit_code == 0
    own = (time.process_time() - before) / len(cells)  # of the driver, however busy the machine is
    assert own < 0.5, f"{own:.2f} s a cell"  # 2 are allowed
