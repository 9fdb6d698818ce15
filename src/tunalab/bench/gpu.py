"""`tunalab bench --gpu`: a training step at full scale on a CUDA device, and whether it computes what the CPU does.

The step is the one that runs train with: their module, optimiser, averages and precision, on rows
that their stream packs. Measured is what share of the device's own rate of matrix products the
model's FLOPs reach, and the peak of the device's memory beside what the plan says of it. Each part
runs in a process of its own: one that fails or takes too long leaves the others, and no part finds
memory or kernels of another.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from itertools import cycle, islice, pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from tunalab.bench import GPU_PARTS
from tunalab.bench.reference import randomise_zero_layers
from tunalab.data.buckets import Buckets, Size
from tunalab.data.documents import Document, Image, Kind, Text
from tunalab.data.packing import PackedBatch
from tunalab.data.scenes import text_sample
from tunalab.data.sources import kind_of
from tunalab.data.stream import StepLoader, TrainingStream
from tunalab.data.tokenizer import Tokenizer, train_tokenizer
from tunalab.errors import UserError
from tunalab.files import write_atomically
from tunalab.model.flops import flop_costs
from tunalab.model.objective import Draws, draw, losses
from tunalab.model.unified import UnifiedModel, build_model
from tunalab.planning.plan import find_gpu, make_plan
from tunalab.planning.workload import ASSUMED
from tunalab.records.environment import environment
from tunalab.settings.layers import run_files
from tunalab.settings.loading import load_config
from tunalab.settings.schema import RunConfig
from tunalab.training.blocks import prepare_blocks
from tunalab.training.joint import JointStep, JointSteps
from tunalab.training.module import Harness
from tunalab.training.run import build_trainer

REQUIRED_UTILISATION, REQUIRED_DIFFERENCE = 0.45, 2e-2
REQUIRED_MEMORY = 1.1  # of the plan: the most that may be measured
LIMIT = 200  # seconds of a part

EXPERIMENT, SMALLER, VARIANT = "paper_1_5b_controlled", "public_0_5b", "tuna2"
# An experiment without what only a whole run or a network has; with masking from the first step on.
ALONE = [
    *("decoder.pretrained=''", "decoder.chat=none", "data.step_tokens=0", "data.workers=0", "evaluation.benchmarks={}"),
    *("distribution.strategy=none", "tracking.enabled=false"),
    *("stages.connector.tokens=0", "stages.sft.tokens=0", "objective.masking.start=0"),
]
# A flow head that fits beside the decoder into one GPU of 80 GB; rows that fill it with the smaller decoder.
FITTING = {EXPERIMENT: ["head.blocks=16"], SMALLER: ["data.rows=8"]}
COMPILED, RECOMPUTED, FUSED = "compile_blocks=true", "activation_checkpointing=true", "fused_text_loss=true"
# The same model, attention and precision, at a size that the CPU computes in a minute.
SMALL = [
    *("decoder.width=256", "decoder.layers=4", "decoder.heads=4", "decoder.kv_heads=2", "decoder.mlp=1024"),
    *("head.blocks=3", "head.heads=4", "head.kv_heads=2", "head.mlp=1024", "decoder.vocabulary=2048"),
    *("data.row_tokens=4096", "data.buckets=[256x256,192x320,512x512]", "data.lookahead=16"),
]
# Part -> experiment and settings. `step` is the recipe's with compiled blocks; two others say what each of its means does.
STEPS = {
    "step": (EXPERIMENT, [COMPILED, RECOMPUTED]),
    "step_0_5b": (SMALLER, [COMPILED, RECOMPUTED]),
    "step_fused_loss": (EXPERIMENT, [COMPILED, RECOMPUTED, FUSED]),
    "step_not_compiled": (EXPERIMENT, ["compile_blocks=false", RECOMPUTED]),
    "step_not_recomputed": (EXPERIMENT, [COMPILED, "activation_checkpointing=false"]),
    "profile": (EXPERIMENT, [COMPILED, RECOMPUTED]),
}
AGREEMENTS = {"agreement": "step", "agreement_fused_loss": "step_fused_loss"}  # the step whose means are compared with the CPU's


def bench_gpu(only: str | None, out: Path | None) -> int:
    """All parts, or ``only`` one of them in this process. Exit code 1 when a figure is missed or a part failed.

    Raises UserError without a CUDA device; nothing is written then.
    """
    if not torch.cuda.is_available():
        raise UserError("bench --gpu needs a CUDA device, and there is none: nothing was measured")
    results: dict[str, Any] = {"command": "make bench-gpu" if only is None else f"tunalab bench --gpu --only {only}"}
    results["environment"] = environment() | _device()
    run = _in_a_process if only is None else _measure
    for part in GPU_PARTS if only is None else (only,):
        results[part] = run(part)
        print(describe(part, results[part]), flush=True)
        if out is not None:
            write_atomically(out, json.dumps(results, indent=1) + "\n")
    if out is not None:
        print(f"wrote {out}")
    return 0 if all(good(part, results[part]) for part in GPU_PARTS if part in results) else 1


def _measure(part: str) -> dict[str, Any]:
    device = torch.device("cuda", 0)
    if part in AGREEMENTS:
        return bench_agreement(step_config([*SMALL, *STEPS[AGREEMENTS[part]][1]]), device)
    experiment, settings = STEPS[part]
    return bench_step(step_config(settings, experiment), device, profiled=part == "profile")


def _in_a_process(part: str) -> dict[str, Any]:
    """What the part measured, or ``failed``: why it did not."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "part.json"
        command = [sys.executable, "-m", "tunalab", "bench", "--gpu", "--only", part, "--out", str(out)]
        try:
            done = subprocess.run(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", errors="replace", timeout=LIMIT
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {LIMIT} s"}
        if not out.exists():
            sys.stderr.write(done.stderr)
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return {"failed": lines[-1]}
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))[part]
        return found


def _device() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {"cuda": torch.version.cuda, "device_memory_gb": properties.total_memory / 1e9}


def good(part: str, found: dict[str, Any]) -> bool:
    """Whether a part was measured, and reached what is required of it."""
    if "failed" in found:
        return False
    if part in AGREEMENTS:
        return all(difference <= REQUIRED_DIFFERENCE for difference in found["relative_loss_difference"].values())
    if part == "profile":
        return True
    enough = part not in ("step", "step_0_5b") or found["utilisation"] >= REQUIRED_UTILISATION
    return enough and found["peak_memory_gb"] <= REQUIRED_MEMORY * found["planned_memory_gb"]


def describe(part: str, found: dict[str, Any]) -> str:
    """A line for the reader of a terminal."""
    if "failed" in found:
        return f"{part}: FAILED ({found['failed']})"
    verdict = "reached" if good(part, found) else "MISSED"
    if part in AGREEMENTS:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in found["relative_loss_difference"].items())
        return (
            f"{part}: losses differ from the CPU reference's by {differences} (at most {REQUIRED_DIFFERENCE}: {verdict}); "
            f"gradients by {found['relative_gradient_difference']:.1e}"
        )
    if part == "profile":
        total = sum(kernel["ms"] for kernel in found["kernels"])
        longest = "; ".join(f"{kernel['ms']:.1f} ms {kernel['name'][:48]}" for kernel in found["kernels"][:3])
        return f"profile: the {len(found['kernels'])} longest kernels take {total:.0f} ms of a step: {longest}; ..."
    required = f" (at least {REQUIRED_UTILISATION:.0%})" if part in ("step", "step_0_5b") else ""
    return (
        f"{part}: {found['utilisation']:.1%} of {found['matrix_flops_per_second'] / 1e12:.0f} TFLOP/s{required}; "
        f"{found['step_seconds'] * 1e3:.0f} ms a step, {found['tokens_per_second']:,.0f} tokens/s, "
        f"{found['peak_memory_gb']:.1f} GB of {found['planned_memory_gb']:.1f} planned, "
        f"compiled in {found['compile_seconds']:.0f} s: {verdict}"
    )


DISTINCT = 4  # batches, which take turns: after two rounds every shape has been compiled for


def step_config(settings: list[str], experiment: str = EXPERIMENT) -> RunConfig:
    """Pretraining with random weights, under further settings."""
    return load_config(*run_files(experiment, VARIANT), [*ALONE, *FITTING[experiment], *settings])


@cache
def small_tokenizer() -> Tokenizer:
    """Its ids are the first of the embedding table."""
    return train_tokenizer(text_sample(0, 2000), vocabulary=400)


def assumed_steps(config: RunConfig, tokenizer: Tokenizer, count: int, token_pixels: int) -> list[JointStep]:
    """The first steps of a run whose sources hold documents of assumed lengths."""
    sizes = Buckets.of(config.data).sizes
    costs = flop_costs(config, tokenizer.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        stream = TrainingStream(
            config.data,
            config.stages,
            lambda name: AssumedCorpus(name, kind_of(name, config.data), sizes, config.data.row_tokens // 2),
            tokenizer,
            token_pixels,
            config.seed,
            Path(folder) / "rejects.jsonl",
        )
        return list(islice(JointSteps(StepLoader(stream, config.data.workers), list(config.stages), costs), count))


def bench_step(
    config: RunConfig, device: torch.device, steps: int = 20, square: int = 8192, profiled: bool = False
) -> dict[str, Any]:
    """Medians over ``steps`` steps after two rounds of warming up. ``square``: side of the matrices of the device's own rate.

    ``profiled``: what ran on the device in one more step, instead of its speed.
    """
    tokenizer = small_tokenizer()
    rate = matrix_rate(device, square)
    with device:
        model = build_model(config, None, tokenizer.vocabulary)
    distinct = assumed_steps(config, tokenizer, DISTINCT, model.frontend.space.token_pixels)
    warming = 2 * DISTINCT
    laps = Laps(device)
    module = Harness(config, model)
    profiler = Profiled(warming) if profiled else None
    run = list(islice(cycle(distinct), warming + (1 if profiled else steps)))
    placed = {"accelerator": "gpu" if device.type == "cuda" else "cpu", "devices": 1}
    build_trainer(config, [laps, *([profiler] if profiler else [])], **placed).fit(module, Again(run))
    if profiler is not None:
        return {"kernels": profiler.kernels()}
    seconds = laps.seconds()
    # Clocks fall as a card grows warm: the greater of the rates before and after is the harder measure.
    rate = max(rate, matrix_rate(device, square))
    measured, timed = run[warming:], seconds[warming:]
    median = statistics.median(timed)
    return {
        "utilisation": statistics.median(step.flops / (lap * rate) for step, lap in zip(measured, timed, strict=True)),
        "matrix_flops_per_second": rate,
        "step_seconds": median,
        "slowest_step_seconds": max(timed),
        "steps": steps,
        "tokens_per_second": sum(step.tokens for step in measured) / sum(timed),
        "tokens_per_step": statistics.mean(step.tokens for step in measured),
        "model_flops_per_step": statistics.mean(step.flops for step in measured),
        "warming_up_seconds": sum(seconds[:warming]),
        "compile_seconds": sum(seconds[:warming]) - warming * median,
        "graphs": laps.graphs[-1],
        "graphs_compiled_while_measured": laps.graphs[-1] - laps.graphs[warming - 1],
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
        "planned_memory_gb": make_plan(config, find_gpu(None, None)).bytes_needed / 1e9,
        "parameters": sum(p.numel() for p in model.parameters()),
        "compile_blocks": config.compile_blocks,
        "activation_checkpointing": config.activation_checkpointing,
        "fused_text_loss": config.fused_text_loss,
    }


class Again:
    """Steps as a loader gives them: a step that was moved to the device is not there yet when its turn comes again."""

    def __init__(self, steps: list[JointStep]) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[JointStep]:
        return (replace(step, mine=replace(step.mine)) for step in self.steps)


class Laps(Callback):
    """Times between the ends of steps as the device sees them: it is not waited for. ``graphs``: how many were compiled by then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []
        self.graphs: list[int] = []

    def on_train_start(self, *_: Any) -> None:
        self.mark()

    def on_train_batch_end(self, *_: Any) -> None:
        self.mark()
        self.graphs.append(counters["stats"]["unique_graphs"])

    def mark(self) -> None:
        if self.device.type != "cuda":
            self.marks.append(perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def seconds(self) -> list[float]:
        if self.device.type != "cuda":
            return [after - before for before, after in pairwise(self.marks)]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(self.marks)]


class Profiled(Callback):
    """What runs on the device in one step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.profile = profile(activities=[ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU])

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.step:
            self.profile.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.step:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.profile.stop()

    def kernels(self, most: int = 30) -> list[dict[str, Any]]:
        """Those that took longest, with their milliseconds and how often they ran."""
        found = sorted(self.profile.key_averages(), key=lambda event: -event.self_device_time_total)
        return [{"name": e.key[:120], "ms": e.self_device_time_total / 1e3, "count": e.count} for e in found[:most]]


def matrix_rate(device: torch.device, side: int, repeats: int = 30) -> float:
    """FLOPs a second of bfloat16 products of two random square matrices."""
    a, b = (torch.randn((side, side), device=device).bfloat16() for _ in range(2))
    laps = Laps(device)
    for _ in range(repeats + 1):
        laps.mark()
        a @ b
    laps.mark()
    return 2 * side**3 / statistics.median(laps.seconds()[repeats // 3 :])  # the first third warms up


class AssumedCorpus:
    """Endless documents of one kind. Text varies by half about the assumed length, up to ``most`` tokens, so that it fits into a
    row; images take the ``sizes`` at random.
    """

    length = None

    def __init__(self, name: str, kind: Kind, sizes: list[Size], most: int = 10**9) -> None:
        self.name = name
        self.kind = kind
        self.sizes = sizes
        self.most = most

    def document(self, index: int) -> Document:
        rng = np.random.default_rng([*self.name.encode(), index])
        shape = ASSUMED[self.kind]
        # Not counted in a text of so many tokens: bos, and the eos that is predicted or closes a document without answer.
        question = shape.text - 1 - (shape.labels or 1)

        def image(generate: bool = False) -> Image:
            height, width = self.sizes[rng.integers(len(self.sizes))]
            return Image(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), generate)

        def text(tokens: float, target: bool = False) -> list[Text]:
            digits = min(self.most, round(tokens * rng.uniform(0.5, 1.5)))  # each is one token (data/tokenizer.py)
            return [Text("".join(map(str, rng.integers(0, 10, digits))), target)] if digits else []

        segments = [image() for _ in range(shape.looked_at)] + text(question)
        segments += text(shape.labels - 1, target=True) if shape.labels else []
        return Document(self.kind, (*segments, *(image(generate=True) for _ in range(shape.generated))))


def bench_agreement(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Relative differences of each loss, and of all gradients together, on one batch with the same weights and draws.

    ``config`` says how the fast path computes: attention, precision, recomputed and compiled blocks.
    """
    tokenizer = small_tokenizer()
    model = build_model(config, None, tokenizer.vocabulary)
    randomise_zero_layers(model)
    model.train()
    step = assumed_steps(config, tokenizer, 1, model.frontend.space.token_pixels)[0]
    batch = step.mine.batches[0]
    draws = draw(batch, config.objective, config.seed, model.frontend.space, masking=True)
    model.attention = "dense"
    expected, expected_gradient = _run(model, batch, draws, config, bf16=False)
    model.attention = config.attention
    model.to(device)
    prepare_blocks(model, config.activation_checkpointing, config.compile_blocks)
    model.fused_text_loss = config.fused_text_loss
    found, gradient = _run(model, batch.to(device), moved(draws, device), config, config.precision == "bf16")
    return {
        "relative_loss_difference": {name: abs(found[name] / expected[name] - 1) for name in expected},
        "relative_gradient_difference": ((gradient - expected_gradient).norm() / expected_gradient.norm()).item(),
        "losses": found,
        "reference_losses": expected,
        "tokens": batch.tokens,
    }


def _run(model: UnifiedModel, batch: PackedBatch, draws: Draws, config: RunConfig, bf16: bool) -> tuple[dict[str, float], Tensor]:
    """Losses a token or visual token, and the gradient of their sum over all parameters, on the CPU."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(batch.ids_BL.device.type, torch.bfloat16) if bf16 else nullcontext():
        means = {name: part.sum / part.count for name, part in losses(model, batch, draws, config.objective).items()}
        torch.stack(list(means.values())).sum().backward()
    gradient = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
    return {name: mean.item() for name, mean in means.items()}, gradient


def moved(draws: Draws, device: torch.device) -> Draws:
    """To be the same on every device, draws are made on one: each has a generator of its own."""
    return Draws(
        draws.t_N.to(device), [mask.to(device) for mask in draws.mask_nT], [noise.to(device) for noise in draws.noise_nChw]
    )
