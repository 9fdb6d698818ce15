"""Schemas of shards: WebDataset, FineVision, OmniEdit, and texts in Parquet or JSON lines."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types

from tunalab.data.assembling import (
    Pixels,
    caption_document,
    check_media,
    conversation_document,
    edit_document,
    filled_text,
    names_media,
)
from tunalab.data.documents import Document, Reject, Text
from tunalab.data.manifest import MAX_LINE_BYTES, index_lines, parse_line
from tunalab.data.shards.corpus import Damaged, Reader, Sample, ShardedCorpus, Visit, index_files
from tunalab.data.shards.files import ShardFile, find_files, open_file
from tunalab.data.shards.table import IMAGE, IMAGES, TEXT, TEXTS, TURNS, TableReader, is_bytes, is_text
from tunalab.data.shards.tar import RULE, RangeReader, tar_reader
from tunalab.errors import UserError
from tunalab.settings.schema import FineVisionConfig, OmniEditConfig, TextConfig, WebDatasetConfig

Decode = Callable[[bytes, str], np.ndarray]  # an encoded image and its name -> pixels_HWC

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")


def open_webdataset(name: str, config: WebDatasetConfig, decode: Decode, caption_prompt: str, seed: int) -> ShardedCorpus:
    """Each sample has one image and a caption: a member of text, or a key of a JSON member.

    Raises:
        UserError: a shard is missing or damaged.
    """

    def make(sample: Sample, visit: Visit) -> Document:
        images = [ending for ending in IMAGE_ENDINGS if ending in sample]
        if len(images) != 1:
            raise Reject(f"{len(images)} images: one of {', '.join(IMAGE_ENDINGS)} is needed; members: {_endings(sample)}{RULE}")
        ending = images[0]
        caption = _caption(sample, config)
        return caption_document(
            config.kind, caption, caption_prompt, lambda: decode(sample[ending], f"{sample['__key__']}.{ending}")
        )

    return ShardedCorpus(name, tar_reader(name, find_files(config.urls, name)), make, config, seed)


def _caption(sample: Sample, config: WebDatasetConfig) -> object:
    data = sample.get(config.caption.lower())
    if data is None:
        raise Reject(f"no member .{config.caption}; members: {_endings(sample)}{RULE}")
    if config.caption.lower().rpartition(".")[2] == "json":
        found = parse_line(data)
        if config.caption_key not in found:
            raise Reject(f"no key {config.caption_key!r} in .{config.caption}; keys: {', '.join(sorted(found))}")
        return found[config.caption_key]
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Reject(f".{config.caption} is not UTF-8: byte {error.start}") from error


def _endings(sample: Sample) -> str:
    return ", ".join(sorted(ending for ending in sample if ending != "__key__")) or "none"


def open_finevision(name: str, config: FineVisionConfig, decode: Decode, seed: int) -> ShardedCorpus:
    """Conversations about their images, which stand before the text; rows without images are of kind text.

    Raises:
        UserError: a file is missing, damaged or lacks a column.
    """

    def make(row: Sample, visit: Visit) -> Document:
        turns: list[dict[str, Any]] = []
        for turn in row["texts"] or []:
            turn = turn or {}
            # The user's has what else the turn holds: nothing of that is read.
            turns += [{**turn, "from": "user", "value": turn.get("user")}, {"from": "assistant", "value": turn.get("assistant")}]
        return conversation_document(
            turns, [pixels(cell, f"image {place + 1}", decode) for place, cell in enumerate(row["images"] or [])]
        )

    reader = TableReader(name, find_files(config.urls, name), {"images": IMAGES, "texts": TURNS}, kept=config.window)
    return ShardedCorpus(name, reader, make, config, seed)


def pixels(cell: dict[str, Any] | None, what: str, decode: Decode) -> Pixels:
    """What decodes an image cell ``{"bytes", "path"}``. Raises Reject: the cell holds no bytes (a path leads nowhere here)."""
    data = None if cell is None else cell["bytes"]
    if data is None:
        raise Reject(f"{what} has no bytes in the table")
    return lambda: decode(data, what)


def open_omniedit(name: str, config: OmniEditConfig, decode: Decode, seed: int) -> ShardedCorpus:
    """Edits; each epoch takes the next wording of an instruction.

    Raises:
        UserError: a file is missing, damaged or lacks a column.
    """

    def make(row: Sample, visit: Visit) -> Document:
        wordings = row["edited_prompt_list"]
        if not wordings:
            raise Reject("edited_prompt_list is empty")
        source, edited = (pixels(row[key], key, decode) for key in ("src_img", "edited_img"))
        return edit_document(wordings[visit.choose(len(wordings))], source, edited)

    columns = {"src_img": IMAGE, "edited_img": IMAGE, "edited_prompt_list": TEXTS}
    reader = TableReader(name, find_files(config.urls, name), columns, kept=config.window)
    return ShardedCorpus(name, reader, make, config, seed)


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
