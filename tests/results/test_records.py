import json
from dataclasses import replace

import numpy as np
import pytest

from tunalab.errors import UserError
from tunalab.evaluation.score import Score
from tunalab.results.environment import environment
from tunalab.results.records import read_record, read_records, write_record
from tunalab.results.status import Status, read_status, write_status


def test_round_trip(tmp_path, record):
    for name, original in (("a", record(seed=1)), ("b", record(outcomes=False, finished=False))):
        write_record(tmp_path / f"{name}.json", original)
        assert read_record(tmp_path / f"{name}.json") == original
    assert [found.run.seed for found in read_records(tmp_path)] == [1, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]  # no temporary file left


def test_the_file_has_the_documented_shape(tmp_path, record):
    write_record(tmp_path / "a.json", record())
    plain = json.loads((tmp_path / "a.json").read_text())
    assert list(plain) == ["schema", "run", "config", "environment", "parameters", "components", "totals", "points"]
    assert {"correct", "n", "chance", "accuracy", "low", "high"} <= set(plain["points"][0]["benchmarks"]["count"])


def test_outcomes_survive_packing():
    right = np.random.default_rng(0).random(203) < 0.3
    score = Score.from_outcomes(right, chance=0.25)
    assert score.correct == right.sum() and score.n == 203
    assert np.array_equal(score.items(), right)
    assert Score.of(3, 4, 0.5).items() is None


def _set(plain, path, value):
    for key in path[:-1]:
        plain = plain[key]
    if value is KeyError:
        del plain[path[-1]]
    else:
        plain[path[-1]] = value


COUNT = ("points", 0, "benchmarks", "count")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 7, "schema is 7"),
        (("run", "seed"), "zero", "run.seed must be an integer"),
        (("run", "seed"), True, "run.seed must be an integer"),
        (("run", "finished"), KeyError, "run.finished must be present"),
        (("run", "colour"), "red", "run.colour must be one of"),
        (("totals", "flops"), None, "totals.flops must be a number"),
        (("points", 2, "tokens"), 5, r"points\[2\].tokens must be above"),
        (("points", 0, "losses", "text"), float("nan"), r"points\[0\].losses.text must be a finite number"),
        ((*COUNT, "correct"), 999, "count.correct must be between"),
        ((*COUNT, "accuracy"), 0.999, "count.accuracy must be correct / n"),
        ((*COUNT, "low"), 0.9, "count.low/high must be an interval"),
        ((*COUNT, "outcomes"), "zz", "count.outcomes must be hexadecimal"),
        ((*COUNT, "outcomes"), "ff", "count.outcomes must be 200 outcomes"),
        (("points",), {}, "points must be a list"),
    ],
)
def test_damage_is_named_with_file_and_field(tmp_path, record, path, value, message):
    file = tmp_path / "damaged.json"
    write_record(file, record())
    plain = json.loads(file.read_text())
    _set(plain, path, value)
    file.write_text(json.dumps(plain))
    with pytest.raises(UserError, match=message) as caught:
        read_record(file)
    assert "damaged.json" in str(caught.value) and "\n" not in str(caught.value)


def test_broken_json_missing_file_and_empty_folder_are_user_errors(tmp_path, record):
    file = tmp_path / "half.json"
    write_record(file, record())
    file.write_bytes(file.read_bytes()[:500])
    for action, message in (
        (lambda: read_record(file), "half.json: record is damaged"),
        (lambda: read_record(tmp_path / "none.json"), "none.json: record cannot be read"),
        (lambda: read_records(tmp_path / "empty"), "no records"),
    ):
        with pytest.raises(UserError, match=message):
            action()


def test_an_unreadable_record_is_not_written_and_the_old_one_stays(tmp_path, record):
    file = tmp_path / "a.json"
    write_record(file, record())
    before = file.read_bytes()
    bad = record()
    bad.points[0].losses["flow"] = float("inf")
    with pytest.raises(UserError, match="losses.flow"):
        write_record(file, bad)
    with pytest.raises(UserError, match="JSON"):
        write_record(file, replace(record(), config={"path": tmp_path}))
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_the_old_record(tmp_path, record, monkeypatch):
    file = tmp_path / "a.json"
    write_record(file, record())
    before = file.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tunalab.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_record(file, record(seed=1))
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_environment_names_versions_machine_and_commit():
    found = environment()
    assert found["packages"]["torch"] and found["packages"]["transformers"] and found["cpu"]
    assert found["cores"] >= 1 and found["threads"] >= 1
    assert (found["commit"] is None) == (found["dirty"] is None)
    json.dumps(found, allow_nan=False)


def test_status_round_trip_and_rubbish(tmp_path):
    assert read_status(tmp_path) is None
    status = Status(5, 10, 2.5, None, "training")
    write_status(tmp_path, status)
    assert read_status(tmp_path) == status
    (tmp_path / "status.json").write_text('{"tokens": "many"}')
    assert read_status(tmp_path) is None
