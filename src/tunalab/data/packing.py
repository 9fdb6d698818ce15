"""Whole documents packed into rows of fixed length, and the batch the model sees.

A row takes images of any size; a batch keeps its images in groups of one size, so that each group
is one tensor.

Shapes: B rows, L tokens of a row, D documents, N images, n images of a group, T visual tokens of
an image, K labelled tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tunalab.data.documents import IMAGES_PER_DOCUMENT
from tunalab.data.sequence import ImageSpan, TokenSequence
from tunalab.errors import UserError
from tunalab.settings.schema import DataConfig


def micro_batches(data: DataConfig, world_size: int) -> int:
    """Of each rank: the same for all, for they work in step.

    With ``data.step_tokens`` a step has that many places for tokens at any number of ranks (about a twentieth of them is padding).
    Raises UserError when micro-batches do not come to it exactly, or when both settings speak.
    """
    if not data.step_tokens:
        return data.accumulate
    at_once = world_size * data.rows * data.row_tokens
    if data.step_tokens % at_once:
        raise UserError(
            f"data.step_tokens={data.step_tokens} is not a multiple of {at_once} "
            f"({world_size} ranks x data.rows={data.rows} x data.row_tokens={data.row_tokens})"
        )
    if data.accumulate != 1:
        raise UserError(
            f"data.accumulate={data.accumulate} and data.step_tokens={data.step_tokens} both set a step's size: keep one"
        )
    return data.step_tokens // at_once


@dataclass(eq=False)
class ImageGroup:
    """The images of a batch that have one size.

    span_n_1T    flat indices of every image's slots, the time token first
    pixels_nHWC  uint8 RGB
    """

    span_n_1T: Tensor
    pixels_nHWC: Tensor

    def __len__(self) -> int:
        return len(self.span_n_1T)

    @property
    def tokens(self) -> int:
        """Visual tokens of each image."""
        return self.span_n_1T.shape[1] - 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels_nHWC.shape[1], self.pixels_nHWC.shape[2]


@dataclass(eq=False)
class PackedBatch:
    """Documents of all kinds in B rows of L tokens. Flat indices count through the rows: ``row * L + column``.

    Images are counted group by group, the sizes ascending, and in the order of the rows within a group.

    ids_BL            token ids; image slots hold image_pad, padding holds pad
    document_BL       which document a token belongs to, counted through the batch; -1 is padding
    span_BL           which image a token belongs to (its time token too), counted through the batch; -1 elsewhere
    position_BL       position within the document
    logit_K, label_K  flat indices whose next token is predicted, and that token
    groups            the images themselves; none in a batch of text alone
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
    groups: list[ImageGroup]
    generate_N: Tensor
    key_N: Tensor
    start_D: Tensor
    length_D: Tensor
    generates_D: Tensor
    tokens: int  # that are not padding

    def by_group(self, values_N: Tensor) -> list[Tensor]:
        """What is known of every image, (N, ...), cut into (n, ...) for each group."""
        return list(values_N.split([len(group) for group in self.groups]))

    def document_of_images(self) -> Tensor:
        """(N,): the document every image belongs to."""
        document = self.document_BL.flatten()
        return torch.cat([document[:0], *(document[group.span_n_1T[:, 0]] for group in self.groups)])

    def to(self, device: torch.device) -> "PackedBatch":
        return _moved(self, device)


Tensors = TypeVar("Tensors", PackedBatch, ImageGroup)


def _moved(holder: Tensors, device: torch.device) -> Tensors:
    changed: dict[str, Any] = {}
    for item in fields(holder):
        value = getattr(holder, item.name)
        if isinstance(value, Tensor):
            changed[item.name] = value.to(device, non_blocking=True)
        elif isinstance(value, list):
            changed[item.name] = [_moved(group, device) for group in value]
    return replace(holder, **changed)


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
    """Rows of documents to one batch. Raises ValueError when a row overflows or a document has too many images."""
    B, L = len(rows), row_tokens
    ids = np.full((B, L), pad, dtype=np.int64)
    document = np.full((B, L), -1, dtype=np.int64)
    span = np.full((B, L), -1, dtype=np.int64)
    position = np.zeros((B, L), dtype=np.int64)
    logit: list[np.ndarray] = []
    label: list[np.ndarray] = []
    images: list[tuple[np.ndarray, ImageSpan, int]] = []  # slots, what stands there, key
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
                slots = flat + np.arange(image.offset, image.offset + image.length)
                images.append((slots, image, placed.position * IMAGES_PER_DOCUMENT + number))
            start.append(flat)
            length.append(n)
            generates.append(any(image.generate for image in sequence.spans))
            at += n
    images.sort(key=lambda entry: entry[1].pixels_HWC.shape)  # stable: in the order of the rows within a size
    for n, (slots, _, _) in enumerate(images):
        span.reshape(-1)[slots] = n
    groups = [
        ImageGroup(
            span_n_1T=torch.from_numpy(np.stack([slots for slots, _, _ in members])),
            pixels_nHWC=torch.from_numpy(np.stack([image.pixels_HWC for _, image, _ in members])),
        )
        for members in (list(group) for _, group in groupby(images, key=lambda entry: entry[1].pixels_HWC.shape))
    ]
    empty = np.zeros((0,), dtype=np.int64)
    return PackedBatch(
        ids_BL=torch.from_numpy(ids),
        document_BL=torch.from_numpy(document),
        span_BL=torch.from_numpy(span),
        position_BL=torch.from_numpy(position),
        logit_K=torch.from_numpy(np.concatenate(logit) if logit else empty),
        label_K=torch.from_numpy(np.concatenate(label) if label else empty),
        groups=groups,
        generate_N=torch.tensor([image.generate for _, image, _ in images], dtype=torch.bool),
        key_N=torch.tensor([key for _, _, key in images], dtype=torch.int64),
        start_D=torch.tensor(start, dtype=torch.int64),
        length_D=torch.tensor(length, dtype=torch.int64),
        generates_D=torch.tensor(generates, dtype=torch.bool),
        tokens=sum(length),
    )
