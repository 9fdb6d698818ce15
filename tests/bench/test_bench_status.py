"""The status of a thousand runs, with a few: how long it takes is not tested here."""

from pathlib import Path

import pytest

from tunalab.bench.run import bench_status, report

ROOT = Path(__file__).parents[2]


def test_the_whole_command_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    found = bench_status(12)
    assert found["runs"] == 12 and found["status_seconds"] > 0 and found["processor_seconds"] > 0
    assert report({"status": {**found, "required_seconds": 1e6}})
    assert not report({"status": {**found, "required_seconds": 1e-6}})
    assert "status: of 12 runs in" in (text := capsys.readouterr().out) and "MISSED" in text
