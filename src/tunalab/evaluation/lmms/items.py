"""Outcomes of single items where the stock tasks of lmms-eval do not log them, or log a failure as a wrong answer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunalab.evaluation.judging.endpoint import Endpoint, NoAnswer

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

    The stock task makes 0 of that, and asks for ever where the judge answers a number out of range.
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
    """The number between 0 and 1 that the judge's answer begins with, cut off or not; one that does not is asked for once more.

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
