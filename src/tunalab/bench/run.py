"""`tunalab bench`: the two speed figures, printed and recorded."""

import json
from pathlib import Path
from typing import Any

import torch

from tunalab.bench.generation import bench_generation, randomise_zero_layers
from tunalab.bench.training import bench_training
from tunalab.config import load_config
from tunalab.frontends.components.handle import Components
from tunalab.model.build import build_model
from tunalab.results.environment import environment
from tunalab.results.files import write_atomically


def bench(only: str | None, out: Path) -> int:
    """Run the benchmarks (or ``only`` one of them) on experiments/scenes.yaml with Tuna-2 and write ``out``.

    Exit code 1 when a required figure is not reached or fast and slow paths disagree.
    """
    torch.set_num_threads(1)
    config = load_config(Path("experiments/scenes.yaml"), Path("variants/tuna2.yaml"), [])
    components = Components()
    tokenizer = components.tokenizer
    model = build_model(config, components, tokenizer.vocabulary)
    randomise_zero_layers(model)
    results: dict[str, Any] = {"command": "make bench", "environment": environment()}
    if only in (None, "training"):
        results["training"] = bench_training(model, config, tokenizer)
    if only in (None, "generation"):
        results["generation"] = bench_generation(model, config, tokenizer)
    good = _report(results)
    write_atomically(out, json.dumps(results, indent=1) + "\n")
    print(f"wrote {out}")
    return 0 if good else 1


def _report(results: dict[str, Any]) -> bool:
    good = True
    if training := results.get("training"):
        reached = training["share_of_token_ratio"] >= training["required_share"]
        equal = training["largest_relative_loss_difference"] <= 1e-4
        good &= reached and equal
        print(
            f"training: {training['images_per_second']:.0f} images/s, {training['speedup']:.1f}x the dense reference "
            f"({training['reference_images_per_second']:.1f}); padded : real {training['padded_to_real_tokens']:.1f}; "
            f"share {training['share_of_token_ratio']:.2f} (at least {training['required_share']}: {_verdict(reached)}); "
            f"losses differ by {training['largest_relative_loss_difference']:.1e} (at most 1e-4: {_verdict(equal)})"
        )
    if generation := results.get("generation"):
        reached = generation["speedup"] >= generation["required_speedup"]
        equal = generation["largest_pixel_difference"] <= 1e-4
        good &= reached and equal
        print(
            f"generation: {generation['seconds_per_image'] * 1e3:.0f} ms an image, {generation['speedup']:.1f}x the reference "
            f"({generation['reference_seconds_per_image'] * 1e3:.0f} ms) (at least {generation['required_speedup']:.0f}x: "
            f"{_verdict(reached)}); images differ by {generation['largest_pixel_difference']:.1e} (at most 1e-4: {_verdict(equal)})"
        )
    return good


def _verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"
