"""`tunalab bench --gpu`: a training step at full scale on a CUDA device, and whether it computes what the CPU does.

Each part runs in a process of its own: one that fails or takes too long leaves the others, and no
part finds memory or kernels of another. What is measured is written after every part.
"""

import json
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunalab.bench import GPU_PARTS
from tunalab.bench.generation import randomise_zero_layers
from tunalab.bench.step import assumed_steps, small_tokenizer
from tunalab.data.packing import PackedBatch
from tunalab.errors import UserError
from tunalab.files import write_atomically
from tunalab.model.objective import Draws, draw, losses
from tunalab.model.unified import UnifiedModel, build_model
from tunalab.records.environment import environment
from tunalab.settings.schema import RunConfig
from tunalab.training.blocks import prepare_blocks


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


REQUIRED_UTILISATION, REQUIRED_DIFFERENCE = 0.45, 2e-2
LIMIT = 200  # seconds of a part

COMPILED, RECOMPUTED = "compile_blocks=true", "activation_checkpointing=true"
# The same model, attention and precision, at a size that the CPU computes in a minute.
SMALL = [
    *("decoder.width=256", "decoder.layers=4", "decoder.heads=4", "decoder.kv_heads=2", "decoder.mlp=1024"),
    *("head.blocks=3", "head.heads=4", "head.kv_heads=2", "head.mlp=1024", "decoder.vocabulary=2048"),
    *("data.row_tokens=4096", "data.buckets=[256x256,192x320,512x512]", "data.lookahead=16"),
]
# Part -> settings. `step` is the recipe's with compiled blocks; two others say what each of its means does.
STEPS = {
    "step": [COMPILED, RECOMPUTED],
    "step_not_compiled": ["compile_blocks=false", RECOMPUTED],
    "step_not_recomputed": [COMPILED, "activation_checkpointing=false"],
    "profile": [COMPILED, RECOMPUTED],
}


def bench_gpu(only: str | None, out: Path | None) -> int:
    """All parts, or ``only`` one of them in this process. Exit code 1 when a figure is missed or a part failed.

    Raises UserError without a CUDA device; nothing is written then.
    """
    import torch  # here, not above: slow, and a mistake in the call should be told at once

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
    import torch

    from tunalab.bench.step import bench_step, step_config

    device = torch.device("cuda", 0)
    if part == "agreement":
        return bench_agreement(step_config([*SMALL, *STEPS["step"]]), device)
    return bench_step(step_config(STEPS[part]), device, profiled=part == "profile")


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
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {"cuda": torch.version.cuda, "device_memory_gb": properties.total_memory / 1e9}


def good(part: str, found: dict[str, Any]) -> bool:
    """Whether a part was measured, and what is asked of it was reached."""
    if "failed" in found:
        return False
    if part == "agreement":
        return all(difference <= REQUIRED_DIFFERENCE for difference in found["relative_loss_difference"].values())
    return part != "step" or found["utilisation"] >= REQUIRED_UTILISATION


def describe(part: str, found: dict[str, Any]) -> str:
    """A line for the reader of a terminal."""
    if "failed" in found:
        return f"{part}: FAILED ({found['failed']})"
    verdict = "reached" if good(part, found) else "MISSED"
    if part == "agreement":
        differences = ", ".join(f"{name} {value:.1e}" for name, value in found["relative_loss_difference"].items())
        return (
            f"agreement: losses differ from the CPU reference's by {differences} (at most {REQUIRED_DIFFERENCE}: {verdict}); "
            f"gradients by {found['relative_gradient_difference']:.1e}"
        )
    if part == "profile":
        total = sum(kernel["ms"] for kernel in found["kernels"])
        longest = "; ".join(f"{kernel['ms']:.1f} ms {kernel['name'][:48]}" for kernel in found["kernels"][:3])
        return f"profile: the {len(found['kernels'])} longest kernels take {total:.0f} ms of a step: {longest}; ..."
    asked = f" (at least {REQUIRED_UTILISATION:.0%}: {verdict})" if part == "step" else ""
    return (
        f"{part}: {found['utilisation']:.1%} of {found['matrix_flops_per_second'] / 1e12:.0f} TFLOP/s{asked}; "
        f"{found['step_seconds'] * 1e3:.0f} ms a step, {found['tokens_per_second']:,.0f} tokens/s, "
        f"{found['peak_memory_gb']:.1f} GB, compiled in {found['compile_seconds']:.0f} s"
    )
