"""`tunalab train`: a saved configuration is the same run again, and nothing else passes for one."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from tunalab.cli import main
from tunalab.library import LOCK_HELD
from tunalab.records.record import read_record
from tunalab.settings.schema import RunConfig
from tunalab.sweeps.cells import read_history
from tunalab.training.distribution import Ranks


def refusal(capsys: pytest.CaptureFixture[str], *call: str) -> str:
    capsys.readouterr()
    assert main(list(call)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_saved_configuration_is_the_same_run_again(checkout: Path, trained: list[Path]) -> None:
    settings = ["objective.masking.ratio=0.3", "stages.sft.lr=1e-4", "seed=4", "tracking.enabled=false", "tracking.sweep=old"]
    assert main(["train", "--experiment", "smoke", "--variant", "tuna_r", *settings]) == 0
    assert main(["train", "--config", str(trained[0] / "config.yaml")]) == 0
    first, again = (read_record(path / "record.json") for path in trained)
    assert trained[1] != trained[0] and trained[1].name == f"tuna_r-seed4+{first.run.config_hash}"
    assert again.run.config_hash == first.run.config_hash
    assert again.config == first.config | {"tracking": first.config["tracking"] | {"sweep": ""}}  # it is no part of that sweep
    assert main(["train", "--config", str(trained[0] / "config.yaml"), "--run-dir", "runs/mine"]) == 0
    assert trained[2] == Path("runs/mine")


def test_a_replay_takes_nothing_else(checkout: Path, trained: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--experiment", "smoke", "--variant", "tuna2"]) == 0
    saved = str(trained[0] / "config.yaml")
    for extra, named in ((["seed=3"], "seed=3"), (["--variant", "tuna"], "--variant"), (["--experiment", "smoke"], "--experiment")):
        assert f"leave out '{named}'" in refusal(capsys, "train", "--config", saved, *extra)
    assert "not the saved configuration" in refusal(capsys, "train", "--config", "experiments/smoke.yaml")
    assert "nowhere.yaml" in refusal(capsys, "train", "--config", "nowhere.yaml")
    assert len(trained) == 1


@pytest.mark.parametrize("option", ["--experiment", "--variant"])
def test_a_saved_configuration_is_no_experiment(
    checkout: Path, trained: list[Path], capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert main(["train", "--experiment", "smoke"]) == 0
    saved = trained[0] / "config.yaml"
    assert f"--config {saved}" in refusal(capsys, "train", option, str(saved))


def test_a_run_of_an_earlier_revision_is_refused(checkout: Path, trained: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--experiment", "smoke"]) == 0
    saved = trained[0] / "config.yaml"
    saved.write_text("".join(line for line in saved.read_text().splitlines(True) if not line.startswith("revision:")))
    assert "revision=1" in refusal(capsys, "train", "--config", str(saved))


def test_processes_wait_for_hours_while_one_of_them_indexes(
    checkout: Path, trained: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[str] = []

    @contextmanager
    def together(self: Ranks, patient: bool = False) -> Iterator[None]:
        waits.append("patient" if patient else "impatient")
        yield
        waits.append("done")

    monkeypatch.setattr(Ranks, "together", together)
    monkeypatch.setattr("tunalab.training.several_started", lambda: True)
    monkeypatch.setattr("tunalab.training.distribution.joined", lambda: nullcontext(Ranks()))
    monkeypatch.setattr("tunalab.training.preflight.open_data", lambda config: waits.append("indexing"))
    assert main(["train", "--experiment", "smoke"]) == 0
    assert waits == ["patient", "indexing", "done"] and len(trained) == 1


def test_a_run_that_no_sweep_started_keeps_its_own_history(
    checkout: Path, trained: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LOCK_HELD)
    run_dir = checkout / "runs" / "mine"
    messages: list[dict[str, int]] = []

    def train(config: RunConfig, run_dir: Path, attempts: dict[str, int], callbacks: object = ()) -> int:
        messages.append(attempts)
        if len(messages) == 1:
            raise RuntimeError("the disk is full")
        return 75 if len(messages) == 2 else 0

    monkeypatch.setattr("tunalab.training.run.train", train)
    call = ["train", "--experiment", "smoke", "--run-dir", str(run_dir)]
    with pytest.raises(RuntimeError):
        main(call)
    assert main(call) == 75 and main(call) == 0
    assert messages[2] == {"starts": 3, "failed": 1, "stopped": 1}
    first, second, third = read_history(run_dir).attempts
    assert (first.how, first.reason, first.launcher) == ("failed", "RuntimeError: the disk is full", "alone")
    assert (second.how, third.how) == ("stopped", "finished")


def test_an_empty_name_is_no_run_directory(checkout: Path, trained: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """`--run-dir "$NOTHING"` would train in the working directory."""
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--experiment", "smoke", "--run-dir", ""])
    assert "--run-dir: the name is empty" in capsys.readouterr().err and not trained
