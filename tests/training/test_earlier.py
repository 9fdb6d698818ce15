"""Checkpoints of earlier versions held pickles: one command writes them anew, and the run goes on as if nothing had been."""

import os
import shutil
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from tests.training.conftest import quick_config
from tests.training.test_resume import assert_same, at_step, final
from tunalab.cli import main
from tunalab.errors import EXIT_STOPPED, UserError
from tunalab.trained.model import load_run
from tunalab.training.checkpoints import EARLIER, TENSORS, CheckpointStore, alone_is_fine, read_saved, read_whole, write_whole
from tunalab.training.run import train


def as_earlier(checkpoint: Path) -> None:
    """What the version before would have written in its place."""
    saved, tensors = asdict(read_saved(checkpoint)), read_whole(checkpoint, "")
    del saved["config"]

    def write(folder: Path) -> None:
        with alone_is_fine():
            save(tensors, storage_writer=FileSystemWriter(folder / TENSORS), no_dist=True)
        torch.save(saved, folder / EARLIER)

    write_whole(checkpoint, write, {"step": saved["progress"]["steps"]})


def test_a_run_of_an_earlier_version_goes_on_after_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run_dir = quick_config(), tmp_path / "parts"
    assert train(config, tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(config, run_dir) == EXIT_STOPPED
    newest = CheckpointStore(run_dir / "checkpoints").steps()[-1]
    tensors, saved = read_whole(newest, ""), asdict(read_saved(newest))
    as_earlier(newest)
    assert (newest / TENSORS / ".metadata").is_file() and not (newest / "progress.json").exists()
    for read in (lambda: train(config, run_dir), lambda: load(run_dir)):
        with pytest.raises(UserError, match=f"is of an earlier format: `tunalab convert-checkpoints {run_dir}` makes it readable"):
            read()
    assert main(["convert-checkpoints", str(run_dir)]) == 0
    assert f"{newest} is converted" in capsys.readouterr().out
    assert_same({**saved, "config": None}, asdict(read_saved(newest)))
    assert_same(tensors, read_whole(newest, ""))
    assert not [path for path in newest.rglob("*") if path.suffix in (".pt", ".distcp") or path.name == ".metadata"]
    assert main(["convert-checkpoints", str(run_dir)]) == 0
    assert f"{newest} is in today's format already" in capsys.readouterr().out
    # It does not say whose it is, and goes on all the same.
    assert train(config, run_dir) == 0
    assert_same(final(tmp_path / "whole"), final(run_dir))


def test_what_cannot_be_converted_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for folder, words in ((tmp_path / "none", "there is no such run directory"), (tmp_path / "empty", "holds no checkpoints")):
        assert main(["convert-checkpoints", str(folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    shutil.rmtree(tmp_path / "empty")
