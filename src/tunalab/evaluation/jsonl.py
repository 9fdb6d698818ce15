"""Questions of the user's own, lines of JSON in a file: asked along a run and after it (docs/extend/benchmark.md).

    {"image", "question", "answer"}            one answer is right; "answers": a list of which each is
    {"image", "question", "answer", "options"} the answers that the question leaves open: with them margins are measured
    {..., "group"}                             lines of one group count as one item, right if all of them are

An image's path starts from the file's folder. Every line must be sound: a benchmark that leaves questions out is another one.

    exact      the answer, but for case, white space and a full stop at its end
    contains   a reply that holds the answer, whole words, but for case
    option     the text of the right option, or its letter (A, (b), C. red)
    number     the first number of the reply equals that of the answer
    file.py:f  a function of yours: f(reply, line) -> bool, ``line`` as in the file
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from tunalab.data.assembling import check_text
from tunalab.data.buckets import Buckets
from tunalab.data.documents import Question, Reject
from tunalab.data.images import read_image
from tunalab.data.manifest import index_lines, parse_line
from tunalab.errors import UserError
from tunalab.plugins import Group, find
from tunalab.settings.schema import BenchmarkConfig

SUBSET_SEED = 0  # never the run's: all runs are asked the same questions
KEYS = ("image", "question", "answer", "answers", "options", "group")
# Commas stand between thousands; a decimal point needs no digit before it.
_NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,4}(?!\d))?")
Line = dict[str, Any]
Rule = Callable[[str, Line], bool]


def subset(groups: Sequence[int], limit: int | None) -> set[int]:
    """``limit`` of the groups, the same ones of the same benchmark always; all where there are not more, or without a limit."""
    every = list(dict.fromkeys(groups))
    if limit is None or limit >= len(every):
        return set(every)
    return {every[index] for index in np.random.default_rng(SUBSET_SEED).permutation(len(every))[:limit]}


def read_lines(setting: str, path: Path) -> list[Line]:
    """The lines of a benchmark, checked; ``group`` is a number in each. Raises UserError naming file, item, and what is wrong."""
    if not path.is_file():
        raise UserError(f"{setting}.path={path}: there is no such file")
    with path.open("rb") as file:
        starts = index_lines(file)
        found: list[Line] = []
        numbers: dict[tuple[str, Any], int] = {}
        for number, (start, end) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True), start=1):
            file.seek(start)
            try:
                line = _checked(parse_line(file.read(end - start)))
            except Reject as reject:
                raise UserError(f"{setting}: {path}, item {number}: {reject}") from reject
            name = line.get("group")
            line["group"] = numbers.setdefault(("line", number) if name is None else ("group", name), len(numbers))
            found.append(line)
    if not found:
        raise UserError(f"{setting}: {path} holds no questions")
    return found


def holds_questions(path: Path) -> bool:
    """Whether the first line of a file is a question, and not a document to train on."""
    with suppress(OSError, Reject), path.open("rb") as file:
        starts = index_lines(file)
        file.seek(int(starts[0]))
        return "question" in parse_line(file.read(int(starts[1] - starts[0])))
    return False


def _checked(line: Line) -> Line:
    """Raises Reject."""
    for key in line.keys() - {*KEYS}:  # a rule of one's own may read others; one that is almost ours is a slip of the pen
        if (meant := get_close_matches(key, KEYS, 1, 0.75)) and meant[0] not in line:
            raise Reject(f"unknown key {key!r}, did you mean {meant[0]}? (keys of a line: {', '.join(KEYS)})")
    missing = [key for key in ("question", "image") if not line.get(key)]
    if missing:
        raise Reject(f"{' and '.join(missing)} missing (keys of a line: {', '.join(KEYS)})")
    if ("answer" in line) == ("answers" in line):
        raise Reject("one of answer and answers must be there")
    given = line["answers"] if "answers" in line else [line["answer"]]
    if not isinstance(given, list) or not given:
        raise Reject("answers must be a list with at least one")
    options = line.get("options") or []
    if not isinstance(options, list):
        raise Reject(f"options must be a list, not {type(options).__name__}")
    texts = {"question": check_text(line["question"], "question"), "image": check_text(line["image"], "image")}
    answers = [_text(one, "answer") for one in given]
    options = [_text(one, "option") for one in options]
    if not all([*texts.values(), *answers]):
        raise Reject("an empty text")
    if options and answers[0] not in options:
        raise Reject(f"answer {answers[0]!r} is none of the options {', '.join(options)}")
    if len(set(options)) < len(options) or len(options) == 1:
        raise Reject(f"options must be two or more different ones, got {', '.join(options)}")
    if options and {*options} <= {*answers}:
        raise Reject(f"every option is right: {', '.join(options)}")
    if not isinstance(line.get("group"), str | int | None):
        raise Reject("group must be a text or a number")
    return {**line, **texts, "answers": answers, "options": options}


def _text(value: Any, name: str) -> str:
    """A number stands for its text."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else check_text(value, name)


def questions(setting: str, chosen: BenchmarkConfig, buckets: Buckets, limit: int | None) -> tuple[list[Question], list[Line], int]:
    """The questions to ask, their lines, and how many items the file has in all. ``limit``: of items; None: all.

    Raises UserError, one line: a line, or an image of a question that is asked, is broken.
    """
    path = Path(chosen.path)
    lines = read_lines(setting, path)
    asked = subset([line["group"] for line in lines], limit)
    kept = [line for line in lines if line["group"] in asked]
    made = []
    for line in kept:
        if missing := _unmet(chosen.rule, line):
            raise UserError(f"{setting}: {path}, question {line['question']!r}: rule={chosen.rule} needs {missing}")
        try:
            image_HWC = read_image((Path(chosen.root) if chosen.root else path.parent) / line["image"], buckets.unbounded())
        except Reject as reject:
            raise UserError(f"{setting}: {path}: {reject}") from reject
        first, *others = line["answers"]
        made.append(Question(image_HWC, line["question"], first, line["group"], tuple(line["options"]), tuple(others)))
    return made, kept, len({line["group"] for line in lines})


def _unmet(rule: str, line: Line) -> str:
    """What a line lacks without which no reply could be right by a rule."""
    if rule == "option" and not line["options"]:
        return "options"
    if rule == "number" and all(_number(answer) is None for answer in line["answers"]):
        return f"an answer in digits, not {line['answers'][0]!r}"
    return ""


def chance(lines: Sequence[Line]) -> float:
    """The share of items that the better of two guesses gets right without the image: an option drawn evenly, or the answer that is
    most frequent for that question (of all questions, where it stands once).
    """
    even: dict[int, float] = {}
    usual: dict[int, bool] = {}
    asked = Counter(line["question"] for line in lines)
    answers = Counter((line["question"] if asked[line["question"]] > 1 else "", line["answers"][0]) for line in lines)
    for line in lines:
        group, question = line["group"], line["question"] if asked[line["question"]] > 1 else ""
        even[group] = even.get(group, 1.0) * _even(line)
        most = max((count, answer) for (of, answer), count in answers.items() if of == question)[1]
        usual[group] = usual.get(group, True) and most in line["answers"]
    guessed = [float(np.mean(list(values.values()))) for values in (even, usual)]
    return min(max(guessed), math.nextafter(1.0, 0.0))


def _even(line: Line) -> float:
    """The share of the options that are right."""
    options = line["options"]
    return len({*line["answers"]} & {*options}) / len(options) if options else 0.0


RULES: Mapping[str, Rule] = {
    "exact": lambda reply, line: _plain(reply) in map(_plain, line["answers"]),
    "contains": lambda reply, line: any(
        re.search(rf"(?<!\w){re.escape(_plain(one))}(?!\w)", _plain(reply)) for one in line["answers"]
    ),
    "option": lambda reply, line: _option(reply, line["options"]) in line["answers"],
    "number": lambda reply, line: _number(reply) is not None and _number(reply) in map(_number, line["answers"]),
}
OWN = Group("tunalab.rules", "a rule: a function of a reply and a line", callable)


def rule(setting: str, name: str) -> Rule:
    """By name, or a function of a file. Raises UserError, one line: it cannot be found."""
    if name in RULES:
        return RULES[name]
    if ":" not in name:
        raise UserError(f"{setting}.rule={name} is not known (choices: {', '.join(RULES)}, file.py:function)")
    found: Rule = find(f"{setting}.rule", name, OWN)
    try:
        signature(found).bind("", {})
    except TypeError as error:
        raise UserError(f"{setting}.rule={name}: it must take a reply and a line: {error}") from error
    except ValueError:  # of a function without a signature, as built-in ones may be
        return found
    return found


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix(".")


def _option(reply: str, options: Sequence[str]) -> str | None:
    """The option that a reply is, by its text or by a letter it begins with."""
    plain = _plain(reply)
    for option in options:
        if _plain(option) == plain:
            return option
    found = re.match(r"\(?([a-z])(?:[).:]|$|\s*$)", plain)
    index = ord(found[1]) - ord("a") if found else len(options)
    return options[index] if index < len(options) else None


def _number(text: str) -> Decimal | None:
    found = _NUMBER.search(text)
    return Decimal(found[0].replace(",", "")) if found else None
