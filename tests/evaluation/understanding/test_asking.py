"""The understanding part: a reader of the scene graph is right everywhere, and what was answered is not asked again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tests.conftest import small_config
from tests.data.scenes.solver import solve

from tunalab.data.scenes import BENCHMARKS, SPLITS, Scene, benchmark_scenes, render
from tunalab.errors import UserError
from tunalab.evaluation.along import evaluate
from tunalab.evaluation.benchmarks import QUESTION_SEED
from tunalab.evaluation.parts import SCENE_SPLITS, UnderstandingSettings
from tunalab.evaluation.subject import Subject
from tunalab.evaluation.understanding import measure

Questions = Sequence[tuple[np.ndarray | None, str]]


@dataclass(frozen=True, eq=False)
class Reader(Subject):
    """Answers from the scene graph behind an image, of which it is given neither question nor answer; "0" to what has no image."""

    scenes: dict[bytes, Scene] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    wrong: frozenset[bytes] = frozenset()

    def answers(self, questions: Questions, max_tokens: int | None = None) -> list[str]:
        self.asked.append(len(questions))
        return [self._answer(image, prompt) for image, prompt in questions]

    def _answer(self, image: np.ndarray | None, prompt: str) -> str:
        if image is None:
            return "0"
        return "wrong" if image.tobytes() in self.wrong else solve(self.scenes[image.tobytes()], prompt)


def reader(folder: Path, settings: UnderstandingSettings, **more: Any) -> Reader:
    known = {}
    for kind in settings.benchmarks:
        for level in settings.levels:
            for split in settings.splits:
                for scene in benchmark_scenes(kind, level, split, QUESTION_SEED, settings.groups, fewer=True):
                    for view in filter(None, (scene, scene.twin)):
                        known[render(view, 32).tobytes()] = replace(view, prompt="", answer="", template="", options=0, twin=None)
    nothing = cast(Any, None)
    return Reader(nothing, nothing, small_config(), folder, {}, quiet=True, scenes=known, **more)


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_a_reader_of_the_scene_graph_reaches_the_ceiling_at_every_level_in_both_splits(kind: str, tmp_path: Path) -> None:
    settings = UnderstandingSettings(groups=30, benchmarks=[kind], easy_vqa=0)
    found = measure(reader(tmp_path, settings), settings)
    observed = {(one.benchmark, one.split): one for one in found if one.metric == "accuracy"}
    names = [kind, f"{kind}@2", f"{kind}@3"]
    assert set(observed) == {(name, split) for name in names for split in SCENE_SPLITS}
    for one in observed.values():
        assert one.value == one.ceiling == 1 and one.items == [1] * 30 and one.failures == 0
        assert one.chance is not None and 0 < one.chance < 0.5 and one.low is not None and one.chance < one.low < one.high == 1
        assert one.note == ("both images of a pair right" if kind == "pairs" else "")
    blind = [one for one in found if one.metric == "accuracy without image"]
    assert len(blind) == (0 if kind == "pairs" else 6) and all(one.value == 0 and one.ceiling is None for one in blind)


def test_a_pair_is_right_only_if_both_of_its_images_are(tmp_path: Path) -> None:
    settings = UnderstandingSettings(groups=8, benchmarks=["pairs"], levels=[1], splits=["test"], easy_vqa=0)
    scenes = benchmark_scenes("pairs", 1, "test", QUESTION_SEED, 8)
    harmed = frozenset(render(cast(Scene, scene), 32).tobytes() for scene in (scenes[1].twin, scenes[4]))
    (one,) = measure(reader(tmp_path, settings, wrong=harmed), settings)
    assert one.items == [1, 0, 1, 1, 0, 1, 1, 1] and one.value == 0.75 and one.n == 8 and one.chance == 0.25


def test_where_there_are_fewer_scenes_all_are_asked_and_it_says_so(tmp_path: Path) -> None:
    settings = UnderstandingSettings(groups=1000, benchmarks=["ocr"], levels=[1], easy_vqa=0)
    found = [one for one in measure(reader(tmp_path, settings), settings) if one.metric == "accuracy"]
    assert [(one.split, one.n) for one in found] == [("test", 379), ("composition", 382)]
    assert found[0].note == "the 379 scenes that there are, of 1000 asked for"
    assert all(one.value == 1 and len(one.items) == one.n for one in found)


def test_a_smaller_evaluation_asks_the_beginning_of_a_larger_one() -> None:
    few, many = (benchmark_scenes("charts", 2, "composition", QUESTION_SEED, groups) for groups in (5, 9))
    assert few == many[:5]


def test_no_split_that_is_asked_is_trained_on() -> None:
    assert set(SCENE_SPLITS) == set(SPLITS) - {"train", "components"}


def test_an_interrupted_evaluation_asks_only_what_it_has_no_answers_to(tmp_path: Path) -> None:
    settings = UnderstandingSettings(groups=4, benchmarks=["count", "search"], levels=[1], easy_vqa=0)
    first = reader(tmp_path, settings)
    found = measure(first, settings)
    assert len(first.asked) == 4
    again = reader(tmp_path, settings)
    assert measure(again, settings) == found and again.asked == []
    rows = json.loads((tmp_path / "count-test.json").read_text())
    assert len(rows) == 4 and all(expected == given and blind == "0" for _, expected, given, blind in rows)
    (tmp_path / "count-test.json").write_text("[[")  # half a file
    other = json.loads((tmp_path / "search-test.json").read_text())
    other[2][1] = "purple with dots"  # the answers to other questions
    (tmp_path / "search-test.json").write_text(json.dumps(other))
    assert measure(again, settings) == found and len(again.asked) == 2


def test_questions_without_image_are_asked_once(tmp_path: Path) -> None:
    settings = UnderstandingSettings(groups=30, benchmarks=["pattern"], levels=[1, 3, 1], splits=["test"], easy_vqa=0)
    requests = reader(tmp_path, settings)
    measure(requests, settings)
    assert requests.asked == [30 + 2, 30]  # what shape, what colour is missing?


def test_easy_vqa_is_of_its_test_split_and_its_chance_is_what_the_wording_tells(tmp_path: Path) -> None:
    pytest.importorskip("easy_vqa")

    class Denying(Reader):
        def _answer(self, image: np.ndarray | None, prompt: str) -> str:
            return "no" if image is None else "yes"

    settings = UnderstandingSettings(groups=0, easy_vqa=300)
    nothing = cast(Any, None)
    observed, blind = measure(Denying(nothing, nothing, small_config(), tmp_path, {}, quiet=True), settings)
    assert (observed.benchmark, observed.split, observed.n, observed.ceiling) == ("easy_vqa", "test", 300, None)
    assert blind.metric == "accuracy without image" and 0.6 < cast(float, observed.chance) == cast(float, blind.chance) < 0.7
    assert 0.2 < observed.value < 0.5 and 0.2 < blind.value < 0.5  # the other questions ask for colours and shapes
    assert not any(yes and no for yes, no in zip(observed.items, blind.items, strict=True))


def test_what_cannot_be_asked_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = UnderstandingSettings(groups=0, easy_vqa=0)
    with pytest.raises(UserError, match="leave nothing to ask"):
        measure(reader(tmp_path, nothing), nothing)
    monkeypatch.setattr("tunalab.data.easy_vqa.importlib.util.find_spec", lambda name: None)
    settings = UnderstandingSettings(groups=2, benchmarks=["count"], levels=[1])
    requests = reader(tmp_path, settings)
    with pytest.raises(UserError, match="pip install 'tunalab.*understanding.easy_vqa=0"):
        measure(requests, settings)
    assert requests.asked == []


def test_a_model_answers_as_at_the_points_of_its_run(tmp_path: Path, tiny_model: Any, tokenizer: Any) -> None:
    config = small_config()
    e = config.evaluation
    e.groups, e.easy_vqa, e.loss_documents, e.psnr_images = 12, 0, 0, 0
    model = tiny_model("patch_embed", config=config)
    point = evaluate(model, tokenizer, config)["benchmarks"]
    settings = UnderstandingSettings(groups=12, levels=[1, 3], splits=["test"], easy_vqa=0)
    found = measure(Subject(model, tokenizer, config, tmp_path, {}, quiet=True), settings)
    observed = {one.benchmark: one for one in found if one.metric == "accuracy"}
    assert observed.keys() == point.keys()
    for name, score in point.items():
        assert (observed[name].value, observed[name].n, observed[name].chance) == (score["accuracy"], score["n"], score["chance"])
        assert np.packbits(np.asarray(observed[name].items, dtype=bool)).tobytes().hex() == score["outcomes"]
