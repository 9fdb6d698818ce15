"""A run whose output nobody reads goes on, and the checkpoint of a step is there before anything is printed about it."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import pytest

from tests.training.conftest import quick_config
from tests.training.test_resume import at_step
from tunalab.cli import main
from tunalab.errors import EXIT_STOPPED, stop_signals_heeded
from tunalab.settings.loading import to_yaml
from tunalab.settings.schema import RunConfig
from tunalab.sweeps.cells import read_history
from tunalab.sweeps.launcher import stop_signals
from tunalab.training.callbacks import Reporting
from tunalab.training.checkpoints import CheckpointStore, read_saved
from tunalab.training.run import train


@contextmanager
def without_a_reader(kind: str) -> Iterator[TextIO]:
    """A pipe whose reader has ended (EPIPE), or a terminal that was closed (EIO)."""
    reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    try:
        yield stream
    finally:
        with suppress(OSError):  # what was still in it
            stream.close()


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for every step."""
    monkeypatch.setattr(Reporting, "status_seconds", 0.0)
    monkeypatch.setattr(Reporting, "line_seconds", 0.0)


def saved(folder: Path, config: RunConfig) -> Path:
    (folder / "saved.yaml").write_text(to_yaml(config))
    return folder / "saved.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_run_goes_on_when_nobody_reads_what_it_prints(
    kind: str, talkative: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with without_a_reader(kind) as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        with pytest.raises(OSError):
            print("the stream of this test is read by somebody", flush=True)
        config = saved(tmp_path, quick_config(checkpoint_seconds=0.0))
        assert main(["train", "--config", str(config), "--run-dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "record.json").is_file()


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_other_commands_end_without_a_word(kind: str) -> None:
    printing = "from tunalab.cli.common import nobody_need_read\nwith nobody_need_read():\n    print('a table', flush=True)"
    helping = "import sys; from tunalab.cli import main; sys.exit(main(['--help']))"
    for code in (printing, helping):
        with without_a_reader(kind) as stream:
            done = subprocess.run([sys.executable, "-c", code], stdout=stream, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_under_the_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can read what was not written: that is no reader who went away."""
    from tunalab.cli.common import nobody_need_read

    with suppress(OSError), open("/dev/full", "w") as stream, monkeypatch.context() as patch:  # closing it fails once more
        patch.setattr(sys, "stdout", stream)
        with pytest.raises(OSError, match="No space left"), nobody_need_read():
            print("a table", flush=True)


def test_output_that_the_caller_closed_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunalab.cli.common import nobody_need_read

    monkeypatch.setattr(sys, "stdout", None)
    with nobody_need_read():
        print("a line", flush=True)
        assert not sys.stdout.isatty()


@pytest.mark.slow
def test_a_step_is_saved_before_anything_is_printed_about_it(
    talkative: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []

    class Watching:
        def write(self, text: str) -> None:
            if "tokens" in text and "/s" in text or "evaluated in" in text:
                newest = CheckpointStore(tmp_path / "checkpoints").steps()[-1]
                assert int(text.split()[0].replace(",", "")) == read_saved(newest).progress["tokens"], text
                checked.append("evaluated" in text)

        def flush(self) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Watching())
        assert train(quick_config(checkpoint_seconds=0.0), tmp_path) == 0
    assert True in checked and False in checked


@pytest.fixture
def heeded() -> Iterator[None]:
    """As in a terminal, also where the tests were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_closes_saves_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heeded: None) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert train(quick_config(), tmp_path) == EXIT_STOPPED
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    newest = CheckpointStore(tmp_path / "checkpoints").newest_valid()
    assert newest is not None and newest.name == "step-000000004"


def test_a_sweep_hears_a_terminal_that_closes_unless_started_by_nohup(heeded: None) -> None:
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGHUP)
    assert received == [signal.SIGHUP]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in stop_signals_heeded()
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGHUP)
    assert received == []


def test_a_second_ctrl_c_interrupts_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning would make the exit code of a failed run of it."""
    before = signal.getsignal(signal.SIGINT)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        at_step(patch, 3, twice)
        patch.setattr("tunalab.training.preflight.open_data", lambda config: None)
        call = ["train", "--config", str(saved(tmp_path, quick_config())), "--run-dir", str(tmp_path / "run")]
        assert main(call) == 130
    assert signal.getsignal(signal.SIGINT) == before
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    (attempt,) = read_history(tmp_path / "run").attempts
    assert (attempt.how, attempt.reason) == ("stopped", "interrupted")


def test_ctrl_c_before_the_command_is_known(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tunalab.cli.import_module", interrupt)
    assert main(["plan"]) == 130 and capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("call", [["--help"], ["sweep", "figure6", "--status", "--once"], ["sweep", "nothing", "--status"]])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_a_full_disk_loses_is_one_line_and_the_exit_code(call: list[str], stream: str) -> None:
    with open("/dev/full", "w") as full:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            [sys.executable, "-m", "tunalab", *call],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full},  # type: ignore[call-overload]
            env=environment,
            text=True,
        )
    wrong = "nothing" in call
    assert done.returncode == (2 if wrong or stream == "stdout" else 0)
    if stream == "stdout":
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: no file sweeps/nothing.yaml" if wrong else "error: No space left on device")
