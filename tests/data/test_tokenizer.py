"""The tokenizer: round trips, one spelling per answer, letters read one by one, special tokens that must exist."""

import copy
import json
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.checkpoints import save_qwen_tokenizer

from tunalab.data.documents import Document, Text
from tunalab.data.manifest import ManifestCorpus
from tunalab.data.sequence import to_sequence
from tunalab.data.tokenizer import QWEN25_SPECIALS, SpecialTokens, Tokenizer, pretrained_tokenizer, train_tokenizer
from tunalab.errors import UserError

TEXTS = [
    "a large red circle at the top left. the word CAB is written below.",
    "how many small green triangles are there? 3",
    "what colour is the square left of the star? yellow",
    "which word is written? QXZ",
] * 20


CASES = Path(__file__).parent / "cases"
SPECIALS = [*vars(SpecialTokens()).values(), *vars(QWEN25_SPECIALS).values()]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocabulary=400)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("qwen")
    save_qwen_tokenizer(folder, ("<|im_start|>", "<|im_end|>"))
    return pretrained_tokenizer(str(folder), "decoder.tokenizer")


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


def case_lines() -> list[str]:
    return (CASES / "special_tokens_in_text.jsonl").read_text().splitlines()


def as_text(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Their ids, of which none is a special token's."""
    encoded = [tokenizer.encode(text) for text in texts]
    special = {tokenizer.bos, tokenizer.eos, tokenizer.boi, tokenizer.eoi, tokenizer.image_pad, tokenizer.pad}
    assert not special & {i for ids in encoded for i in ids}
    return encoded


COPIES: dict[str, Callable[[Tokenizer], Tokenizer]] = {
    "pickle": lambda tokenizer: pickle.loads(pickle.dumps(tokenizer)),
    "pickle of a pickle": lambda tokenizer: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(tokenizer)))),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("kind", ["tokenizer", "pretrained"])
@pytest.mark.parametrize("how", list(COPIES))
def test_text_that_spells_special_tokens_stays_text_in_every_copy(kind: str, how: str, request: pytest.FixtureRequest) -> None:
    original: Tokenizer = request.getfixturevalue(kind)
    texts = [*SPECIALS, "".join(SPECIALS), *case_lines()]
    expected = as_text(original, texts)
    assert as_text(COPIES[how](original), texts) == expected == as_text(original, texts)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_every_kind_of_process_encodes_alike(method: str, tokenizer: Tokenizer, pretrained: Tokenizer) -> None:
    texts = [*SPECIALS, *case_lines()]
    expected = as_text(tokenizer, texts) + as_text(pretrained, texts)
    with multiprocessing.get_context(method).Pool(1) as pool:
        tasks = [pool.map_async(one.encode, texts, len(texts)) for one in (tokenizer, pretrained)]
        assert sum((task.get(120) for task in tasks), []) == expected


def test_a_call_of_the_library_leaves_nothing_behind(tokenizer: Tokenizer) -> None:
    """The library keeps the flags of the latest call, and tokenizer.json may hold some."""
    own = copy.deepcopy(tokenizer)
    own.backend("a <|eos|>", truncation=True, max_length=2, padding="max_length", split_special_tokens=False)
    assert own.encode("a red <|eos|> circle") == tokenizer.encode("a red <|eos|> circle")
    assert own.encode("") == []


def test_documents_that_spell_special_tokens_have_the_slots_of_their_own_image(tokenizer: Tokenizer) -> None:
    copied = pickle.loads(pickle.dumps(tokenizer))
    corpus = ManifestCorpus(CASES / "special_tokens_in_text.jsonl", image_size=32)
    for index, line in enumerate(case_lines()):
        sequences = [to_sequence(corpus.document(index), one, token_pixels=8, drop_prompt=False) for one in (tokenizer, copied)]
        images = "image" in json.loads(line)
        for sequence in sequences:
            ids = sequence.ids_L.tolist()
            assert ids == sequences[0].ids_L.tolist()
            assert ids.count(tokenizer.image_pad) == (1 + 16) * images, line
            assert [ids.count(end) for end in (tokenizer.bos, tokenizer.eos)] == [1, 1], line


@pytest.mark.parametrize("text", ["    return 1\n    # end", "  two", "one", "    lower"])
def test_an_indentation_stays_in_what_is_learnt(tokenizer: Tokenizer, text: str) -> None:
    document = Document("text", (Text(text, target=True),))
    ids = to_sequence(document, tokenizer, 8).ids_L.tolist()
    assert (
        text in tokenizer.backend.decode(ids).replace(tokenizer.specials.bos, "")
        and tokenizer.decode(tokenizer.encode(text)) == text
    )
    assert tokenizer.encode(" one") == tokenizer.encode("one"), "a single blank is none"
