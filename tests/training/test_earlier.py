"""Run directories of earlier versions: fewer settings, and checkpoints of pickles, which one command writes anew. The run goes on
as if nothing had been.
"""

import json
import os
import shutil
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from tests.training.conftest import quick_config
from tests.training.test_resume import assert_same, at_step, final
from tunalab.cli import main
from tunalab.errors import EXIT_STOPPED, UserError
from tunalab.records.record import CONFIG_FILE
from tunalab.settings.layers import unequal
from tunalab.settings.loading import config_hash, from_plain, to_plain
from tunalab.trained.model import load
from tunalab.training.checkpoints import EARLIER, TENSORS, CheckpointStore, alone_is_fine, read_saved, read_whole, write_whole
from tunalab.training.claiming import HASH_LINE, claimed_hash
from tunalab.training.run import train

RECORD = Path(__file__).parents[1] / "data" / "cases" / "earlier_settings.json"  # of a record of the first edition


def old_form(now: Any, then: Any) -> Any:
    """Of today's settings those that the configuration in a committed record has."""
    if not isinstance(now, dict) or not isinstance(then, dict):
        return now
    if then and not now.keys() & then.keys():  # stages, whose names are the user's
        then = dict.fromkeys(now, next(iter(then.values())))
    return {key: old_form(inside, then[key]) for key, inside in now.items() if key in then}


def as_earlier(checkpoint: Path) -> None:
    """What the version before would have written in its place."""
    saved, tensors = asdict(read_saved(checkpoint)), read_whole(checkpoint, "")
    del saved["config"]

    def write(folder: Path) -> None:
        with alone_is_fine():
            save(tensors, storage_writer=FileSystemWriter(folder / TENSORS), no_dist=True)
        torch.save(saved, folder / EARLIER)

    write_whole(checkpoint, write, {"step": saved["progress"]["steps"]})


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on_after_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record, today = json.loads(RECORD.read_text()), to_plain(quick_config())
    plain, run_dir = old_form(today, record["config"]), tmp_path / "parts"
    added = [key for key, _, there in unequal(plain, today) if there is not None]
    assert len(added) > 20 and "optimizer.groups" in added and plain["stages"].keys() == today["stages"].keys()
    config = from_plain(plain)
    assert train(config, tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(config, run_dir) == EXIT_STOPPED
    newest = CheckpointStore(run_dir / "checkpoints").steps()[-1]
    tensors, saved = read_whole(newest, ""), asdict(read_saved(newest))
    as_earlier(newest)
    (run_dir / CONFIG_FILE).write_text(f"{HASH_LINE}{record['run']['config_hash']}\n{yaml.safe_dump(plain)}")
    assert (newest / TENSORS / ".metadata").is_file() and not (newest / "progress.json").exists()
    for read in (lambda: train(config, run_dir), lambda: load(run_dir, "cpu")):
        with pytest.raises(UserError, match=f"is of an earlier format: `tunalab convert-checkpoints {run_dir}` makes it readable"):
            read()
    assert main(["convert-checkpoints", str(run_dir)]) == 0
    assert f"{newest} is converted" in capsys.readouterr().out
    assert_same({**saved, "config": None}, asdict(read_saved(newest)))
    assert_same(tensors, read_whole(newest, ""))
    assert not [path for path in newest.rglob("*") if path.suffix in (".pt", ".distcp") or path.name == ".metadata"]
    assert main(["convert-checkpoints", str(run_dir)]) == 0
    assert f"{newest} is in today's format already" in capsys.readouterr().out
    # Another setting is one line, whether the directory has it already or not.
    for key, there in (("optimizer.name: adamw", "muon"), ("optimizer.clip: 1.0", 0.5)):
        changed = quick_config(**{key.partition(":")[0].replace(".", "__"): there})
        with pytest.raises(UserError, match=rf"holds a run with other settings \({key} there, {there} here\): choose another"):
            train(changed, run_dir)
    # The checkpoint does not say whose it is, and goes on all the same.
    assert main(["train", "--config", str(run_dir / CONFIG_FILE), "--run-dir", str(run_dir)]) == 0
    assert claimed_hash(run_dir) == config_hash(config), "from here on it is known by the hash that it has today"
    assert_same(final(tmp_path / "whole"), final(run_dir))


def test_what_cannot_be_converted_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for folder, words in ((tmp_path / "none", "there is no such run directory"), (tmp_path / "empty", "holds no checkpoints")):
        assert main(["convert-checkpoints", str(folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    shutil.rmtree(tmp_path / "empty")
