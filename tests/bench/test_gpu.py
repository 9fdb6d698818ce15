"""The benchmark of a CUDA device as far as it runs without one: its documents, its figures, what it says, its failures."""

import json
import subprocess
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from tests.conftest import small_config

from tunalab.bench import GPU_PARTS
from tunalab.bench import gpu as bench
from tunalab.bench.gpu import AssumedCorpus, assumed_steps, bench_agreement, bench_step, small_tokenizer, step_config
from tunalab.cli import main
from tunalab.data.sequence import to_sequence
from tunalab.planning.workload import ASSUMED, assumed

CPU = torch.device("cpu")
# The benchmark's own experiment at a size that a laptop computes in a second.
TINY = [
    *("decoder.width=64", "decoder.layers=1", "decoder.heads=2", "decoder.kv_heads=1", "decoder.mlp=64"),
    *("head.blocks=1", "head.heads=2", "head.kv_heads=1", "head.head_dim=32", "head.mlp=64", "decoder.vocabulary=512"),
    *("data.row_tokens=1024", "data.buckets=[128x128,96x160]", "data.lookahead=6"),
    *("stages.pretrain.mix=connector_v1", "precision=fp32"),
]


def test_without_a_device_it_says_so_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--gpu"]) == 2
    assert capsys.readouterr().err == "error: bench --gpu needs a CUDA device, and there is none: nothing was measured\n"
    assert not list(tmp_path.rglob("*"))
    assert main(["bench", "--gpu", "--only", "sweep"]) == 2 and "choices with --gpu: agreement" in capsys.readouterr().err
    assert main(["bench", "--only", "agreement"]) == 2 and "choices: training, generation, sweep" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ASSUMED)
def test_documents_are_as_long_as_plans_assume(kind: Any) -> None:
    tokenizer, shape = small_tokenizer(), ASSUMED[kind]
    corpus = AssumedCorpus("any", kind, [(32, 32), (32, 48)])
    made = [to_sequence(corpus.document(index), tokenizer, 16) for index in range(60)]
    visual = [sum(span.length for span in sequence.spans) + 2 * len(sequence.spans) for sequence in made]
    texts = [len(sequence.ids_L) - images for sequence, images in zip(made, visual, strict=True)]
    assert mean(texts) == pytest.approx(shape.text, rel=0.15)
    assert mean(sequence.target_L.sum() for sequence in made) == pytest.approx(shape.labels, rel=0.15)
    assert Counter(span.generate for span in made[0].spans) == Counter({False: shape.looked_at, True: shape.generated}) - Counter()
    assert to_sequence(corpus.document(3), tokenizer, 16).ids_L.tolist() == made[3].ids_L.tolist()


def test_both_sizes_are_those_of_their_experiments_and_planned_to_fit_into_80_gb() -> None:
    sizes = {}
    for experiment, settings in (bench.STEPS["step"], bench.STEPS["step_0_5b"]):
        config = step_config(settings, experiment)
        plan = bench.make_plan(config, bench.find_gpu(None, None))
        sizes[experiment] = sum(count.trained for count in plan.parameters.values())
        assert config.data.rows * config.data.row_tokens >= 16_384 and 15e9 < plan.bytes_needed < 75e9
    assert sizes[bench.SMALLER] < 0.8e9 < 1.5e9 < sizes[bench.EXPERIMENT]


def test_rows_hold_the_work_that_plans_assume() -> None:
    config = step_config(["data.lookahead=24"])
    steps = assumed_steps(config, small_tokenizer(), 3, 16)
    assert all(one.stage == "pretrain" and 0.9 < one.tokens / 16_384 <= 1 for one in steps)
    expected = assumed(config.stages["pretrain"].mix, config.data, 16).per_token
    images = sum(one.images for one in steps) / sum(one.tokens for one in steps)
    assert images == pytest.approx(sum(expected.images.values()), rel=0.5)


def test_a_step_is_measured_by_the_training_that_runs_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "DISTINCT", 1)
    config = step_config([*TINY, "activation_checkpointing=true"])
    found = bench_step(config, CPU, steps=2, square=64)
    assert found["steps"] == 2 and found["parameters"] > 0 and 0 < found["tokens_per_step"] <= 1024
    assert found["utilisation"] > 0 and found["step_seconds"] > 0 and found["warming_up_seconds"] > 0
    assert 0 < found["planned_memory_gb"] < 1
    assert (found["graphs_compiled_while_measured"], found["peak_memory_gb"]) == (0, None)
    assert found["model_flops_per_step"] > 6 * config.decoder.width * config.decoder.mlp * 3 * found["tokens_per_step"]
    assert bench_step(config, CPU, square=64, profiled=True)["kernels"]


def test_fast_and_plain_paths_agree_and_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    config = step_config([*TINY, "attention=document", "activation_checkpointing=true"])
    found = bench_agreement(config, CPU)
    assert max(found["relative_loss_difference"].values()) < 1e-5 and found["relative_gradient_difference"] < 1e-4
    assert found["losses"].keys() == {"text", "flow"}
    coarse = bench_agreement(step_config([*TINY, "attention=document", "precision=bf16"]), CPU)
    assert 1e-6 < max(coarse["relative_loss_difference"].values()) < bench.REQUIRED_DIFFERENCE


STEP = {
    "utilisation": 0.5,
    "matrix_flops_per_second": 7.9e14,
    "step_seconds": 0.4,
    "tokens_per_second": 4e4,
    "peak_memory_gb": 60.0,
    "planned_memory_gb": 58.0,
    "compile_seconds": 50.0,
}
AGREEMENT = {"relative_loss_difference": {"text": 1e-3, "flow": 1e-3}, "relative_gradient_difference": 1e-2}
PROFILE = {"kernels": [{"name": "gemm", "ms": 3.0, "count": 4}]}


def test_what_is_missed_is_said() -> None:
    assert bench.good("step", STEP) and "reached" in bench.describe("step", STEP)
    for part in ("step", "step_0_5b", "step_not_compiled"):
        more = STEP | {"peak_memory_gb": 65.0}
        assert not bench.good(part, more) and "65.0 GB of 58.0 planned" in bench.describe(part, more)
        assert bench.describe(part, more).endswith("MISSED")
    slow = STEP | {"utilisation": 0.4499}
    assert not bench.good("step", slow) and "MISSED" in bench.describe("step", slow)
    assert bench.good("step_not_compiled", slow) and "MISSED" not in bench.describe("step_not_compiled", slow)
    assert bench.good("agreement", AGREEMENT) and bench.good("profile", PROFILE) and "gemm" in bench.describe("profile", PROFILE)
    for wrong in (0.03, float("nan")):
        apart = AGREEMENT | {"relative_loss_difference": {"text": 1e-3, "flow": wrong}}
        assert not bench.good("agreement", apart) and "MISSED" in bench.describe("agreement", apart)
    assert not bench.good("profile", {"failed": "no profiler"}) and "no profiler" in bench.describe(
        "profile", {"failed": "no profiler"}
    )


def test_parts_that_fail_leave_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {
        "agreement": AGREEMENT,
        "agreement_fused_loss": AGREEMENT,
        "step_0_5b": STEP,
        "step_fused_loss": STEP,
        "step_not_compiled": STEP,
        "step_not_recomputed": STEP,
        "profile": PROFILE,
    }

    def run(command: list[str], **_: Any) -> Any:
        part, out = command[-3], Path(command[-1])
        if part == "step":
            return subprocess.CompletedProcess(command, 1, stderr="Traceback\nRuntimeError: no kernel\n")
        if part == "profile":
            raise subprocess.TimeoutExpired(command, 1)
        out.write_text(json.dumps({part: measured[part]}))
        return subprocess.CompletedProcess(command, 1, stderr="")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench, "_device", lambda: {"cuda": "13"})
    monkeypatch.setattr(bench, "environment", lambda: {"accelerator": "a card"})
    monkeypatch.setattr(bench.subprocess, "run", run)
    out = tmp_path / "bench_gpu.json"
    assert bench.bench_gpu(None, out) == 1
    written = json.loads(out.read_text())
    assert written["step"] == {"failed": "RuntimeError: no kernel"} and "more than" in written["profile"]["failed"]
    assert written["step_not_compiled"] == STEP and set(GPU_PARTS) < set(written)
    printed = capsys.readouterr().out
    assert "step: FAILED (RuntimeError: no kernel)" in printed and "step_not_recomputed: 50.0% of 790 TFLOP/s" in printed


def test_the_commands_of_parts_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requests: list[tuple[str | None, Path | None]] = []
    monkeypatch.setattr(bench, "bench_gpu", lambda only, out: requests.append((only, out)) or 0)
    for part in GPU_PARTS:
        assert main(["bench", "--gpu", "--only", part, "--out", str(tmp_path / "x.json")]) == 0
    assert main(["bench", "--gpu"]) == 0
    assert requests == [*((part, tmp_path / "x.json") for part in GPU_PARTS), (None, Path("results/bench_gpu.json"))]
    assert small_config().compile_blocks is False, "measured first, then a default"
