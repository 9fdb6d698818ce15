"""Rows of FineVision's schema: one image, several or none; every row that is no conversation."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from shard_files import FINEVISION, IMAGE, cell, colour, decode, encoded, refusal, shown, write_parquet

from tunalab.data.documents import Reject, Unfit
from tunalab.data.shards.corpus import ShardedCorpus
from tunalab.data.shards.schemas import open_finevision
from tunalab.settings.schema import FineVisionConfig

TURN = {"user": "what?", "assistant": "this"}


def row(number: int, turns: int = 1) -> dict[str, Any]:
    texts = [{"user": f"question {number}.{turn}", "assistant": f"answer {number}.{turn}"} for turn in range(turns)]
    return {"images": [cell(number)], "texts": texts, "source": "s", "relevance_ratings": [5], "relevance_min": 5}


def of(tmp_path: Path, *rows: dict[str, Any]) -> ShardedCorpus:
    url = write_parquet(f"{tmp_path}/a.parquet", FINEVISION, rows)
    return open_finevision("finevision/a", FineVisionConfig(urls=[url], window=0), decode, seed=0)


def test_documents_are_what_was_written(tmp_path: Path) -> None:
    corpus = of(tmp_path, *(row(number, turns=1 + number % 3) for number in range(10)))
    assert corpus.length == 10
    for number in range(10):
        talk = [
            text
            for turn in range(1 + number % 3)
            for text in ((f"question {number}.{turn}", False), (f"answer {number}.{turn}", True))
        ]
        assert shown(corpus.document(number)) == ["vqa", (colour(number), False), *talk]


def test_several_images_and_none(tmp_path: Path) -> None:
    corpus = of(
        tmp_path,
        {"images": [cell(1), cell(2)], "texts": [{"user": "<image>\n<image> which?", "assistant": "one"}]},
        {"images": [], "texts": [TURN]},
        {"images": None, "texts": [TURN]},
        {"images": [cell(3)], "texts": [{"user": "<image>", "assistant": "a caption"}]},
    )
    assert shown(corpus.document(0)) == ["vqa", (colour(1), False), (colour(2), False), ("which?", False), ("one", True)]
    assert shown(corpus.document(1)) == shown(corpus.document(2)) == ["text", ("what?", False), ("this", True)]
    assert shown(corpus.document(3)) == ["vqa", (colour(3), False), ("a caption", True)]


def test_an_image_within_a_question_stays_there(tmp_path: Path) -> None:
    texts = [{"user": "is <image> as <image>?", "assistant": "    no"}]
    document = of(tmp_path, {"images": [cell(1), cell(2)], "texts": texts}).document(0)
    parts = [("is", False), (colour(1), False), ("as", False), (colour(2), False), ("?", False), ("    no", True)]
    assert shown(document) == ["vqa", *parts]


@pytest.mark.parametrize("kind", [pa.list_(pa.null()), pa.null(), pa.list_(IMAGE)])
@pytest.mark.parametrize("images", [[], None])
def test_a_table_without_any_image(tmp_path: Path, kind: pa.DataType, images: list | None) -> None:
    """Its column of images has no type of its own."""
    if pa.types.is_null(kind) and images is not None:
        images = None
    schema = FINEVISION.set(0, pa.field("images", kind))
    url = write_parquet(f"{tmp_path}/a.parquet", schema, [{"images": images, "texts": [TURN]}] * 2)
    corpus = open_finevision("finevision/a", FineVisionConfig(urls=[url], window=0), decode, seed=0)
    assert shown(corpus.document(1)) == ["text", ("what?", False), ("this", True)]


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"images": [cell(1)], "texts": None}, "at least one turn"),
    ({"images": [cell(1)], "texts": []}, "at least one turn"),
    ({"images": [cell(1)], "texts": [None]}, "value of turn 1 must be a string, not NoneType"),
    ({"images": [cell(1)], "texts": [{"user": "a", "assistant": None}]}, "value of turn 2"),
    ({"images": [cell(1)], "texts": [{"user": "a", "assistant": " "}]}, "empty answer"),
    ({"images": [cell(1)], "texts": [{"user": "<image><image>", "assistant": "a"}]}, "2 times <image>, one image"),
    ({"images": [], "texts": [{"user": "<image> a", "assistant": "a"}]}, "<image> without an image"),
    ({"images": [None], "texts": [TURN]}, "image 1 has no bytes"),
    ({"images": [cell(1), {"bytes": None, "path": "2.png"}], "texts": [TURN]}, "image 2 has no bytes"),
    ({"images": [{"bytes": b"no image"}], "texts": [TURN]}, "image 1: unreadable image"),
    ({"images": [{"bytes": encoded(1, size=(1, 5000))}], "texts": [TURN]}, "image 1: 1x5000 is longer than 32 times"),
]


@pytest.mark.parametrize(("broken", "reason"), BROKEN, ids=range(len(BROKEN)))
def test_broken_rows_are_rejects(tmp_path: Path, broken: dict[str, Any], reason: str) -> None:
    corpus = of(tmp_path, row(0), broken)
    message = refusal(lambda: corpus.document(1), Reject)
    assert message.startswith(f"{tmp_path}/a.parquet row 2: ") and reason in message
    assert corpus.document(0).kind == "vqa"


def test_a_row_of_many_images_is_sound_and_does_not_fit(tmp_path: Path) -> None:
    corpus = of(tmp_path, row(0), {"images": [cell(1)] * 9, "texts": [TURN]})
    message = refusal(lambda: corpus.document(1), Unfit)
    assert message == f"{tmp_path}/a.parquet row 2: 9 images, a document takes at most 8"
