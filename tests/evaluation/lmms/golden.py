"""Replies scored by the official code under both rules (tests/data/golden/lmms_rules.json), as items of the data sets."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "data" / "golden" / "lmms_rules.json"
DRAWN = "random choice"  # the rule can read no option, and draws one


def items() -> Iterator[tuple[str, dict[str, Any], str, dict[str, Any]]]:
    """Task, item, reply, and by rules 0, 1 or ``DRAWN``."""
    for kind, held in json.loads(FILE.read_text(encoding="utf-8")).items():
        task = {"mmmu_open": "mmmu_val", "mmmu_choice": "mmmu_val"}.get(kind, kind)
        for one in held:
            doc = {name: value for name, value in one.items() if name not in ("reply", "published", "stock")}
            if task == "mmmu_val":
                doc |= {"id": "validation_Art_1", "question_type": "open" if kind == "mmmu_open" else "multiple-choice"}
                doc |= {"options": repr(one.get("options", []))}
            doc |= {"question_type": "Regular Text Recognition"} if task == "ocrbench" else {}
            yield task, doc, one["reply"], {rules: one[rules] for rules in ("published", "stock")}
