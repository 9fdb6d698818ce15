"""FineVision's schema: ``images`` (any number, also none) and ``texts``, turns of user and assistant about them."""

from typing import Any

from tunalab.config import FineVisionConfig
from tunalab.data.assembling import Pixels, conversation_document
from tunalab.data.documents import Document, Reject
from tunalab.data.shards.corpus import Sample, ShardedCorpus, Visit
from tunalab.data.shards.files import find_files
from tunalab.data.shards.schema import IMAGES, TURNS
from tunalab.data.shards.table import TableReader
from tunalab.data.shards.webdataset import Decode


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
