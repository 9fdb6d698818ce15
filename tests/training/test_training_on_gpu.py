"""Runs on a CUDA device, by the one path that all runs take: losses fall, runs go on, checkpoints are read without a GPU."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.training.conftest import quick_config
from tests.training.test_module import batch_of, gradients, make_harness, rows, step_of
from tests.training.test_resume import at_step
from tunalab.bench.gpu import moved
from tunalab.errors import EXIT_STOPPED
from tunalab.model.objective import draw
from tunalab.settings.schema import RunConfig
from tunalab.training import module as training_module
from tunalab.training.checkpoints import CheckpointStore, learnt_weights
from tunalab.training.module import Harness
from tunalab.training.run import train

pytestmark = pytest.mark.gpu
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
KINDS = ["vqa", "caption", "text", "text_to_image", "edit", "text_to_image"]


def record(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "record.json").read_text())
    return found


def on_gpu(config: RunConfig) -> Harness:
    return make_harness(config).to(CUDA)


def test_a_run_in_bf16_is_finite_and_its_losses_fall(variant: str, tmp_path: Path) -> None:
    config = quick_config(variant, stages__pretrain__tokens=20_000, stages__sft__tokens=0, data__rows=4)
    assert config.precision == "auto" and config.attention == "auto"
    assert train(config, tmp_path) == 0
    made = record(tmp_path)
    first, last = (made["points"][at]["losses"] for at in (0, -1))
    assert last["text/caption"] < first["text/caption"] and last["flow/text_to_image"] < first["flow/text_to_image"]
    assert made["environment"]["accelerator"] == torch.cuda.get_device_name()
    assert 0 < made["totals"]["peak_memory_bytes"] <= torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recomputed", [False, True])
def test_gradients_are_those_of_the_cpu(compiled: bool, recomputed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every device has a generator of its own: the CPU's draws serve both.
    monkeypatch.setattr(training_module, "draw", lambda batch, *rest: moved(draw(batch.to(CPU), *rest), batch.key_N.device))
    fast = quick_config(precision="fp32", compile_blocks=compiled, activation_checkpointing=recomputed)
    found = []
    for harness in (make_harness(quick_config(attention="dense")), on_gpu(fast)):
        with torch.no_grad():  # weights that start at zero would let no gradient through
            for parameter in harness.model.head.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).to(harness.device))
        means = harness.train()._backward(step_of([batch_of(rows(KINDS)).to(harness.device)]))
        found.append((means, {name: gradient.cpu() for name, gradient in gradients(harness).items()}))
    (expected, expected_gradients), (means, found_gradients) = found
    assert means == pytest.approx(expected, rel=1e-3)
    assert expected_gradients.keys() == found_gradients.keys()
    for name, gradient in expected_gradients.items():  # a kernel may multiply in TF32
        torch.testing.assert_close(found_gradients[name], gradient, rtol=2e-2, atol=1e-2 * gradient.abs().max().item(), msg=name)


def test_rows_of_other_documents_are_not_compiled_for_again() -> None:
    harness = on_gpu(quick_config(compile_blocks=True, activation_checkpointing=True))
    harness.train()
    graphs = []
    for first in range(8):
        kinds = KINDS[first % 3 :] + KINDS[: first % 2]
        with torch.autocast("cuda", torch.bfloat16):
            means = harness._backward(step_of([batch_of(rows(kinds)).to(CUDA)]))
        assert all(value == value for value in means.values())
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[3], "lengths are found to differ in the first few steps"


def test_a_stopped_run_goes_on(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quick_config(variant)
    assert train(config, tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(config, tmp_path / "parts") == EXIT_STOPPED
    assert train(config, tmp_path / "parts") == 0
    whole, parts = record(tmp_path / "whole"), record(tmp_path / "parts")
    assert [point["tokens"] for point in whole["points"]] == [point["tokens"] for point in parts["points"]]
    for name, loss in whole["points"][-1]["losses"].items():  # kernels add in any order
        assert parts["points"][-1]["losses"][name] == pytest.approx(loss, rel=2e-2), name


def test_a_checkpoint_is_read_without_a_gpu(tmp_path: Path) -> None:
    config = quick_config()
    assert train(config, tmp_path) == 0
    newest = CheckpointStore(tmp_path / "checkpoints").newest_valid()
    assert newest is not None
    found = learnt_weights(newest)
    assert all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in found.weights.values())
    learnt = make_harness(config).learnt()
    assert learnt.keys() <= found.weights.keys()
    for name, parameter in learnt.items():
        assert found.weights[name].shape == parameter.shape and found.weights[name].isfinite().all(), name
