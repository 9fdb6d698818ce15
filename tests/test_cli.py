"""A user's mistake is one line on stderr and exit code 2, never a traceback."""

from pathlib import Path

import pytest

from tunalab.cli import main

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shipped files, and an empty place for everything that is written."""
    for name in ("experiments", "variants", "sweeps", "results"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(tmp_path / "components"))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (["train", "--variant", "tuna3"], ["tuna3", "tuna, tuna2, tuna_r"]),
        (["train", "--experiment", "nothing"], ["nothing", "scenes", "smoke"]),
        (["train", "decoder.widht=64"], ["decoder.widht", "width"]),
        (["train", "decoder.width=wide"], ["decoder.width", "wide"]),
        (["train", "seed=-1"], ["seed=-1", "out of range"]),
        (["train", "objective.prediction=epsilon"], ["epsilon", "x, v"]),
        (["train", "variant=tuna"], ["relabel", "--variant"]),
        (["sweep", "mask_ratio", "--parallel", "-1"], ["--parallel -1", "out of range"]),
        (["train", "decoder.width"], ["decoder.width", "key=value"]),
        (["train", "stages.pretrain.mix={scenes/nothing: 1}"], ["scenes/nothing"]),
        (["train", "--variant", "tuna_r", "frontend.encoder=tiny@7"], ["tiny@7", "tiny/seed0@3000"]),
        (["sweep", "mask_ratio", "--variant", "tuna2", "decoder.widht=64"], ["decoder.widht", "width"]),
        (["train", "--paralel", "2"], ["--paralel"]),
        (["table", "--records", "results/figure6", "decoder.layers=6"], ["decoder.layers=6"]),
        (["sweep", "nothing"], ["nothing", "mask_ratio"]),
        (["sweep", "mask_ratio", "--variant", "tuna3"], ["tuna3", "tuna2"]),
        (["sweep", "mask_ratio", "objective.masking.ratio=2"], ["objective.masking.ratio", "out of range"]),
        (["figure", "figure7", "--records", "results"], ["figure7", "figure6"]),
        (["figure", "figure6", "--records", "nowhere"], ["nowhere", "no records"]),
        (["table", "--records", "nowhere"], ["nowhere", "no records"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line(call: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(call) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert not Path("runs").exists() or not list(Path("runs").rglob("record.json"))


def test_a_run_directory_in_use_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from tunalab.sweeps.cells import take_lock

    lock = take_lock(Path("runs/mine"))
    assert lock is not None
    assert main(["train", "--run-dir", "runs/mine"]) == 2
    assert "another process" in capsys.readouterr().err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for command in ("train", "sweep", "components", "figure", "table", "publish", "dashboard", "bench"):
        assert command in text
