"""The queue with commands that take milliseconds. ``-S`` and an empty body keep a cell at about 20 ms."""

import io
import json
import os
import signal
import sys
import textwrap
import time
from dataclasses import replace

import pytest
from tests.sweeps.driving import start_driver, wait_for

from tunalab.errors import UserError
from tunalab.records.record import read_record, write_record
from tunalab.sweeps.cells import collect, finished_record, last_line, publish, take_lock
from tunalab.sweeps.launcher import Outcome, Result, Work, visible_gpus
from tunalab.sweeps.local import LocalLauncher, default_parallel


def same_hash(_):
    return "hash"


def run(cells, command, **options):
    work = {key: options.pop(key) for key in ("records", "total_tokens", "retries") if key in options}
    launcher = LocalLauncher(stream=options.pop("stream", io.StringIO()), **options)
    return launcher.run(Work(cells, command, {cell.name: "hash" for cell in cells}, **work))


def states(result):
    return [outcome.state for outcome in result.outcomes]


def test_every_cell_runs_with_its_threads_and_a_second_sweep_skips_them(cells, trains):
    result = run(
        cells,
        trains("note(os.environ['OMP_NUM_THREADS'] + os.environ['MKL_NUM_THREADS']); print('hello')"),
        threads=3,
        parallel=2,
    )
    assert states(result) == ["finished"] * 4 and result.exit_code == 0
    for cell in cells:
        assert (cell.run_dir / "notes.txt").read_text() == "33\n"
        assert last_line(cell.run_dir / "log.txt") == "hello"
    again = run(cells, trains("note('again')"))
    assert states(again) == ["skipped"] * 4 and again.exit_code == 0 and "again" not in (cells[0].run_dir / "notes.txt").read_text()
    assert [record.run.name for record in collect(cells, same_hash)] == [cell.name for cell in cells]


def test_freed_memory_is_kept_but_for_what_the_user_says(cells, trains, monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "7")
    body = "note(os.environ['MALLOC_MMAP_THRESHOLD_'] + ' ' + os.environ['MALLOC_TRIM_THRESHOLD_'])"
    run(cells[:1], trains(body))
    assert (cells[0].run_dir / "notes.txt").read_text() == "33554432 7\n"


def test_an_edited_configuration_a_damaged_and_an_unfinished_record_are_not_finished(cells, trains, record_of, capsys):
    write_record(cells[0].run_dir / "record.json", record_of(cells[0], config_hash="old"))
    write_record(cells[1].run_dir / "record.json", record_of(cells[1], finished=False))
    cells[2].run_dir.mkdir(parents=True)
    (cells[2].run_dir / "record.json").write_text("{")
    write_record(cells[3].run_dir / "record.json", record_of(cells[3]))
    assert states(run(cells, trains())) == ["finished", "finished", "finished", "skipped"]
    assert "record.json: record is damaged" in capsys.readouterr().err


def test_a_published_record_finishes_a_cell(cells, trains, tmp_path):
    folder = tmp_path / "results"
    run(cells[:2], trains())
    assert [path.stem for path in publish(cells, same_hash, folder)] == [cell.name for cell in cells[:2]]
    for cell in cells[:2]:
        (cell.run_dir / "record.json").unlink()
    assert states(run(cells, trains(), records=folder)) == ["skipped", "skipped", "finished", "finished"]
    assert finished_record(cells[0], "other hash", folder) is None
    (folder / f"{cells[0].name}.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        finished_record(cells[0], "hash", folder)


def test_failures_are_listed_with_their_last_line_and_log_and_the_others_go_on(cells, trains):
    bodies = {
        cells[0].name: "print('step 1'); raise ValueError('loss is nan at step 7')",
        cells[1].name: "sys.exit(3)",
        cells[2].name: "os.kill(os.getpid(), signal.SIGKILL)",
    }
    stream = io.StringIO()
    result = run(cells, trains(lambda cell: bodies.get(cell.name, "")), stream=stream, parallel=1, retries=0)
    assert states(result) == ["failed", "failed", "failed", "finished"] and result.exit_code == 1
    reasons = [outcome.reason for outcome in result.outcomes]
    assert reasons[0] == "ValueError: loss is nan at step 7"
    assert reasons[1] == "exit code 3, no output"
    assert "signal 9" in reasons[2] and "out of memory?" in reasons[2]
    (line,) = [line for line in result.table().splitlines() if line.startswith(cells[0].name)]
    assert "failed" in line and "loss is nan at step 7" in line and str(cells[0].run_dir / "log.txt") in line
    assert result.table().splitlines()[-1] == "1 finished, 3 failed"
    assert f"{cells[0].name} failed: ValueError: loss is nan" in stream.getvalue()


def test_only_this_attempts_output_is_the_reason(cells, trains):
    run(cells[:1], trains("raise ValueError('yesterday')"), retries=0)
    result = run(cells[:1], trains("sys.exit(2)"), retries=1)
    assert result.outcomes[0].reason == "exit code 2, no output (2 times without getting further)"
    assert "yesterday" in (cells[0].run_dir / "log.txt").read_text()  # and the log keeps both


def test_a_cell_that_leaves_no_record_or_does_not_start_has_failed(cells):
    result = run(cells[:2], lambda cell: [sys.executable, "-S", "-c", ""] if cell is cells[0] else ["/nowhere/python"])
    assert states(result) == ["failed", "failed"]
    assert "without a finished record" in result.outcomes[0].reason
    assert result.outcomes[1].reason == "does not start: /nowhere/python: No such file or directory"


def test_exit_75_is_stopped_not_failed(cells, trains):
    result = run(cells[:2], trains(lambda cell: "sys.exit(75)" if cell is cells[0] else ""))
    assert states(result) == ["stopped", "finished"] and result.exit_code == 75


def test_never_more_than_parallel_at_a_time(cells, trains, tmp_path):
    body = f"""
live = pathlib.Path({str(tmp_path)!r}) / 'live'; live.mkdir(exist_ok=True)
(live / name).touch(); time.sleep(0.15); note(str(len(list(live.iterdir())))); (live / name).unlink()"""
    run(cells, trains(body), parallel=2)
    observed = [int((cell.run_dir / "notes.txt").read_text()) for cell in cells]
    assert max(observed) == 2
    assert default_parallel(threads=10**6) == 1 and default_parallel(1) == len(os.sched_getaffinity(0))


def test_a_gpu_has_one_cell_at_a_time_and_a_cell_one_gpu(cells, trains, monkeypatch):
    cores = len(os.sched_getaffinity(0))
    assert default_parallel(1, ["0"]) == 1 and default_parallel(1, [str(gpu) for gpu in range(99)]) == cores
    run(cells, trains("note(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.3)"), parallel=2, gpus=["3", "GPU-5"])
    assert {(cell.run_dir / "notes.txt").read_text().strip() for cell in cells[:2]} == {"3", "GPU-5"}
    assert {(cell.run_dir / "notes.txt").read_text().strip() for cell in cells} == {"3", "GPU-5"}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    assert visible_gpus() == ["4", "7"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert visible_gpus() == []


SAVES = "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), note('saved'), os._exit(75))); note('ready'); time.sleep(60)"
HANGS = "signal.signal(signal.SIGTERM, signal.SIG_IGN); note('ready'); time.sleep(60)"


def ready(cell):
    notes = cell.run_dir / "notes.txt"
    return notes.exists() and "ready" in notes.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_reaches_the_cells_and_waits_for_them_to_save(cells, trains, number):
    driver = start_driver(cells, trains(SAVES))
    wait_for(lambda: ready(cells[0]) and ready(cells[1]))
    driver.send_signal(number)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 75, err
    assert [(cell.run_dir / "notes.txt").read_text() for cell in cells[:2]] == ["ready\nsaved\n"] * 2
    assert out.splitlines()[-1] == "2 not started, 2 stopped" and not cells[2].run_dir.exists()


def test_a_second_signal_kills(cells, trains):
    driver = start_driver(cells[:1], trains(HANGS))
    wait_for(lambda: ready(cells[0]))
    driver.send_signal(signal.SIGINT)
    time.sleep(0.4)
    assert driver.poll() is None
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=60)
    assert driver.returncode == 75 and "killed before it had saved" in out


def test_two_drivers_train_every_cell_once(cells, trains):
    command = trains("note('trained'); time.sleep(0.4)")
    drivers = [start_driver(cells, command, parallel=2) for _ in range(2)]
    outputs = [driver.communicate(timeout=90) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    assert [(cell.run_dir / "notes.txt").read_text() for cell in cells] == ["trained\n"] * 4
    rows = [line.split() for out, _ in outputs for line in out.splitlines()]
    ends = sorted((row[0], row[1]) for row in rows if row[0] in {cell.name for cell in cells})
    assert ends == sorted((cell.name, state) for cell in cells for state in ("finished", "skipped"))


def test_a_cell_that_outlives_its_driver_stays_locked(cells, trains):
    driver = start_driver(cells[:1], trains("note('ready'); time.sleep(1.5); note('done')"))
    wait_for(lambda: ready(cells[0]))
    driver.kill()
    driver.communicate()
    assert take_lock(cells[0].run_dir) is None
    stream = io.StringIO()
    result = run(cells[:1], trains("note('twice')"), stream=stream)
    assert states(result) == ["skipped"] and "waiting for it" in stream.getvalue()
    assert (cells[0].run_dir / "notes.txt").read_text() == "ready\ndone\n"


@pytest.mark.slow
def test_progress_is_printed_as_lines_where_there_is_no_terminal(cells, trains):
    body = textwrap.dedent("""
        text = '{"tokens": %d, "total_tokens": 100, "tokens_per_second": 40.0, "seconds_left": 1, "phase": "train"}'
        for tokens in range(0, 100, 20):
            (run_dir / 'status.tmp').write_text(text % tokens)
            os.replace(run_dir / 'status.tmp', run_dir / 'status.json')
            time.sleep(0.35)
    """)
    stream = io.StringIO()
    run(cells[:2], trains(body), stream=stream, parallel=1, line_seconds=0.0, total_tokens=lambda _: 100)
    lines = stream.getvalue().splitlines()
    assert any(cells[0].name in line and "of 200 tokens" in line and "0/2 cells" in line for line in lines)
    assert any("1/2 cells" in line and "s left" in line and f"running: {cells[1].name}" in line for line in lines)
    assert json.loads((cells[0].run_dir / "status.json").read_text())["tokens"] == 80


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        return 1


def test_on_a_terminal_there_is_one_bar(cells, trains, monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((120, 24)))
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    run(cells[:2], trains("time.sleep(1.2)"), stream=stream, parallel=2, total_tokens=lambda _: 500)
    assert (
        "0/2 cells" in stream.getvalue()
        and f"{cells[0].name}, {cells[1].name}" in stream.getvalue()
        and "1.00k" in stream.getvalue()
    )


def test_the_last_line_is_found_behind_bars_colours_and_much_text(tmp_path):
    log = tmp_path / "log.txt"
    log.write_bytes(b"x" * 200_000 + b"\n 10%|#\r 20%|##\r\x1b[31mKeyError: 'a'\x1b[0m\n\n  \n")
    assert last_line(log) == "KeyError: 'a'"
    assert last_line(tmp_path / "none") == ""


def grown(cells):
    """A trunk, two branches, and a cell that stands alone."""
    trunk = replace(cells[0], name="trunk-ab", run_dir=cells[0].run_dir.parent / "trunks" / "ab", until="pretrain@0.6")
    return [trunk, *(replace(cell, after="trunk-ab") for cell in cells[:2]), cells[2]]


ENDS = "(run_dir / 'trunk.json').write_text('{}')"


def of_tree(trains, trunk, body="note('x')"):
    return trains(lambda cell: trunk if cell.until else body)


def test_branches_begin_when_their_trunk_has_ended_and_others_need_not_wait(cells, trains):
    tree = grown(cells)
    command = of_tree(trains, f"time.sleep(0.5); {ENDS}", "note(str((run_dir.parent / 'trunks/ab/trunk.json').exists()))")
    assert states(run(tree, command, parallel=3)) == ["finished"] * 4
    assert [(cell.run_dir / "notes.txt").read_text() for cell in tree[1:]] == ["True\n", "True\n", "False\n"]
    assert states(run(tree, command)) == ["skipped"] * 4


def test_a_trunk_that_fails_fails_its_branches_with_one_reason(cells, trains):
    tree = grown(cells)
    result = run(tree, of_tree(trains, "raise ValueError('loss is nan')"), parallel=2)
    assert states(result) == ["failed", "failed", "failed", "finished"] and result.exit_code == 1
    reasons = {outcome.reason.split(" (")[0] for outcome in result.outcomes[1:3]}
    assert reasons == {"its trunk trunk-ab failed: ValueError: loss is nan"}
    assert not (tree[1].run_dir / "notes.txt").exists()


def test_a_trunk_that_is_killed_is_started_again_while_its_branches_wait(cells, trains):
    tree = grown(cells)
    been = "been = run_dir / 'been'\nif not been.exists():\n    been.touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    assert states(run(tree, of_tree(trains, been + ENDS), parallel=2)) == ["finished"] * 4


def test_a_stopped_trunk_leaves_its_branches_for_the_next_call(cells, trains):
    tree = grown(cells)
    stopping = f"if not (run_dir / 'been').exists():\n    (run_dir / 'been').touch()\n    sys.exit(75)\n{ENDS}"
    command = of_tree(trains, stopping)
    first = run(tree, command, parallel=2)
    assert states(first) == ["stopped", "not started", "not started", "finished"] and first.exit_code == 75
    assert states(run(tree, command)) == ["finished", "finished", "finished", "skipped"]


def test_a_record_of_another_sweep_is_not_written_over(cells, trains, tmp_path):
    folder = tmp_path / "published"
    run(cells[:1], trains())
    (path,) = publish(cells[:1], same_hash, folder)
    made = read_record(path)
    other = replace(made, run=replace(made.run, sweep="another", config_hash="of other settings"))
    write_record(path, other)
    with pytest.raises(UserError, match=r"is of the sweep another, of a run with other settings: give .* another folder"):
        publish(cells[:2], same_hash, folder)
    assert read_record(path).run.sweep == "another" and [*folder.iterdir()] == [path]
    write_record(path, replace(other, run=replace(other.run, sweep=made.run.sweep)))  # an earlier state of the same sweep
    assert publish(cells[:1], same_hash, folder) == [path]


def test_a_cell_that_nobody_trained_is_not_done(cells):
    result = Result.of(cells[:2], {cells[0].name: Outcome(cells[0], "finished")})
    assert states(result) == ["finished", "not started"] and result.exit_code == 75
