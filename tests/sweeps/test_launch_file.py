"""Files of sweeps/launch/: what they may say, and the one line that tells what they may not."""

import re
from pathlib import Path

import pytest

from tunalab.errors import UserError
from tunalab.sweeps.launcher import LocalLaunch, SlurmLaunch, at_a_time, launcher, read_launch
from tunalab.sweeps.local import LocalLauncher
from tunalab.sweeps.slurm import SlurmLauncher

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "sweeps" / "launch").glob("*.yaml"))


def read(folder: Path, text: str):
    path = folder / "mine.yaml"
    path.write_text(text)
    return read_launch(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_are_read(path: Path) -> None:
    assert isinstance(read_launch(path), LocalLaunch if path.stem == "local" else SlurmLaunch)


@pytest.mark.parametrize(
    "place", ["Makefile", "README.md", "CONTRIBUTING.md", "docs/*.md", "sweeps/*.yaml", "sweeps/launch/*.yaml"]
)
def test_commands_that_are_shipped_name_files_that_are_there(place: str) -> None:
    for path in sorted(ROOT.glob(place)):
        text = path.read_text()
        for word, folder in (("SWEEP", "sweeps"), ("LAUNCH", "sweeps/launch")):
            named = re.findall(rf"\b{word}=(\w+)", text)
            assert [name for name in named if not (ROOT / folder / f"{name}.yaml").exists()] == [], path
        swept = re.findall(r"tunalab sweep ([a-z]\w+)", text)
        own = set(re.findall(r"sweeps/(\w+)\.yaml", text))  # a page may say what to write into a file first
        assert [name for name in swept if name not in own and not (ROOT / "sweeps" / f"{name}.yaml").exists()] == [], path


def test_a_file_sets_what_it_names(tmp_path: Path) -> None:
    launch = read(tmp_path, "{launcher: slurm, nodes: 2, partition: gpu, setup: [module load cuda], sbatch: {exclusive: true}}")
    assert launch == SlurmLaunch(nodes=2, partition="gpu", setup=["module load cuda"], sbatch={"exclusive": True})
    assert read(tmp_path, "launcher: local") == LocalLaunch()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nodes: 2", ["key 'launcher' is missing", "local, slurm"]),
        ("launcher: pbs", ["launcher=pbs is not known", "local, slurm, my_package.module:Class"]),
        ("{launcher: slurm, node: 2}", ["one of nodes, tasks_per_node", "'node'"]),
        ("{launcher: local, nodes: 2}", ["one of parallel", "'nodes'"]),
        ("{launcher: slurm, nodes: two}", ["nodes must be an integer", "'two'"]),
        ("{launcher: slurm, gpus_per_node: -1}", ["gpus_per_node=-1 is out of range (from 0)"]),
        ("{launcher: local, parallel: 0}", ["parallel=0 is out of range (from 1)"]),
        ("{launcher: slurm, minutes: 2, signal_seconds: 120}", ["signal_seconds=120 leaves nothing of minutes=2"]),
        ("{launcher: slurm, sbatch: {job_name: mine}}", ["'job_name' is set by the launcher"]),
        ("{launcher: slurm, sbatch: {--time: 5}}", ["'--time' is set by the launcher, or has a key of its own"]),
        ("{launcher: slurm, sbatch: {exclusive: false}}", ["'exclusive' must be a text, a number or true, got False"]),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    line = str(error.value)
    assert "\n" not in line and "mine.yaml" in line and all(word in line for word in words), line


def test_the_launcher_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunalab.sweeps.launcher.visible_gpus", lambda: ["0", "1"])
    assert launcher(LocalLaunch(parallel=3), threads=2) == LocalLauncher(3, 2, ["0", "1"])
    assert at_a_time(LocalLaunch(), 10**6) == 1 and at_a_time(LocalLaunch(parallel=3), 1, parallel=5) == 5
    assert launcher(SlurmLaunch(nodes=2), threads=2, parallel=7) == SlurmLauncher(SlurmLaunch(nodes=2, array_parallelism=7), 2)
