"""The SLURM launcher before a scheduler of a few lines of shell: what it submits, finds, gives up. The real one: tests/slurm."""

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tunalab.errors import UserError
from tunalab.records.record import write_record
from tunalab.sweeps.cells import begin, end, read_history, take_lock
from tunalab.sweeps.grid import Cell
from tunalab.sweeps.launcher import Result, SlurmLaunch, Work
from tunalab.sweeps.slurm import Key, SlurmLauncher, SlurmQueue, sbatch_parameters
from tunalab.sweeps.slurm_job import CellFailed, CellJob

# sbatch keeps the script, squeue says what the file `queue` says, with NAME for the name of the first script.
COMMANDS = {
    "sbatch": """
        cat "$1" >> HERE/script
        if test -e HERE/refuses; then echo "sbatch: error: invalid partition: moon" >&2; exit 1; fi
        if test -e HERE/begins; then cat HERE/begins >> "$(cat HERE/where)"; fi
        echo Submitted batch job 7""",
    "squeue": """
        if test -e HERE/away; then echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; fi
        test -e HERE/queue || exit 0
        name=$(sed -n "s/#SBATCH --job-name=//p" HERE/script | head -n 1)
        sed "s/NAME/$name/" HERE/queue""",
    "srun": "",
    "scontrol": 'echo "$@" >> HERE/told',
}


class Fake:
    """A folder with SLURM's commands in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "script").touch()
        (folder / "told").touch()
        for name, body in COMMANDS.items():
            (folder / name).write_text("#!/bin/bash\n" + body.replace("HERE", str(folder)) + "\n")
            (folder / name).chmod(0o755)

    def queue(self, *lines: str) -> None:
        """Lines of squeue: array|task|state|name|reason, or of its question about one job: state restarts."""
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    @property
    def script(self) -> str:
        return (self.folder / "script").read_text()

    @property
    def told(self) -> str:
        return (self.folder / "told").read_text()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return Fake(folder)


def run(cells: list[Cell], retries: int = 3, **settings: object) -> tuple[Result, str]:
    work = Work(cells, lambda cell: ["train", cell.name], {cell.name: "hash" for cell in cells}, retries=retries)
    stream = io.StringIO()
    launch = SlurmLaunch(**{"watch": False, "poll_seconds": 0.1, **settings})  # type: ignore[arg-type]
    return SlurmLauncher(launch, stream=stream).run(work), stream.getvalue()


def states(result: Result) -> list[str]:
    return [outcome.state for outcome in result.outcomes]


def test_what_is_asked_of_sbatch(tmp_path: Path, fake: Fake, cells: list[Cell]) -> None:
    launch = {"nodes": 2, "tasks_per_node": 8, "gpus_per_node": 8, "cpus_per_task": 12, "memory_gb": 500, "minutes": 90}
    launch |= {
        "partition": "gpu",
        "account": "lab",
        "constraint": "h100",
        "qos": "high",
        "array_parallelism": 3,
        "signal_seconds": 300,
    }
    fake.queue(*(f"7|{task}|PENDING|NAME|Priority" for task in range(4)))
    result, text = run(cells, setup=["module load cuda"], sbatch={"exclusive": True, "mail-type": "END"}, **launch)
    assert states(result) == ["queued"] * 4 and result.exit_code == 75 and "submitted 4 cell(s) as job 7" in text
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in fake.script.splitlines() if "#SBATCH" in line)
    expected = {"nodes": "2", "ntasks-per-node": "8", "gpus-per-node": "8", "cpus-per-task": "12", "mem": "500GB", "time": "90"}
    expected |= {"partition": "gpu", "account": "lab", "constraint": "h100", "qos": "high", "array": "0-3%3", "signal": "TERM@300"}
    expected |= {"exclusive": "", "mail-type": "END", "requeue": "", "open-mode": "append", "export": "ALL"}
    assert expected.items() <= options.items() and "wckey" not in options
    lines = fake.script.splitlines()
    assert lines.index("trap : TERM") < lines.index("module load cuda")
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert "--cpus-per-task=12" in srun and "--kill-on-bad-exit=1" in srun and "--wait=60" in srun


def test_what_is_left_to_the_cluster_is_not_named() -> None:
    assert not {"partition", "account", "constraint", "qos", "gpus_per_node", "mem"} & sbatch_parameters(SlurmLaunch(), "x").keys()


def test_only_what_is_missing_is_submitted(fake: Fake, cells: list[Cell], record_of: Callable[..., object]) -> None:
    fake.queue(*(f"7|{task}|PENDING|NAME|Priority" for task in range(4)))
    run(cells)
    write_record(cells[0].run_dir / "record.json", record_of(cells[0]))  # type: ignore[arg-type]
    # The first is over, the second waits, the third is back in the queue after a preemption, the fourth was killed by its limit.
    fake.queue("7|0|COMPLETED|NAME|None", "7|1|PENDING|NAME|Resources", "7|2|REQUEUED|NAME|None", "7|3|TIMEOUT|NAME|TimeLimit")
    before = fake.script
    result, text = run(cells)
    assert "submitted 1 cell(s)" in text and cells[3].name in text and "array" not in fake.script.removeprefix(before)
    assert states(result)[:3] == ["skipped", "queued", "queued"]
    assert "job 7_1 pending" in result.outcomes[1].reason


def test_jobs_of_other_settings_and_of_other_sweeps_are_not_its_own(fake: Fake, cells: list[Cell], tmp_path: Path) -> None:
    queue = SlurmQueue(tmp_path / "slurm", "mask_ratio", SlurmLaunch())
    queue.folder.mkdir()
    (queue.folder / "mask_ratio-1.json").write_text(json.dumps([{"directory": "a", "config_hash": "new"}]))
    (queue.folder / "other-2.json").write_text(json.dumps([{"directory": "b", "config_hash": "new"}]))
    names = ["mask_ratio-1", "other-2", "mask_ratio-3", "shell"]
    fake.queue(*(f"{number}|N/A|RUNNING|{name}|None" for number, name in enumerate(names)))
    assert set(queue.jobs()) == {Key("a", "new")}
    # Of several jobs of a cell the one that is alive counts, wherever it stands.
    fake.queue("5|0|PENDING|mask_ratio-1|Priority", "4|0|CANCELLED|mask_ratio-1|None")
    assert queue.jobs()[Key("a", "new")].name == "5_0"


def test_a_cell_that_another_process_trains_is_waited_for(fake: Fake, cells: list[Cell]) -> None:
    with take_lock(cells[0].run_dir):  # type: ignore[union-attr]
        result, text = run(cells[:1])
    assert states(result) == ["not started"] and not fake.script and "waiting for it" in text


def test_a_cell_given_up_is_not_submitted(fake: Fake, cells: list[Cell]) -> None:
    cells[0].run_dir.mkdir(parents=True)
    for _ in range(2):
        begin(cells[0].run_dir, "slurm", "7_0")
        end(cells[0].run_dir, "failed", "loss is nan")
    result, _ = run(cells[:1])
    assert states(result) == ["failed"] and "loss is nan" in result.outcomes[0].reason and not fake.script


def test_a_job_that_never_reaches_its_cell_is_submitted_once(fake: Fake, cells: list[Cell]) -> None:
    fake.queue("7|N/A|FAILED|NAME|NonZeroExitCode")
    folder = cells[0].run_dir.parent / "slurm"
    folder.mkdir(parents=True)
    (folder / "7_0_log.out").write_text("python: No such file or directory\n")
    result, _ = run(cells[:1], watch=True)
    assert states(result) == ["failed"] and result.outcomes[0].log == folder / "7_0_log.out"
    assert result.outcomes[0].reason == "its job ended before the cell began: python: No such file or directory"
    assert fake.script.count("#!/bin/bash") == 1


def test_what_leaves_the_queue_again_and_again_is_given_up(fake: Fake, cells: list[Cell]) -> None:
    fake.queue("7|N/A|PREEMPTED|NAME|None")
    cells[0].run_dir.mkdir(parents=True)
    begin(cells[0].run_dir, "slurm", "7")
    end(cells[0].run_dir, "preempted")
    history = cells[0].run_dir / "attempts.jsonl"
    (fake.folder / "begins").write_text(history.read_text())  # each job has its attempt, which was preempted
    (fake.folder / "where").write_text(str(history))
    result, _ = run(cells[:1], retries=2, watch=True)
    assert states(result) == ["failed"] and "left the queue 3 times" in result.outcomes[0].reason
    assert fake.script.count("#!/bin/bash") == 3


def test_mistakes_are_told_in_a_line(fake: Fake, cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    (fake.folder / "refuses").touch()
    with pytest.raises(UserError, match="invalid partition: moon"):
        run(cells)
    (fake.folder / "away").touch()
    with pytest.raises(UserError, match="SLURM does not answer: slurm_load_jobs error"):
        run(cells)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="no sbatch, squeue, srun on this machine"):
        run(cells)


JOB = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_PROCID": "0", "SLURM_RESTART_COUNT": "1"}


def train(cell: Cell, body: str, monkeypatch: pytest.MonkeyPatch, requeues: int = 5, **variables: str) -> str:
    """What the job of a cell says, whose process runs ``body``."""
    for name, value in (JOB | variables).items():
        monkeypatch.setenv(name, value)
    return CellJob(cell, [sys.executable, "-S", "-c", body], "hash", None, 1, 3, requeues)()


@pytest.mark.parametrize(
    ("queue", "how", "told"),
    [
        ("RUNNING 1", "preempted", "requeue 7_2\n"),  # ahead of its time limit: nobody else requeues it
        ("COMPLETING 2", "preempted", ""),  # SLURM has
        ("COMPLETING 1", "stopped", ""),  # cancelled: it would come back, if asked to
        ("RUNNING 2", "preempted", ""),  # it is lost, and runs elsewhere by now
    ],
)
def test_a_cell_that_saved_goes_on_unless_cancelled(
    fake: Fake, cells: list[Cell], monkeypatch: pytest.MonkeyPatch, queue: str, how: str, told: str
) -> None:
    fake.queue(queue)
    train(cells[0], "raise SystemExit(75)", monkeypatch)
    (attempt,) = read_history(cells[0].run_dir).attempts
    assert (attempt.how, attempt.job, attempt.launcher, fake.told) == (how, "7_2+1", "slurm", told)


def test_retries_and_requeues_are_bounded(fake: Fake, cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    fake.queue("RUNNING 1")
    for _ in range(2):
        with pytest.raises(CellFailed, match="failed: no such data"):
            train(cells[0], "print('no such data'); raise SystemExit(1)", monkeypatch)
    assert fake.told == "requeue 7_2\n"  # after the first time, not after the second
    with pytest.raises(CellFailed, match="no such data .2 times"):  # a third job would not even begin
        train(cells[0], "", monkeypatch)
    with pytest.raises(CellFailed, match="not requeued: 1 times are all"):
        train(cells[1], "raise SystemExit(75)", monkeypatch, requeues=1)
    assert fake.told == "requeue 7_2\n"


def test_a_finished_cell_is_not_trained_again(
    fake: Fake, cells: list[Cell], record_of: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(cells[0].run_dir / "record.json", record_of(cells[0]))  # type: ignore[arg-type]
    assert "skipped" in train(cells[0], "raise SystemExit(1)", monkeypatch)
    assert not read_history(cells[0].run_dir).attempts


def test_a_job_waits_for_the_lock_and_the_process_of_its_cell_holds_it(
    fake: Fake, cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.queue("RUNNING 1")
    held = take_lock(cells[0].run_dir)
    assert held is not None
    alarm = signal.signal(signal.SIGALRM, lambda *_: held.close())
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    other = "subprocess.run(['flock', '--nonblock', sys.argv[1], 'true']).returncode"
    body = f"import subprocess, sys; sys.argv.append({str(cells[0].run_dir / 'lock')!r}); raise SystemExit(75 if {other} else 3)"
    train(cells[0], body, monkeypatch)
    signal.signal(signal.SIGALRM, alarm)
    assert read_history(cells[0].run_dir).attempts[0].how == "preempted"


def test_a_command_that_does_not_start_is_said(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FileNotFoundError):
        CellJob(cells[0], ["/nowhere/python"], "hash", None, 1, 3, 5)()
    (attempt,) = read_history(cells[0].run_dir).attempts
    assert attempt.how == "failed" and "does not start" in attempt.reason and "/nowhere/python" in attempt.reason


def test_other_tasks_begin_with_the_first(fake: Fake, cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    cells[0].run_dir.mkdir(parents=True)
    begin(cells[0].run_dir, "slurm", "7_2+1")
    assert train(cells[0], "print('rank 1')", monkeypatch, SLURM_PROCID="1") == "ended"
    assert "rank 1" in (cells[0].run_dir / "log-rank1.txt").read_text()
    with pytest.raises(CellFailed, match="exit code 3"):
        train(cells[0], "raise SystemExit(3)", monkeypatch, SLURM_PROCID="1")
