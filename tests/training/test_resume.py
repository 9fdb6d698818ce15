"""N steps, stopped or killed, resumed, equal an uninterrupted run bit for bit, for every variant."""

import json
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import quick_config
from tests.variants import SETTINGS
from tunalab.errors import EXIT_STOPPED, UserError
from tunalab.records import log as training_log
from tunalab.records.log import read_rows
from tunalab.records.record import read_record
from tunalab.settings.loading import config_hash, from_plain
from tunalab.settings.schema import RunConfig
from tunalab.training.checkpoints import TENSORS, CheckpointStore, read_saved, read_whole
from tunalab.training.joint import DataModule
from tunalab.training.module import Harness
from tunalab.training.run import train

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def rows_of_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that runs are stopped and killed in the middle of a row."""
    monkeypatch.setattr(training_log, "ROWS", 4)


# Groups that take parts of every variant, decay on some, and a rate that falls.
GROUPS: dict[str, object] = {
    "optimizer__weight_decay_on": "matrices",
    "optimizer__groups": {
        "front": {"match": "frontend", "lr": 0.25, "weight_decay": 0.5},
        "still": {"match": "time.*", "lr": 0},
    },
    "stages__pretrain__schedule": "cosine",
    "stages__sft__schedule": "wsd",
}


class Killed(BaseException):
    """What a kill -9 looks like from inside: nothing after it runs. Not an Exception, so nothing handles it."""


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Any) -> None:
    """Do ``action`` once, when the run has taken ``step`` steps."""
    original = Harness.training_step
    done = False

    def training_step(self: Harness, batch: Any, index: int) -> Any:
        nonlocal done
        if self.progress.steps == step and not done:
            done = True
            action()
        return original(self, batch, index)

    monkeypatch.setattr(Harness, "training_step", training_step)


def final(run_dir: Path) -> dict[str, Any]:
    """Everything that must be equal: the last checkpoint's tensors and numbers, the record's points and the training log, without
    seconds.
    """
    newest = CheckpointStore(run_dir / "checkpoints").newest_valid()
    assert newest is not None
    saved = read_saved(newest)
    points = json.loads((run_dir / "record.json").read_text())["points"]
    for timed in (saved.progress, *saved.progress["points"], *points):
        for name in ("seconds", "peak_memory"):  # a matter of the machine, not of the run
            timed.pop(name, None)
    rows = [[row.tokens, row.metrics] for row in read_rows(run_dir)]
    return {"tensors": read_whole(newest, ""), "saved": asdict(saved), "record": points, "rows": rows}


def assert_same(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    else:
        assert one == other, where


def undisturbed(config: RunConfig, folder: Path) -> dict[str, Any]:
    assert train(config, folder) == 0
    return final(folder)


def assert_record(config: RunConfig, run_dir: Path) -> None:
    """It reproduces its run, and its points lie at counts of the data alone: the x axis is the same for every front-end."""
    record = json.loads((run_dir / "record.json").read_text())
    assert record["run"]["finished"] and record["points"][-1]["tokens"] == record["totals"]["tokens"] >= 2700
    assert record["totals"]["flops"] > 0 and record["totals"]["peak_memory_bytes"] > 1e7
    assert config_hash(from_plain(record["config"])) == record["run"]["config_hash"] == config_hash(config)
    assert list((run_dir / "samples").glob("*.png"))
    points = [(point["tokens"], point["steps"], point["images"]) for point in record["points"]]
    assert len(points) == 2 and points == [at for at in counts_of_the_data(run_dir.parent) if at in points]


def counts_of_the_data(folder: Path) -> list[tuple[int, int, int]]:
    """Tokens, steps and images after every step, as a front-end without encoder and VAE reads them."""
    tokens = images = 0
    counts = []
    for number, step in enumerate(DataModule(quick_config(), folder).train_dataloader(), 1):
        tokens, images = tokens + step.tokens, images + step.images
        counts.append((tokens, number, images))
    return counts


def test_stopped_killed_and_resumed_is_the_same_run(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by a signal after four steps, then killed after nine: the steps since the last checkpoint are done again."""
    own: dict[str, object] = {"optimizer__name": "muon"}
    if "vae" in SETTINGS[variant]:
        own = {"frontend__vae_posterior": "sample"}
    config = quick_config(variant, **GROUPS, **own)
    assert train(config, tmp_path / "whole") == 0
    whole, parts = final(tmp_path / "whole"), tmp_path / "parts"
    assert_record(config, tmp_path / "whole")
    assert not any("vae" in name for name in whole["tensors"]), "frozen parts are in no checkpoint"
    for _, metrics in whole["rows"]:
        rates = [metrics[f"train/learning_rate{name}"] for name in ("", "/front", "/still")]
        assert rates[0] > 0 and rates[1:] == pytest.approx([rates[0] / 4, 0], rel=1e-12)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(config, parts) == EXIT_STOPPED
    assert signal.getsignal(signal.SIGTERM) == before

    def kill() -> None:
        raise Killed

    with monkeypatch.context() as patch:
        at_step(patch, 9, kill)
        with pytest.raises(Killed):
            train(config, parts)
    survivor = CheckpointStore(parts / "checkpoints").newest_valid()
    assert survivor is not None and 4 < int(survivor.name.removeprefix("step-")) < 9, "that of the first evaluation"
    assert train(config, parts) == 0
    assert_same(whole, final(parts))


def test_with_data_processes_the_order_is_kept_across_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quick_config(data__workers=2)
    whole = undisturbed(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(config, tmp_path / "parts") == EXIT_STOPPED
    assert train(config, tmp_path / "parts") == 0
    assert_same(whole, final(tmp_path / "parts"))


def test_data_that_changed_while_a_run_was_stopped_are_refused_or_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"the number {number}"}) + "\n" for number in range(60)))

    def config(**changes: Any) -> RunConfig:
        stages = {"only": {"tokens": 2000, "mix": {"text/mine": 1.0, "scenes/vqa": 1.0}}}
        return quick_config(stages=stages, data__text={"mine": {"urls": [str(texts)]}}, **changes)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(config(), run) == EXIT_STOPPED
    held = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    texts.write_text(texts.read_text().replace("number 7", "cypher 7!"))
    with pytest.raises(
        UserError, match=r"^data changed .*texts.jsonl has [\d,]+ bytes, had [\d,]+: .*start.accept_changed_data=true$"
    ):
        train(config(), run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == held, "nothing was written"
    assert train(config(start__accept_changed_data=True), run) == 0
    record = read_record(run / "record.json")
    (accepted,) = record.data["accepted_changes"]
    assert accepted["count"] == 1 and 0 < accepted["tokens"] < 2000 and "texts.jsonl" in accepted["changes"][0]
    assert sum(record.data["mix"]["only"]["tokens"].values()) == record.totals.tokens, "counts go on over the stop"


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick_config(checkpoint_seconds=0.0)  # a checkpoint after every step
    whole = undisturbed(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(config, tmp_path / "parts")
    newest = CheckpointStore(tmp_path / "parts" / "checkpoints").steps()[-1]
    (shard,) = (newest / TENSORS).iterdir()
    with shard.open("r+b") as stream:  # 64 zeroed bytes load without any error in the stock path
        stream.seek(2000)
        stream.write(bytes(64))
    assert train(config, tmp_path / "parts") == 0
    printed = capsys.readouterr().out
    assert f"{newest} is damaged" in printed and "does not match its hash" in printed
    assert_same(whole, final(tmp_path / "parts"))
