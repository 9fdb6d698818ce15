"""`tunalab sweep` and `publish`: what is drawn, where runs go, and which settings a command line may not change."""

from dataclasses import replace
from pathlib import Path

import pytest

from tunalab.cli import main
from tunalab.records.record import read_record, read_records, write_record

NAMES = ["tuna2-ratio0-seed0", "tuna2-ratio0.5-seed0"]


def sweep(*settings: str) -> int:
    return main(["sweep", "small", "--parallel", "1", *settings])


def refusal(capsys: pytest.CaptureFixture[str], *call: str) -> str:
    capsys.readouterr()
    assert main(list(call)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def names(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in folder.glob(pattern) if path.is_file())


def test_curves_and_tables_are_written_whatever_the_file_names(checkout: Path, trained: list[Path]) -> None:
    assert sweep() == 0
    tables = ["accuracy.csv", "accuracy.md", "cost.csv", "cost.md"]
    assert names(checkout / "runs" / "small") == sorted([*tables, "curves.png"])
    with (checkout / "sweeps" / "small.yaml").open("a") as file:
        file.write("figure: [mask_ratio, figure6]\n")
    assert sweep() == 0 and len(trained) == 2
    assert names(checkout / "runs" / "small", "*.png") == ["curves.png", "figure6.png", "mask_ratio.png"]
    assert (checkout / "runs" / "small" / "curves.png").read_text() == "tunalab sweep small: 2 records"
    text = (checkout / "runs" / "small" / "accuracy.md").read_text()
    assert text.startswith("<!-- made by: tunalab sweep small -->") and "| mask ratio |" in text


def test_other_settings_have_directories_of_their_own(
    checkout: Path, trained: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = checkout / "runs"
    assert sweep() == 0 and sweep("decoder.layers=6") == 0
    (other,) = [path for path in runs.iterdir() if path.name != "small"]
    assert other.name.startswith("small+") and f"runs/{other.name}" in capsys.readouterr().out
    assert [path.relative_to(Path("runs")).as_posix() for path in trained] == [
        f"{top}/{name}" for top in ("small", other.name) for name in NAMES
    ]
    assert "tunalab sweep small decoder.layers=6" in (other / "accuracy.md").read_text()
    trained.clear()
    assert sweep() == 0 and sweep("decoder.layers=6") == 0 and not trained  # both are finished and stay so
    # What changes no result, or is the default anyhow, is the plain sweep.
    assert sweep("threads=2", "decoder.layers=3") == 0 and not trained and len(list(runs.iterdir())) == 2


def test_an_edited_sweep_leaves_earlier_runs_whole(checkout: Path, trained: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep() == 0
    before = (trained[0] / "record.json").read_bytes()
    file = checkout / "sweeps" / "small.yaml"
    file.write_text(file.read_text().replace("false}", "false, decoder.layers: 2}"))
    assert sweep() == 0
    assert "2 directories hold runs of other settings and stay as they are" in capsys.readouterr().out
    assert [path.name.split("+")[0] for path in trained] == NAMES * 2 and "+" in trained[2].name
    assert (trained[0] / "record.json").read_bytes() == before
    assert sweep() == 0 and len(trained) == 4


def test_a_finished_run_with_another_tokenizer_is_named_before_the_rest_trains(
    checkout: Path, trained: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep() == 0
    first, second = (path / "record.json" for path in trained)
    write_record(first, replace(read_record(first), components={"tokenizer": {"folder": "tokenizer-before"}}))
    second.unlink()
    capsys.readouterr()
    assert sweep() == 0 and len(trained) == 3
    said = capsys.readouterr().err
    assert "warning: finished runs that took other components" in said and "tokenizer-before, here tokenizer-" in said
    assert f"train them again: {NAMES[0]}" in said


def test_published_are_the_sweeps_own_records(checkout: Path, trained: list[Path]) -> None:
    assert sweep() == 0 and sweep("decoder.layers=6") == 0
    assert main(["publish", "small"]) == 0 and main(["publish", "small", "decoder.layers=6"]) == 0
    folders = sorted((checkout / "results").iterdir())
    assert [len(read_records(folder)) for folder in folders] == [2, 2] and folders[0].name == "small"
    assert {record.config["decoder"]["layers"] for record in read_records(folders[1])} == {6}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("objective.masking.ratio=0.3", ["objective.masking.ratio", "sweeps/small.yaml", "factors"]),
        ("objective.masking={ratio: 0.3}", ["objective.masking.ratio", "factors"]),
        ("objective={masking: {ratio: 0.3}}", ["objective.masking.ratio", "factors"]),
        ("seed=3", ["seed", "sweeps/small.yaml", "seeds"]),
        ("tracking.sweep=mine", ["tracking.sweep", "tunalab train"]),
        ("tracking.parent_run=abc", ["tracking.parent_run", "tunalab train"]),
    ],
)
def test_a_setting_may_not_replace_what_tells_runs_apart(
    checkout: Path, capsys: pytest.CaptureFixture[str], setting: str, words: list[str]
) -> None:
    line = refusal(capsys, "sweep", "small", setting)
    assert all(word in line for word in [f"setting '{setting}'", *words])
    assert refusal(capsys, "publish", "small", setting) == line


def test_two_cells_that_are_one_run_are_named(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = checkout / "sweeps" / "small.yaml"
    file.write_text(file.read_text().replace("objective.masking.ratio: [0.0, 0.5]", "threads: [1, 2]"))
    line = refusal(capsys, "sweep", "small")
    assert "tuna2-threads1-seed0 and tuna2-threads2-seed0 are the same run" in line


def test_what_cannot_be_drawn_is_said_and_the_sweep_is_finished(
    checkout: Path, trained: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunalab.errors import UserError

    def refuse(*_: object) -> list[Path]:
        raise UserError("the records share no point")

    monkeypatch.setattr("tunalab.analysis.tables.write_tables", refuse)
    assert sweep() == 0
    assert "warning: the records share no point" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "end"), [(0, "FINISHED"), (75, "KILLED"), (1, "FAILED")])
def test_the_parent_run_ends_as_the_sweep_did(
    checkout: Path, trained: list[Path], monkeypatch: pytest.MonkeyPatch, code: int, end: str
) -> None:
    ends: list[str] = []
    monkeypatch.setattr("tunalab.tracking.tracker.prepare", lambda *_: True)
    monkeypatch.setattr("tunalab.tracking.tracker.start_sweep", lambda uri, experiment, name: f"parent of {name}")
    monkeypatch.setattr("tunalab.tracking.tracker.end_sweep", lambda uri, run, status: ends.append(f"{run}: {status}"))
    shown: list[str] = []
    monkeypatch.setattr(
        "tunalab.tracking.tracker.log_files", lambda uri, run, paths: shown.extend(f"{run}: {p.name}" for p in paths)
    )
    if code:
        monkeypatch.setattr("tunalab.training.run.train", lambda config, run_dir, attempts, callbacks, **where: code)
    file = checkout / "sweeps" / "small.yaml"
    file.write_text(file.read_text().replace("tracking.enabled: false", "tracking.enabled: true"))
    assert sweep() == code
    assert ends == [f"parent of small: {end}"]
    assert ("parent of small: accuracy.md" in shown) == (code == 0)


def test_what_failed_as_often_as_it_may_is_started_when_asked(
    checkout: Path, trained: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Path] = []

    def fails(config: object, run_dir: Path, attempts: object, callbacks: object, **where: object) -> int:
        calls.append(run_dir)
        return 1

    with monkeypatch.context() as broken:
        broken.setattr("tunalab.training.run.train", fails)
        assert sweep("trunks=off") == 1 and len(calls) == 4  # each of the two once more, as it may have been the machine
        assert sweep("trunks=off") == 1 and len(calls) == 4 and "--retry starts it again" in capsys.readouterr().out
        assert main(["sweep", "small", "--status", "trunks=off"]) == 0
        assert "2 runs: 2 failed" in capsys.readouterr().out
        assert sweep("--retry", "trunks=off") == 1 and len(calls) == 8
    assert sweep("--retry", "trunks=off") == 0 and len(trained) == 2
    assert main(["sweep", "small", "--status", "trunks=off"]) == 0
    out = capsys.readouterr().out
    assert "2 runs: 2 done" in out and "failed 4 times" in out
    assert refusal(capsys, "sweep", "small", "--retries", "-1") == "error: --retries -1 is out of range (from 0)"


def test_what_a_failed_trunk_holds_back_has_failed(
    checkout: Path, trained: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("tunalab.training.run.train", lambda config, run_dir, attempts, callbacks, **where: 1)
        assert sweep() == 1
    assert capsys.readouterr().out.count("its trunk trunk-") == 2
    assert main(["sweep", "small", "--status"]) == 0
    assert "2 runs: 2 failed" in capsys.readouterr().out
    assert sweep("--retry") == 0 and len(trained) == 2


def test_a_sweep_without_a_name_is_told_which_there_are(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("sweep", "publish"):
        assert refusal(capsys, command).startswith("error: the name of a sweep is missing, choices: small, encoder, ")
        line = refusal(capsys, command, "--variant", "tuna2", "decoder.layers=6")
        assert line.startswith("error: the name of a sweep is missing, 'decoder.layers=6' is a setting, choices: small, ")


def test_a_name_may_stand_behind_options(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--status", "small", "decoder.layers=6"], ["small", "--status", "decoder.layers=6"]):
        assert main(["sweep", *words]) == 0
        out = capsys.readouterr().out
        assert "2 runs: 2 queued" in out and "runs/small+" in out


def test_a_variant_of_which_a_sweep_has_no_run(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (checkout / "sweeps" / "small.yaml").open("a") as file:
        file.write("arms: {a: {variant: tuna2}}\n")
    for call in (["sweep", "small", "--status"], ["sweep", "small", "--dry-run"], ["sweep", "small"], ["publish", "small"]):
        line = refusal(capsys, *call, "--variant", "tuna")
        assert line == "error: sweep small has no run of variant 'tuna', choices: tuna2"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--once", "--once does nothing without --status: leave it out, or give both"),
        ("--once --dry-run", "--once does nothing without --status: leave it out, or give both"),
        ("--status --dry-run", "--dry-run does nothing beside --status: leave one of them out"),
        ("--status --retry", "--retry does nothing beside --status: leave one of them out"),
        ("--status --launch local", "--launch does nothing beside --status: leave one of them out"),
        ("--status --parallel 2", "--parallel does nothing beside --status: leave one of them out"),
        ("--dry-run --retry", "--retry does nothing beside --dry-run: leave one of them out"),
        ("--dry-run --retries 0", "--retries does nothing beside --dry-run: leave one of them out"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    checkout: Path, trained: list[Path], capsys: pytest.CaptureFixture[str], options: str, line: str
) -> None:
    assert refusal(capsys, "sweep", "small", *options.split()) == f"error: {line}"
    assert not trained
    assert main(["sweep", "small", "--status", "--once", "--retries", "1"]) == 0
