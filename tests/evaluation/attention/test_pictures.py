import numpy as np

from tunalab.evaluation.attention import KINDS, draw_examples, draw_heads, example_questions, shown_attention, shown_questions


def test_examples_are_of_every_kind_in_turn_and_fewer_are_the_first_of_more():
    found = example_questions(6, 32, 8)
    assert [one.benchmark for one in found] == [*KINDS, *KINDS[:2]]
    assert [one.question for one in example_questions(3, 32, 8)] == [one.question for one in found[:3]]


def test_what_is_shown_of_a_question():
    requests = example_questions(4, 32, 8)
    shown = shown_questions(requests)
    assert all(
        f"[{one.word}]" in caption and image.shape == (192, 192, 3) for one, (image, caption) in zip(requests, shown, strict=True)
    )


def test_rows_of_a_model(tiny_model, tokenizer):
    requests = example_questions(4, 32, 8)
    rows = shown_attention("tiny", tiny_model("patch_embed"), tokenizer, requests, 3)
    assert [len(row) for row in rows] == [4, 4]
    for row, place in zip(rows, ("word", "last token"), strict=True):
        assert all(caption.startswith(f"tiny, {place}: ") and "area" in caption for _, caption in row)
    assert not np.array_equal(rows[0][0][0], rows[1][0][0])
    picture = draw_examples([shown_questions(requests), *rows])
    assert picture.width == 4 * 200 + 8


def test_every_head_has_its_place():
    image_YHT = np.full((2, 3, 4), 0.25)
    image_YHT[1, 2] = [0, 0, 0, 1]
    picture = np.asarray(draw_heads(np.zeros((16, 16, 3), dtype=np.uint8), image_YHT, (2, 2)))
    warm = picture[..., 0].astype(int) - picture[..., 2]
    rows, columns = np.nonzero(warm > 100)
    assert rows.min() > picture.shape[0] / 2 and columns.min() > 2 * picture.shape[1] / 3
