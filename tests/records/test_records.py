import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure, Score, mean, share
from tunalab.evaluation.whole import Evaluated
from tunalab.records.environment import _commit, environment
from tunalab.records.log import Status, read_status, write_status
from tunalab.records.record import add_evaluation, read_record, read_records, write_record


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


def evaluated(part, tokens=1000, value=3):
    measures = [
        share("understanding", f"{part}@2", [True] * value + [False], split="test", chance=0.25, ceiling=1.0, note='a "note"'),
        mean("reconstruction", part, [20.25, 30.5], metric="psnr", failures=1),
        Measure("fidelity", part, "fid", 12.5, 100),
    ]
    return Evaluated(part, {"groups": 4}, {"run": "tuna2-seed0", "tokens": tokens}, 2.5, measures)


def test_a_record_with_an_evaluation_comes_back_whole_with_a_line_a_measure(tmp_path, record):
    original = replace(record(), evaluation=[evaluated("first"), evaluated("second")])
    write_record(tmp_path / "a.json", original)
    assert read_record(tmp_path / "a.json") == original
    text = (tmp_path / "a.json").read_text()
    assert list(json.loads(text))[-1] == "evaluation" and sum(line.startswith(' {"kind"') for line in text.splitlines()) == 6


def test_a_record_can_be_read_without_its_evaluation(tmp_path, record):
    original = replace(record(), evaluation=[evaluated("first")])
    write_record(tmp_path / "a.json", original)
    write_record(tmp_path / "b.json", record(seed=1))
    assert read_records(tmp_path, evaluation=False) == [record(), record(seed=1)]
    (tmp_path / "c.json").write_text((tmp_path / "a.json").read_text()[:1000])
    with pytest.raises(UserError, match="damaged"):
        read_record(tmp_path / "c.json", evaluation=False)


@pytest.mark.parametrize("block", [7, 1000, 65_536])
def test_of_a_record_no_more_is_read_than_asked(tmp_path, record, monkeypatch, block):
    monkeypatch.setattr("tunalab.records.record._BLOCK", block)
    write_record(tmp_path / "a.json", replace(record(), evaluation=[evaluated("first")]))
    whole = (tmp_path / "a.json").read_bytes()
    (tmp_path / "a.json").write_bytes(whole[:-200])  # damage in what is not asked for
    assert read_record(tmp_path / "a.json", evaluation=False) == record()


def test_an_evaluation_takes_the_place_of_earlier_ones_of_its_part(tmp_path, record):
    file = tmp_path / "record.json"
    write_record(file, record())
    add_evaluation(file, [evaluated("first"), evaluated("second")])
    add_evaluation(file, [evaluated("first", value=7)])
    assert read_record(file) == replace(record(), evaluation=[evaluated("second"), evaluated("first", value=7)])
    add_evaluation(file, [])
    assert len(read_record(file).evaluation) == 2
    add_evaluation(file, [evaluated("third", tokens=2000)])  # the run was trained further
    assert read_record(file).evaluation == [evaluated("third", tokens=2000)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".record.json.lock", "record.json"]


def test_a_setting_that_a_version_added_makes_no_other_state_of_a_run(tmp_path, record):
    file = tmp_path / "record.json"
    write_record(file, record())
    first, second = (
        replace(evaluated(part), origin={"run": "a", "config_hash": of, "steps": 5, "tokens": 9})
        for part, of in (("first", "330c"), ("second", "e7b8"))
    )
    add_evaluation(file, [first])
    add_evaluation(file, [second])
    assert read_record(file).evaluation == [first, second]
    further = replace(first, origin={**second.origin, "steps": 6})
    add_evaluation(file, [further])
    assert read_record(file).evaluation == [further]


def test_of_published_benchmarks_each_stands_by_itself(tmp_path, record):
    file = tmp_path / "record.json"
    write_record(file, record())
    add_evaluation(file, [evaluated("published-gqa"), evaluated("published-mmvp")])
    add_evaluation(file, [evaluated("published-gqa", value=7), evaluated("published-ai2d")])
    names = ["published-mmvp", "published-gqa", "published-ai2d"]
    assert [result.part for result in read_record(file).evaluation] == names


def test_evaluations_added_at_the_same_time_are_all_kept(tmp_path, record):
    file = tmp_path / "record.json"
    write_record(file, record())
    parts = [f"part{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda part: add_evaluation(file, [evaluated(part)]), parts))
    assert sorted(result.part for result in read_record(file).evaluation) == parts


MEASURE = ("evaluation", 0, "measures", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((*MEASURE, "n"), 0, r"evaluation.first.measures\[0\].n must be positive"),
        ((*MEASURE, "items"), [1, 0], r"measures\[0\].items must be none or n=4, got 2"),
        ((*MEASURE, "low"), None, r"measures\[0\].low/high must be both there or neither"),
        ((*MEASURE, "low"), 1.5, r"measures\[0\].low/high must be an interval"),
        ((*MEASURE, "value"), "high", r"evaluation\[0\].measures\[0\].value must be a number"),
        ((*MEASURE, "luck"), 1, r"luck must be a field that this version has"),
        ((*MEASURE, "kind"), "dancing", "'dancing' is no kind of measure"),
        (("evaluation", 0, "origin"), KeyError, r"evaluation\[0\].origin must be present"),
    ],
)
def test_a_damaged_evaluation_is_named(tmp_path, record, path, value, message):
    file = tmp_path / "damaged.json"
    write_record(file, replace(record(), evaluation=[evaluated("first")]))
    plain = json.loads(file.read_text())
    _set(plain, path, value)
    file.write_text(json.dumps(plain))
    with pytest.raises(UserError, match=message) as caught:
        read_record(file)
    assert "damaged.json" in str(caught.value) and "\n" not in str(caught.value)


def _set(plain, path, value):
    for key in path[:-1]:
        plain = plain[key]
    if value is KeyError:
        del plain[path[-1]]
    else:
        plain[path[-1]] = value


COUNT = ("points", 0, "benchmarks", "count")
ITEMS = ("points", 0, "loss_items")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 7, "schema is 7"),
        (("run", "seed"), "zero", "run.seed must be an integer"),
        (("run", "seed"), True, "run.seed must be an integer"),
        (("run", "finished"), KeyError, "run.finished must be present"),
        (("run", "colour"), "red", "run.colour must be a field that this version has"),
        (("totals", "flops"), None, "totals.flops must be a number"),
        (("points", 2, "tokens"), 5, r"points\[2\].tokens must be above"),
        (("points", 0, "losses", "text"), float("nan"), r"points\[0\].losses.text must be a finite number"),
        ((*COUNT, "correct"), 999, "count.correct must be between"),
        ((*COUNT, "accuracy"), 0.999, "count.accuracy must be correct / n"),
        ((*COUNT, "low"), 0.9, "count.low/high must be an interval"),
        ((*COUNT, "outcomes"), "zz", "count.outcomes must be hexadecimal"),
        ((*COUNT, "outcomes"), "ff", "count.outcomes must be 200 outcomes"),
        (ITEMS, {"text": {"nats": "zz", "tokens": ""}}, r"loss_items.text must be a loss by document \(non-hexadecimal"),
        (ITEMS, {"text": {"nats": "003c", "tokens": "003c003c"}}, "loss by document .as many nats as tokens"),
        (ITEMS, {"text": {"nats": "003c", "tokens": "003c", "bits": 0}}, "loss by document .floats of 16 or 32 bits, got 0"),
        (ITEMS, {"text": {"nats": "007c", "tokens": "003c"}}, "loss by document .finite numbers"),
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
    before = time.time()
    write_status(tmp_path, status)
    found = read_status(tmp_path)
    assert found is not None and before - 0.01 <= found.time <= time.time() + 0.01
    assert replace(found, time=0.0) == status
    (tmp_path / "status.json").write_text('{"tokens": "many"}')
    assert read_status(tmp_path) is None


def test_a_record_in_the_place_of_their_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "record.json").touch()
    with pytest.raises(UserError, match=r"record.json is a file: the folder of the records is needed"):
        read_records(tmp_path / "record.json")


def test_a_folder_of_run_directories_is_a_folder_of_records(tmp_path, record):
    for name in ("tuna2-seed0", "tuna2-seed1", "trunks/0123"):
        (tmp_path / name).mkdir(parents=True)
        write_record(tmp_path / name / "record.json", record())
    assert len(read_records(tmp_path)) == 2


def test_records_that_a_sweep_published_do_not_modify_the_code(tmp_path):
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y", *words], check=True)

    for name in ("src/code.py", "results/sweep/a.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1", encoding="utf-8")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    assert _commit(tmp_path / "src/code.py")[1] is False
    (tmp_path / "results/sweep/a.json").write_text("2", encoding="utf-8")
    assert _commit(tmp_path / "src/code.py")[1] is False
    (tmp_path / "src/code.py").write_text("2", encoding="utf-8")
    assert _commit(tmp_path / "src/code.py")[1] is True
