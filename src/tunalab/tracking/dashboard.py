"""MLflow's UI on the runs of this folder: a saved comparison of each sweep, ready to be opened.

MLflow 3.17 keeps a saved view as an experiment tag: JSON with a name and times, and in ``state``
what the page would keep of itself (charts, sections, filter, grouping), compressed.
"""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from tunalab.errors import UserError, stop_signals_heeded
from tunalab.records.labels import COMPONENTS_SEED, changes_results
from tunalab.tracking.client import connect, database_path, legal_name, quiet_environment, survive, without_password
from tunalab.tracking.sync import ACCURACY, check_answer

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


TAG = "mlflow.sharedViewState."  # and the key of the view, which its URL names
ACCURACIES, HARDER = "Accuracy against tokens (step), mean and range over seeds", "The same on harder levels"
HARD = re.compile(r"_\d+$")  # level of a benchmark (relations@3) as MLflow writes it
PAGE_RUNS = 1000  # a request
REPEAT = "repeat"  # tag of runs that are there more than once


@dataclass(frozen=True)
class View:
    """``url``: behind the server's address."""

    name: str
    url: str


def set_up_views(uri: str) -> list[View]:
    """A view for each sweep of the store, the one that was trained last first; where no run is of a sweep, one of all runs."""
    client = connect(uri)
    dated: list[tuple[int, View]] = []
    for experiment in client.search_experiments():
        runs = list(_runs(client, experiment.experiment_id))
        sweeps = {run.data.tags.get("sweep", "") for run in runs}
        for sweep in sorted(sweeps - {""} or sweeps):
            of_sweep = [run for run in runs if run.data.tags.get("sweep", "") == sweep]
            newest = max(run.info.start_time for run in of_sweep)
            dated.append((newest, _set_up(client, experiment.experiment_id, sweep, of_sweep)))
    return [view for _, view in sorted(dated, key=lambda one: -one[0])]


def _runs(client: "MlflowClient", experiment_id: str) -> "Iterator[Run]":
    """Of every sweep: a page of the newest alone would leave out the others' comparisons."""
    token: str | None = None
    while token != "":
        page = client.search_runs([experiment_id], "tags.variant LIKE '%'", max_results=PAGE_RUNS, page_token=token)
        yield from page
        token = page.token or ""


def _set_up(client: "MlflowClient", experiment_id: str, sweep: str, runs: "Sequence[Run]") -> View:
    key = f"tunalab-{legal_name(sweep).replace('/', '-').replace(' ', '-')}" if sweep else "tunalab"
    # Runs of one group differ in their seed alone: an arm is the variant where nothing else varies. Earlier versions had no arms.
    group = "arm" if all("arm" in run.data.tags for run in runs) else "variant"
    metrics = sorted({name for run in runs for name in run.data.metrics if name.startswith(ACCURACY)})
    groups = [run.data.tags.get(group, "") for run in runs]
    varied = "variant" if len(set(groups)) <= len({run.data.tags["variant"] for run in runs}) else group
    params = differing_params(groups, [run.data.params for run in runs])
    again = number_repeats(client, group, params, runs)
    by = ", ".join([varied, *params, *([REPEAT] if again else [])])
    name, now = f"{sweep or 'all runs'}: accuracy against tokens, by {by}", int(time.time() * 1000)
    state = view_state(f"tags.sweep = '{sweep}'" if sweep else "tags.variant LIKE '%'", group, metrics, params, again)
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    value = json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": packed})
    client.set_experiment_tag(experiment_id, f"{TAG}{key}", value)
    return View(name, f"#/experiments/{experiment_id}/runs?viewStateShareKey={key}&compareRunsMode=CHART")


def number_repeats(client: "MlflowClient", group: str, params: Sequence[str], runs: "Sequence[Run]") -> bool:
    """Whether there are runs that differ in nothing, seed included: a directory was deleted, and its run trained again.

    Their mean would count a seed twice. So each run gets a number as a tag, the first that began 1.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    numbers: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id)):
        tags, values = run.data.tags, run.data.params
        key = (tags.get(group, ""), tags.get("seed", values.get("seed", "")), *(values.get(name, "") for name in params))
        counts[key] += 1
        numbers[run.info.run_id] = str(counts[key])
    if not any(count > 1 for count in counts.values()):
        return False
    for run in runs:
        if run.data.tags.get(REPEAT) != numbers[run.info.run_id]:
            client.set_tag(run.info.run_id, REPEAT, numbers[run.info.run_id])
    return True


def differing_params(groups: Sequence[str], params: Sequence[Mapping[str, str]]) -> list[str]:
    """The parameters in which runs of one group differ beside their seed, as few as set them all apart; mostly none.

    An edited sweep trains its arms again under their names, and a mean of both configurations would be of neither. A parameter that
    a run lacks is no difference: earlier versions did not have it. Components and the checkpoint to start from are a seed's own.
    """
    of_seed = ("seed", COMPONENTS_SEED, "start")
    names = {name for one in params for name in one if changes_results(name) and name.split(".")[0] not in of_seed}
    differing: list[str] = []
    before: list[tuple[str | None, ...]] = [(group,) for group in groups]
    for name in sorted(names, key=lambda name: (name.count("."), name)):
        column = [one.get(name) for one in params]
        pairs = {(values, value) for values, value in zip(before, column, strict=True) if value is not None}
        if len(pairs) > len({values for values, _ in pairs}):
            differing.append(name)
            before = [(*values, value) for values, value in zip(before, column, strict=True)]
    return differing


def view_state(
    search: str, group: str, metrics: Sequence[str], params: Sequence[str] = (), repeats: bool = False
) -> dict[str, Any]:
    """What the page keeps of itself: line charts of ``metrics`` for the runs that ``search`` finds, a line a value of the tag
    ``group`` and of the parameters ``params``, with ``repeats`` also one a repetition of the same runs.

    The parent run of a sweep has no variant and stays out. Every other metric has a chart that MLflow makes by
    itself: emptying the search box above the charts shows them.
    """
    sections = [(ACCURACIES, [name for name in metrics if not HARD.search(name)])]
    sections.append((HARDER, [name for name in metrics if HARD.search(name)]))
    tags = [group, *([REPEAT] if repeats else [])]
    keys = [*({"mode": "tag", "groupByData": name} for name in tags), *({"mode": "param", "groupByData": name} for name in params)]
    return {
        "searchFilter": f"{search} and tags.variant LIKE '%'" if "sweep" in search else search,
        "orderByKey": "tags.`mlflow.runName`",  # sorted by time, the page fetches parent runs too
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            *(f"tags.`{tag}`" for tag in ("variant", "seed", *tags[1:])),
            *(f"metrics.`{name}`" for name in metrics),
        ],
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": keys},
        "useGroupedValuesInCharts": True,
        "groupsExpanded": {},
        "compareRunSections": [
            {"uuid": title, "name": title, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}
            for title, names in sections
            if names
        ],
        "compareRunCharts": [chart for title, names in sections for chart in _charts(title, names)],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "chartsSearchFilter": f"^{ACCURACY}",
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _charts(title: str, metrics: Sequence[str]) -> Iterator[dict[str, Any]]:
    for metric in metrics:
        yield {
            "uuid": f"chart-{metric}",
            "type": "LINE",
            "metricSectionId": title,
            "metricKey": metric,
            "xAxisKey": "step",
            "selectedXAxisMetricKey": "",
            "xAxisScaleType": "log",  # evaluations are log-spaced
            "scaleType": "linear",
            "range": {"yMin": 0, "yMax": 1.02},  # a point at 1 is whole
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "lineSmoothness": 0,
            "useGlobalXaxisKey": False,
            "useGlobalLineSmoothing": True,
            "displayPoints": True,
            "ignoreOutliers": False,
            "runsCountToCompare": 100,
            "deleted": False,
            "isGenerated": False,
        }


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
    environment = quiet_environment(os.environ) | {STORE: uri if database is None else f"sqlite:///{database}"}
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
    """This Python's MLflow, one worker. Its store, which may hold a password, stands in the environment: everybody sees a command
    line.
    """
    return [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port), "--workers", "1"]


def _wait_until_it_answers(server: "subprocess.Popen[bytes]", host: str, port: int) -> None:
    """A request without the proxy that is set for other addresses. Raises UserError."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise UserError(f"the MLflow server ended with exit code {server.returncode}; its own messages stand above")
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
