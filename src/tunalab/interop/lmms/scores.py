"""From the results of lmms-eval to measures: shares between 0 and 1, with an interval over the items."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure, mean, share
from tunalab.evaluation.published import BENCHMARKS, LOCAL, PUBLISHED, RULED, STOCK, Published, metric
from tunalab.interop.endpoint import Endpoint, NoAnswer

Score = Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]]
AGAIN = "\nYour answer could not be read. Answer with the number alone."


def mmmu(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """What the stock task logs, and as ``score`` whether it is right by the stock rules."""
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu, mmmu_process_results

    found = mmmu_process_results(doc, results)["mmmu_acc"]
    _, right = evaluate_mmmu([found])
    return {"mmmu_acc": {**found, "score": right["acc"]}}


def mmvet(endpoint: Endpoint) -> Score:
    """The judge's ``score`` of one reply by the stock prompt, which is left out when it gives none.

    The stock task makes 0 of that, and repeats the question for ever where the judge answers a number out of range.
    """

    def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        from lmms_eval.tasks.mmvet.utils import MM_VET_PROMPT

        truth = doc["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        text = f"{MM_VET_PROMPT}\n{doc['question']} | {truth} | {results[0]} |"
        given = ask_score(endpoint, text)
        scored = {} if given is None else {"score": given}
        return {"gpt_eval_score": {"question_id": doc["question_id"], "eval_model": endpoint.described, **scored}}

    return score


def ask_score(endpoint: Endpoint, text: str) -> float | None:
    """The number between 0 and 1 that the judge's answer begins with, cut off or not; else the question is put once more.

    Raises UserError: the judge will not answer any question.
    """
    for question in (text, text + AGAIN):
        try:
            score = read_score(endpoint.ask(question, (), whole=False))
        except NoAnswer:
            return None
        if score is not None:
            return score
    return None


def read_score(answer: str) -> float | None:
    """What stands before the first blank, if it is a number between 0 and 1: as the stock task reads it, also on several lines."""
    try:
        score = float(answer.strip().split(" ")[0])
    except ValueError:
        return None
    return score if 0 <= score <= 1 else None


KIND = "understanding"
_ROUNDING = 1e-4  # of totals


def measures(results: Mapping[str, Any], rules: str = PUBLISHED, cut: Mapping[tuple[str, int], str] | None = None) -> list[Measure]:
    """Of every task in a dictionary of results as ``simple_evaluate`` returns it and the lmms-eval program writes it.

    Where the paper's rules differ from those of lmms-eval 0.7.3 (``RULED``) the accuracy names its rules, and with ``rules``
    ``published`` both stand, the published one first. ``cut``: as of :class:`Answerer`, the replies under the paper's limit of
    tokens; without it they are counted as they were logged.

    Raises UserError: a task that is none of the twelve, a total that is not the mean of its items, no item that was scored.
    """
    found: list[Measure] = []
    for name, totals in results["results"].items():
        task = name.removesuffix(LOCAL)
        if task not in BENCHMARKS:
            raise UserError(f"{name}: its scale is not known here (choices: {', '.join(BENCHMARKS)})")
        samples = sorted(results.get("samples", {}).get(name) or (), key=lambda sample: sample["doc_id"])
        if samples and rules == PUBLISHED and task in RULED:
            found.append(_by_published_rules(name, task, samples, cut))
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
    values = [sample[benchmark.metric] for sample in samples]
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
    measure = partial(share, KIND, benchmark.title)
    named = _metric(task)
    of_questions = measure([outcome == 1 for outcome in scored], metric=named, chance=benchmark.chance, note=benchmark.note)
    if task != "mmvp":
        return [of_questions]
    pairs = _pairs(values)
    of_pairs = [measure(pairs, metric="pair accuracy", chance=0.25, note="both questions of a pair right")] if pairs else []
    return [of_questions, *of_pairs]


def _by_published_rules(
    name: str, task: str, samples: Sequence[Mapping[str, Any]], cut: Mapping[tuple[str, int], str] | None
) -> Measure:
    rule, benchmark = RULED[task], BENCHMARKS[task]
    generator = Random(0)  # as lmms-eval's own draws: the same every time

    def reply(sample: Mapping[str, Any]) -> str:
        (logged,) = sample["resps"]
        text = logged if isinstance(logged, str) else logged[0]
        return str(text) if cut is None else cut[name, sample["doc_id"]]

    outcomes = [rule.right(sample["doc"], reply(sample), generator) for sample in samples]
    limit = f"of a reply the first {rule.max_tokens} tokens" if rule.max_tokens and cut is not None else ""
    note = "; ".join(filter(None, [f"rules of the paper's lmms-eval: {rule.about}", limit, benchmark.note]))
    return share(KIND, benchmark.title, outcomes, metric=metric(PUBLISHED), chance=benchmark.chance, note=note)


def _metric(task: str) -> str:
    return metric(STOCK) if task in RULED else "accuracy"


def _of_total(task: str, benchmark: Published, totals: Mapping[str, Any], n: int) -> Measure:
    total = _total(benchmark, totals)
    if total is None or benchmark.judged:
        raise UserError(f"{task}: its total alone does not show what was right (run lmms-eval with --log_samples)")
    note = "; ".join(filter(None, [benchmark.note, "no interval: items were not logged"]))
    return Measure(KIND, benchmark.title, _metric(task), total, n, chance=benchmark.chance, note=note)


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
