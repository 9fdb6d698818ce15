"""The paper's twelve understanding benchmarks: how lmms-eval 0.7.3 calls them and how the outcome of one item is read."""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any


def _number(value: Any) -> float | None:
    return float(value)


def _score(value: Any) -> float | None:
    return float(value["score"])


def _judged(value: Any) -> float | None:
    """Ours gives no score where the judge gave none; the stock task scores 0 and names no judge."""
    return float(value["score"]) if value["eval_model"] and "score" in value else None


def _correct(value: Any) -> float | None:
    return float(value["is_correct"])


def _letter(value: Any) -> float | None:
    return float(value["pred"].strip().lower() == value["answer"].strip().lower())


@dataclass(frozen=True)
class Published:
    """``title`` as in results/published.csv, ``source``: the data set on the Hugging Face hub that a local copy is of.

    ``metric`` is what lmms-eval logs of an item; ``outcome`` reads a share between 0 and 1 from it, None where a judge failed.
    ``scale``: what lmms-eval's total of a perfect model is; None where that total is no mean over the items it ran on.
    """

    title: str
    source: str
    metric: str
    outcome: Callable[[Any], float | None] = _number
    scale: float | None = 1.0
    chance: float | None = None
    judged: bool = False
    note: str = ""


LOCAL = "_local"  # behind the name of a ready task: of two tasks of one name lmms-eval takes the stock one
BENCHMARKS: dict[str, Published] = {
    "gqa": Published("GQA", "lmms-lab-encoder/GQA", "exact_match"),
    "realworldqa": Published("RealWorldQA", "lmms-lab-encoder/RealWorldQA", "exact_match"),
    "mmvet": Published("MMVet", "lmms-lab-encoder/MMVet", "gpt_eval_score", _judged, scale=100.0, judged=True),
    # The total is rounded to five digits, of shares: 1 is perfect.
    "mmmu_val": Published(
        "MMMU",
        "lmms-lab-encoder/MMMU",
        "mmmu_acc",
        _score,
        note="of several images the first is shown; by its rules a letter is drawn where a reply names no choice",
    ),
    "mmvp": Published("MMVP", "lmms-lab-eval/MMVP", "mmvp_accuracy", _correct, chance=0.5),
    "seedbench_2_plus": Published("SEED-Bench-2-Plus", "doolayer/SEED-Bench-2-Plus", "seedbench_2_plus_all", _letter, chance=0.25),
    "ai2d": Published("AI2D", "lmms-lab-encoder/ai2d", "exact_match"),
    "chartqa": Published("ChartQA", "lmms-lab-encoder/ChartQA", "relaxed_overall"),
    # The total of the stock task is right answers by 1000, on however many items it ran, and those of earlier runs with them.
    "ocrbench": Published("OCRBench", "echo840/OCRBench", "ocrbench_accuracy", _score, scale=None),
    "vstar_bench": Published("V*", "lmms-lab-encoder/vstar-bench", "vstar_overall_acc", _score, scale=100.0),
    "countbench": Published("CountBench", "vikhyatk/CountBenchQA", "acc"),
    "visulogic": Published("VisuLogic", "VisuLogic/VisuLogic", "visulogic_acc", chance=0.25),
}


# The rules behind the paper's scores where they are not those of lmms-eval 0.7.3: three benchmarks, each reply right or
# wrong.
#
# The paper's scores come from the copy of lmms-eval that the official repository ships (labelled 0.4.0). On nine of the
# twelve benchmarks it scores like 0.7.3. Its defects are kept here on purpose: a number beside a published one is
# counted like it. A ``doc`` is one item of a data set, as lmms-eval gives it to a task and logs it.

STOCK, PUBLISHED = "stock", "published"
RULES = (PUBLISHED, STOCK)

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_OPTION = re.compile(r"\b[A-Z]\.\s+([^\n]*)")
_PUNCTUATION = re.compile(r"[^\w\s]")


@dataclass(frozen=True)
class Rule:
    """``right`` judges one reply; its generator draws where the rule guesses. ``about`` says what differs from 0.7.3.

    ``max_tokens``: limit of a reply, None where it is that of 0.7.3.
    """

    right: Callable[[Mapping[str, Any], str, Random], bool]
    about: str
    max_tokens: int | None = None


def metric(rules: str) -> str:
    """What the accuracy by one of the two ``RULES`` is called where they differ: two rules never share a mean."""
    return f"accuracy ({rules} rules)"


def mmmu(doc: Mapping[str, Any], reply: str, generator: Random) -> bool:
    """An open question counts 0, always: the candidates read from a reply become one text, which is compared letter by letter."""
    if doc["question_type"] != "multiple-choice":
        return False
    options = ast.literal_eval(doc["options"])
    letter = read_letter(reply, options) or generator.choice(letters(options))
    answer = doc["answer"]
    return letter in answer if isinstance(answer, list) else letter == answer


def letters(options: Sequence[str]) -> list[str]:
    return [chr(ord("A") + number) for number in range(len(options))]


def read_letter(reply: str, options: Sequence[str]) -> str | None:
    """The option that a reply names by MMMU's rule (both rules share it); None where that rule draws one.

    "(B)" counts before "B ", that before "B.", and in a reply of more than five words an option's text at last. Of several the one
    named last counts: of bare letters the last between blanks, or the first of them where none stands so.
    """
    for mark in ",.!?;:'":
        reply = reply.strip(mark)
    reply = f" {reply} "
    names = {letter: letter for letter in letters(options)}
    # What a reply must hold to name an option, and what the last place is looked up of where it names several.
    for held, placed in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if any(held.format(name) in reply for name in names):
            return _last(reply, names, held, placed)
    texts = {letter: text.lower() for letter, text in zip(names, options, strict=True)}
    return _last(reply.lower(), texts, "{}", "{}") if len(reply.split()) > 5 else None


def _last(reply: str, names: Mapping[str, str], held: str, placed: str) -> str | None:
    named = [letter for letter, name in names.items() if held.format(name) in reply]
    return max(named, key=lambda letter: reply.rfind(placed.format(names[letter])), default=None)


def ocrbench(doc: Mapping[str, Any], reply: str, generator: Random) -> bool:
    """Whether the reply holds one of the answers. It is lower-cased also where answers keep their case (handwriting, HME100k)."""
    answers = [doc["answer"]] if isinstance(doc["answer"], str) else doc["answer"]
    reply = _one_line(reply.lower())
    if doc["dataset"] == "HME100k":
        reply = reply.replace(" ", "")
        return any(_one_line(answer).replace(" ", "") in reply for answer in answers)
    return any(_one_line(answer.lower()) in reply for answer in answers)


def realworldqa(doc: Mapping[str, Any], reply: str, generator: Random) -> bool:
    """A number word becomes a digit, then punctuation goes; what holds an option's text, in its case, becomes that option's letter.

    The reply must equal the answer then, but for case: a letter inside a sentence is not looked for.
    """
    if reply.lower() in _NUMBERS:
        reply = str(_NUMBERS.index(reply.lower()))
    reply = _PUNCTUATION.sub("", reply).strip()
    options = [text.strip() for text in _OPTION.findall(doc["question"])]
    letter_of = dict(zip(options, letters(options), strict=True))
    # The leftmost option counts, at one place the earlier one: "The car" before "The car on the left".
    found = re.search("|".join(map(re.escape, options)), reply) if options else None
    given = letter_of[found[0]] if found else reply
    return given.lower() == doc["answer"].lower().strip()


def _one_line(text: str) -> str:
    return text.strip().replace("\n", " ")


# By the name of the task.
RULED: dict[str, Rule] = {
    "mmmu_val": Rule(mmmu, "open questions count 0", max_tokens=16),
    "ocrbench": Rule(ocrbench, "handwriting is compared with the reply in lower case, full-width letters are not folded"),
    "realworldqa": Rule(realworldqa, "options are known by their text, a letter inside a sentence is not read"),
}
