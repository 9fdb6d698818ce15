import os
import signal
import socket
import sys
import time

import pytest

from tunalab.errors import UserError
from tunalab.tracking import dashboard
from tunalab.tracking.dashboard import View


@pytest.fixture(autouse=True)
def views(monkeypatch):
    monkeypatch.setattr(
        dashboard, "set_up_views", lambda uri: [View("figure6", "#/experiments/1"), View("ratios", "#/experiments/2")]
    )


def test_without_a_database_the_message_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="train a run or a sweep first"):
        dashboard.serve(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_remote_server_is_pointed_at(capsys):
    assert dashboard.serve("http://lab:5000/") == 0
    assert "figure6: http://lab:5000/#/experiments/1\n" in capsys.readouterr().out


def test_a_remote_server_that_does_not_answer_is_an_exit_code(monkeypatch, capsys):
    def gone(uri):
        raise ConnectionError("no route")

    monkeypatch.setattr(dashboard, "set_up_views", gone)
    assert dashboard.serve("http://lab:5001") == 1 and "no route" in capsys.readouterr().err


def test_a_server_that_ends_is_an_error_and_one_that_answers_is_announced(tmp_path, monkeypatch, capsys, port):
    (tmp_path / "mlflow.db").touch()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert dashboard.server_command(5001)[:4] == [sys.executable, "-m", "mlflow", "ui"]
    monkeypatch.setattr(dashboard, "server_command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(UserError, match="exit code 3"):
        dashboard.serve(uri, port)
    answers = "import http.server as h; s = h.HTTPServer(('127.0.0.1', {}), h.SimpleHTTPRequestHandler); s.handle_request()"
    monkeypatch.setattr(dashboard, "server_command", lambda port, _: [sys.executable, "-c", answers.format(port)])
    assert dashboard.serve(uri, port) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"{name}: http://127.0.0.1:{port}/#/experiments/{number}" for number, name in ((1, "figure6"), (2, "ratios"))
    ]
    assert f"http://127.0.0.1:{port}" in lines[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_servers_processes_end_with_the_dashboard(number, tmp_path, monkeypatch, port):
    """A worker of its server as well, whatever moment it is."""
    (tmp_path / "mlflow.db").touch()
    told = tmp_path / "pids"
    starts = f"""import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(told)!r} + ".new", "w").write(f"{{os.getpid()}} {{child.pid}}")
os.rename({str(told)!r} + ".new", {str(told)!r})
time.sleep(60)"""
    monkeypatch.setattr(dashboard, "server_command", lambda *_: [sys.executable, "-c", starts])

    def answers(*_):
        while not told.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(dashboard, "_wait_until_it_answers", answers)
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    assert dashboard.serve(f"sqlite:///{tmp_path}/mlflow.db", port) == 0
    assert before == [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    for pid in map(int, told.read_text().split()):
        end = time.monotonic() + 10
        while time.monotonic() < end and lives(pid):
            time.sleep(0.01)
        assert not lives(pid)


def lives(pid):
    """A zombie does not: whoever adopted it has not looked yet."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_port_that_is_taken_or_none_is_refused_before_a_server_starts(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").touch()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setattr(dashboard, "server_command", lambda *_: pytest.fail("a server was started"))
    with socket.socket() as other:  # it would answer, and be taken for ours
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} cannot be had"):
            dashboard.serve(uri, port)
    for port in (0, 99999):
        with pytest.raises(UserError, match="out of range"):
            dashboard.serve(uri, port)


def test_what_is_no_store_is_refused_before_a_server_starts(monkeypatch):
    monkeypatch.setattr(dashboard, "server_command", lambda *_: pytest.fail("a server was started"))
    with pytest.raises(UserError, match="foo://bar failed"):
        dashboard.serve("foo://bar")
