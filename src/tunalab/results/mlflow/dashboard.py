"""The MLflow UI on the runs of this folder, opened on a comparison that is set up."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import urlopen

from tunalab.errors import UserError, stop_signals_heeded
from tunalab.results.mlflow.client import database_path, quiet_environment, survive
from tunalab.results.mlflow.sync import check_answer
from tunalab.results.mlflow.views import set_up_views

START_SECONDS = 300  # a few on an idle machine


def serve(uri: str, port: int = 5000) -> int:
    """Serve the UI until Ctrl-C and return the exit code; once it answers, print the URLs of the comparisons, the newest first.

    A server that runs elsewhere gets the comparisons too, and is pointed at.

    Raises:
        UserError: there is no database yet, or no store, the port is none or taken, or the server did not come up.
    """
    if urlparse(uri).scheme in ("http", "https"):
        print(f"the runs are on the tracking server: {uri}")
        return 0 if _print_views(uri, uri.rstrip("/")) else 1
    database = database_path(uri)
    if database is not None and not database.exists():
        raise UserError(f"no MLflow database at {database}: train a run or a sweep first, or set MLFLOW_TRACKING_URI")
    if database is None:
        check_answer(uri)  # the server would answer a mistyped address with two stack traces
    _check_port(port)
    address = f"http://127.0.0.1:{port}"
    # Before there is a server: a signal at any moment ends it as well.
    before = {number: signal.signal(number, signal.default_int_handler) for number in stop_signals_heeded()}
    # A session of its own: the server is several processes, and ends as a whole.
    server = subprocess.Popen(server_command(uri, port), env=quiet_environment(os.environ), start_new_session=True)
    try:
        _wait_until_it_answers(server, address)
        _print_views(uri, address)
        print(f"all of MLflow: {address}  (Ctrl-C stops it)", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _print_views(uri: str, address: str) -> bool:
    """Whether the store answered."""
    fine, views = survive(uri, lambda: set_up_views(uri))
    for view in views or ():
        print(f"{view.name}: {address}/{view.url}", flush=True)
    return fine


def _check_port(port: int) -> None:
    """Raises UserError. Whoever has the port would answer in the server's place, and be taken for it."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port} is out of range (1 to 65535)")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: one that has just ended is in nobody's way
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"--port {port} cannot be had: {error.strerror}; choose another") from error


def server_command(uri: str, port: int) -> list[str]:
    """The command line of the server: this Python's MLflow, on this machine only, one worker."""
    database = database_path(uri)
    store = f"sqlite:///{database}" if database is not None else uri
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--host", "127.0.0.1"]
    return [*command, "--port", str(port), "--workers", "1"]


def _wait_until_it_answers(server: "subprocess.Popen[bytes]", address: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise UserError(f"the MLflow server ended with exit code {server.returncode}; what it said stands above")
        try:
            urlopen(f"{address}/health", timeout=2).close()
            return
        except HTTPError:
            return  # it answers, even if not kindly
        except (URLError, OSError):
            time.sleep(0.3)
    raise UserError(f"the MLflow server did not answer at {address} within {START_SECONDS} s")
