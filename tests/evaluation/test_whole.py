"""Parts in turn: each is measured once, what fails or is stopped costs no other."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from tests.conftest import small_config

from tunalab.errors import UserError
from tunalab.evaluation import parts
from tunalab.evaluation.measure import Measure, mean, share
from tunalab.evaluation.parts import PARTS, Piece, find_parts
from tunalab.evaluation.subject import Subject
from tunalab.evaluation.whole import Evaluated, evaluate_parts, read_evaluated, to_text


@dataclass
class OfPart:
    groups: int = 3


@dataclass
class Settings:
    first: OfPart = field(default_factory=OfPart)
    second: OfPart = field(default_factory=OfPart)
    third: OfPart = field(default_factory=OfPart)


NAMES = ["first", "second", "third"]


@dataclass
class Bench:
    """Three parts that measure nothing in no time; ``fail`` makes one raise."""

    folder: Path
    calls: list[str] = field(default_factory=list)
    fail: dict[str, BaseException] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    def measure(self, name: str, subject: Subject, settings: OfPart) -> list[Measure]:
        self.calls.append(name)
        (subject.folder / "answers.txt").write_text(name)
        if name in self.fail:
            raise self.fail[name]
        return [share("understanding", name, [True] * settings.groups), mean("editing", name, [1.0, 2.0], metric="psnr")]

    def evaluate(self, settings: Settings | None = None, tokens: int = 1000) -> tuple[list[Evaluated], dict[str, str]]:
        nothing = cast(Any, None)
        subject = Subject(nothing, nothing, small_config(), self.folder, {"run": "tuna2", "tokens": tokens}, quiet=True)
        chosen = cast(Any, settings or Settings())
        return evaluate_parts(subject, chosen, NAMES, self.said.append, lambda result: self.done.append(result.part))

    def pieces(self, settings: OfPart) -> list[Piece]:
        """The second part, divided: its pieces differ in nothing but their names."""
        if "second" in self.fail:
            raise self.fail["second"]
        return [
            Piece(f"second-{name}", {"groups": 3}, partial(lambda name, subject: self.measure(name, subject, settings), name))
            for name in "abc"
        ]

    def result(self, name: str) -> Path:
        (path,) = self.folder.glob(f"{name}-*/result.json")
        return path


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    for name in NAMES:
        module = ModuleType(f"part_{name}")
        module.measure = lambda subject, settings, name=name: made.measure(name, subject, settings)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(PARTS, name, module.__name__)
    return made


def test_what_is_measured_is_not_measured_again(bench: Bench) -> None:
    results, errors = bench.evaluate()
    assert [result.part for result in results] == bench.calls == bench.done == NAMES and not errors
    assert results[0].settings == {"groups": 3} and results[0].origin == {"run": "tuna2", "tokens": 1000}
    again, _ = bench.evaluate()
    assert again == results and bench.calls == NAMES and "measured already" in bench.said[-1]


def test_another_model_or_other_settings_are_measured_in_a_place_of_their_own(bench: Bench) -> None:
    bench.evaluate()
    further, _ = bench.evaluate(tokens=2000)
    assert bench.calls == [*NAMES, *NAMES] and further[0].origin["tokens"] == 2000
    more, _ = bench.evaluate(Settings(second=OfPart(5)))
    assert bench.calls == [*NAMES, *NAMES, "second"] and [result.measures[0].n for result in more] == [3, 5, 3]
    assert len(list(bench.folder.glob("*/answers.txt"))) == 7


def test_a_part_that_cannot_be_measured_keeps_the_others(bench: Bench) -> None:
    bench.fail["second"] = UserError("second: the data is not installed")
    results, errors = bench.evaluate()
    assert [result.part for result in results] == bench.done == ["first", "third"]
    assert errors == {"second": "second: the data is not installed"} and not list(bench.folder.glob("second-*/result.json"))
    assert any(line.startswith("error: second: ") for line in bench.said)
    del bench.fail["second"]
    results, errors = bench.evaluate()
    assert len(results) == 3 and not errors and bench.calls == [*NAMES, "second"]


def test_the_pieces_of_a_divided_part_are_measured_kept_and_fail_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "DIVIDED", frozenset({"second"}))
    monkeypatch.setattr(sys.modules["part_second"], "pieces", bench.pieces, raising=False)
    bench.fail["b"] = UserError("item 7 is unreadable")
    results, errors = bench.evaluate()
    assert bench.done == [result.part for result in results] == ["first", "second-a", "second-c", "third"]
    assert errors == {"second-b": "item 7 is unreadable"}
    del bench.fail["b"]
    results, errors = bench.evaluate(Settings(second=OfPart(5)))  # a setting that no piece hangs on
    assert bench.calls == ["first", "a", "b", "c", "third", "b"] and len(results) == 5 and not errors
    bench.fail["second"] = UserError("no data at all")
    results, errors = bench.evaluate()
    assert [result.part for result in results] == ["first", "third"] and errors == {"second": "no data at all"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_what_stops_an_evaluation_leaves_what_is_measured(bench: Bench, stop: BaseException) -> None:
    bench.fail["second"] = stop
    with pytest.raises(type(stop)):
        bench.evaluate()
    assert bench.done == ["first"] and read_evaluated(bench.result("first")).part == "first"
    assert [path.name for path in bench.folder.glob("second-*/*")] == ["answers.txt"], "the part may go on from what it kept"
    del bench.fail["second"]
    bench.evaluate()
    assert bench.calls == ["first", "second", "second", "third"]


HARM: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[1, 2]",
    "no measures": lambda text: text.replace('"measures"', '"measured"'),
    "another field": lambda text: text.replace('"chance"', '"luck"'),
    "another kind": lambda text: text.replace('"kind":"editing"', '"kind":"dancing"'),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_result_is_named_and_keeps_the_others(bench: Bench, harm: str) -> None:
    bench.evaluate()
    path = bench.result("first")
    path.write_text(HARM[harm](path.read_text()))
    results, errors = bench.evaluate()
    assert [result.part for result in results] == ["second", "third"] and bench.calls == NAMES
    assert f"{path} is no result of an evaluation" in errors["first"] and "\n" not in errors["first"]
    path.unlink()
    results, errors = bench.evaluate()
    assert len(results) == 3 and not errors


def test_a_part_measures_nothing_twice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    one = share("understanding", "count", [True])
    monkeypatch.setattr(bench, "measure", lambda name, subject, settings: [one, replace(one, value=0.5)])
    with pytest.raises(ValueError, match="first measures twice"):
        bench.evaluate()


def test_a_result_is_a_line_a_measure_and_comes_back_whole(tmp_path: Path) -> None:
    measures = [share("understanding", "count", [True, False], split="test"), mean("editing", "move", [0.1, 0.2], metric="psnr")]
    result = Evaluated("first", {"groups": 3}, {"run": "a"}, 1.5, measures)
    (tmp_path / "result.json").write_text(to_text(result))
    assert read_evaluated(tmp_path / "result.json") == result
    assert sum(line.startswith(' {"kind"') for line in to_text(result).splitlines()) == 2
    with pytest.raises(ValueError, match="JSON"):
        to_text(replace(result, measures=[replace(measures[0], value=float("nan"))]))


def test_parts_are_known_by_name(bench: Bench) -> None:
    assert find_parts(["third", "first", "third"]) == ["third", "first"]
    with pytest.raises(UserError, match="unknown part 'fourth' .*understanding.*first, second, third"):
        find_parts(["first", "fourth"])
