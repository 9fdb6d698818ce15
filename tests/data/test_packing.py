"""Packing: nothing lost, doubled or cut; nothing starves; rows are full; a batch says truly what it holds."""

import dataclasses
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tunalab.data.documents import IMAGES_PER_DOCUMENT, Document, Image, Text
from tunalab.data.mixing import Mixer
from tunalab.data.packing import PackedBatch, Placed, collate, fill_row
from tunalab.data.sequence import TokenSequence, to_sequence
from tunalab.data.sources import build_source
from tunalab.data.stream import TrainingStream
from tunalab.data.tokenizer import Tokenizer
from tunalab.settings.loading import load_config
from tunalab.settings.schema import DataConfig

TOKEN_PIXELS, T = 4, 4  # an image of 8 px has four visual tokens
EXPERIMENT = Path(__file__).parents[2] / "experiments" / "scenes.yaml"


def plain(length: int, position: int = 0) -> Placed:
    """A document of text alone; its tokens say who they are."""
    ids = np.arange(length, dtype=np.int64) + 1000 * position
    return Placed(position, TokenSequence("text", ids, np.arange(length) > 0, ()))


def sample(tokenizer: Tokenizer, count: int = 12, seed: int = 0) -> list[Placed]:
    """Documents of every kind in turn."""
    rng = np.random.default_rng(seed)

    def image(generate: bool = False) -> Image:
        return Image(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), generate)

    documents = []
    for at in range(count):
        words = Text("red ring " * int(rng.integers(1, 4)))
        answer = Text("blue cross " * int(rng.integers(1, 4)), target=True)
        segments: tuple[Text | Image, ...] = [
            (image(), words, answer, words, answer),
            (words, image(generate=True)),
            (image(), words, image(generate=True)),
            (words, answer),
            (image(), answer),
        ][at % 5]
        documents.append(Document("vqa", segments))
    return [Placed(10 + at, to_sequence(document, tokenizer, TOKEN_PIXELS)) for at, document in enumerate(documents)]


def test_rows_hold_every_document_once_and_whole() -> None:
    rng = np.random.default_rng(0)
    waiting: list[Placed] = []
    rows = []
    for position, length in enumerate(rng.integers(2, 64, 300)):
        waiting.append(plain(int(length), position))
        if len(waiting) == 16:
            rows.append(fill_row(waiting, 64))
    while waiting:
        rows.append(fill_row(waiting, 64))
    assert sorted(placed.position for row in rows for placed in row) == list(range(300))
    assert all(sum(placed.length for placed in row) <= 64 for row in rows)


def test_the_oldest_document_is_always_taken() -> None:
    """However badly it fits: here a document that alone fills a row, among many that go well together."""
    waiting = [plain(8, 1), plain(63, 2), *(plain(8, position) for position in range(3, 20))]
    first = fill_row(waiting, 64)
    assert first[0].position == 1 and len(first) == 8
    assert [placed.position for placed in fill_row(waiting, 64)] == [2]


def test_among_those_that_fit_the_largest_comes_first() -> None:
    waiting = [plain(10, 0), plain(20, 1), plain(30, 2), plain(30, 3), plain(4, 4)]
    assert [placed.position for placed in fill_row(waiting, 64)] == [0, 2, 1, 4]
    assert [placed.position for placed in waiting] == [3]


def test_a_batch_says_what_it_holds(tokenizer: Tokenizer) -> None:
    placed = sample(tokenizer)
    rows = [placed[:4], placed[4:5], placed[5:12]]
    L = max(sum(p.length for p in row) for row in rows) + 3
    batch = collate(rows, L, tokenizer.pad)
    ids, document, span = batch.ids_BL.flatten(), batch.document_BL.flatten(), batch.span_BL.flatten()
    assert batch.ids_BL.shape == (3, L)
    assert batch.tokens == sum(p.length for p in placed) == int((document >= 0).sum())
    assert (ids[document < 0] == tokenizer.pad).all() and (span[document < 0] == -1).all()
    images = []
    for d, p in enumerate(placed):
        start, n = int(batch.start_D[d]), int(batch.length_D[d])
        assert n == p.length and start // L == (start + n - 1) // L, "a document stays in its row"
        assert ids[start : start + n].tolist() == p.sequence.ids_L.tolist()
        assert (document[start : start + n] == d).all() and int((document == d).sum()) == n
        assert batch.position_BL.flatten()[start : start + n].tolist() == list(range(n))
        assert bool(batch.generates_D[d]) == any(image.generate for image in p.sequence.spans)
        images += [(start + image.offset, p.position, number, image) for number, image in enumerate(p.sequence.spans)]
    (group,) = batch.groups
    assert len(images) == len(batch.generate_N) == len(group) and group.tokens == T and group.size == (8, 8)
    for n, (first, position, number, image) in enumerate(images):
        assert group.span_n_1T[n].tolist() == list(range(first, first + 1 + T))
        assert (span == n).nonzero().squeeze(1).tolist() == group.span_n_1T[n].tolist()
        assert (ids[group.span_n_1T[n]] == tokenizer.image_pad).all()
        assert bool(batch.generate_N[n]) == image.generate
        assert (group.pixels_nHWC[n].numpy() == image.pixels_HWC).all()
        assert int(batch.key_N[n]) == position * IMAGES_PER_DOCUMENT + number
    assert len(set(batch.key_N.tolist())) == len(images)


def test_labels_are_the_next_tokens_of_the_same_document(tokenizer: Tokenizer) -> None:
    placed = sample(tokenizer)
    batch = collate([placed[:6], placed[6:]], 400, tokenizer.pad)
    ids, document = batch.ids_BL.flatten(), batch.document_BL.flatten()
    assert (ids[batch.logit_K + 1] == batch.label_K).all()
    assert (document[batch.logit_K + 1] == document[batch.logit_K]).all() and (document[batch.logit_K] >= 0).all()
    # And they are exactly the targets, in order.
    expected = [int(start) + at for p, start in zip(placed, batch.start_D) for at in np.flatnonzero(p.sequence.target_L)]
    assert (batch.logit_K + 1).tolist() == expected and len(expected) > 20
    assert tokenizer.image_pad not in batch.label_K and tokenizer.pad not in batch.label_K


def test_a_batch_without_images_and_one_without_targets(tokenizer: Tokenizer) -> None:
    text = collate([[plain(5)]], 32, tokenizer.pad)
    assert text.groups == [] and len(text.key_N) == len(text.document_of_images()) == 0 and text.by_group(text.key_N) == []
    assert text.tokens == 5 and len(text.label_K) == 4
    silent = collate([[Placed(0, to_sequence(Document("text", (Text("ring"),)), tokenizer, TOKEN_PIXELS))]], 32, tokenizer.pad)
    assert silent.label_K.shape == silent.logit_K.shape == (0,) and silent.label_K.dtype == torch.int64


def test_rows_that_overflow_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="33"):
        collate([[plain(20), plain(13)]], 32, tokenizer.pad)


def test_images_of_several_sizes_are_grouped(tokenizer: Tokenizer) -> None:
    """Counted size by size; whatever is known of an image stands at its number."""
    shapes = [(8, 12), (8, 8), (12, 8), (8, 12), (8, 8)]
    images = [Image(np.full((*shape, 3), n, np.uint8), generate=n % 2 == 1) for n, shape in enumerate(shapes)]
    segments = [(images[0], Text("a ring"), images[1]), (Text("ring"), images[2]), (images[3], images[4])]
    placed = [Placed(at, to_sequence(Document("edit", parts), tokenizer, TOKEN_PIXELS)) for at, parts in enumerate(segments)]
    batch = collate([placed[:2], placed[2:]], 64, tokenizer.pad)
    assert [group.size for group in batch.groups] == [(8, 8), (8, 12), (12, 8)]
    assert [group.tokens for group in batch.groups] == [4, 6, 6]
    order = [1, 4, 0, 3, 2]  # the images above, size by size
    assert [int(image[0, 0, 0]) for group in batch.groups for image in group.pixels_nHWC] == order
    assert batch.generate_N.tolist() == [n % 2 == 1 for n in order]
    keys = {0: (0, 0), 1: (0, 1), 2: (1, 0), 3: (2, 0), 4: (2, 1)}  # document, number in it
    assert batch.key_N.tolist() == [keys[n][0] * IMAGES_PER_DOCUMENT + keys[n][1] for n in order]
    assert batch.document_of_images().tolist() == [keys[n][0] for n in order]
    assert [part.tolist() for part in batch.by_group(torch.arange(5))] == [[0, 1], [2, 3], [4]]
    span, ids = batch.span_BL.flatten(), batch.ids_BL.flatten()
    spans = [slots for group in batch.groups for slots in group.span_n_1T]
    for n, slots in enumerate(spans):
        assert (span == n).nonzero().squeeze(1).tolist() == slots.tolist() == list(range(slots[0], slots[0] + len(slots)))
        assert (ids[slots] == tokenizer.image_pad).all() and ids[slots[0] - 1] == tokenizer.boi


def test_more_images_than_keys_are_refused(tokenizer: Tokenizer) -> None:
    crowd = Document("vqa", tuple(Image(np.zeros((8, 8, 3), np.uint8)) for _ in range(IMAGES_PER_DOCUMENT + 1)))
    with pytest.raises(ValueError, match="images"):
        collate([[Placed(0, to_sequence(crowd, tokenizer, TOKEN_PIXELS))]], 128, tokenizer.pad)


def test_moving_a_batch_keeps_everything(tokenizer: Tokenizer) -> None:
    batch = collate([sample(tokenizer, 4)], 400, tokenizer.pad)
    moved = batch.to(torch.device("cpu"))
    for item in dataclasses.fields(PackedBatch):
        a, b = getattr(batch, item.name), getattr(moved, item.name)
        if item.name == "groups":
            assert all(torch.equal(x.span_n_1T, y.span_n_1T) and torch.equal(x.pixels_nHWC, y.pixels_nHWC) for x, y in zip(a, b))
        else:
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    onto_meta = batch.to(torch.device("meta"))
    assert onto_meta.groups[0].pixels_nHWC.is_meta and not batch.groups[0].pixels_nHWC.is_meta


def test_the_default_mix_fills_its_rows(tokenizer: Tokenizer) -> None:
    """At least 95% of the tokens are real, in every stage; measured on lengths alone, images need not be drawn."""
    config = load_config(EXPERIMENT, None, [])
    settings = replace(config.data, levels=[0.7, 0.2, 0.1])
    for stage in (config.stages["pretrain"], config.stages["sft"]):
        mix = {name: weight for name, weight in stage.mix.items() if name != "easy_vqa/vqa" or _has_easy_vqa()}
        sources = {name: build_source(name, settings, 0) for name in mix}
        # 40 documents a source stand for all: what matters is how their lengths are spread.
        lengths = {
            name: [len(to_sequence(source.document(at), tokenizer, config.frontend.patch).ids_L) for at in range(40)]
            for name, source in sources.items()
        }
        mixer = Mixer({name: None for name in mix}, seed=0)
        waiting: list[Placed] = []
        real, entered, waited = [], {}, []
        for row in range(300):
            while len(waiting) < config.data.lookahead:
                pick = mixer.next(mix)
                waiting.append(plain(lengths[pick.source][pick.index % 40], pick.position))
            entered |= {placed.position: row for placed in waiting if placed.position not in entered}
            taken = fill_row(waiting, config.data.row_tokens)
            waited += [row - entered[placed.position] for placed in taken]
            real.append(sum(placed.length for placed in taken))
        assert sum(real) / (300 * config.data.row_tokens) > 0.95
        assert max(waited) < config.data.lookahead


def test_the_stream_itself_fills_its_rows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = load_config(EXPERIMENT, None, [])
    settings = replace(config.data, levels=[0.7, 0.2, 0.1])
    stages = {"pretrain": config.stages["pretrain"]}
    stages["pretrain"].mix.pop("easy_vqa/vqa")
    data = DataConfig(rows=20)
    stream = TrainingStream(
        data, stages, lambda name: build_source(name, settings, 0), tokenizer, config.frontend.patch, 0, tmp_path / "r.jsonl"
    )
    step = next(iter(stream))
    assert step.tokens / (data.rows * data.row_tokens) > 0.95


def _has_easy_vqa() -> bool:
    return importlib.util.find_spec("easy_vqa") is not None
