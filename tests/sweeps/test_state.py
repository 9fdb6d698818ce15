"""`tunalab sweep NAME --status`: states from the disk alone, and fast."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tunalab.bench.run import thousand
from tunalab.records.log import STATUS_FILE, Status, write_status
from tunalab.records.record import write_record
from tunalab.sweeps.cells import ATTEMPTS_FILE, begin, end, take_lock
from tunalab.sweeps.grid import Cell
from tunalab.sweeps.state import CellState, dry_run, look, show, summary, table
from tunalab.sweeps.trunks import Tree

ROOT = Path(__file__).parents[2]


class OneHash:
    """Stands for what a cell resolves to."""

    hash, tokens = "hash", 1000


def tree(cells: list[Cell]) -> Tree:
    return Tree(cells, {cell.name: 1000 for cell in cells})


def states(cells: list[Cell], **options: object) -> list[CellState]:
    return look(tree(cells), dict.fromkeys((cell.name for cell in cells), OneHash()), **options)  # type: ignore[arg-type]


def state(cell: Cell, **options: object) -> CellState:
    return states([cell], **options)[0]


def begun(cell: Cell, tokens: int | None = None) -> None:
    cell.run_dir.mkdir(parents=True, exist_ok=True)
    begin(cell.run_dir, "local", "1")
    if tokens is not None:
        write_status(cell.run_dir, Status(tokens, 1000, 50.0, 16.0, "pretrain"))


def test_nothing_on_the_disk_is_queued_and_stays_nothing(cells: list[Cell]) -> None:
    assert state(cells[0]) == CellState(cells[0], "queued", 0, 1000)
    assert not cells[0].run_dir.exists()


def test_a_finished_record_is_done_whatever_its_status_says(cells: list[Cell], record_of, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    begun(cells[0], 400)
    end(cells[0].run_dir, "killed", "signal 9")
    write_record(cells[0].run_dir / "record.json", record_of(cells[0]))
    assert state(cells[0]) == CellState(cells[0], "done", 1000, 1000, note="killed once")
    write_record(tmp_path / "published" / f"{cells[1].name}.json", record_of(cells[1]))
    assert state(cells[1], records=tmp_path / "published").state == "done"
    write_record(cells[2].run_dir / "record.json", record_of(cells[2], config_hash="other"))
    assert state(cells[2]).state == "queued"
    (cells[3].run_dir).mkdir(parents=True)
    text = (cells[0].run_dir / "record.json").read_text()
    (cells[3].run_dir / "record.json").write_text(text[: len(text) // 2])
    assert state(cells[3]).state == "queued"


def test_a_held_lock_is_running(cells: list[Cell]) -> None:
    lock = take_lock(cells[0].run_dir)
    assert lock is not None
    begun(cells[0])
    assert state(cells[0]).note == "starting"
    write_status(cells[0].run_dir, Status(250, 1000, 50.0, 15.0, "pretrain"))
    running = state(cells[0])
    assert (running.state, running.tokens, running.speed, running.note) == ("running", 250, 50.0, "pretrain")
    assert running.row() == [cells[0].name, "running", "250", "25%", "50", "15 s"]
    status = json.loads((cells[0].run_dir / STATUS_FILE).read_text())
    (cells[0].run_dir / ATTEMPTS_FILE).unlink()
    (cells[0].run_dir / STATUS_FILE).write_text(json.dumps({**status, "time": time.time() - 600}))
    assert state(cells[0]).state == "running" and "silent for 10 min" in state(cells[0]).note
    lock.close()
    assert state(cells[0]).state == "queued"


def test_of_this_machine_a_free_lock_is_death_of_another_signs_of_life_count(cells: list[Cell], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    begun(cells[0], 400)
    dead = state(cells[0])
    assert (dead.state, dead.tokens, dead.note) == ("queued", 400, "died without a word")
    here = socket.gethostname()
    monkeypatch.setattr(socket, "gethostname", lambda: f"not {here}")
    assert state(cells[0]).state == "running"
    status = json.loads((cells[0].run_dir / STATUS_FILE).read_text())
    (cells[0].run_dir / STATUS_FILE).write_text(json.dumps({**status, "time": time.time() - 600}))
    lines = (cells[0].run_dir / ATTEMPTS_FILE).read_text().splitlines()
    begun_at = {**json.loads(lines[0]), "time": time.time() - 900}
    (cells[0].run_dir / ATTEMPTS_FILE).write_text(json.dumps(begun_at) + "\n")
    assert state(cells[0]).state == "queued"


def test_what_happened_is_told(cells: list[Cell]) -> None:
    for how in ("preempted", "preempted", "killed"):
        begun(cells[0])
        end(cells[0].run_dir, how, "signal 9")  # type: ignore[arg-type]
    with (cells[0].run_dir / ATTEMPTS_FILE).open("a") as file:
        file.write("{torn")
    assert state(cells[0]).note == "preempted 2 times, killed once, 1 unreadable line(s) in its history"
    for _ in range(2):
        begun(cells[1])
        end(cells[1].run_dir, "failed", "ValueError: loss is nan")
    failed = state(cells[1])
    assert failed.state == "failed" and failed.note.startswith("ValueError: loss is nan (2 times")
    assert state(cells[0], retries=0).state == "failed"


def test_the_table_ends_with_what_matters_and_sums_up(cells: list[Cell]) -> None:
    many = [
        CellState(cells[0], "failed", 10, 1000, note="ValueError"),
        CellState(cells[1], "running", 500, 1000, 50.0, 10.0, "pretrain"),
        CellState(cells[2], "done", 1000, 1000),
        CellState(cells[3], "queued", 0, 1000),
    ]
    lines = table(many).splitlines()
    assert [line.split()[1] for line in lines[1:5]] == ["done", "queued", "running", "failed"] and lines[4].endswith("ValueError")
    assert lines[5] == summary(many) == "4 runs: 1 done, 1 queued, 1 running, 1 failed; 37% of 4,000 tokens, about 30 s left"
    short = table(many, most=2).splitlines()
    assert short[1] == "(1 done, 1 queued: not shown)" and len(short) == 5


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1


def test_a_terminal_is_refreshed_in_place_until_all_is_done(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((60, 20)))
    looks = iter([[CellState(cells[0], "running", 1, 9)], [CellState(cells[0], "done", 9, 9)]])
    stream = Terminal()
    show(lambda: next(looks), once=False, stream=stream, seconds=0.0)
    text = stream.getvalue()
    assert text.count("\x1b[J") == 2 and text.count("\x1b[3F") == 1 and "1 done" in text
    looks = iter([[CellState(cells[0], "running", 1, 9)]])
    show(lambda: next(looks), once=True, stream=(once := Terminal()))
    assert "\x1b" not in once.getvalue()


def test_what_has_gone_beyond_its_budget_is_whole_and_what_is_not_done_is_not(cells: list[Cell]) -> None:
    """The last step of a run goes beyond its budget; a run nearly there is not there."""
    states = [CellState(cells[0], "running", 1070, 1000), CellState(cells[1], "running", 999, 1000)]
    lines = table(states).splitlines()
    assert [line.split()[3] for line in lines[1:3]] == ["100%", "99%"]
    assert lines[3].startswith("2 runs: 2 running; 99% of 2,000 tokens")
    assert "100% of 4.5M tokens" in summary([CellState(cells[0], "done", 9_000_000, 4_500_000)])


@pytest.mark.parametrize(("columns", "rows"), [(0, 0), (1, 1), (39, 24), (80, 2)])
def test_a_terminal_that_is_too_small_gets_the_whole_table_once(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch, columns: int, rows: int
) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns, rows)))
    states = [CellState(cells[0], "running", 1, 9, note="a word on it")]
    show(lambda: states, once=False, stream=(stream := Terminal()))
    assert stream.getvalue() == f"{table(states)}\n"


def test_on_a_narrow_terminal_lines_go_on_in_the_next(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((41, 10)))
    states = [CellState(cell, "failed", 1, 9, note="ValueError: " + "a long story " * 7) for cell in cells[:4]]
    show(lambda: states, once=False, stream=(stream := Terminal()))
    text = stream.getvalue().removeprefix("\x1b[J")
    assert ("a long story " * 7).strip() in text.replace("\n", "") and len(text.splitlines()) < 10
    assert max(map(len, text.splitlines())) <= 40


@pytest.mark.slow
def test_a_thousand_cells_in_under_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the time goes into is counted, as that is the same however busy the machine is: modules, experiments, files."""
    monkeypatch.chdir(ROOT)
    thousand(tmp_path)
    monkeypatch.chdir(tmp_path)
    call = """
import sys, time
from tunalab.cli import main
from tunalab.sweeps import grid as resolving
counts = {"experiments": 0, "files": 0}
def count(event, arguments):
    counts["files"] += event == "open" and str(arguments[0]).startswith("runs/")
sys.addaudithook(count)
read_files = resolving.read_files
def counted(*arguments):
    counts["experiments"] += 1
    return read_files(*arguments)
resolving.read_files = counted
assert main(["sweep", "large", "--status", "--once"]) == 0
heavy = {"torch", "transformers", "lightning", "mlflow", "matplotlib", "scipy", "numpy", "pandas", "submitit", "tqdm"}
print("modules", sorted(heavy & sys.modules.keys()))
print(counts)
print("seconds", time.process_time())
"""
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True)
    assert "1008 runs: 336 done, 672 queued" in done.stdout and "modules []" in done.stdout
    experiments, files = map(int, re.findall(r"'experiments': (\d+), 'files': (\d+)", done.stdout)[0])
    assert experiments == 3  # one for each variant
    trunks = 84 * 3
    assert 1008 < files <= 4 * (1008 + trunks)  # history, status and lock, and whose the directory is; or history and record, twice
    seconds = float(re.findall(r"seconds ([\d.]+)", done.stdout)[0])  # of this process, whatever others do
    assert seconds < 3.0, f"{seconds:.2f} s"  # measured: 0.5 to 0.7 on two cores that others use too


def test_dry_run_lists_every_run_and_adds_up(cells, capsys):
    alone = Tree(cells, {cell.name: 2_000_000 for cell in cells})

    def describe(cell):
        return {
            "ratio": cell.factors["objective.masking.ratio"],
            "parameters": 700_000,
            "tokens": 2_000_000,
            "flops": 8e12,
            "minutes": 4.0,
        }

    text = dry_run(alone, describe, parallel=2)
    assert capsys.readouterr().out == text + "\n"
    lines = text.splitlines()
    assert lines[0].split() == ["run", "ratio", "parameters", "tokens", "flops", "minutes"]
    assert [line.split()[0] for line in lines[1:5]] == [cell.name for cell in cells]
    assert lines[1].split()[1:] == ["0.0", "700,000", "2,000,000", "8.00e+12", "4.0"]
    assert lines[5].split() == ["4", "runs", "8,000,000", "3.20e+13", "16.0"]
    assert lines[6] == "about 8.0 minutes with 2 run(s) at a time"
    assert not any(cell.run_dir.exists() for cell in cells)


def grown(cells: list[Cell]) -> Tree:
    """A trunk of 600 tokens, two branches of 1000, and a cell that stands alone."""
    trunk = replace(cells[0], name="trunk-ab", run_dir=cells[0].run_dir.parent / "trunks" / "ab", until="pretrain@0.6")
    branches = [replace(cell, after="trunk-ab") for cell in cells[:2]]
    return Tree([trunk, *branches, cells[2]], {"trunk-ab": 600, **{cell.name: 1000 for cell in cells[:3]}}, {"trunk-ab": OneHash()})  # type: ignore[dict-item]


def test_a_dry_run_shows_the_tree_and_what_sharing_saves(cells: list[Cell], capsys: pytest.CaptureFixture[str]) -> None:
    lines = dry_run(grown(cells), lambda cell: {"tokens": 1000, "minutes": 10.0}).splitlines()
    capsys.readouterr()
    names = [cell.name for cell in cells]
    assert lines[1].startswith("trunk-ab until pretrain@0.6") and [line.split()[0] for line in lines[2:5]] == names[:3]
    assert [line.startswith("  ") for line in lines[1:5]] == [False, True, True, False]
    assert [line.split()[-2:] for line in lines[1:5]] == [["600", "6.0"], ["400", "4.0"], ["400", "4.0"], ["1,000", "10.0"]]
    assert lines[5].split() == ["3", "runs", "2,400", "24.0"]
    assert lines[6] == "2,400 tokens are trained, 0.80 of 3,000 with each run alone (trunks=off)"


def test_the_state_of_a_tree_stands_in_its_order(cells: list[Cell]) -> None:
    tree = grown(cells)
    tree.trunks[0].run_dir.mkdir(parents=True)
    (tree.trunks[0].run_dir / "trunk.json").write_text("{}")
    begun(tree.cells[1], tokens=700)
    found = look(tree, dict.fromkeys((cell.name for cell in cells), OneHash()))  # type: ignore[arg-type]
    assert [(one.state, one.depth, one.total) for one in found] == [
        ("done", 0, 600),
        ("queued", 1, 1000),
        ("queued", 1, 1000),
        ("queued", 0, 1000),
    ]
    lines = table(found).splitlines()
    assert [lines[1][:8], lines[2].split()[0]] == ["trunk-ab", cells[0].name] and lines[-1].startswith("3 runs: 3 queued")
    assert max(map(len, lines)) <= 80


def test_watching_without_a_terminal_prints_lines_and_the_table_at_the_end(cells: list[Cell]) -> None:
    running = [CellState(cells[0], "running", 10, 100)]
    done = [CellState(cells[0], "done", 100, 100)]
    looks = iter([running, running, running, running, done, done])
    stream = io.StringIO()
    show(lambda: next(looks), once=False, watch=True, stream=stream, line_seconds=0.0)
    lines = stream.getvalue().splitlines()
    assert [line.startswith("1 runs: 1 running") for line in lines[:2]] == [True, True] and lines[-1].startswith("1 runs: 1 done")
