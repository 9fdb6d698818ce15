"""Headline numbers from the bytes of the committed records: nothing here is imported from the package.

The intervals are those of docs/method.md: Student's t over the differences by seed and the normal error over the questions that all
seeds share, added in squares; shares scatter at least by their own rounding.
"""

import csv
import json
import math
import re
import statistics
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from scipy.stats import norm, t

FOLDER = Path(__file__).parents[2] / "results" / "figure6"
RUNS = {(run["run"]["variant"], run["run"]["seed"]): run for run in map(json.loads, (p.read_text() for p in FOLDER.glob("*.json")))}
PAIR = ("tuna2", "tuna_r")  # Tuna-2 less Tuna-R


def seeds_of(pair: tuple[str, str]) -> list[int]:
    return sorted(seed for variant, seed in RUNS if variant == pair[0] and (pair[1], seed) in RUNS)


SEEDS = seeds_of(PAIR)


def table() -> dict[str, dict[str, str]]:
    """The rows of endpoints.csv that compare the two, by endpoint; signs as Tuna-2 less Tuna-R."""
    with (FOLDER / "endpoints.csv").open(encoding="utf-8") as lines:
        rows = [
            row for row in csv.DictReader(line for line in lines if line[0] != "#") if {row["a"], row["b"]} == {"Tuna-2", "Tuna-R"}
        ]
    for row in rows:
        if row["a"] == "Tuna-R":
            low, high = -float(row["high"]), -float(row["low"])
            row |= {"difference": str(-float(row["difference"])), "low": str(low), "high": str(high)}
    return {row["endpoint"]: row for row in rows}


def bits(score: dict) -> list[int]:
    """Right (1) or wrong per question: the digits are bytes, of which the first question is the highest bit."""
    digits = "".join(f"{int(digit, 16):04b}" for digit in score["outcomes"])
    assert set(digits[score["n"] :]) <= {"0"} and digits.count("1") == score["correct"]
    return [int(digit) for digit in digits[: score["n"]]]


def margins(score: dict) -> list[float]:
    """Nats per question: signed bytes, in sixteenths."""
    found = [int(score["margins"][at : at + 2], 16) for at in range(0, len(score["margins"]), 2)]
    return [(byte - 256 if byte > 127 else byte) / 16 for byte in found]


def interval(by_seed: list[float], by_question: list[list[float]], shares: bool) -> tuple[float, float, float]:
    """Mean, low, high. ``by_question``: of each benchmark the differences of its questions, in the mean over seeds."""
    mean, count = statistics.mean(by_seed), len(by_seed)
    rounding = 1 / sum(map(len, by_question)) / math.sqrt(12) if shares else 0.0
    scatter = math.hypot(statistics.stdev(by_seed), rounding) / math.sqrt(count)
    squares = 0.0
    for values in by_question:
        centre = statistics.mean(values)
        squares += (sum((value - centre) ** 2 for value in values) + shares) / (len(values) * (len(values) - 1))
    questions = math.sqrt(squares) / len(by_question) if by_question else 0.0
    half = math.hypot(t.ppf(0.975, count - 1) * scatter, norm.ppf(0.975) * questions)
    return mean, mean - half, mean + half


def gaps(kinds: list[str], read, pair=PAIR) -> tuple[list[float], list[list[float]]]:
    """Differences at the end: by seed in the mean over benchmarks, and by benchmark and question in the mean over seeds."""
    rows = {
        (kind, seed): [
            one - other
            for one, other in zip(*(read(RUNS[name, seed]["points"][-1]["benchmarks"][kind]) for name in pair), strict=True)
        ]
        for kind in kinds
        for seed in seeds_of(pair)
    }
    by_seed = [statistics.mean(statistics.mean(rows[kind, seed]) for kind in kinds) for seed in seeds_of(pair)]
    by_question = [
        [statistics.mean(column) for column in zip(*(rows[kind, seed] for seed in seeds_of(pair)), strict=True)] for kind in kinds
    ]
    return by_seed, by_question


def same(row: dict[str, str], found: tuple[float, float, float]) -> None:
    assert [float(row[key]) for key in ("difference", "low", "high")] == pytest.approx(found, abs=2e-6)
    assert int(row["seeds"]) == len(SEEDS) >= 2


def halves(digits: str) -> tuple[float, ...]:
    """Numbers of 16 bits, the last byte first."""
    return struct.unpack(f"<{len(digits) // 4}e", bytes.fromhex(digits))


def test_the_area_under_the_loss_of_answers_and_descriptions():
    """By hand: straight lines over log tokens, from the first evaluation to the last; its error over the documents that all runs
    share is that of the mean difference of the runs whose records hold losses by document.
    """

    def area(xs: list[float], ys: list[float]) -> float:
        pieces = [(x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(zip(xs, ys, strict=True))]
        return sum(pieces) / (xs[-1] - xs[0])

    def of_run(run: dict) -> tuple[float, list[float]]:
        points, name = run["points"], "text/vqa"
        xs, losses = [math.log(point["tokens"]) for point in points], [point["losses"][name] for point in points]
        if not all(name in point.get("loss_items", {}) for point in points):
            return area(xs, losses), []
        items = [(halves(point["loss_items"][name]["nats"]), halves(point["loss_items"][name]["tokens"])) for point in points]
        off = [
            [(nats[d] - loss * tokens[d]) / statistics.mean(tokens) for (nats, tokens), loss in zip(items, losses, strict=True)]
            for d in range(len(items[0][0]))
        ]
        return area(xs, losses), [area(xs, values) for values in off]

    areas = {(name, seed): of_run(RUNS[name, seed]) for name in PAIR for seed in SEEDS}
    by_seed = [areas["tuna2", seed][0] - areas["tuna_r", seed][0] for seed in SEEDS]
    having = [seed for seed in SEEDS if areas["tuna2", seed][1] and areas["tuna_r", seed][1]]
    gaps_of = [[a - b for a, b in zip(areas["tuna2", seed][1], areas["tuna_r", seed][1], strict=True)] for seed in having]
    by_document = [[statistics.mean(column) for column in zip(*gaps_of, strict=True)]] if having else []
    same(table()["loss of answers and descriptions, area over log tokens"], interval(by_seed, by_document, shares=False))


def test_the_margin_at_the_end():
    """Over all benchmarks with closed answers."""
    last = [RUNS[name, seed]["points"][-1]["benchmarks"] for name in PAIR for seed in SEEDS]
    closed = [kind for kind in last[0] if all(scores[kind].get("margins") for scores in last)]
    assert len(closed) > 10
    same(table()["margin at the end"], interval(*gaps(closed, margins), shares=False))


@pytest.mark.parametrize("pair, names", [(PAIR, "Tuna-2 - Tuna-R"), (("tuna_r", "tuna"), "Tuna-R - Tuna")])
def test_the_readmes_margins_at_the_end(pair, names):
    """Over the benchmarks of the figure that have margins."""
    kinds = ["relations", "count", "pattern", "easy_vqa", "charts@2", "pairs@2", "search@2"]
    text = (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8")
    (numbers,) = re.findall(rf"margin at the end: {names} \*\*(\S+)\*\* \[(\S+), (\S+)\] \(accuracy", text)
    assert [float(number) for number in numbers] == pytest.approx(interval(*gaps(kinds, margins, pair), shares=False), abs=6e-4)


def test_an_accuracy_at_the_end():
    """Of pairs at level 2 (MMVP), where both answers of a pair must be right."""
    rows = {name: row for name, row in table().items() if name.startswith("pairs, level 2")}
    (row,) = (row for name, row in rows.items() if name.endswith("accuracy at the end"))
    by_seed, by_question = gaps(["pairs@2"], bits)
    same(row, interval(by_seed, by_question, shares=True))
