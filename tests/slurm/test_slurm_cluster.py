"""Sweeps on a real SLURM that is cruel to them: `make test-slurm`. Every cell finishes, every step is trained exactly once."""

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tests.slurm.cluster import Counting, job_of, tell, wait_for

from tunalab.sweeps.cells import read_history

pytestmark = pytest.mark.slurm
Sweep = Callable[..., Counting]


def ends(driver: "subprocess.Popen[str]", code: int = 0, seconds: float = 200) -> str:
    out, err = driver.communicate(timeout=seconds)
    assert driver.returncode == code, f"{driver.returncode}: {out}\n{err}"
    return out + err


def hows(sweep: Counting, name: str) -> list[str | None]:
    return [attempt.how for attempt in read_history(sweep.dir(name)).attempts]


def test_cells_are_requeued_preempted_told_to_stop_and_killed(counting: Sweep) -> None:
    sweep = counting("rough", ["requeued", "told", "killed", "preempted"], steps=120)
    driver = sweep.drive()
    for name in sweep.names:
        sweep.wait_for_step(name, 12)
    jobs = {name: job_of(sweep.dir(name)) for name in sweep.names}
    assert len({job.split("_")[0] for job in jobs.values()}) == 1  # one array
    tell("scontrol", "requeue", jobs["requeued"])  # SIGTERM, and back into the queue
    tell("scancel", "--signal=TERM", jobs["told"])  # as ahead of a time limit: the job itself goes back
    pid = int(sweep.trained("killed")[-1][0].split("/")[-1])
    os.kill(pid, signal.SIGKILL)  # as when memory runs out
    sweep.wait_for_step("preempted", 15)
    # All of both nodes for a moment, for someone more important: preempts what runs.
    tell("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 0.1")
    text = ends(driver)
    assert "4 finished" in text
    for name in sweep.names:
        assert len(sweep.check_trained_once(name)) >= 2, name
        assert hows(sweep, name)[-1] == "finished"
    assert hows(sweep, "requeued")[0] == hows(sweep, "told")[0] == hows(sweep, "preempted")[0] == "preempted"
    assert "killed" in hows(sweep, "killed")
    # What was saved was not trained again: nothing is lost by a requeue.
    assert len(sweep.trained("preempted")) == sweep.steps
    assert "4 skipped" in ends(sweep.drive())


def test_a_lost_node_daemon_and_a_lost_node(counting: Sweep, slurm: Path) -> None:
    """Without its daemon a node's cells go on unseen, while SLURM starts them elsewhere; of a crashed node nothing goes on."""
    sweep = counting("lost", ["a", "b", "c", "d"], steps=300)
    driver = sweep.drive()
    for name in sweep.names:
        sweep.wait_for_step(name, 15)
    nodes: dict[str, list[str]] = {}
    for name in sweep.names:
        job = job_of(sweep.dir(name))
        nodes.setdefault(tell("squeue", "--noheader", f"--jobs={job}", "--format=%N"), []).append(name)
    (lost, (unseen, crashed)), _ = sorted(nodes.items())
    os.kill(int((slurm / f"slurmd.{lost}.pid").read_text()), signal.SIGKILL)
    crash(job_of(sweep.dir(crashed)))
    wait_for(lambda: "+1" in read_history(sweep.dir(crashed)).attempts[-1].job)  # started on the other node
    text = ends(driver)
    tell("slurmd", "-N", lost)
    assert "4 finished" in text
    for name in sweep.names:
        starts = sweep.check_trained_once(name)
        assert len(starts) == (2 if name == crashed else 1)
    assert hows(sweep, crashed) == ["killed", "finished"]
    assert hows(sweep, unseen) == ["finished"]
    wait_for(lambda: tell("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D") == "2")


def crash(job: str) -> None:
    """Kill every process of a job, SLURM's own first, which would report the death of the others."""
    raw = tell("squeue", "--noheader", f"--jobs={job}", "--format=%A")
    array, _, task = job.partition("_")
    own = {f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={task}".encode()}
    stewards, others = [], []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name, variables = (process / "cmdline").read_bytes(), (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if name.startswith(f"slurmstepd: [{raw}.".encode()):
            stewards.append(int(process.name))
        elif own <= set(variables):
            others.append(int(process.name))
    assert stewards and others
    for pid in stewards + others:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_drivers_come_and_go(counting: Sweep) -> None:
    sweep = counting("drivers", ["a", "b", "c"], steps=80)
    first = [sweep.drive(), sweep.drive()]  # at once: one finds the jobs of the other
    sweep.wait_for_step("a", 5)
    first[0].send_signal(signal.SIGINT)
    text = ends(first[0], code=75)
    assert "3 queued" in text and "the jobs go on without this driver" in text
    first[1].kill()
    printed = text + "".join(first[1].communicate())
    assert printed.count("submitted 3 cell(s)") == 1
    text = ends(sweep.drive())
    assert "3 finished" in text and "submitted" not in text
    for name in sweep.names:
        assert len(sweep.check_trained_once(name)) == 1


def test_branches_are_submitted_with_their_trunk_and_begin_when_it_has_ended(counting: Sweep) -> None:
    sweep = counting("tree", ["trunk", "a", "b"], steps=30, launch={"watch": False})
    assert "3 queued" in ends(sweep.drive(), code=75, seconds=30)  # nobody watches: SLURM itself holds the branches back
    wait_for(lambda: all((sweep.dir(name) / "record.json").exists() for name in "ab"))
    ended = read_history(sweep.dir("trunk")).attempts[-1].ended
    for name in "ab":
        began = read_history(sweep.dir(name)).attempts[0].began
        assert began is not None and ended is not None and began >= ended
        assert len(sweep.check_trained_once(name)) == 1
    sweep.launch = {}
    text = ends(sweep.drive())  # skipped, or "finished" of a job that has left its record and not yet the queue
    assert "submitted" not in text and "failed" not in text
    for name in sweep.names:
        assert len(sweep.check_trained_once(name)) == 1


def test_a_trunk_that_fails_fails_its_branches_with_its_reason(counting: Sweep) -> None:
    sweep = counting("felled", ["trunk", "a", "b"], steps=10)
    (sweep.dir("trunk") / "trained.txt").mkdir(parents=True)  # counting.py fails on it
    text = ends(sweep.drive(), code=1)
    assert "3 failed" in text and text.count("its trunk trunk failed") >= 2 and "IsADirectoryError" in text
    assert not read_history(sweep.dir("a")).attempts


def test_a_cancelled_cell_stops_and_a_driver_that_does_not_watch_returns_at_once(counting: Sweep) -> None:
    sweep = counting("stopped", ["a", "b"], steps=60)
    driver = sweep.drive()
    for name in sweep.names:
        sweep.wait_for_step(name, 12)
    tell("scancel", job_of(sweep.dir("a")))
    assert "1 finished, 1 stopped" in ends(driver, code=75)
    assert hows(sweep, "a") == ["stopped"]
    sweep.launch = {"watch": False}
    assert "1 queued" in ends(sweep.drive(), code=75, seconds=20)
    wait_for(lambda: (sweep.dir("a") / "record.json").exists())
    sweep.check_trained_once("a")
    assert len(sweep.trained("a")) == sweep.steps


def test_a_time_limit_is_no_end(counting: Sweep) -> None:
    """Too short for the cell. SLURM signals up to a minute ahead of what is asked for, and no job is shorter than a minute.

    It looks for jobs to signal every half minute, so that a cell of 20 seconds may end before it does.
    """
    sweep = counting("limit", ["long"], steps=50, seconds=1.0, launch={"minutes": 1, "signal_seconds": 45})
    assert "1 finished" in ends(sweep.drive(), seconds=180)
    assert len(sweep.check_trained_once("long")) >= 2
    assert set(hows(sweep, "long")[:-1]) == {"preempted"} and len(sweep.trained("long")) == sweep.steps


def test_errors_end_a_cell_after_bounded_retries(counting: Sweep, tmp_path: Path) -> None:
    sweep = counting("broken", ["bad", "good"], steps=10)
    (sweep.dir("bad") / "trained.txt").mkdir(parents=True)  # counting.py fails on it
    text = ends(sweep.drive(), code=1)
    assert "1 finished, 1 failed" in text and "IsADirectoryError" in text
    assert hows(sweep, "bad") == ["failed", "failed"]
    assert "1 skipped, 1 failed" in ends(sweep.drive(), code=1)
