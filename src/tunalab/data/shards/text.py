"""Texts, or conversations without images, in Parquet or in JSON lines."""

from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from pyarrow import types

from tunalab.config import TextConfig
from tunalab.data.assembling import check_media, conversation_document, filled_text, names_media
from tunalab.data.documents import Document, Reject, Text
from tunalab.data.lines import MAX_LINE_BYTES, index_lines, parse_line
from tunalab.data.shards.corpus import Reader, Sample, ShardedCorpus, Visit
from tunalab.data.shards.files import ShardFile, find_files, open_file
from tunalab.data.shards.indexing import Damaged, index_files
from tunalab.data.shards.ranges import RangeReader
from tunalab.data.shards.schema import TEXT, is_bytes, is_text
from tunalab.data.shards.table import TableReader
from tunalab.errors import UserError

INSTEAD = "a manifest reads images, or finevision a table of them"
PARQUET, LINES = (".parquet",), (".jsonl", ".ndjson", ".json")
_LINES_A_BLOCK = 2**16  # a file of JSON lines has no parts of its own, and may be the whole corpus


def open_text(name: str, config: TextConfig, seed: int) -> ShardedCorpus:
    """Documents of kind text: a text whose every token is predicted, or a conversation whose answers are.

    Texts longer than ``max_characters`` are cut at white space; each epoch reads one piece of each.

    Raises:
        UserError: a file is missing or damaged, lacks the column, or is of no known format.
    """

    def make(row: Sample, visit: Visit) -> Document:
        if config.column not in row:
            raise Reject(f"no key {config.column!r}; keys: {', '.join(sorted(row))}")
        value = row[config.column]
        if isinstance(value, list):
            check_media(row, instead=f": {INSTEAD}")
            return conversation_document(value)
        text = filled_text(value, config.column, indented=True)
        if config.max_characters:
            parts = pieces(text, config.max_characters)
            text = parts[visit.choose(len(parts))]
        return Document("text", (Text(text, target=True),))

    return ShardedCorpus(name, _reader(name, find_files(config.urls, name), config), make, config, seed)


def pieces(text: str, most: int) -> list[str]:
    """``text`` in pieces of at most ``most`` characters, cut at white space where there is any.

    A piece that begins with a line keeps the line's indentation, unless the piece would hold nothing else.
    """
    parts = []
    while len(text) > most:
        indentation = len(text) - len(text.lstrip())
        if indentation >= most:
            text = text.lstrip()
            continue
        head = text[: most + 1]
        cut = max(head.rfind(blank, indentation) for blank in " \n\t")
        cut = cut if cut > 0 else most
        parts.append(text[:cut].rstrip())
        rest = text[cut:].lstrip()
        space = text[len(parts[-1]) : len(text) - len(rest)]
        text = space.rpartition("\n")[2] + rest if rest and "\n" in space else rest
    return [*parts, text] if text else parts


def _reader(name: str, files: Sequence[ShardFile], config: TextConfig) -> Reader:
    endings = sorted({PurePosixPath(file.shown).suffix.lower() for file in files})
    if all(ending in PARQUET for ending in endings):
        return TableReader(name, files, {config.column: TEXT}, kept=config.window, left_out=partial(_no_media, config))
    if all(ending in LINES for ending in endings):
        return RangeReader(files, index_files(name, files, "lines 2", _index), parse_line, "line", MAX_LINE_BYTES, _LINES_A_BLOCK)
    raise UserError(f"{name}: files of {', '.join(endings)}: choices: all {PARQUET[0]}, or all {' or '.join(LINES)}")


def _no_media(config: TextConfig, schema: pa.Schema, column: str) -> None:
    """For conversations. A text is whole without the picture of the page it was taken from."""
    kinds = [schema.field(place).type for place in schema.get_all_field_indices(column)]
    holds = any(is_text(kind) or is_bytes(kind) or types.is_nested(kind) for kind in kinds)
    if holds and names_media(column) and not is_text(schema.field(config.column).type):
        raise Damaged(f"column {column!r} names what is not read, and would be left out: {INSTEAD}")


def _index(file: ShardFile) -> np.ndarray:
    with open_file(file.url) as stream:
        return index_lines(stream)
