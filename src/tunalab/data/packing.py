"""Whole documents packed into rows of fixed length, and the batch the model sees.

Shapes: B rows, L tokens of a row, D documents, N images, T visual tokens of an image, K labelled tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunalab.data.sequence import TokenSequence

IMAGES_PER_DOCUMENT = 8  # at most; room for each in the key


@dataclass(eq=False)
class PackedBatch:
    """Documents of all kinds in B rows of L tokens. Flat indices count through the rows: ``row * L + column``.

    ids_BL            token ids; image slots hold image_pad, padding holds pad
    document_BL       which document a token belongs to, counted through the batch; -1 is padding
    span_BL           which image a token belongs to (its time token too), counted through the batch; -1 elsewhere
    position_BL       position within the document
    logit_K, label_K  flat indices whose next token is predicted, and that token
    span_N_1T         flat indices of every image's slots, the time token first
    pixels_NHWC       uint8 RGB
    generate_N        whether an image is a flow-matching target
    key_N             identity of an image in the stream: noise, times and masks are functions of (seed, key)
    start_D, length_D first flat index and length of every document
    generates_D       whether a document holds a flow-matching target
    """

    ids_BL: Tensor
    document_BL: Tensor
    span_BL: Tensor
    position_BL: Tensor
    logit_K: Tensor
    label_K: Tensor
    span_N_1T: Tensor
    pixels_NHWC: Tensor
    generate_N: Tensor
    key_N: Tensor
    start_D: Tensor
    length_D: Tensor
    generates_D: Tensor
    tokens: int  # that are not padding

    def to(self, device: torch.device) -> "PackedBatch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "PackedBatch":
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PackedBatch":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)


@dataclass(frozen=True, eq=False)
class Placed:
    """A sequence and the stream position it came from."""

    position: int
    sequence: TokenSequence

    @property
    def length(self) -> int:
        return len(self.sequence.ids_L)


def fill_row(waiting: list[Placed], row_tokens: int) -> list[Placed]:
    """Take documents out of ``waiting`` for one row: the oldest first (nothing starves), then the largest that still fits.

    Largest-first leaves small documents to close the last gap of later rows; documents are never cut, as an image span must be
    whole to be bidirectional.
    """
    row = [waiting.pop(0)]
    free = row_tokens - row[0].length
    for candidate in sorted(waiting, key=lambda placed: (-placed.length, placed.position)):
        if candidate.length <= free:
            row.append(candidate)
            free -= candidate.length
    taken = {placed.position for placed in row}
    waiting[:] = [placed for placed in waiting if placed.position not in taken]
    return row


def collate(rows: Sequence[Iterable[Placed]], row_tokens: int, pad: int) -> PackedBatch:
    """Rows of documents to one batch. Raises ValueError when a row overflows, image sizes differ or a document has too many."""
    B, L = len(rows), row_tokens
    ids = np.full((B, L), pad, dtype=np.int64)
    document = np.full((B, L), -1, dtype=np.int64)
    span = np.full((B, L), -1, dtype=np.int64)
    position = np.zeros((B, L), dtype=np.int64)
    logit: list[np.ndarray] = []
    label: list[np.ndarray] = []
    slots: list[np.ndarray] = []
    pixels: list[np.ndarray] = []
    generate: list[bool] = []
    key: list[int] = []
    start: list[int] = []
    length: list[int] = []
    generates: list[bool] = []
    for b, row in enumerate(rows):
        at = 0
        for placed in row:
            sequence, n = placed.sequence, placed.length
            if at + n > L:
                raise ValueError(f"row of {at + n} tokens does not fit in {L}")
            ids[b, at : at + n] = sequence.ids_L
            document[b, at : at + n] = len(start)
            position[b, at : at + n] = np.arange(n)
            if len(sequence.spans) > IMAGES_PER_DOCUMENT:
                raise ValueError(f"document of {len(sequence.spans)} images, at most {IMAGES_PER_DOCUMENT} are told apart")
            flat = b * L + at
            targets = np.flatnonzero(sequence.target_L)
            logit.append(flat + targets - 1)
            label.append(sequence.ids_L[targets])
            for number, image in enumerate(sequence.spans):
                span[b, at + image.offset : at + image.offset + image.length] = len(slots)
                slots.append(flat + np.arange(image.offset, image.offset + image.length))
                pixels.append(image.pixels_HWC)
                generate.append(image.generate)
                key.append(placed.position * IMAGES_PER_DOCUMENT + number)
            start.append(flat)
            length.append(n)
            generates.append(any(image.generate for image in sequence.spans))
            at += n
    empty = np.zeros((0,), dtype=np.int64)
    return PackedBatch(
        ids_BL=torch.from_numpy(ids),
        document_BL=torch.from_numpy(document),
        span_BL=torch.from_numpy(span),
        position_BL=torch.from_numpy(position),
        logit_K=torch.from_numpy(np.concatenate(logit) if logit else empty),
        label_K=torch.from_numpy(np.concatenate(label) if label else empty),
        span_N_1T=torch.from_numpy(np.stack(slots) if slots else np.zeros((0, 1), dtype=np.int64)),
        pixels_NHWC=torch.from_numpy(np.stack(pixels) if pixels else np.zeros((0, 1, 1, 3), dtype=np.uint8)),
        generate_N=torch.tensor(generate, dtype=torch.bool),
        key_N=torch.tensor(key, dtype=torch.int64),
        start_D=torch.tensor(start, dtype=torch.int64),
        length_D=torch.tensor(length, dtype=torch.int64),
        generates_D=torch.tensor(generates, dtype=torch.bool),
        tokens=sum(length),
    )
