"""Processes that run a `tunalab` command without the seconds of imports: forked by one that has imported everything.

`python nursery.py SOCKET` forks a child for each request on the socket and leaves its exit code in a file beside it;
:class:`Nursed` asks for one and looks like the Popen that it stands for. What comes after the imports, and what a signal does to
it, is the same; a run of three seconds would otherwise be killed in its imports five times out of six. The nursery itself has one
thread and touches neither tensors nor databases, so that its children begin as a fresh process does.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

PLACE = "TUNALAB_NURSERY"  # variable that names the socket


class Nursed:
    """A `python -m tunalab ...` as a child of the nursery. Its standard error goes where its output goes."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdout: IO[Any],
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        **_: Any,
    ) -> None:
        self.args = argv
        self.returncode: int | None = None
        place = os.environ[PLACE]
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(place)
            request = json.dumps({"argv": list(argv[3:]), "env": dict(env or os.environ), "cwd": os.getcwd()}).encode()
            socket.send_fds(line, [len(request).to_bytes(8, "big")], [stdout.fileno(), *pass_fds])
            line.sendall(request)
            self.pid = int.from_bytes(line.recv(8), "big")
        self._exit = Path(f"{place}.exit-{self.pid}")

    def poll(self) -> int | None:
        if self.returncode is None and self._exit.exists():
            self.returncode = int(self._exit.read_text())
        return self.returncode

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def serve(place: str) -> None:
    """Until the socket's file is gone."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(place)
    server.listen(16)
    server.settimeout(0.05)
    children: set[int] = set()
    while Path(place).exists():
        for pid in list(children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                children.remove(pid)
                fresh = Path(f"{place}.{pid}.tmp")
                fresh.write_text(str(os.waitstatus_to_exitcode(status)))
                fresh.rename(f"{place}.exit-{pid}")
        try:
            line, _ = server.accept()
        except TimeoutError:
            continue
        line.settimeout(None)
        head, handles, _, _ = socket.recv_fds(line, 8, 4)
        size, text = int.from_bytes(head, "big"), b""
        while len(text) < size:
            more = line.recv(size - len(text))
            if not more:
                break
            text += more
        if len(text) == size:  # else who asked has been killed meanwhile
            pid = os.fork()
            if pid == 0:
                _be(json.loads(text), handles)
            children.add(pid)
            with suppress(BrokenPipeError):
                line.sendall(pid.to_bytes(8, "big"))
        line.close()
        for handle in handles:
            os.close(handle)


def _be(request: dict[str, Any], handles: list[int]) -> None:
    """In the child: the command, with the output and the lock it was given and no other open file."""
    code = 1
    try:
        os.setsid()
        os.dup2(handles[0], 1)
        os.dup2(handles[0], 2)
        for number in range(3, 256):
            if number not in handles[1:]:
                with suppress(OSError):
                    os.close(number)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        from tunalab.cli import main

        if request["argv"][0] == "sweep":
            import tunalab.sweeps.local

            tunalab.sweeps.local.subprocess = _Subprocess  # type: ignore[assignment]
        code = main(request["argv"])
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)


class _Subprocess:
    """What local.py uses of the module."""

    Popen = Nursed
    DEVNULL, STDOUT = subprocess.DEVNULL, subprocess.STDOUT


def start(place: Path, folder: Path) -> "subprocess.Popen[bytes]":
    """A nursery in a process of its own; returns once it can be asked."""
    # Before what is given: the sources may be another checkout's than those that are installed.
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen([sys.executable, __file__, str(place)], cwd=folder, env=os.environ | variables)
    while not place.exists():
        assert process.poll() is None, "the nursery does not start"
        time.sleep(0.1)
    os.environ[PLACE] = str(place)
    return process


def prepare() -> None:
    """Import what a sweep and its runs use, with components that are made in seconds."""
    for module in (
        "cli.sweeping",
        "cli.runs",
        "tracking.tracker",
        "analysis.figures",
        "training.run",
    ):
        import_module(f"tunalab.{module}")
    import_module("mlflow.store.tracking.sqlalchemy_store")


if __name__ == "__main__":
    prepare()
    serve(sys.argv[1])
