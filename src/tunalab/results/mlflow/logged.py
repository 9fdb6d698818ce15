"""What of a run goes to MLflow, told by its configuration and its points alone.

So a run that logs as it trains and a record that is brought there later look the same.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunalab.config import EvaluationConfig
from tunalab.evaluation.schedule import evaluation_tokens
from tunalab.results.mlflow.tracking import Source
from tunalab.results.records import Point

ACCURACY = "accuracy/"  # metrics at planned token counts, which runs of all seeds share


def run_tags(name: str, config: Mapping[str, Any], config_hash: str, environment: Mapping[str, Any]) -> dict[str, object]:
    """What runs are found, grouped and told apart by: sweep, variant, arm (all but the seed) and so on; code and packages.

    ``config``: plain.
    """
    tracking = config["tracking"]
    tags: dict[str, object] = {
        "sweep": tracking["sweep"],
        "experiment": config["experiment"],
        "variant": config["variant"],
        "arm": re.sub(r"-seed\d+(\+\w+)?$", "", name),
        "mask_ratio": config["objective"]["masking"]["ratio"],
        "seed": config["seed"],
        "config_hash": config_hash,
        "mlflow.source.name": "tunalab",
        "mlflow.source.type": "LOCAL",
    }
    if environment.get("commit"):
        tags |= {"mlflow.source.git.commit": environment["commit"], "code.modified": environment.get("dirty")}
    tags |= {name: environment[name] for name in ("python", "cpu", "accelerator") if environment.get(name)}
    return tags | {f"package.{name}": version for name, version in environment.get("packages", {}).items() if version}


def data_sources(environment: Mapping[str, Any]) -> list[Source]:
    """What the run read, as its environment says."""
    return [Source(name, digest) for name, digest in environment.get("data", {}).items()]


def point_metrics(points: Sequence[Point], config: Mapping[str, Any]) -> Iterator[tuple[Point, int, dict[str, float]]]:
    """Metrics by name of every evaluation, with the tokens they stand at.

    Accuracy comes twice: as ``benchmark/...`` at the tokens consumed, and as ``accuracy/...`` at the count that was planned.
    Runs of different seeds pass a planned count some documents apart, and MLflow's mean of a group of runs joins equal steps only.
    """
    for point, planned in zip(points, planned_tokens([point.tokens for point in points], config), strict=True):
        metrics = {f"benchmark/{name}": score.accuracy for name, score in point.benchmarks.items()}
        metrics |= {f"heldout/{name}": value for name, value in point.losses.items()}
        metrics |= {f"one_step_psnr/t{t}": value for t, value in point.one_step_psnr.items()}
        metrics |= {f"cost/{name}": float(getattr(point, name)) for name in ("steps", "images", "flops", "seconds")}
        yield point, point.tokens, metrics
        yield point, planned, {f"{ACCURACY}{name}": score.accuracy for name, score in point.benchmarks.items()}


def planned_tokens(tokens: Sequence[int], config: Mapping[str, Any]) -> list[int]:
    """For each evaluation, made at ``tokens``, the last count of the plan that was due; the next one where training ended short."""
    settings = EvaluationConfig(points=config["evaluation"]["points"], first=config["evaluation"]["first"])
    plan = evaluation_tokens(settings, sum(stage["tokens"] for stage in config["stages"].values()))
    planned, before = [], 0
    for now in tokens:
        due = [at for at in plan if before < at <= now]
        planned.append(due[-1] if due else min((at for at in plan if at > now), default=now))
        before = now
    return planned
