"""easy-VQA as published: sizes, disjoint splits, deterministic documents and questions."""

import hashlib
import importlib.util
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image as PillowImage

from tunalab.data import easy_vqa
from tunalab.data.documents import Document, Image, Text
from tunalab.data.easy_vqa import EasyVqaCorpus, easy_vqa_benchmark, worded_questions
from tunalab.errors import UserError


def pairs(document: Document) -> list[tuple[str, str]]:
    texts = [segment for segment in document.segments if isinstance(segment, Text)]
    return [(texts[i].text, texts[i + 1].text) for i in range(0, len(texts), 2)]


def rows(split: str) -> list[tuple[str, str, int]]:
    return easy_vqa._read_rows(easy_vqa._data_folder(), split)


def test_published_sizes() -> None:
    train, test = rows("train"), rows("test")
    assert len({row[2] for row in train}) + len({row[2] for row in test}) == 5000
    assert len(train) + len(test) == 48248
    assert len({row[1] for row in [*train, *test]}) == 13


def test_no_image_is_in_both_splits() -> None:
    digests = {}
    for split, (count, _) in easy_vqa.SPLITS.items():
        files = sorted((easy_vqa._data_folder() / split / "images").glob("*.png"))
        assert len(files) == count
        pixels = [np.asarray(PillowImage.open(file).convert("RGB")).tobytes() for file in files]
        digests[split] = {hashlib.sha256(data).hexdigest() for data in pixels}
    assert not digests["train"] & digests["test"]


def test_document_layout() -> None:
    corpus = EasyVqaCorpus(32, 3)
    document = corpus.document(7)
    image, *texts = document.segments
    assert document.kind == "vqa" and corpus.name == "easy_vqa/vqa" and corpus.length == 4000
    assert isinstance(image, Image) and not image.generate
    assert image.pixels_HWC.shape == (32, 32, 3) and image.pixels_HWC.dtype == np.uint8
    assert [text.target for text in texts] == [False, True] * 3  # type: ignore[union-attr]
    published = {(prompt, answer) for prompt, answer, image_id in rows("train") if image_id == 7}
    assert len(set(pairs(document))) == 3 and set(pairs(document)) <= published


def test_images_are_averaged_whole() -> None:
    path = easy_vqa._data_folder() / "train" / "images" / "7.png"
    full = np.asarray(PillowImage.open(path).convert("RGB")).astype(np.float64)
    small = EasyVqaCorpus(32, 3).document(7).segments[0].pixels_HWC  # type: ignore[union-attr]
    assert np.abs(full.reshape(32, 2, 32, 2, 3).mean((1, 3)) - small).max() <= 1  # Pillow rounds after rows and after columns
    assert (EasyVqaCorpus(64, 3).document(7).segments[0].pixels_HWC == full).all()  # type: ignore[union-attr]


def test_document_is_a_function_of_the_index() -> None:
    first, second = EasyVqaCorpus(16, 3), EasyVqaCorpus(16, 3)
    forwards = [pairs(first.document(index)) for index in range(20)]
    backwards = [pairs(second.document(index)) for index in reversed(range(20))]
    assert forwards == backwards[::-1]


def test_next_epoch_asks_other_questions() -> None:
    corpus = EasyVqaCorpus(16, 3)
    requests = Counter(image_id for _, _, image_id in rows("train"))
    for image_id in range(30):
        now, later = corpus.document(image_id), corpus.document(image_id + 4000)
        assert (now.segments[0].pixels_HWC == later.segments[0].pixels_HWC).all()  # type: ignore[union-attr]
        assert (set(pairs(now)) != set(pairs(later))) == (requests[image_id] > 3)


def test_epochs_cover_all_questions_evenly() -> None:
    corpus = EasyVqaCorpus(16, 3)
    published = {(prompt, answer) for prompt, answer, image_id in rows("train") if image_id == 0}
    count = Counter(pair for epoch in range(len(published)) for pair in pairs(corpus.document(4000 * epoch)))
    assert set(count) == published and set(count.values()) == {3}


def test_an_image_with_two_questions_asks_both() -> None:
    requests = Counter(image_id for _, _, image_id in rows("train"))
    image_id = min(requests, key=lambda key: (requests[key], key))
    assert requests[image_id] == 2
    assert len(set(pairs(EasyVqaCorpus(16, 3).document(image_id)))) == 2


def test_benchmark_is_the_whole_test_split() -> None:
    questions = easy_vqa_benchmark(16)
    assert [(q.prompt, q.answer) for q in questions] == [(prompt, answer) for prompt, answer, _ in rows("test")]
    assert len({q.group for q in questions}) == 9673
    path = easy_vqa._data_folder() / "test" / "images" / f"{rows('test')[5000][2]}.png"
    expected = PillowImage.open(path).convert("RGB").resize((16, 16), PillowImage.Resampling.BOX)
    assert (questions[5000].image_HWC == np.asarray(expected)).all()


def test_benchmark_subsample() -> None:
    small = easy_vqa_benchmark(16, 50, seed=3)
    again = easy_vqa_benchmark(16, 50, seed=3)
    larger = easy_vqa_benchmark(16, 80, seed=3)
    other = easy_vqa_benchmark(16, 50, seed=4)
    assert len(small) == 50
    assert [q.group for q in small] == [q.group for q in again]
    assert {q.group for q in small} < {q.group for q in larger}
    assert [q.group for q in small] != [q.group for q in other]
    assert len(easy_vqa_benchmark(16, 10**6)) == 9673
    with pytest.raises(UserError, match="count 0"):
        easy_vqa_benchmark(16, 0)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (lambda: EasyVqaCorpus(32, 3), lambda: easy_vqa_benchmark(32), lambda: worded_questions("test")):
        with pytest.raises(UserError, match=r"tunalab\[data\]") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_other_data_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "questions.json").write_text('[["what is it?", "red", 0]]')
    monkeypatch.setattr(easy_vqa, "_data_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="1 images and 1 questions instead of 4000 and 38575"):
        EasyVqaCorpus(32, 3).document(0)
    with pytest.raises(UserError, match="cannot be read"):
        easy_vqa_benchmark(32)


def test_package_code_is_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    # A library that looks into whatever module is loaded (torch.package, dill) may have loaded it.
    monkeypatch.delitem(sys.modules, "easy_vqa", raising=False)
    easy_vqa_benchmark(16, 1)
    assert "easy_vqa" not in sys.modules
