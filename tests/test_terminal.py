"""Progress on terminals of every kind, and where there is none: shown in some form, whole, in letters the stream can show."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from tunalab import terminal
from tunalab.cli import main
from tunalab.terminal import amount, duration, progress_bar, redraws, share, wrapped

WORK = """
import sys, time
from tunalab import terminal
terminal.LINE_SECONDS = 0.0
for _ in terminal.progress_bar(range(4), desc="a part with a long name, longer than many terminals are", mininterval=0.0):
    time.sleep(0.02)
"""


def on_a_terminal(columns: int, lines: int, *call: str, **environment: str) -> tuple[str, int]:
    """What a command writes to a terminal of this size, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, *call], stdin=theirs, stdout=theirs, stderr=theirs, env={**plain, "TERM": "xterm", **environment}
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    return written.decode(), process.wait(timeout=60)


@pytest.mark.parametrize(("columns", "lines", "term"), [(0, 0, "xterm"), (1, 1, "xterm"), (200, 50, "dumb"), (20, 50, "xterm")])
def test_a_terminal_that_cannot_show_a_bar_gets_whole_lines(columns: int, lines: int, term: str) -> None:
    text, code = on_a_terminal(columns, lines, "-c", WORK, TERM=term)
    whole = [line for line in text.splitlines() if "longer than many terminals are:" in line and re.search(r"\d/4 \[", line)]
    assert code == 0 and len(whole) >= 3 and "\x1b" not in text, text


def test_a_terminal_gets_a_bar() -> None:
    text, code = on_a_terminal(120, 40, "-c", WORK)
    assert code == 0 and text.count("\r") > 3 and text.count("\n") < 3


def test_a_pipe_gets_lines() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, timeout=60, check=True)
    assert len(done.stderr.splitlines()) >= 3 and "\r" not in done.stderr


def test_work_of_less_than_half_a_minute_writes_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(range(3), desc="short")) == [0, 1, 2]
    assert list(progress_bar(range(3), quiet=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_line_comes_each_half_minute(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with progress_bar(total=100, desc="steps", mininterval=0.0) as bar:
        bar.mininterval = 0.0
        for _ in range(100):
            now[0] += 1.0
            bar.update()
    assert [line.split("|")[0] for line in capsys.readouterr().err.splitlines()] == ["steps:  30%", "steps:  60%", "steps:  90%"]


@pytest.mark.parametrize("columns", [0, 1])
def test_help_and_mistakes_on_a_terminal_without_room(columns: int) -> None:
    text, code = on_a_terminal(columns, columns, "-m", "tunalab", "plan", "--help")
    assert code == 0 and "".join(text.split()).startswith("usage:tunalabplan")
    text, code = on_a_terminal(columns, columns, "-m", "tunalab", "plan", "nothing")
    assert code == 2 and "error: " in text and "\x1b" not in text


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C"},
        {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=str,
)
def test_letters_that_a_stream_cannot_show_are_no_error(environment: dict[str, str], tmp_path: Path) -> None:
    """And files stay UTF-8: an experiment with such letters is read, and its mistake shown."""
    (tmp_path / "mine.yaml").write_text("tracking: {experiment: \u4e2d\u6587}\nse\u00e9d\u4e2d: 3\n", encoding="utf-8")
    call = [sys.executable, "-m", "tunalab", "plan", str(tmp_path / "mine.yaml"), "tuna2"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8", "PYTHONIO"))}
    done = subprocess.run(call, capture_output=True, timeout=60, env={**plain, **environment}, cwd=Path(__file__).parent.parent)
    printed = done.stderr.decode("latin-1")
    assert done.returncode == 2 and printed.startswith("error: ") and "Traceback" not in printed
    assert "unknown key 'se" in printed and ("\\u4e2d" in printed or "\u4e2d" in done.stderr.decode(errors="replace"))


def test_names_that_are_no_text_are_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict", write_through=True)
    monkeypatch.setattr(sys, "stderr", narrow)
    assert main(["plan", "caf\u00e9\udcff"]) == 2
    assert b"caf\\xe9\\udcff" in narrow.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (amount, 0, "0"),
        (amount, 999_999, "999,999"),
        (amount, 4_500_000, "4.5M"),
        (lambda done: share(done, 1000), 999.9, "99%"),
        (lambda done: share(done, 1000), 1070, "100%"),
        (lambda done: share(done, 0), 5, ""),
    ],
)
def test_amounts(function: Callable[[float], str], value: float, text: str) -> None:
    assert function(value) == text


def test_lines_are_wrapped_not_cut() -> None:
    assert wrapped("abcde\n\nfg", 2) == ["ab", "cd", "e", "", "fg"] and "".join(wrapped("abc", 0)) == "abc"
    assert not redraws(io.StringIO())


def test_control_characters_of_a_name_neither_end_the_line_nor_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "a\nb\x1b[2J\x9bc", "caf\u00e9"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a\\nb\\x1b[2J\\x9bc" in line and "\x1b" not in line


def test_a_duration_is_in_the_unit_that_leaves_a_number_from_one_on() -> None:
    texts = {
        0.5: "0.5 s",
        59: "59 s",
        90: "1.5 min",
        3600: "1 h",
        5 * 3600 + 360: "5.1 h",
        86_400: "1 d",
        8_640_000.0 * 12: "1,200 d",
    }
    assert {seconds: duration(seconds) for seconds in texts} == texts
