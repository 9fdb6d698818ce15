"""The tokenizer: round trips, one spelling per answer, letters read one by one, special tokens that must exist."""

from pathlib import Path

import pytest

from tunalab.data.tokenizer import QWEN25_SPECIALS, SpecialTokens, Tokenizer, train_tokenizer
from tunalab.errors import UserError

TEXTS = [
    "a large red circle at the top left. the word CAB is written below.",
    "how many small green triangles are there? 3",
    "what colour is the square left of the star? yellow",
    "which word is written? QXZ",
] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocabulary=400)


@pytest.mark.parametrize(
    "text",
    [
        "a large red circle",
        "red",
        "CAB",
        "3",
        "word CAB and 27%?",
        "naïve Übung 日本語 🙂 \u202e\x00",
        "two  spaces,\ttab\nnewline",
        "(marks) 'quoted' a+b=c",
        "<|eos|> is text here, <|image|> too",
        "ABCdefGHI123jkl",
        "",
    ],
)
def test_any_string_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocabulary for i in ids)
    special = {tokenizer.bos, tokenizer.eos, tokenizer.boi, tokenizer.eoi, tokenizer.image_pad, tokenizer.pad}
    assert not special & set(ids)


@pytest.mark.parametrize("answer", ["red", "triangle", "yellow", "3", "QXZ"])
def test_an_answer_has_one_spelling(tokenizer: Tokenizer, answer: str) -> None:
    ids = tokenizer.encode(answer)
    assert tokenizer.encode(" " + answer) == ids
    inside = tokenizer.encode(f"is it {answer} now")
    assert any(inside[i : i + len(ids)] == ids for i in range(len(inside)))


def test_capitals_and_digits_stand_alone_and_words_are_whole(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer.encode("CAB27")] == list("CAB27")
    assert len(tokenizer.encode("large red circle")) == 3


def test_frequent_capitals_are_never_merged() -> None:
    trained = train_tokenizer(["the word CAB 100"] * 500, vocabulary=600)
    assert len(trained.encode("CAB100")) == 6


def test_decode_drops_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([tokenizer.bos, *tokenizer.encode("red"), tokenizer.eos, tokenizer.pad]) == "red"


def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    for text in [*TEXTS[:4], "<|eos|> 日本"]:
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text
    for name in ("bos", "eos", "boi", "eoi", "image_pad", "pad", "vocabulary"):
        assert getattr(loaded, name) == getattr(tokenizer, name)


def test_training_is_deterministic(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(TEXTS, vocabulary=400).backend.get_vocab() == tokenizer.backend.get_vocab()


def test_foreign_tokenizer_needs_its_special_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.backend.save_pretrained(str(tmp_path))  # a folder without our sidecar file
    with pytest.raises(UserError, match=r"boi <\|vision_start\|>"):
        Tokenizer.load(tmp_path, QWEN25_SPECIALS)
    loaded = Tokenizer.load(tmp_path, SpecialTokens())
    before = loaded.vocabulary
    grown = Tokenizer.with_specials(loaded.backend, QWEN25_SPECIALS)
    assert grown.vocabulary == before + 6
    assert sorted([grown.bos, grown.eos, grown.boi, grown.eoi, grown.image_pad, grown.pad]) == list(range(before, before + 6))
    assert Tokenizer.with_specials(grown.backend, QWEN25_SPECIALS).vocabulary == before + 6


def test_bad_input_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer in"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"broken": ')
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="too small"):
        train_tokenizer(TEXTS, vocabulary=100)
    with pytest.raises(UserError, match="must differ"):
        Tokenizer(tokenizer.backend, SpecialTokens(pad="<|eos|>"))
