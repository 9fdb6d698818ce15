"""`tunalab sweep --launch`: the file that is named decides where cells run, and a mistake in it is told before anything else."""

from pathlib import Path

import pytest

from tunalab.cli import main
from tunalab.sweeps.launcher import Outcome, Result, SlurmLaunch, Work
from tunalab.sweeps.slurm import SlurmLauncher


@pytest.fixture
def launch_file(checkout: Path) -> Path:
    path = checkout / "sweeps" / "launch" / "cluster.yaml"
    path.parent.mkdir()
    path.write_text("{launcher: slurm, nodes: 2}\n")
    return path


def test_cells_go_where_the_launch_file_says(
    launch_file: Path, trained: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests: list[tuple[SlurmLauncher, list[str]]] = []

    def run(launcher: SlurmLauncher, work: Work) -> Result:
        requests.append((launcher, [cell.name for cell in work.cells]))
        return Result([Outcome(cell, "queued", "job 7 pending") for cell in work.cells])

    monkeypatch.setattr(SlurmLauncher, "run", run)
    assert main(["sweep", "small", "--launch", "cluster", "--parallel", "3", "threads=2"]) == 75
    ((launcher, names),) = requests
    assert launcher == SlurmLauncher(SlurmLaunch(nodes=2, array_parallelism=3), threads=2)
    assert [name.partition("-")[0] for name in names] == ["trunk", "tuna2", "tuna2"]
    assert "3 queued" in capsys.readouterr().out and not trained


def test_a_launch_file_that_is_none_or_wrong_is_named(launch_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "small", "--launch", "moon"]) == 2
    assert (
        "sweeps/launch/moon.yaml (choices in sweeps/launch: cluster; shipped: local, slurm, slurm_gpu)" in capsys.readouterr().err
    )
    launch_file.write_text("{launcher: slurm, node: 2}\n")
    assert main(["sweep", "small", "--launch", "cluster"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "sweeps/launch/cluster.yaml" in line and "'node'" in line
