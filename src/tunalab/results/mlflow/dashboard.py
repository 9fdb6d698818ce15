"""The MLflow UI on the runs of this folder, opened on a comparison that is set up."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlparse

from tunalab.errors import UserError, stop_signals_heeded
from tunalab.results.mlflow.client import database_path, quiet_environment, survive, without_password
from tunalab.results.mlflow.sync import check_answer
from tunalab.results.mlflow.views import set_up_views

LOOPBACK = "127.0.0.1"
STORE = "MLFLOW_BACKEND_STORE_URI"  # of MLflow's server
START_SECONDS = 300  # a few on an idle machine


def serve(uri: str, port: int = 5000, host: str = LOOPBACK) -> int:
    """Serve the UI until Ctrl-C and return the exit code; once it answers, print the URLs of the comparisons, the newest first.

    ``host``: the address to listen at. MLflow asks nobody for a password: any other than the loopback shows, and lets change, all
    runs to whoever reaches it.

    A server that runs elsewhere gets the comparisons too, and is pointed at.

    Raises:
        UserError: there is no database yet, or no store, the port is none or taken, or the server did not come up.
    """
    if urlparse(uri).scheme in ("http", "https"):
        shown = without_password(uri)
        print(f"the runs are on the tracking server: {shown}")
        return 0 if _print_views(uri, shown.rstrip("/")) else 1
    database = database_path(uri)
    if database is not None and not database.exists():
        raise UserError(f"no MLflow database at {database}: train a run or a sweep first, or set MLFLOW_TRACKING_URI")
    if database is None:
        check_answer(uri)  # the server would answer a mistyped address with two stack traces
    _check_port(port, host)
    near = LOOPBACK if host == "0.0.0.0" else host  # that one means all addresses, and is none
    address = f"http://{near}:{port}"
    # Before there is a server: a signal at any moment ends it as well.
    before = {number: signal.signal(number, signal.default_int_handler) for number in stop_signals_heeded()}
    # A session of its own: the server is several processes, and ends as a whole.
    environment = quiet_environment(os.environ) | {STORE: _absolute(uri)}
    server = subprocess.Popen(server_command(port, host), env=environment, start_new_session=True)
    try:
        _wait_until_it_answers(server, near, port)
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


def _check_port(port: int, host: str) -> None:
    """Raises UserError. Whoever has the port would answer in the server's place, and be taken for it."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port} is out of range (1 to 65535)")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: one that has just ended is in nobody's way
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise UserError(f"--host {host} is no address of this machine: {error.strerror}") from error
        except OSError as error:
            where = "" if host == LOOPBACK else f" at --host {host}"
            raise UserError(f"--port {port}{where} cannot be had: {error.strerror}; choose another") from error


def server_command(port: int, host: str = LOOPBACK) -> list[str]:
    """The command line of the server: this Python's MLflow, one worker. Its store, which may hold a password, is told by the
    environment: everybody sees a command line.
    """
    return [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port), "--workers", "1"]


def _absolute(uri: str) -> str:
    database = database_path(uri)
    return f"sqlite:///{database}" if database is not None else uri


def _wait_until_it_answers(server: "subprocess.Popen[bytes]", host: str, port: int) -> None:
    """Asked of the machine itself, whatever proxy is set for other addresses. Raises UserError."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise UserError(f"the MLflow server ended with exit code {server.returncode}; what it said stands above")
        connection = HTTPConnection(host, port, timeout=2)
        try:
            connection.request("GET", "/health")
            connection.getresponse()  # it answers, even if not kindly
            return
        except (HTTPException, OSError):
            time.sleep(0.3)
        finally:
            connection.close()
    raise UserError(f"the MLflow server did not answer at {host}:{port} within {START_SECONDS} s")
