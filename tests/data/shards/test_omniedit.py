"""Rows of OmniEdit's schema: source, edited, and one wording of the instruction an epoch."""

from pathlib import Path
from typing import Any

import pytest
from shard_files import OMNIEDIT, cell, colour, decode, encoded, refusal, shown, write_parquet

from tunalab.data.documents import Reject
from tunalab.data.shards.corpus import ShardedCorpus
from tunalab.data.shards.schemas import open_omniedit
from tunalab.settings.schema import OmniEditConfig


def row(number: int, wordings: int = 1) -> dict[str, Any]:
    prompts = [f"edit {number} so{'.' * turn}" for turn in range(wordings)]
    edit = {"src_img": cell(number), "edited_img": cell(100 + number), "edited_prompt_list": prompts}
    return {"omni_edit_id": f"task_{number}", "task": "swap", **edit, "width": 16, "sc_score_1": 9.0}


def of(tmp_path: Path, *rows: dict[str, Any]) -> ShardedCorpus:
    url = write_parquet(f"{tmp_path}/a.parquet", OMNIEDIT, rows)
    return open_omniedit("omniedit/a", OmniEditConfig(urls=[url], window=0), decode, seed=0)


def test_documents_are_what_was_written(tmp_path: Path) -> None:
    corpus = of(tmp_path, *map(row, range(7)))
    for number in range(7):
        expected = ["edit", (colour(number), False), (f"edit {number} so", False), (colour(100 + number), True)]
        assert shown(corpus.document(number)) == expected


def test_every_wording_comes_in_turn(tmp_path: Path) -> None:
    corpus = of(tmp_path, *(row(number, wordings=3) for number in range(20)))
    first = [[shown(corpus.document(20 * epoch + number))[2][0] for epoch in range(6)] for number in range(20)]
    for number, texts in enumerate(first):
        assert set(texts[:3]) == set(row(number, 3)["edited_prompt_list"]) and texts[3:] == texts[:3]
    assert len({texts[0].count(".") for texts in first}) == 3, "an epoch mixes short and long wordings"


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"edited_prompt_list": None}, "edited_prompt_list is empty"),
    ({"edited_prompt_list": []}, "edited_prompt_list is empty"),
    ({"edited_prompt_list": [None]}, "instruction must be a string"),
    ({"edited_prompt_list": [""]}, "empty instruction"),
    ({"src_img": None}, "src_img has no bytes"),
    ({"edited_img": {"bytes": None, "path": "a.png"}}, "edited_img has no bytes"),
    ({"edited_img": {"bytes": encoded(1)[:50]}}, "edited_img: unreadable image"),
    ({"src_img": {"bytes": encoded(1, size=(5000, 1))}}, "src_img: 5000x1 is longer than 32 times"),
]


@pytest.mark.parametrize(("change", "reason"), BROKEN, ids=range(len(BROKEN)))
def test_broken_rows_are_rejects(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    corpus = of(tmp_path, row(0), {**row(1), **change})
    message = refusal(lambda: corpus.document(1), Reject)
    assert message.startswith(f"{tmp_path}/a.parquet row 2: ") and reason in message
