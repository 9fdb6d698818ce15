"""Jobs in several processes: the same results, each process with its share of the threads, and no process outlives the first."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tunalab.errors import UserError
from tunalab.evaluation import side_by_side as module
from tunalab.evaluation.parts import PARTS, find_parts, independent
from tunalab.evaluation.side_by_side import default_processes, side_by_side


def job(word: str, number: int) -> tuple[str, int, int]:
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 0:
        raise UserError(f"{word}: nothing to measure")
    return word * number, torch.get_num_threads(), os.getpid()


def wait(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


@pytest.mark.slow
def test_results_mistakes_and_deaths_are_those_of_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_threads", lambda: 4)
    with side_by_side(job, [("a", 2), ("b", 0)], 2) as (first, failed):
        assert first()[:2] == ("aa", 2) and first()[2] != os.getpid(), "of four threads each of two processes has two"
        with pytest.raises(UserError, match="^b: nothing to measure$"):
            failed()
    with side_by_side(job, [("c", -1)], 2) as (died,), pytest.raises(UserError, match="^one of 2 processes died .*--processes 1$"):
        died()


def test_one_process_is_this_one_and_works_when_asked() -> None:
    with side_by_side(job, [("a", 2), ("b", 0)], 1) as (first, failed):
        assert first() == ("aa", torch.get_num_threads(), os.getpid())
        with pytest.raises(UserError):
            failed()


@pytest.mark.slow
def test_an_interruption_ends_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), side_by_side(wait, [(tmp_path,)], 2):
        while not list(tmp_path.iterdir()):
            time.sleep(0.05)
        began = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - began < 300, "the job is not waited for"
    (process,) = (int(path.name) for path in tmp_path.iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_parts_that_share_images_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = independent(find_parts(None))
    assert ["generation", "diversity", "fidelity"] in groups and sorted(sum(groups, [])) == sorted(find_parts(None))
    assert independent(["fidelity", "editing", "diversity"]) == [["fidelity", "diversity"], ["editing"]]
    assert independent(list(PARTS))[0] == ["understanding"], "the longest begins first"
    monkeypatch.setattr(module, "_threads", lambda: 8)
    assert default_processes() == (1 if torch.cuda.is_available() else 2)
    monkeypatch.setattr(module, "_threads", lambda: 1)
    assert default_processes() == 1
