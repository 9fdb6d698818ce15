"""The sweep's figures are those of its records, and a figure that is missed is said."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.synthetic import synthetic_record

from tunalab.bench.run import again, bench, bench_figure, bench_status, bench_sweep, report
from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.records.record import Record, read_record, write_record

RATIOS = (0.0, 0.25, 0.5, 0.75)
# At the end of these curves all seven lower bounds are above chance.
SEVEN = ["charts", "count", "ocr", "pairs", "pattern", "relations", "search"]


def runs() -> list[Record]:
    return [synthetic_record("tuna2", mask_ratio=ratio) for ratio in RATIOS]


def test_minutes_memory_and_benchmarks_are_those_of_the_records() -> None:
    made = runs()
    found = bench_sweep([*made, synthetic_record("tuna")])
    seconds = sum(record.totals.seconds for record in made)
    assert (found["runs"], found["parallel"]) == (4, 2)
    assert found["training_minutes_of_all_runs"] == pytest.approx(seconds / 60)
    assert found["minutes"] == pytest.approx(seconds / 60 / 2)
    assert found["peak_memory_gb"] == pytest.approx(1.5)
    assert found["above_chance"] == {f"mask ratio {ratio:g}": SEVEN for ratio in RATIOS}
    assert found["fewest_above_chance"] == 7


def test_the_weakest_run_decides_and_harder_levels_do_not_count() -> None:
    first, *rest = runs()
    last = first.points[-1]
    low = {name: replace(score, chance=0.99) for name, score in last.benchmarks.items() if name != "count"}
    harder = {f"{name}@3": score for name, score in last.benchmarks.items()}
    weak = replace(first, points=[replace(last, benchmarks={**last.benchmarks, **low, **harder})])
    assert bench_sweep([weak, *rest])["fewest_above_chance"] == 1
    assert bench_sweep([weak])["above_chance"] == {"": ["count"]}


@pytest.mark.parametrize(
    ("environment", "parallel"), [({"cores": 8}, 4), ({"cores": 4, "threads": 2}, 2), ({"cores": 16, "accelerator": "GPU"}, 1)]
)
def test_runs_share_the_cores_of_their_machine(environment: dict[str, object], parallel: int) -> None:
    made = [replace(record, environment=record.environment | environment) for record in runs()]
    assert bench_sweep(made)["parallel"] == parallel


def test_without_a_finished_run_there_is_nothing_to_say() -> None:
    with pytest.raises(UserError, match="no finished record of tuna2"):
        bench_sweep([synthetic_record("tuna"), synthetic_record("tuna2", finished=False)])


def test_it_is_printed_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for record in runs():
        write_record(tmp_path / f"{record.run.name}.json", record)
    assert main(["bench", "--only", "sweep", "--records", str(tmp_path), "--out", str(tmp_path / "out" / "bench.json")]) == 0
    text = capsys.readouterr().out
    assert "4 runs of tuna2" in text and "evaluations not counted (at most 20: reached)" in text and "MISSED" not in text
    assert "mask ratio 0.25: 7 (charts, count," in text
    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert written["sweep"]["records"] == str(tmp_path) and written["command"] == "tunalab bench --only sweep"
    assert list(written) == ["command", "sweep"]


def test_a_part_alone_leaves_the_recorded_whole_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for record in runs():
        write_record(tmp_path / "records" / f"{record.run.name}.json", record)
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "--only", "sweep", "--records", "records"]) == 0
    assert not (tmp_path / "results").exists()


def test_too_slow_a_sweep_is_a_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for record in runs():
        write_record(tmp_path / f"{record.run.name}.json", replace(record, totals=replace(record.totals, seconds=700.0)))
    assert bench("sweep", None, tmp_path) == 1
    assert "23.3 with 2 at a time" in (text := capsys.readouterr().out) and "(at most 20: MISSED)" in text


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


ROOT = Path(__file__).parents[2]


def test_the_whole_status_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    found = bench_status(12)
    assert found["runs"] == 12 and found["status_seconds"] > 0 and found["processor_seconds"] > 0
    assert report({"status": {**found, "required_seconds": 1e6}})
    assert not report({"status": {**found, "required_seconds": 1e-6}})
    assert "status: of 12 runs in" in (text := capsys.readouterr().out) and "MISSED" in text
