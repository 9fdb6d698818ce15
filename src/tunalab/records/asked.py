"""Benchmarks that were asked of a run's kept points after it had passed them (trained/points.py), merged into its record."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunalab.errors import UserError
from tunalab.evaluation.measure import Score
from tunalab.files import listed
from tunalab.records.record import NOT_ASKED, Point, Record

ASKED = Path("points") / "asked"


def merged(run_dir: Path, points: Sequence[Point], data: dict[str, Any]) -> dict[str, Any]:
    """``points`` and ``data`` of a record with the answers in ``run_dir``: scores at their points, under ``asked`` what each is.

    A benchmark that the run asked by itself stays as it is. Of two files of questions, or rules, under one name the one that was
    asked at more points counts, then the later. Raises UserError: a file is damaged.
    """
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}  # name -> what was asked -> tokens
    for path in sorted(listed(run_dir / ASKED, "*.json"), key=lambda path: path.stat().st_mtime):
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            what = json.dumps({key: value for key, value in plain["about"].items() if key not in NOT_ASKED}, sort_keys=True)
            found.setdefault(plain["name"], {}).setdefault(what, {})[plain["tokens"]] = plain
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: remove it, and it is asked again ({error})") from error
    chosen = {name: max(reversed(of.values()), key=len) for name, of in found.items()}
    own = _own(points, data)
    chosen = {name: at for name, at in chosen.items() if name not in own}
    new = [
        replace(
            point,
            benchmarks=point.benchmarks
            | {name: Score(**at[point.tokens]["score"]) for name, at in chosen.items() if point.tokens in at},
        )
        for point in points
    ]
    about = {name: next(iter(at.values()))["about"] for name, at in chosen.items()}
    return {"points": new, "data": data | ({"asked": data.get("asked", {}) | about} if about else {})}


def own_answers(record: Record) -> set[str]:
    """Benchmarks that the run was asked while it trained."""
    return _own(record.points, record.data)


def _own(points: Sequence[Point], data: dict[str, Any]) -> set[str]:
    return {name for point in points for name in point.benchmarks} - {*data.get("asked", {})}
