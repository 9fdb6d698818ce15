"""A connection to MLflow that is quiet, gives up quickly, and is made safely when several processes start at once."""

import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from ssl import SSLError
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlparse

from tunalab.errors import UserError
from tunalab.files import locked
from tunalab.redaction import MARK, is_incomplete, redacted, redacted_settings
from tunalab.settings.layers import leaves
from tunalab.settings.loading import text_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.exceptions import MlflowException


DEFAULT_URI = "sqlite:///mlflow.db"
ANSWER_SECONDS = 5
ACTIVE = "active"  # a stage in the life of runs and experiments; the other one is "deleted"

# MLflow's own patience with a server that is gone is many minutes.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten processes of a server that has no jobs
    "GIT_PYTHON_REFRESH": "quiet",
}
_warned: set[str] = set()
T = TypeVar("T")


def default_uri() -> str:
    """MLFLOW_TRACKING_URI, or a database in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def full_uri(setting: str) -> str:
    """Where to connect to: ``tracking.uri``, else :func:`default_uri`.

    A setting that was saved has lost its credentials: MLFLOW_TRACKING_URI has them, or the variables of MLflow's client.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if is_incomplete(setting) and redacted_settings(given) == setting:
        return given
    others = setting.replace(f"{MARK}@", "")
    return others if others != setting and not is_incomplete(others) and _has_credentials() else setting or default_uri()


def _has_credentials() -> bool:
    return any(os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "TOKEN", "AUTH"))


def connect(uri: str) -> "MlflowClient":
    """A client of the tracking server or database at ``uri``.

    Raises:
        OSError: an HTTP server does not answer within seconds.
        UserError: the URI was saved without its credentials, and there are none.
    """
    if is_incomplete(uri):
        raise UserError(
            f"{uri} was saved without its credentials: set MLFLOW_TRACKING_URI to all of it, or MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
    quiet()
    if urlparse(uri).scheme in ("http", "https"):
        _knock(uri)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def quiet() -> None:
    """Settings of the environment and log levels, before and after MLflow's first import (which sets its own)."""
    os.environ |= quiet_environment(os.environ)
    import mlflow  # noqa: F401

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # our one line says what failed, a stack trace per batch says no more


def quiet_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` with our settings of MLflow where it has none of its own."""
    return {**_SETTINGS, **environment}


def database_path(uri: str) -> Path | None:
    """The file behind a ``sqlite:///`` URI, absolute; None for every other kind, and for a database in memory."""
    if not uri.startswith("sqlite:"):
        return None
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    return Path(name).resolve() if name and name != ":memory:" else None


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """The id of an experiment, created if need be (call it under ``creation_lock``).

    One that was deleted keeps its name: another stands in for it, ``name (2)``, so that what somebody has thrown away stays away.
    """
    from mlflow.exceptions import MlflowException

    first, number = name, 1
    while (there := client.get_experiment_by_name(name)) is not None:
        if there.lifecycle_stage == ACTIVE:
            return str(there.experiment_id)
        number += 1
        name = f"{first} ({number})"
        restore = f"`mlflow experiments restore --experiment-id {there.experiment_id}` brings the deleted one back"
        warn_once(f"{uri} {name}", f"experiment {first!r} is deleted in MLflow: runs go to {name!r}; {restore}")
    database = database_path(uri)
    # Beside the database: MLflow's default is the working folder of whichever process came first.
    location = (database.parent / "mlruns" / re.sub(r"[^\w.-]", "_", name)).as_uri() if database else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:  # no lock reaches other machines: somebody there was first
        there = client.get_experiment_by_name(name)
        if there is None:
            raise
        return str(there.experiment_id)


def existing(client: "MlflowClient", run_id: str) -> "Run | None":
    """A run; None where the store has none of this id, or somebody has deleted it there."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise
    return run if run.info.lifecycle_stage == ACTIVE else None


def is_missing(error: "MlflowException") -> bool:
    """The store answered, and has nothing of this id."""
    return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")


def is_refused(error: "MlflowException") -> bool:
    """The store answered, and will not take it however often it is sent."""
    status = error.get_http_status_code()
    return 400 <= status < 500 and status not in (408, 429)


@contextmanager
def creation_lock(uri: str) -> Iterator[None]:
    """One process of this machine at a time: four that create one database together leave three of them crashed."""
    database = database_path(uri)
    if database is None:
        yield
        return
    with locked(Path(tempfile.gettempdir()) / f"tunalab-{os.getuid()}-{text_digest(str(database))}.lock"):
        yield


def survive(uri: str, action: Callable[[], T]) -> tuple[bool, T | None]:
    """Run ``action``; a failure becomes one warning line per process and (False, None).

    Every exception is meant: what a store throws reaches from sockets over SQL to the operating system, and no picture of a
    run is worth the run. Nothing is lost by it, the run directory holds every number.
    """
    try:
        return True, action()
    except Exception as error:  # noqa: BLE001
        warn_failed(uri, error)
        return False, None


def warn_failed(uri: str, error: Exception) -> None:
    where = without_password(uri)
    warn_once(uri, f"MLflow at {where} failed ({reason_of(error, uri)}); going on without it, run directories keep everything")


def warn_once(about: str, text: str) -> None:
    """A warning, one for each thing that it is about."""
    if about not in _warned:
        _warned.add(about)
        print(f"warning: {text}", file=sys.stderr, flush=True)


def without_password(uri: str) -> str:
    """For messages and links."""
    return str(redacted_settings(uri)).replace(f"{MARK}@", "")


def reason_of(error: BaseException, uri: str) -> str:
    """One line, short, and without what stands in ``uri`` for nobody else's eyes."""
    return f"{type(error).__name__}: {redacted(' '.join(str(error).split()), uri)[:200]}"


def _knock(uri: str) -> None:
    """As MLflow's client connects: with its certificates, passwords, tokens and proxies. An answer with an error is an answer: a
    proxy may not pass /health on.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        http_request(get_default_host_creds(uri), "/health", "GET", max_retries=0, timeout=ANSWER_SECONDS, raise_on_status=False)
    except MlflowException as error:
        first: BaseException = error
        while (before := first.__cause__ or first.__context__) is not None:
            first = before
        advice = "; MLFLOW_TRACKING_SERVER_CERT_PATH names a certificate to trust" if isinstance(first, SSLError) else ""
        raise OSError(f"{reason_of(first, uri)}{advice}") from error


PARAMETER_LIMIT = 500  # characters; MLflow's limit differs by store, and the whole configuration lies in the run directory


def parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """Settings by their dotted keys, as texts. A long value is cut and says so; a list is one value."""
    texts = ((key, str(value)) for key, value in leaves(config))
    return {
        legal_name(key): text if len(text) <= PARAMETER_LIMIT else f"{text[: PARAMETER_LIMIT - 20]}... ({len(text)} long)"
        for key, text in texts
    }


def legal_name(name: str) -> str:
    """A name that MLflow accepts: other characters become underscores, and a path may not leave its folder."""
    clean = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)
    return re.sub(r"/+", "/", clean.replace("..", "__")).strip("/")[:250] or "_"
