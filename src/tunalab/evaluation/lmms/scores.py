"""From the results of lmms-eval to measures: shares between 0 and 1, with an interval over the items it logged."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tunalab.errors import UserError
from tunalab.evaluation.lmms.catalogue import BENCHMARKS, LOCAL, Published
from tunalab.evaluation.measure import Measure, mean, share

KIND = "understanding"
_ROUNDING = 1e-4  # of totals


def measures(results: Mapping[str, Any]) -> list[Measure]:
    """Of every task in a dictionary of results as ``simple_evaluate`` returns it and the lmms-eval program writes it.

    Raises UserError: a task that is none of the twelve, a total that is not the mean of its items, no item that was scored.
    """
    found: list[Measure] = []
    for name, totals in results["results"].items():
        task = name.removesuffix(LOCAL)
        if task not in BENCHMARKS:
            raise UserError(f"{name}: its scale is not known here (choices: {', '.join(BENCHMARKS)})")
        samples = results.get("samples", {}).get(name)
        if samples:
            found += _of_items(task, BENCHMARKS[task], totals, samples)
        else:
            found.append(_of_total(task, BENCHMARKS[task], totals, results["n-samples"][name]["effective"]))
    return found


def mean_score(results: Sequence[Mapping[str, Any]]) -> float:
    """A total for lmms-eval: the mean over the items that have a score."""
    scores = [result["score"] for result in results if "score" in result]
    return sum(scores) / len(scores) if scores else float("nan")


def _of_items(task: str, benchmark: Published, totals: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> list[Measure]:
    values = [sample[benchmark.metric] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
    outcomes = [benchmark.outcome(value) for value in values]
    scored = [outcome for outcome in outcomes if outcome is not None]
    if not scored:
        raise UserError(f"{task}: none of {len(outcomes)} replies was scored (is the judge reachable?)")
    failures = len(outcomes) - len(scored)
    if benchmark.judged:
        judged = mean(KIND, benchmark.title, scored, metric="accuracy", failures=failures, note=_judges(values))
        # What was not scored differs from model to model: the others' items would stand in each other's places.
        return [replace(judged, items=[]) if failures else judged]
    total = _total(benchmark, totals)
    if total is not None and abs(total - sum(scored) / len(scored)) > _ROUNDING:
        raise UserError(
            f"{task}: lmms-eval's total is {total:.4f} and the mean of its items {sum(scored) / len(scored):.4f}: "
            "this version of the task counts in another way"
        )
    told = partial(share, KIND, benchmark.title)
    of_questions = told([outcome == 1 for outcome in scored], chance=benchmark.chance, note=benchmark.note)
    if task != "mmvp":
        return [of_questions]
    pairs = _pairs(values)
    of_pairs = [told(pairs, metric="pair accuracy", chance=0.25, note="both questions of a pair right")] if pairs else []
    return [of_questions, *of_pairs]


def _of_total(task: str, benchmark: Published, totals: Mapping[str, Any], n: int) -> Measure:
    total = _total(benchmark, totals)
    if total is None or benchmark.judged:
        raise UserError(f"{task}: its total alone does not tell what was right (run lmms-eval with --log_samples)")
    note = "; ".join(filter(None, [benchmark.note, "no interval: items were not logged"]))
    return Measure(KIND, benchmark.title, "accuracy", total, n, chance=benchmark.chance, note=note)


def _total(benchmark: Published, totals: Mapping[str, Any]) -> float | None:
    """lmms-eval's own figure as a share; its keys are ``metric,filter``."""
    named = [value for key, value in totals.items() if key.split(",")[0] == benchmark.metric]
    return None if benchmark.scale is None else float(named[0]) / benchmark.scale


def _pairs(values: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether both questions of a pair are right, for every pair of which both were asked."""
    pairs: dict[int, list[bool]] = {}
    for value in values:
        pairs.setdefault(value["pair_index"], []).append(value["is_correct"])
    return [all(pair) for _, pair in sorted(pairs.items()) if len(pair) == 2]


def _judges(values: Sequence[Mapping[str, Any]]) -> str:
    return f"judged by {', '.join(sorted({value['eval_model'] for value in values if value['eval_model']}))}"
