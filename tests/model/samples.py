"""Small packed batches of every kind of document, and what a model makes of them token by token."""

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor

from tunalab.data.documents import Document, Image, Text
from tunalab.data.packing import PackedBatch, Placed, collate
from tunalab.data.sequence import to_sequence
from tunalab.data.tokenizer import Tokenizer
from tunalab.model.attention import Layout, make_backend
from tunalab.model.decoder import hidden_states
from tunalab.model.objective import Draws, to_space
from tunalab.model.unified import UnifiedModel

TOKEN_PIXELS = 8
TOKENS = 16  # visual tokens of an image of 32 px
WORDS = ["a", "red", "ring", "left", "of", "the", "blue", "cross", "how", "many", "stars", "is", "it", "yes"]


def documents(kinds: str, seed: int = 0, sizes: Sequence[tuple[int, int]] = ((32, 32),)) -> list[Document]:
    """``kinds``: one letter a document. c caption, v two questions, g text to image, e edit, t text, b text without a target.

    Images take the ``sizes`` in turn.
    """
    rng = np.random.default_rng(seed)
    shapes = cycle(sizes)

    def words(target: bool = False) -> Text:
        return Text(" ".join(rng.choice(WORDS, int(rng.integers(1, 9)))), target)

    def image(generate: bool = False) -> Image:
        return Image(rng.integers(0, 256, (*next(shapes), 3), dtype=np.uint8), generate)

    layouts = {
        "c": lambda: Document("caption", (image(), words(), words(target=True))),
        "v": lambda: Document("vqa", (image(), words(), words(target=True), words(), words(target=True))),
        "g": lambda: Document("text_to_image", (words(), image(generate=True))),
        "e": lambda: Document("edit", (image(), words(), image(generate=True))),
        "t": lambda: Document("text", (words(), words(target=True))),
        "b": lambda: Document("text", (words(),)),
    }
    return [layouts[kind]() for kind in kinds]


def place(documents: Sequence[Document], tokenizer: Tokenizer) -> list[Placed]:
    return [Placed(100 + at, to_sequence(document, tokenizer, TOKEN_PIXELS)) for at, document in enumerate(documents)]


def pack(placed: Sequence[Placed], rows: int, tokenizer: Tokenizer) -> PackedBatch:
    """Dealt out to ``rows`` rows of equal length, with padding at the end of each."""
    dealt = [list(placed[row::rows]) for row in range(rows)]
    return collate(dealt, 5 + max(sum(p.length for p in row) for row in dealt), tokenizer.pad)


def random_batch(
    kinds: str, rows: int, tokenizer: Tokenizer, seed: int = 0, sizes: Sequence[tuple[int, int]] = ((32, 32),)
) -> PackedBatch:
    return pack(place(documents(kinds, seed, sizes), tokenizer), rows, tokenizer)


def random_layout(rng: np.random.Generator, rows: int, length: int) -> Layout:
    """Documents of random lengths with random spans, one of them right behind another, and padding; without any tokenizer."""
    document, span = torch.full((rows, length), -1), torch.full((rows, length), -1)
    start, lengths, spans = [], [], 0
    for row in range(rows):
        at = 0
        while at < length - 4 and rng.random() < 0.9:
            n = int(rng.integers(1, min(24, length - at) + 1))
            document[row, at : at + n] = len(start)
            start.append(row * length + at)
            lengths.append(n)
            first = at + int(rng.integers(0, 4))
            while first < at + n:
                last = min(first + int(rng.integers(1, 9)), at + n)
                span[row, first:last] = spans
                spans += 1
                first = last + int(rng.integers(0, 4))
            at += n
    return Layout(document, span, torch.tensor(start), torch.tensor(lengths))


def plain_draws(model: UnifiedModel, batch: PackedBatch, seed: int = 0, masked: float = 0.0) -> Draws:
    """Times below 1 where an image is generated, noise and masks by image in their order."""
    generator = torch.Generator().manual_seed(seed)
    N = len(batch.generate_N)
    t = torch.where(batch.generate_N, torch.rand(N, generator=generator) * 0.9, torch.ones(N))
    masks = [torch.rand((len(group), group.tokens), generator=generator) < masked for group in batch.groups]
    return Draws(t, masks, [torch.randn(x.shape, generator=generator) for x in to_space(model, batch)])


def of_images(draws: Draws, numbers: Sequence[int], batch: PackedBatch, alone: PackedBatch) -> Draws:
    """The draws of some images of ``batch``, which are those of ``alone`` in its order."""
    masks = [mask for group in draws.mask_nT for mask in group]
    noises = [noise for group in draws.noise_nChw for noise in group]
    counts = iter(numbers)
    groups = [list(islice(counts, len(group))) for group in alone.groups]
    return Draws(
        draws.t_N[list(numbers)],
        [torch.stack([masks[n] for n in group]) for group in groups],
        [torch.stack([noises[n] for n in group]) for group in groups],
    )


def no_masks(batch: PackedBatch) -> list[Tensor]:
    return [torch.zeros((len(group), group.tokens), dtype=torch.bool) for group in batch.groups]


def spans(batch: PackedBatch) -> list[Tensor]:
    """The slots of every image, time token first."""
    return [slots for group in batch.groups for slots in group.span_n_1T]


def decoder_output(
    model: UnifiedModel, batch: PackedBatch, x_nChw: list[Tensor] | None = None, t_N: Tensor | None = None
) -> Tensor:
    """The decoder's hidden states at every token (B, L, D), images clean unless given."""
    x = to_space(model, batch) if x_nChw is None else x_nChw
    t = torch.ones(len(batch.generate_N)) if t_N is None else t_N
    slots = [group.span_n_1T for group in batch.groups]
    h_BLD = model.embed(batch.ids_BL, slots, x, batch.by_group(model.time(t)), no_masks(batch))
    layout = Layout(batch.document_BL, batch.span_BL, batch.start_D, batch.length_D)
    return hidden_states(model.decoder, h_BLD, batch.position_BL, make_backend(model.attention, layout))
