"""How two runs differ, and whether a comparison of them is one of front-ends alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.synthetic import synthetic_record

from tunalab.analysis.diff import FILLED, FRONT_END, NO_RESULT, diff, to_plain, to_text
from tunalab.analysis.fairness import flagged
from tunalab.analysis.tables import accuracy_table
from tunalab.cli import main
from tunalab.records.record import Record, find_record, write_record

ROOT = Path(__file__).parents[2]
NAMES = ("x/a", "x/b")


def with_environment(record: Record, **changed: object) -> Record:
    return replace(record, environment=record.environment | changed)


def broken(a: Record, b: Record) -> set[str]:
    return {one.what for one in diff(NAMES, a, b).breaks}


def test_runs_that_differ_in_the_front_end_are_a_fair_pair():
    found = diff(NAMES, synthetic_record("tuna2"), synthetic_record("tuna_r"))
    assert found.verdict() == "FAIR: the runs are equal but for the front-end" and not found.breaks
    rates = {f"optimizer.groups.encoder.{key}" for key in ("match", "lr", "weight_decay")}
    assert {row.key for row in found.settings} == {"frontend.name", "frontend.encoder", *rates}
    assert {row.mark for row in found.settings} == {FRONT_END} and found.equal > 100


def test_runs_that_were_asked_other_questions_by_one_name_are_not_compared_by_it(tmp_path):
    """It is left out of figures, tables and differences, and said; the other benchmarks stay."""
    made = []
    for variant, digest in (("tuna2", "0bd6"), ("tuna_r", "2dfe")):
        record = synthetic_record(variant)
        points = [replace(p, benchmarks=p.benchmarks | {"mine": p.benchmarks["charts"]}) for p in record.points]
        about = {"items": 3, "of": 3, "questions": digest, "weights": "averaged, bfloat16", "asked": f"2026-01-0{len(made) + 1}"}
        made.append(replace(record, points=points, data={"asked": {"mine": about}}))
    found = diff(NAMES, *made)
    assert found.verdict().startswith("NOT FAIR") and broken(*made) == {"questions of mine"}
    assert "mine" not in {row.name for row in found.accuracies} and found.accuracies
    (line,) = flagged(made)
    assert line.startswith("questions of mine (items 3, of 3, questions 0bd6: tuna2-") and "2dfe: tuna_r-" in line
    assert "mine" not in set(accuracy_table(made)["benchmark"]) and "charts" in set(accuracy_table(made)["benchmark"])
    same = [replace(one, data={"asked": {"mine": about}}) for one in made]
    assert not broken(*same) and flagged(same) == [] and "mine" in set(accuracy_table(same)["benchmark"])
    for one in made:
        write_record(tmp_path / f"{one.run.name}.json", one)
    assert main(["table", "--records", str(tmp_path)]) == 0 and "| mine |" not in (tmp_path / "accuracy.md").read_text(
        encoding="utf-8"
    )


def test_one_setting_of_one_variant_is_a_fair_pair_and_two_are_not():
    a = synthetic_record()
    found = diff(NAMES, a, synthetic_record(mask_ratio=0.5))
    assert found.verdict() == "FAIR: the runs are equal but for objective.masking.ratio"
    both = diff(NAMES, a, synthetic_record(mask_ratio=0.5, settings=["optimizer.ema=0.9"]))
    assert both.verdict().startswith("NOT FAIR") and len(both.varied) == 2


def test_a_setting_besides_the_front_end_breaks_a_comparison_of_front_ends():
    found = diff(NAMES, synthetic_record("tuna2"), synthetic_record("tuna_r", settings=["objective.noise_scale=2.0"]))
    assert found.verdict() == "NOT FAIR: the runs are not equal but for the front-end"
    assert [one.what for one in found.breaks] == ["setting objective.noise_scale"]
    assert "breaks  setting objective.noise_scale  1 | 2" in to_text(found)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (lambda r: replace(r, run=replace(r.run, finished=False)), "finished"),
        (lambda r: replace(r, totals=replace(r.totals, tokens=3_000_000)), "tokens"),
        (lambda r: replace(r, config=r.config | {"data": r.config["data"] | {"rows": 8}}), "data order of seed 0"),
        (lambda r: with_environment(r, processes=4), "data order of seed 0"),
        (lambda r: with_environment(r, accelerator="H100"), "precision"),
        (lambda r: replace(r, components={"tokenizer": {"folder": "tokenizer-2"}}), "component tokenizer"),
        (lambda r: replace(r, points=[*r.points[:-1], replace(r.points[-1], images=5)]), "documents of seed 0"),
    ],
)
def test_what_breaks_a_pair(changed, what):
    a = replace(synthetic_record("tuna2"), components={"tokenizer": {"folder": "tokenizer-1"}})
    b = replace(synthetic_record("tuna_r"), components={"tokenizer": {"folder": "tokenizer-1"}})
    assert broken(a, b) == set()
    if what.startswith("documents"):
        b = replace(b, totals=replace(b.totals, images=5))
    assert what in broken(a, changed(b))
    assert diff(NAMES, a, changed(b)).verdict().startswith("NOT FAIR")


def test_another_seed_is_told():
    assert broken(synthetic_record("tuna2"), synthetic_record("tuna_r", seed=1)) == {"seeds"}
    verdict = diff(NAMES, synthetic_record(), synthetic_record(seed=1)).verdict()
    assert verdict == "SAME SETTINGS: one run under two seeds: what differs is luck"


@pytest.mark.parametrize("changed", [{"commit": "abc"}, {"dirty": True}, {"threads": 2}, {"cpu": "another"}, {"python": "3.12"}])
def test_what_may_only_round_is_a_doubt(changed):
    found = diff(NAMES, synthetic_record("tuna2"), with_environment(synthetic_record("tuna_r"), **changed))
    assert not found.breaks and "; doubts: " in found.verdict()


def test_components_that_a_run_does_not_use_break_nothing():
    a = replace(synthetic_record("tuna2"), components={"encoder": {"folder": "encoder-1"}})
    b = replace(synthetic_record("tuna_r"), components={"encoder": {"folder": "encoder-2"}})
    assert broken(a, b) == set() and broken(
        b, replace(b, run=replace(b.run, variant="other"), components={"encoder": {"folder": "x"}})
    ) == {"component encoder"}


def test_defaults_of_today_stand_in_and_scheduling_changes_nothing():
    old, new = synthetic_record(), synthetic_record(settings=["sampling.guidance=3.0", "checkpoint_seconds=5.0"])
    del old.config["sampling"]["guidance"]
    marks = {row.key: row.mark for row in diff(NAMES, old, new).settings}
    assert marks == {"sampling.guidance": FILLED, "checkpoint_seconds": NO_RESULT}


def test_accuracies_are_paired_at_the_last_common_point():
    a = synthetic_record("tuna2")
    b = replace(synthetic_record("tuna_r"), points=synthetic_record("tuna_r").points[:4])
    found = diff(NAMES, a, b)
    assert found.tokens == a.points[3].tokens and len(found.accuracies) == 7
    for row, name in zip(found.accuracies, a.points[3].benchmarks, strict=True):
        assert row.gap is not None and row.gap.by_item and row.gap.low <= row.a - row.b <= row.gap.high
        assert row.a == a.points[3].benchmarks[name].accuracy
    assert {row.name for row in found.others} == {"loss text", "one-step PSNR at t=0.3, dB"}
    none = diff(NAMES, a, replace(b, points=[]))
    assert none.tokens is None and "no point at equal tokens" in to_text(none)


def test_two_seeds_are_paired_by_question_too():
    rows = diff(NAMES, synthetic_record(), synthetic_record(seed=1)).accuracies
    assert rows and all(row.gap is not None and row.gap.by_item for row in rows)


def test_the_command_takes_names_folders_and_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for variant in ("tuna2", "tuna_r"):
        (tmp_path / "runs" / variant).mkdir(parents=True)
        write_record(tmp_path / "runs" / variant / "record.json", synthetic_record(variant))
        write_record(tmp_path / "results" / "here" / f"{variant}-seed0.json", synthetic_record(variant))
    for names in (("here/tuna2-seed0", "tuna_r-seed0"), ("runs/tuna2", "runs/tuna_r/record.json")):
        assert main(["diff", *names]) == 0
        printed = capsys.readouterr().out
        assert "FAIR: the runs are equal but for the front-end" in printed and "tuna_r" in printed
    assert main(["diff", "runs/tuna2", "runs/tuna_r", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["verdict"].startswith("FAIR") and plain["accuracies"] and "records" not in plain


@pytest.mark.parametrize("name", ["tuna3-seed0", "runs", "results/here/damaged.json", "tuna2-seed0"])
def test_a_bad_name_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("here", "there"):
        write_record(tmp_path / "results" / folder / "tuna2-seed0.json", synthetic_record())
    (tmp_path / "runs").mkdir()
    (tmp_path / "results" / "here" / "damaged.json").write_text("{")
    assert main(["diff", name, "here/tuna2-seed0"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert name.split("/")[-1].split(".")[0] in printed.err


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("", "the name of a run is empty; committed records: here/tuna2-seed0, there/tuna2-seed0"),
        ("here/x.json", "there is no run directory or record 'here/x.json'; committed records: here/tuna2-seed0, here/tuna2-seed1"),
        ("x", "there is no run directory or record 'x'; committed records: here/tuna2-seed0, there/tuna2-seed0"),
    ],
)
def test_a_name_that_is_none_is_told_what_there_is(name, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for known in ("here/tuna2-seed0", "here/tuna2-seed1", "there/tuna2-seed0"):
        write_record(tmp_path / "results" / f"{known}.json", synthetic_record())
    assert main(["diff", name, "here/tuna2-seed0"]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    for same in ("results/here/tuna2-seed1.json", "results/here/tuna2-seed1", "here/tuna2-seed1.json", "tuna2-seed1"):
        assert find_record(same)[0] == "here/tuna2-seed1"


def test_committed_pairs_of_figure6_are_fair_and_where_they_were_made_is_a_doubt(monkeypatch, capsys):
    """Equal but for the front-end, which has a rate of its own; code, checkout and machine may differ, and are said."""
    monkeypatch.chdir(ROOT)
    for other in ("tuna", "tuna_r"):
        assert main(["diff", "figure6/tuna2-seed0", f"figure6/{other}-seed0"]) == 0
        printed = capsys.readouterr().out
        verdict, _, doubts = next(line for line in printed.splitlines() if line.startswith("FAIR")).partition("; doubts: ")
        assert verdict == "FAIR: the runs are equal but for the front-end"
        assert set(doubts.split(", ")) <= {"code", "checkout", "machine"}
        assert "by the settings; steps and images agree at equal tokens" in printed


def test_everything_is_plain_for_programs():
    json.dumps(to_plain(diff(NAMES, synthetic_record("tuna2"), synthetic_record("tuna"))))


def test_one_run_in_two_folders_keeps_what_each_has():
    a = with_environment(synthetic_record("tuna2"), commit="a" * 12, cpu="Abacus")
    b = with_environment(synthetic_record("tuna2"), commit="b" * 12, cpu="Other")
    text = to_text(diff(("same/x", "same/x"), a, b))
    assert "aaaaaaaaaaaa | bbbbbbbbbbbb" in text and "Abacus | Other" in text and "same/x (a):" in text and "same/x (b):" in text
