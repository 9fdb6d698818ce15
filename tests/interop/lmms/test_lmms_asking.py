import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image

from tunalab.data.buckets import Buckets
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.evaluation.subject import Subject
from tunalab.interop.lmms import asking
from tunalab.interop.lmms.asking import DELIMITER, MAX_TOKENS, Request, fit, reply

PAPER = Buckets((((384, 672), (448, 576), (512, 512), (576, 448), (672, 384)),), max_crop=0.1, max_upscale=1.5)


def asked(item: int, text: str = "What is it?", limit: int = 40, image: Image.Image | None = None, stop: str = "") -> Request:
    until = [DELIMITER, *([stop] if stop else [])]
    pictures = [] if image is None else [image]
    return Request.of("gqa", item, text, lambda: pictures, {"max_new_tokens": limit, "until": until})


@pytest.mark.parametrize(
    ("width", "height", "size"), [(100, 100, (512, 512)), (2000, 900, (384, 672)), (300, 400, (576, 448)), (60, 2000, (672, 384))]
)
def test_an_image_goes_whole_into_the_nearest_bucket(width, height, size):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 200
    shown_HWC = fit(Image.fromarray(pixels), PAPER)
    assert shown_HWC.shape == (*size, 3)
    half = shown_HWC.shape[1] // 2
    assert shown_HWC[:, : half - 8].min() == 200 and shown_HWC[:, half + 8 :].max() == 0  # both halves, to the edges


def test_settings_of_a_request():
    assert Request.of("gqa", 0, "?", list, {}).max_tokens == MAX_TOKENS
    assert Request.of("gqa", 0, "?", list, {"max_new_tokens": 16, "until": "END"}).stops == ("END",)
    one = Request.of("gqa", 0, "?", list, {"until": ["ASSISTANT:", DELIMITER], "temperature": 0.7, "do_sample": True})
    assert one.stops == ("ASSISTANT:",)  # the separator of examples stands in the midst of long replies
    assert Request.of("gqa", 0, "?", list, {"until": None}).stops == ()


def test_replies_are_those_of_one_at_a_time(subject: Subject):
    images = [Image.fromarray(np.full((20 + 9 * number, 30, 3), 60 * number, np.uint8)) for number in range(4)]
    questions = [asked(number, "What is it?" * (1 + number % 2), 3 + number % 2, image) for number, image in enumerate(images)]
    questions.append(asked(4, image=None))
    together = reply(subject, questions, batch_tokens=100_000)
    assert together == [reply(subject, [question], batch_tokens=1)[0] for question in questions]
    assert len(set(together)) > 1


class Talker:
    """Stands for the model: says what it was asked, as token ids, and notes how."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int]] = []
        self.break_at: int | None = None

    def __call__(
        self, model: object, tokenizer: Tokenizer, questions: Sequence[tuple[np.ndarray | None, str]], limit: int, batch_tokens: int
    ) -> list[list[int]]:
        if len(self.calls) == self.break_at:
            raise KeyboardInterrupt
        self.calls.append(([text for _, text in questions], limit))
        return [tokenizer.encode(f"to {text}") for _, text in questions]


@pytest.fixture
def talker(monkeypatch: pytest.MonkeyPatch) -> Talker:
    made = Talker()
    monkeypatch.setattr(asking, "answer_ids", made)
    return made


def test_requests_of_one_limit_are_answered_together_and_cut_at_stops(subject, talker):
    found = reply(subject, [asked(0, "a", 80), asked(1, "bENDc", 40, stop="END"), asked(2, "d", 80)], 100)
    assert found == ["to a", "to b", "to d"]
    assert sorted(talker.calls) == [(["a", "d"], 80), (["bENDc"], 40)]


def test_an_interrupted_task_goes_on(subject, talker, monkeypatch):
    monkeypatch.setattr(asking, "AT_ONCE", 2)
    questions = [asked(number, f"{number}") for number in range(5)]
    kept_at = subject.folder / "replies.jsonl"
    talker.break_at = 2
    with pytest.raises(KeyboardInterrupt):
        reply(subject, questions, 100, kept_at)
    kept_at.write_text(kept_at.read_text()[:-5])  # the last line was being written
    talker.break_at = None
    assert reply(subject, questions, 100, kept_at) == [f"to {number}" for number in range(5)]
    assert [texts for texts, _ in talker.calls] == [["0", "1"], ["2", "3"], ["3", "4"]]
    assert len([json.loads(line) for line in kept_at.read_text().splitlines()]) == 5
    assert reply(subject, questions, 100, kept_at) == [f"to {number}" for number in range(5)]
    assert len(talker.calls) == 3


def test_a_reply_to_another_question_is_not_taken_over(subject, talker):
    kept_at = subject.folder / "replies.jsonl"
    reply(subject, [asked(0, "old")], 100, kept_at)
    assert reply(subject, [asked(0, "new"), asked(1, "old")], 100, kept_at) == ["to new", "to old"]


def damaged() -> list[Image.Image]:
    raise OSError("image file is truncated (3 bytes not processed)")


def test_an_image_that_cannot_be_read_is_one_line(subject: Subject):
    with pytest.raises(UserError, match=r"^gqa, item 7: unreadable image: image file is truncated \(3 bytes not processed\)$"):
        reply(subject, [Request("gqa", 7, "?", damaged)], 100)


def test_of_several_images_the_first_is_shown(subject, monkeypatch):
    shown: list[np.ndarray | None] = []

    def look(
        model: object, tokenizer: object, questions: Sequence[tuple[np.ndarray | None, str]], limit: int, batch_tokens: int
    ) -> list[list[int]]:
        shown.extend(image for image, _ in questions)
        return [[]] * len(questions)

    monkeypatch.setattr(asking, "answer_ids", look)
    white, black = (Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (255, 0))
    images: list[Callable[[], list[Image.Image]]] = [lambda: [white, black], lambda: []]
    reply(subject, [Request("mmmu_val", number, "?", one) for number, one in enumerate(images)], 100)
    assert shown[0] is not None and shown[0].min() == 255 and shown[1] is None
