"""GEdit-Bench's edits: rows of its Parquet files, or JSON lines with the images in files.

Shapes: H W C image pixels and channels.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tunalab.data.buckets import Buckets
from tunalab.data.documents import Reject
from tunalab.data.image_files import decode_image, read_image
from tunalab.data.shards.files import find_files
from tunalab.data.shards.schema import IMAGE, Column, is_text
from tunalab.data.shards.table import TableReader
from tunalab.errors import UserError
from tunalab.evaluation.published_generation.images import OwnSize
from tunalab.evaluation.published_generation.lines import path_of, read_lines, text_of
from tunalab.evaluation.published_generation.making import Picture
from tunalab.files import listed
from tunalab.inference.files import save_image
from tunalab.inference.wanted import Wanted

KEYS = ("key", "task_type", "instruction", "instruction_language")
_TEXT = Column(is_text, "string")
_ALL_GROUPS = 10_000  # of the text columns: small


class SourcePicture(Picture):
    """A picture that is also kept beside what is made of it."""

    def keep(self, name: str, folder: Path) -> None:
        """As a PNG in its own size. Raises UserError where something else is in its place."""
        pixels_HWC = self.read(OwnSize())
        about = {"name": self.name, "sha256": hashlib.sha256(pixels_HWC.tobytes()).hexdigest()}
        path = folder / name
        if not Wanted(path, "", (), {"source": about}).is_there():
            save_image(path, pixels_HWC, {"source": about})


def read_gedit(data: Path, images: Path | None) -> Iterator[tuple[str, Mapping[str, Any], SourcePicture]]:
    """The words that name a row, the row, and its picture.

    Raises UserError: there is no such file, it is damaged, lacks a column or is empty.
    """
    if data.suffix in (".jsonl", ".json"):
        yield from _of_lines(data, data.parent if images is None else images)
        return
    found = listed(data, "**/*.parquet") if data.is_dir() else [data]
    if not found or not found[0].is_file():
        raise UserError(f"GEdit-Bench's edits: {data} is neither a Parquet file, nor a folder of them, nor JSON lines (.jsonl)")
    files = find_files([str(path) for path in found], "GEdit-Bench")
    texts = TableReader("GEdit-Bench", files, dict.fromkeys(KEYS, _TEXT), kept=_ALL_GROUPS)
    pictures = TableReader("GEdit-Bench", files, {"input_image": IMAGE}, kept=1)
    count = int(texts.starts[-1])
    if not count:
        raise UserError(f"GEdit-Bench's edits: {data} is empty")
    for row in range(count):
        try:
            plain = texts.read(row)
        except Reject as reject:
            raise UserError(f"{texts.where(row)}: {reject}") from reject
        yield texts.where(row), plain, SourcePicture(str(plain["key"]), partial(_decode_cell, pictures, row))


def _of_lines(data: Path, root: Path) -> Iterator[tuple[str, Mapping[str, Any], SourcePicture]]:
    for where, plain in read_lines(data, "GEdit-Bench's edits"):
        name = text_of(where, plain, "input_image")
        yield where, plain, SourcePicture(name, partial(read_image, path_of(where, plain, "input_image", root)))


def _decode_cell(reader: TableReader, row: int, buckets: Buckets) -> np.ndarray:
    cell = reader.read(row)["input_image"]
    if cell is None or cell["bytes"] is None:
        raise Reject(f"{reader.where(row)}: input_image has no bytes in the table")
    return decode_image(cell["bytes"], reader.where(row), buckets)
