"""How long `tunalab figure figure6` takes of a thousand records, with the picture and the page it writes."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tunalab.evaluation.score import Score
from tunalab.results.records import Record, read_records

REQUIRED_SECONDS = 10.0
_APART = 5  # tokens between seeds: each ends its steps elsewhere


def bench_figure(records: Path = Path("results/figure6"), count: int = 1000) -> dict[str, Any]:
    """Seconds of the whole command, from the start of Python, and of the processor.

    The records are those of a first seed in the folder ``records``, again and again with other seeds and other answers.
    """
    first = [record for record in read_records(records, evaluation=False) if record.run.seed == 0]
    with TemporaryDirectory() as folder:
        made = Path(folder) / "records"
        made.mkdir()
        for record in again(first, count):
            (made / f"{record.run.name}.json").write_text(json.dumps(asdict(record)), encoding="utf-8")
        command = [sys.executable, "-m", "tunalab", "figure", "figure6", "--records", str(made), "--out", folder]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        written = sorted(path.name for path in Path(folder).glob("figure6*"))
    return {
        "records": count,
        "lines": len(first),
        "written": written,
        f"figure6_{count}_records_seconds": seconds,
        "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "required_seconds": REQUIRED_SECONDS,
    }


def again(first: Sequence[Record], count: int) -> Iterator[Record]:
    """``count`` records of runs that never happened: as likely right as the ``first``, each some tokens from the others."""
    generator = np.random.default_rng(0)
    for number in range(count):
        seed, record = number // len(first), first[number % len(first)]
        points = [
            replace(
                point,
                tokens=point.tokens + _APART * (seed % 100),
                benchmarks={
                    name: Score.from_outcomes((generator.random(score.n) < score.accuracy).tolist(), score.chance)
                    for name, score in point.benchmarks.items()
                },
            )
            for point in record.points
        ]
        run = replace(record.run, name=f"{record.run.variant}-seed{seed}", seed=seed)
        yield replace(record, run=run, config={**record.config, "seed": seed}, points=points)
