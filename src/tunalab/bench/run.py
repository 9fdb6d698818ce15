"""`tunalab bench`: the figures that are promised, printed and recorded."""

import json
from pathlib import Path
from typing import Any

from tunalab.bench.figure import bench_figure
from tunalab.bench.status import bench_status
from tunalab.bench.sweep import bench_sweep
from tunalab.files import write_atomically
from tunalab.results.environment import environment
from tunalab.results.records import read_records


def bench(only: str | None, out: Path | None, records: Path) -> int:
    """Run the benchmarks, or ``only`` one of them: speed on experiments/scenes.yaml with Tuna-2, the sweep from its ``records``,
    figure 6 and the status of a thousand runs.

    Exit code 1 when a required figure is not reached or fast and slow paths disagree. ``out`` is where the figures are written.
    """
    results: dict[str, Any] = {"command": "make bench" if only is None else f"tunalab bench --only {only}"}
    if only not in ("sweep", "figure", "status"):
        results |= {"environment": environment(), **_speed(only)}
    if only in (None, "sweep"):
        results["sweep"] = {"records": str(records), **bench_sweep(read_records(records))}
    if only in (None, "figure"):
        results["figure"] = bench_figure()
    if only in (None, "status"):
        results["status"] = bench_status()
    good = report(results)
    if out is not None:
        write_atomically(out, json.dumps(results, indent=1) + "\n")
        print(f"wrote {out}")
    return 0 if good else 1


def _speed(only: str | None) -> dict[str, Any]:
    import torch  # here, not above: figures of records need none of this

    from tunalab.bench.generation import bench_generation, randomise_zero_layers
    from tunalab.bench.training import bench_training
    from tunalab.config import load_config
    from tunalab.frontends.components.handle import Components
    from tunalab.model.build import build_model

    torch.set_num_threads(1)
    config = load_config(Path("experiments/scenes.yaml"), Path("variants/tuna2.yaml"), [])
    components = Components()
    tokenizer = components.tokenizer
    model = build_model(config, components, tokenizer.vocabulary)
    randomise_zero_layers(model)
    results = {}
    if only in (None, "training"):
        results["training"] = bench_training(model, config, tokenizer)
    if only in (None, "generation"):
        results["generation"] = bench_generation(model, config, tokenizer)
    return results


def report(results: dict[str, Any]) -> bool:
    """Print every figure beside what is asked of it; returns whether all are reached."""
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
    if sweep := results.get("sweep"):
        quick = sweep["minutes"] <= sweep["required_minutes"]
        small = sweep["peak_memory_gb"] <= sweep["required_memory_gb"]
        able = sweep["fewest_above_chance"] >= sweep["required_above_chance"]
        good &= quick and small and able
        print(
            f"sweep: {sweep['runs']} runs of {sweep['variant']}, {sweep['training_minutes_of_all_runs']:.1f} minutes of training, "
            f"{sweep['minutes']:.1f} with {sweep['parallel']} at a time, starts and evaluations not counted "
            f"(at most {sweep['required_minutes']:.0f}: {_verdict(quick)}); peak memory {sweep['peak_memory_gb']:.2f} GB a run "
            f"(at most {sweep['required_memory_gb']:.0f}: {_verdict(small)}); benchmarks whose 95% lower bound is above chance "
            f"(at least {sweep['required_above_chance']} of them: {_verdict(able)}):"
        )
        for setting, names in sweep["above_chance"].items():
            print(f"  {setting or 'all runs'}: {len(names)} ({', '.join(names)})")
    if figure := results.get("figure"):
        seconds = figure[f"figure6_{figure['records']}_records_seconds"]
        quick = seconds <= figure["required_seconds"]
        good &= quick
        print(
            f"figure: figure6 of {figure['records']} records in {seconds:.1f} s, a processor's {figure['processor_seconds']:.1f} s "
            f"(at most {figure['required_seconds']:.0f}: {_verdict(quick)}); wrote {', '.join(figure['written'])}"
        )
    if status := results.get("status"):
        quick = status["status_seconds"] <= status["required_seconds"]
        good &= quick
        print(
            f"status: of {status['runs']} runs in {status['status_seconds']:.2f} s, a processor's "
            f"{status['processor_seconds']:.2f} s (at most {status['required_seconds']:.0f}: {_verdict(quick)})"
        )
    return good


def _verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"
