"""The figure of a thousand records, with a few: how long it takes is not tested here."""

from pathlib import Path

import pytest
from tests.synthetic import synthetic_record

from tunalab.bench.run import again, bench_figure, report
from tunalab.records.record import read_record, write_record


def test_the_whole_command_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for variant in ("tuna", "tuna2"):
        write_record(tmp_path / f"{variant}.json", synthetic_record(variant, kinds=1))
    found = bench_figure(tmp_path, 4)
    assert found["written"] == ["figure6.html", "figure6.png"] and found["lines"] == 2
    assert found["figure6_4_records_seconds"] > 0 and found["processor_seconds"] > 0
    assert report({"figure": {**found, "required_seconds": 1e6}})
    assert not report({"figure": {**found, "required_seconds": 1e-6}})
    assert "figure6 of 4 records in" in (text := capsys.readouterr().out) and "MISSED" in text


def test_records_of_runs_that_never_happened_are_records(tmp_path: Path) -> None:
    made = list(again([synthetic_record("tuna", kinds=2), synthetic_record("tuna2", kinds=2)], 5))
    assert [(record.run.variant, record.run.seed) for record in made] == [
        ("tuna", 0),
        ("tuna2", 0),
        ("tuna", 1),
        ("tuna2", 1),
        ("tuna", 2),
    ]
    for record in made:
        write_record(tmp_path / "record.json", record)
        assert read_record(tmp_path / "record.json") == record
