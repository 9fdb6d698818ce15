"""Writes real files of each schema, with the libraries that data sets are written with, and reads documents as plain values."""

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image as PillowImage

from tunalab.data.documents import Document, Image, Text
from tunalab.data.images import decode_image

SIDE = 16
decode = partial(decode_image, image_size=SIDE)

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# The published columns that matter, and a few of those that do not.
FINEVISION = pa.schema(
    [
        ("images", pa.list_(IMAGE)),
        ("texts", pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))),
        ("source", pa.string()),
        ("relevance_ratings", pa.list_(pa.int64())),
        ("relevance_min", pa.int64()),
    ]
)
OMNIEDIT = pa.schema(
    [
        ("omni_edit_id", pa.string()),
        ("task", pa.string()),
        ("src_img", IMAGE),
        ("edited_img", IMAGE),
        ("edited_prompt_list", pa.list_(pa.string())),
        ("width", pa.int64()),
        ("sc_score_1", pa.float64()),
    ]
)


def colour(number: int) -> tuple[int, int, int]:
    """A colour that tells its number."""
    return (number % 251, number // 251 % 251, 7)


def encoded(number: int, format: str = "PNG", size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    buffer = io.BytesIO()
    PillowImage.new("RGB", size, colour(number)).save(buffer, format, **({"lossless": True} if format == "WEBP" else {}))
    return buffer.getvalue()


def cell(number: int) -> dict[str, Any]:
    return {"bytes": encoded(number), "path": f"{number}.png"}


def pair(number: int) -> dict[str, Any]:
    """A sample for :func:`write_tar`."""
    return {"__key__": f"{number:06d}", "png": encoded(number), "txt": f"caption {number}"}


def write_tar(url: str, samples: Sequence[dict[str, Any]]) -> str:
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer) as writer:
        for sample in samples:
            writer.write(sample)
    return write_bytes(url, buffer.getvalue())


def write_parquet(url: str, schema: pa.Schema, rows: Sequence[dict[str, Any]], group: int = 3) -> str:
    buffer = io.BytesIO()
    columns = {name: [row.get(name) for row in rows] for name in schema.names}
    pq.write_table(pa.table(columns, schema=schema), buffer, row_group_size=group)
    return write_bytes(url, buffer.getvalue())


def write_bytes(url: str, data: bytes) -> str:
    system, path = fsspec.core.url_to_fs(url)
    system.makedirs(path.rpartition("/")[0], exist_ok=True)
    system.pipe_file(path, data)
    return url


def read_bytes(url: str) -> bytes:
    system, path = fsspec.core.url_to_fs(url)
    data = system.cat_file(path)
    assert isinstance(data, bytes)
    return data


def shown(document: Document) -> list[Any]:
    """Kind and segments as plain values: the text with its flag, or the image's first pixel with its flag."""
    values: list[Any] = [document.kind]
    for segment in document.segments:
        if isinstance(segment, Image):
            assert segment.pixels_HWC.shape == (SIDE, SIDE, 3)
            values.append((tuple(segment.pixels_HWC[0, 0].tolist()), segment.generate))
        else:
            assert isinstance(segment, Text)
            values.append((segment.text, segment.target))
    return values


def refusal(call: Callable[[], object], error: type[Exception]) -> str:
    """The one line of an error."""
    try:
        call()
    except error as caught:
        message = str(caught)
        assert message and "\n" not in message
        return message
    raise AssertionError("nothing was raised")
