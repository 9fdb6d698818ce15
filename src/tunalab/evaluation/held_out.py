"""Held-out scenes documents: the same for every run of the same data settings, packed like training's."""

from collections.abc import Sequence
from functools import lru_cache

from tunalab.config import DataConfig, RunConfig
from tunalab.data.documents import Document, Kind, Text
from tunalab.data.packing import PackedBatch, Placed, collate, fill_row
from tunalab.data.scenes import ScenesCorpus, SceneSettings
from tunalab.data.sequence import to_sequence
from tunalab.data.tokenizer import Tokenizer

SPLIT = "test"
DOCUMENT_SEED = 0  # never the run's


def held_out(kind: Kind, count: int, config: RunConfig) -> tuple[Document, ...]:
    """The first ``count`` documents of a kind of the test split, at the levels the run trains on."""
    data = config.data
    return _documents(kind, count, data.image_size, (*data.levels,), data.questions_per_image)


# Kept by the process: a run evaluates many times, and drawing and rendering cost more than the model.
@lru_cache(maxsize=16)
def _documents(kind: Kind, count: int, image_size: int, levels: tuple[float, float, float], questions: int) -> tuple[Document, ...]:
    corpus = ScenesCorpus(kind, SPLIT, SceneSettings(image_size, levels, questions, DOCUMENT_SEED))
    return tuple(corpus.document(index) for index in range(count))


def prompt_of(document: Document) -> str:
    """The first text of a document: the prompt of a text_to_image one."""
    return next(segment.text for segment in document.segments if isinstance(segment, Text))


def pack(
    documents: Sequence[Document], tokenizer: Tokenizer, token_pixels: int, data: DataConfig
) -> list[tuple[PackedBatch, list[int]]]:
    """Batches of packed rows, each with the numbers of its documents in the order of the batch's document ids."""
    waiting = [Placed(n, to_sequence(document, tokenizer, token_pixels)) for n, document in enumerate(documents)]
    row_tokens = max([data.row_tokens, *(placed.length for placed in waiting)])
    rows = []
    while waiting:
        rows.append(fill_row(waiting, row_tokens))
    packed = []
    for first in range(0, len(rows), data.rows):
        chosen = rows[first : first + data.rows]
        numbers = [placed.position for row in chosen for placed in row]
        packed.append((collate(chosen, row_tokens, tokenizer.pad), numbers))
    return packed
