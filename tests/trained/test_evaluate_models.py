"""`tunalab evaluate` on trained runs of every front-end, and on their exports: the same numbers."""

from pathlib import Path

import pytest

from tunalab.cli import main
from tunalab.evaluation.whole import read_evaluated
from tunalab.records.record import read_record
from tunalab.trained.folder import read_about
from tunalab.trained.model import load

ASK = ["--parts", "understanding", "understanding.groups=6", "understanding.levels=[1]", "understanding.easy_vqa=0", "--quiet"]


@pytest.mark.slow
def test_an_export_measures_as_its_run_whose_record_gets_it(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(run_dir, "cpu").save_pretrained(tmp_path / "out")
    points = read_record(run_dir / "record.json").points
    assert main(["evaluate", str(run_dir), str(tmp_path / "out"), *ASK]) == 0
    assert f"wrote {run_dir / 'record.json'}" in capsys.readouterr().out
    record = read_record(run_dir / "record.json")
    (of_run,) = record.evaluation
    (path,) = (tmp_path / "out" / "evaluation").glob("*/result.json")
    of_export = read_evaluated(path)
    assert of_export.measures == of_run.measures and of_export.origin == of_run.origin == read_about(tmp_path / "out").origin
    assert len(of_run.measures) == 2 * (7 + 6) and all(one.n == 6 for one in of_run.measures) and record.points == points
    assert not (tmp_path / "out" / "record.json").exists()
    assert main(["evaluate", str(tmp_path / "out"), *ASK]) == 0  # still a whole export
    assert "measured already" in capsys.readouterr().out
