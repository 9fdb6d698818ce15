"""A run trains in the very folder it began in, from checkpoints of its own: whatever else has that name is left alone."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import quick_config
from tests.training.test_resume import at_step
from tunalab.errors import UserError
from tunalab.library import attempt
from tunalab.sweeps.cells import ATTEMPTS_FILE, holds, is_locked, take_lock
from tunalab.trained.model import load
from tunalab.training import run as running
from tunalab.training.checkpoints import MANIFEST, CheckpointStore, write_whole
from tunalab.training.run import train


def remove(run_dir: Path) -> None:
    shutil.rmtree(run_dir)


def rename(run_dir: Path) -> None:
    run_dir.rename(run_dir.with_name("renamed"))


def replace(run_dir: Path) -> None:
    """By another's, which has begun to train there."""
    rename(run_dir)
    run_dir.mkdir()
    (run_dir / "another's").touch()


def replace_lock(run_dir: Path) -> None:
    (run_dir / "lock").unlink()
    lock = take_lock(run_dir)
    assert lock is not None
    lock.close()


HARM: list[Callable[[Path], None]] = [remove, rename, replace, replace_lock]


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("moment", ["step", "evaluation"])
def test_a_run_whose_folder_is_gone_stops_and_writes_nothing(
    harm: Callable[[Path], None], moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    lock = take_lock(run_dir)
    assert lock is not None
    left: list[dict[str, int]] = []

    def strike() -> None:
        harm(run_dir)
        left.append(contents(tmp_path))

    if moment == "step":
        at_step(monkeypatch, 3, strike)
    else:
        evaluate = running.evaluate
        monkeypatch.setattr(running, "evaluate", lambda *them: (evaluate(*them), strike())[0])
    with lock, pytest.raises(UserError, match=r"run was removed or replaced while this run trained there") as caught:
        attempt(quick_config(checkpoint_seconds=0.0), run_dir, lock)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == left[0]


def test_how_a_run_ended_is_not_written_into_the_folder_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: Any, run_dir: Path, attempts: Any, callbacks: Any) -> int:
        replace(run_dir)
        raise UserError("anything")

    monkeypatch.setattr(running, "train", train)
    lock = take_lock(tmp_path / "run")
    with pytest.raises(UserError, match="anything"):
        attempt(quick_config(), tmp_path / "run", lock)
    assert not (tmp_path / "run" / ATTEMPTS_FILE).exists()


@pytest.mark.parametrize("harm", [remove, rename, replace])
def test_a_lock_is_of_the_folder_not_of_its_name(harm: Callable[[Path], None], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    held = take_lock(run_dir)
    assert held is not None and holds(run_dir, held) and take_lock(run_dir) is None
    harm(run_dir)
    assert not holds(run_dir, held)
    if (tmp_path / "renamed").exists():
        assert take_lock(tmp_path / "renamed") is None and is_locked(tmp_path / "renamed")
    second = take_lock(run_dir)
    assert second is not None and holds(run_dir, second) and not holds(run_dir, held)


def test_a_folder_removed_while_its_lock_is_taken_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, struck = fcntl.flock, []

    def strike(stream: Any, how: int) -> None:
        flock(stream, how)
        if not struck:
            struck.append(True)
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(fcntl, "flock", strike)
    lock = take_lock(tmp_path / "run")
    assert lock is not None and holds(tmp_path / "run", lock)


@pytest.fixture(scope="module")
def two_runs(quick_components: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``zero`` and ``one``, by their seeds."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNALAB_COMPONENTS", str(quick_components))
        for seed, name in enumerate(("zero", "one")):
            assert train(quick_config(seed=seed), folder / name) == 0
    return folder


def newest(run_dir: Path) -> Path:
    return CheckpointStore(run_dir / "checkpoints").steps()[-1]


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(two_runs: Path, tmp_path: Path) -> None:
    shutil.copytree(two_runs / "zero", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(two_runs / "one" / "checkpoints", tmp_path / "run" / "checkpoints")
    words = r"checkpoint .* is of a run with other settings \(seed: 1 there, 0 here\): remove it, or train in another directory"
    for read in (lambda: train(quick_config(), tmp_path / "run"), lambda: load(tmp_path / "run", "cpu")):
        with pytest.raises(UserError, match=words) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_checkpoint_says_whose_it_is(two_runs: Path) -> None:
    from tunalab.settings.loading import config_hash

    manifest = json.loads((newest(two_runs / "one") / MANIFEST).read_text())
    assert manifest["config_hash"] == config_hash(quick_config(seed=1))


def test_a_checkpoint_that_does_not_say_whose_it_is_goes_on(two_runs: Path, tmp_path: Path) -> None:
    shutil.copytree(two_runs / "zero", tmp_path / "run")

    def write(folder: Path) -> None:
        shutil.copytree(newest(two_runs / "zero"), folder, dirs_exist_ok=True)
        plain = json.loads((folder / "progress.json").read_text())
        del plain["config"]
        (folder / "progress.json").write_text(json.dumps(plain))
        (folder / MANIFEST).unlink()

    write_whole(newest(tmp_path / "run"), write, {})
    assert train(quick_config(), tmp_path / "run") == 0


def test_what_matters_to_no_result_may_differ(two_runs: Path, tmp_path: Path) -> None:
    shutil.copytree(two_runs / "zero", tmp_path / "run")
    assert train(quick_config(threads=2, keep_checkpoints=3), tmp_path / "run") == 0


def test_a_disk_that_does_not_answer_is_no_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunalab.training.claiming import Holding

    holding = Holding(tmp_path)

    def silent(path: Path) -> os.stat_result:
        raise OSError(110, "Connection timed out")

    with monkeypatch.context() as patch:
        patch.setattr("tunalab.training.claiming.os.stat", silent)
        assert not holding.lost()
    holding.close()
