from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tunalab.data.sequence import ImageSpan
from tunalab.evaluation import attention as on_object
from tunalab.evaluation.attention import KINDS, ThingQuestion, by_column, measure, on_thing, thing_questions
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.parts import AttentionSettings, find_parts, load_part
from tunalab.evaluation.subject import Subject

SETTINGS = AttentionSettings(questions=6, levels=[1, 3])
LAYERS, HEADS, TOKENS = 2, 4, 16
BEFORE_IMAGE, BEHIND = 3, 2  # bos boi time; eoi and a token of the question


@pytest.fixture
def subject(tiny_model: Callable[..., object], tokenizer: object, tmp_path: Path) -> Subject:
    from tests.conftest import small_config

    return Subject(tiny_model("patch_embed"), tokenizer, small_config(), tmp_path, {}, quiet=True)  # type: ignore[arg-type]


def hand_made(thing: list[float], others: list[list[float]] | None = None) -> ThingQuestion:
    cover = np.array(thing)
    pixels = np.zeros((16, 16), dtype=bool)
    return ThingQuestion("hand", np.zeros((16, 16, 3), np.uint8), "", "", pixels, cover, [np.array(one) for one in others or []])


def test_attention_that_is_right_wrong_or_nowhere():
    requests = hand_made([0, 0.8, 0.5, 0.1], others=[[0.8, 0, 0, 0], [0, 0, 0, 0.4]])
    on = [0, 0.3, 0, 0]
    off = [0.2, 0, 0, 0.1]
    alike = [0.1] * 4
    past_the_image = [0.0] * 4
    share, hit, other = on_thing(requests, np.array([[on, off], [alike, past_the_image]]))
    average = np.mean([on, off, alike, past_the_image], axis=0)
    assert share[0] == pytest.approx(average @ requests.cover_T / average.sum())
    np.testing.assert_allclose(share[1:], [0.8, (0.1 * 0.1) / 0.3, requests.area, 0])
    assert hit[[1, 2]].tolist() == [True, False]
    np.testing.assert_allclose(other[1:4], [0, (0.2 * 0.4 + 0.1 * 0.2) / 0.3, (0.8 + 0.4) / 2 / 4])
    assert requests.on_T.tolist() == [False, True, True, False]
    assert np.isnan(on_thing(hand_made([1, 0, 0, 0]), np.ones((1, 1, 4)))[2]).all()


@pytest.mark.parametrize("patch", [4, 8, 16])
@pytest.mark.parametrize("image_size", [32, 64, 512])
def test_maps_that_prefer_nothing_point_as_often_as_chance_says(image_size: int, patch: int):
    """Random weights; the same rounded so that many are equally large; all equal; none at all."""
    draw, maps, tokens = np.random.default_rng(0), 300, (image_size // patch) ** 2
    requests = thing_questions((1,), 1 if image_size > 64 else 4, image_size, patch)
    chance_N = np.array([one.on_T.mean() for one in requests])
    sigma = np.sqrt((chance_N * (1 - chance_N)).sum() / maps) / len(requests)
    assert 0 < chance_N.mean() < 0.6 and sigma < 0.02
    looks = {
        "random": lambda: draw.random((1, maps, tokens), dtype=np.float32),
        "rounded": lambda: np.round(8 * draw.random((1, maps, tokens), dtype=np.float32)),
        "all equal": lambda: np.full((1, maps, tokens), 1 / tokens, np.float32),
        "nowhere": lambda: np.zeros((1, maps, tokens), np.float32),
    }
    for name, look in looks.items():
        hits = [on_thing(one, look())[1][1:].mean() for one in requests]
        assert abs(np.mean(hits) - chance_N.mean()) < 4 * sigma, name


def test_attention_by_column():
    weights_YHS = np.array([[[1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512]]])  # bos boi time 1 2 3 4 eoi what colour
    span = ImageSpan(2, 5, np.zeros((16, 16, 3), np.uint8), generate=False)
    assert by_column(weights_YHS, span).tolist() == [8 + 16 + 32 + 64, 4, 1 + 2 + 128, 256 + 512]


def pretend(monkeypatch: pytest.MonkeyPatch, looks: Callable[[int, ThingQuestion], np.ndarray]) -> None:
    """Attention of layers and heads to the image (Y, H, T) as given by the number of a question and the question."""
    requests = thing_questions(tuple(SETTINGS.levels), SETTINGS.questions, 32, 8)

    def rows(model: object, prompts: Sequence[object]):
        for number in reversed(range(len(prompts))):  # in any order
            image_YHT = looks(number, requests[number])
            sides = [np.full((LAYERS, HEADS, n), 0.1) for n in (BEFORE_IMAGE, BEHIND)]
            yield number, np.concatenate([sides[0], image_YHT, sides[1]], axis=2)

    monkeypatch.setattr(on_object, "last_rows", rows)


def everywhere(value: np.ndarray) -> np.ndarray:
    return np.broadcast_to(value, (LAYERS, HEADS, TOKENS)).copy()


def values(measures: list[Measure], metric: str) -> dict[str, Measure]:
    return {one.benchmark: one for one in measures if one.metric == metric}


def test_attention_to_the_thing_alone_reaches_the_ceiling(subject, monkeypatch):
    pretend(monkeypatch, lambda number, asked: everywhere(np.eye(TOKENS)[asked.cover_T.argmax()]))
    measures = measure(subject, SETTINGS)
    for metric in ("share on the thing", "lift on the thing", "pointing"):
        for view in ("average", "best head"):
            found = values(measures, f"{metric}, word, {view}")
            assert len(found) == 2 * len(KINDS) + 1
            for one in found.values():
                assert one.value == pytest.approx(one.ceiling) and one.ceiling > 2 * one.chance
                assert one.n == len(one.items) == (48 if one.benchmark == "all" else 6) // (1 if view == "average" else 2)
    beside = values(measures, "share on others, word, average")
    assert all(beside[kind].value == 0 for kind in ("relations", "pairs", "search"))


def test_attention_that_prefers_nothing_is_at_chance(subject, monkeypatch):
    pretend(monkeypatch, lambda number, asked: everywhere(np.full(TOKENS, 0.05)))
    for one in measure(subject, SETTINGS):
        if "pointing" not in one.metric and "attention to" not in one.metric:
            assert one.value == pytest.approx(one.chance), one.metric


def test_attention_beside_the_thing_is_below_chance(subject, monkeypatch):
    pretend(monkeypatch, lambda number, asked: everywhere((asked.cover_T == 0).astype(float)))
    measures = measure(subject, SETTINGS)
    for metric in ("share on the thing", "lift on the thing", "pointing"):
        assert all(one.value == 0 for one in values(measures, f"{metric}, last token, average").values())
    assert any(one.value > 0.1 for one in values(measures, "share on others, word, average").values())


def test_the_best_head_is_chosen_on_questions_that_it_is_not_reported_on(subject, monkeypatch):
    """One head is right on the questions that choose alone, another on those that are reported: choosing on them would find it."""

    def looks(number: int, asked: ThingQuestion) -> np.ndarray:
        image_YHT = everywhere((asked.cover_T == 0).astype(float))
        image_YHT[(0, 1) if number % SETTINGS.questions % 2 == 0 else (1, 3)] = np.eye(TOKENS)[asked.cover_T.argmax()]
        return image_YHT

    pretend(monkeypatch, looks)
    found = values(measure(subject, SETTINGS), "pointing, word, best head")
    assert all(one.value == 0 and one.note.startswith("layer 0, head 1:") for one in found.values())


def test_a_model_is_measured_as_a_part(subject):
    measures = load_part("attention").measure(subject, SETTINGS)
    assert "attention" in find_parts(None)
    assert len({one.key for one in measures}) == len(measures)
    assert all(one.kind == "attention" and len(one.items) == one.n for one in measures)
    columns = [one for one in measures if one.metric.startswith("attention to")]
    assert len(columns) == 12 and all(one.n == 48 for one in columns)
    for row in ("first token", "word", "last token"):
        of_row = [one for one in columns if one.metric.endswith(row)]
        assert sum(one.value for one in of_row) == pytest.approx(1) == sum(one.chance for one in of_row)
    image = {one.metric: one for one in columns}["attention to image, first token"]
    assert image.chance == pytest.approx(16 / 21)  # bos boi time, 16 patches, eoi, the token itself
    assert all(one.benchmark == "all" for one in columns)
