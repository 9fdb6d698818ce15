"""Comparisons that stand ready in MLflow's UI: a saved view of each sweep, runs grouped by what the sweep varies.

MLflow 3.17 keeps a saved view as an experiment tag: JSON with a name and times, and in ``state`` what the page would keep of
itself (charts, sections, filter, grouping), compressed.
"""

import base64
import json
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunalab.config import NOT_IDENTITY
from tunalab.results.mlflow.client import connect
from tunalab.results.mlflow.logged import ACCURACY
from tunalab.results.mlflow.names import legal_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TAG = "mlflow.sharedViewState."  # and the key of the view, which its URL names
ACCURACIES, HARDER = "Accuracy against tokens (step), mean and range over seeds", "The same on harder levels"
HARD = re.compile(r"_\d+$")  # level of a benchmark (relations@3) as MLflow writes it
PAGE_RUNS = 1000  # a request
REPEAT = "repeat"  # tag of runs that are there more than once
NOT_TOLD = {*NOT_IDENTITY, "seed", "start"}  # of parameters; the checkpoint to start from is a seed's own


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
    group = group_tag([run.data.tags for run in runs])
    metrics = sorted({name for run in runs for name in run.data.metrics if name.startswith(ACCURACY)})
    varied = (
        "variant" if len({run.data.tags.get(group) for run in runs}) <= len({run.data.tags["variant"] for run in runs}) else group
    )
    told = told_apart([run.data.tags.get(group, "") for run in runs], [run.data.params for run in runs])
    again = number_repeats(client, group, told, runs)
    by = ", ".join([varied, *told, *([REPEAT] if again else [])])
    name, now = f"{sweep or 'all runs'}: accuracy against tokens, by {by}", int(time.time() * 1000)
    state = view_state(f"tags.sweep = '{sweep}'" if sweep else "tags.variant LIKE '%'", group, metrics, told, again)
    value = json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": packed(state)})
    client.set_experiment_tag(experiment_id, f"{TAG}{key}", value)
    return View(name, f"#/experiments/{experiment_id}/runs?viewStateShareKey={key}&compareRunsMode=CHART")


def number_repeats(client: "MlflowClient", group: str, told: Sequence[str], runs: "Sequence[Run]") -> bool:
    """Whether there are runs that differ in nothing, seed included: a directory was deleted, and its run trained again.

    Their mean would count a seed twice. So each run gets a number as a tag, the first that began 1.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    numbers: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id)):
        tags, params = run.data.tags, run.data.params
        key = (tags.get(group, ""), tags.get("seed", params.get("seed", "")), *(params.get(name, "") for name in told))
        counts[key] += 1
        numbers[run.info.run_id] = str(counts[key])
    if not any(count > 1 for count in counts.values()):
        return False
    for run in runs:
        if run.data.tags.get(REPEAT) != numbers[run.info.run_id]:
            client.set_tag(run.info.run_id, REPEAT, numbers[run.info.run_id])
    return True


def group_tag(tags: Sequence[dict[str, str]]) -> str:
    """The tag whose groups are runs that differ in their seed alone: the arm, which is the variant where nothing else varies.

    Runs of earlier versions have no such tag.
    """
    return "arm" if all("arm" in one for one in tags) else "variant"


def told_apart(groups: Sequence[str], params: Sequence[Mapping[str, str]]) -> list[str]:
    """The parameters in which runs of one group differ beside their seed, as few as tell them all apart; mostly none.

    An edited sweep trains its arms again under their names, and a mean of both configurations would be of neither. A parameter that
    a run lacks is no difference: earlier versions did not have it.
    """
    names = {name for one in params for name in one if name.split(".")[0] not in NOT_TOLD}
    told: list[str] = []
    seen: list[tuple[str | None, ...]] = [(group,) for group in groups]
    for name in sorted(names, key=lambda name: (name.count("."), name)):
        column = [one.get(name) for one in params]
        pairs = {(before, value) for before, value in zip(seen, column, strict=True) if value is not None}
        if len(pairs) > len({before for before, _ in pairs}):
            told.append(name)
            seen = [(*before, value) for before, value in zip(seen, column, strict=True)]
    return told


def packed(state: dict[str, Any]) -> str:
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()


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
        "compareRunSections": [_section(title) for title, names in sections if names],
        "compareRunCharts": [chart for title, names in sections for chart in _charts(title, names)],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "chartsSearchFilter": f"^{ACCURACY}",
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _section(title: str) -> dict[str, Any]:
    return {"uuid": title, "name": title, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}


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
