"""`tunalab bench`: the promised figures, measured, printed and recorded."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tunalab.analysis.curves import align_tokens, curves
from tunalab.analysis.statistics import above_chance
from tunalab.errors import UserError
from tunalab.evaluation.measure import Score
from tunalab.files import write_atomically
from tunalab.records.environment import environment
from tunalab.records.labels import differing_settings
from tunalab.records.log import Status, write_status
from tunalab.records.record import Record, read_records
from tunalab.settings.layers import run_files, shipped
from tunalab.sweeps.cells import begin, end
from tunalab.sweeps.grid import expand, load_sweep, resolve

REQUIRED_SECONDS = 10.0
_APART = 5  # tokens between seeds: each ends its steps elsewhere


def bench_figure(records: Path = Path("results/figure6"), count: int = 1000) -> dict[str, Any]:
    """Seconds of the whole command, from the start of Python, and of the processor.

    The records are those of a first seed in the folder ``records``, again and again with other seeds and other answers.
    """
    first = [record for record in read_records(records, evaluation=False) if record.run.seed == 0]
    with TemporaryDirectory() as folder:
        made = Path(folder) / "records"
        made.mkdir()
        for record in again(first, count):
            (made / f"{record.run.name}.json").write_text(json.dumps(asdict(record)), encoding="utf-8")
        seconds, of_processor = _timed("figure", "figure6", "--records", str(made), "--out", folder)
        written = sorted(path.name for path in Path(folder).glob("figure6*"))
    return {
        "records": count,
        "lines": len(first),
        "written": written,
        f"figure6_{count}_records_seconds": seconds,
        "processor_seconds": of_processor,
        "required_seconds": REQUIRED_SECONDS,
    }


def _timed(*words: str, folder: str | None = None) -> tuple[float, float]:
    """Seconds of a command of ours, and of the processor."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "tunalab", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def again(first: Sequence[Record], count: int) -> Iterator[Record]:
    """``count`` records of runs that never happened: as likely right as the ``first``, each some tokens from the others."""
    generator = np.random.default_rng(0)
    for number in range(count):
        seed, record = number // len(first), first[number % len(first)]
        points = [
            replace(
                point,
                tokens=point.tokens + _APART * (seed % 100),
                benchmarks={
                    name: Score.from_outcomes((generator.random(score.n) < score.accuracy).tolist(), score.chance)
                    for name, score in point.benchmarks.items()
                },
            )
            for point in record.points
        ]
        run = replace(record.run, name=f"{record.run.variant}-seed{seed}", seed=seed)
        yield replace(record, run=run, config={**record.config, "seed": seed}, points=points)


STATUS_REQUIRED_SECONDS = 1.0
_PER_SEED = 12  # three front-ends at four mask ratios
_REPEATS = 5


def bench_status(count: int = 1000) -> dict[str, Any]:
    """Seconds of the whole command, from the start of Python, and of the processor; the median of some calls."""
    with TemporaryDirectory() as folder:
        runs = thousand(Path(folder), -(-count // _PER_SEED))
        seconds, of_processor = zip(
            *(_timed("sweep", "large", "--status", "--once", folder=folder) for _ in range(_REPEATS)), strict=True
        )
    return {
        "runs": runs,
        "status_seconds": sorted(seconds)[_REPEATS // 2],
        "processor_seconds": sum(of_processor) / _REPEATS,
        "required_seconds": STATUS_REQUIRED_SECONDS,
    }


def thousand(folder: Path, seeds: int = 84) -> int:
    """A checkout with the sweep ``large`` of so many ``seeds``: a third of its runs done, a third interrupted, a third not begun.

    Experiments and variants are the shipped ones, a record is of the current folder. Returns the number of runs.
    """
    for name in ("experiments", "variants"):
        (folder / name).symlink_to(shipped() / name)
    record = Path("results/figure6/tuna2-seed0.json").read_text(encoding="utf-8")
    old = record.split('"config_hash": "', 1)[1].split('"', 1)[0]
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "large.yaml").write_text(
        f"experiment: scenes\nvariants: [tuna, tuna_r, tuna2]\nseeds: {list(range(seeds))}\n"
        "factors: {objective.masking.ratio: [0.0, 0.25, 0.5, 0.75]}\n",
        encoding="utf-8",
    )
    with chdir(folder):
        cells = expand(load_sweep(Path("sweeps/large.yaml")))
        resolved = resolve(cells, [], run_files)
        for number, cell in enumerate(cells):
            if number % 3 == 2:
                continue
            cell.run_dir.mkdir(parents=True)
            begin(cell.run_dir, "local", "1")
            write_status(cell.run_dir, Status(9000, 1000, 50.0, 16.0, "pretrain"))
            (cell.run_dir / "lock").touch()
            (cell.run_dir / "config.yaml").write_text(f"# hash: {resolved[cell.name].hash}\n", encoding="utf-8")
            end(cell.run_dir, "killed", "signal 9")
            if number % 3 == 0:
                (cell.run_dir / "record.json").write_text(record.replace(old, resolved[cell.name].hash, 1), encoding="utf-8")
    return len(cells)


REQUIRED_MINUTES, REQUIRED_GB, REQUIRED_ABOVE = 20.0, 4.0, 5


def bench_sweep(records: Sequence[Record], variant: str = "tuna2") -> dict[str, Any]:
    """Figures of the finished runs of one variant. Harder levels (``count@3``) are not among the benchmarks that are counted.

    Minutes are those of training, as records hold no others: starts and evaluations come on top.

    Raises:
        UserError: no run of the variant is finished.
    """
    runs = [record for record in records if record.run.variant == variant and record.run.finished]
    if not runs:
        raise UserError(f"no finished record of {variant}: train the sweep and publish it first")
    machines = [record.environment for record in runs]  # by its cores, or one run where it is an accelerator's
    at_a_time = [1 if one.get("accelerator") else max(1, one["cores"] // one["threads"]) for one in machines]
    parallel = min(len(runs), *at_a_time)
    minutes = sum(record.totals.seconds for record in runs) / 60
    reached = above_chance(align_tokens(curves(runs)))
    settings = sorted(set(differing_settings(runs)), key=lambda setting: setting.place)
    above = {
        setting.label: sorted(name for name, above in reached[variant, setting.label].items() if above and "@" not in name)
        for setting in settings
    }
    return {
        "variant": variant,
        "runs": len(runs),
        "parallel": parallel,
        "training_minutes_of_all_runs": minutes,
        "minutes": minutes / parallel,
        "required_minutes": REQUIRED_MINUTES,
        "peak_memory_gb": max(record.totals.peak_memory_bytes for record in runs) / 1e9,
        "required_memory_gb": REQUIRED_GB,
        "above_chance": above,
        "fewest_above_chance": min(map(len, above.values())),
        "required_above_chance": REQUIRED_ABOVE,
    }


def bench(only: str | None, out: Path | None, records: Path) -> int:
    """Run the benchmarks, or ``only`` one of them: speed on experiments/scenes.yaml with Tuna-2, the sweep from its ``records``,
    figure 6, the status of a thousand runs, and main memory at the start of a distributed one.

    Exit code 1 when a required figure is not reached or fast and slow paths disagree. ``out`` is where the figures are written.
    """
    results: dict[str, Any] = {"command": "make bench" if only is None else f"tunalab bench --only {only}"}
    if only not in ("sweep", "figure", "status", "start_up"):
        results |= {"environment": environment(), **_speed(only)}
    if only in (None, "sweep"):
        results["sweep"] = {"records": str(records), **bench_sweep(read_records(records))}
    if only in (None, "figure"):
        results["figure"] = bench_figure()
    if only in (None, "status"):
        results["status"] = bench_status()
    if only in (None, "start_up"):
        from tunalab.bench.start_up import bench_start_up  # here, for it imports torch

        results["start_up"] = bench_start_up()
    good = report(results)
    if out is not None:
        write_atomically(out, json.dumps(results, indent=1) + "\n")
        print(f"wrote {out}")
    return 0 if good else 1


def _speed(only: str | None) -> dict[str, Any]:
    import torch  # here, not above: figures of records need none of this

    from tunalab.bench.reference import bench_generation, bench_training, randomise_zero_layers
    from tunalab.frontends.components.store import Components
    from tunalab.model.unified import build_model
    from tunalab.settings.loading import load_config

    torch.set_num_threads(1)
    config = load_config(*run_files("scenes", "tuna2"), [])
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
    """Print every figure beside what is required of it; returns whether all are reached."""
    good = True

    def limit(value: float, least: float | None = None, most: float | None = None, unit: str = "") -> str:
        nonlocal good
        reached = value >= least if least is not None else most is not None and value <= most
        good &= reached
        bound = f"at most {most:g}" if least is None else f"at least {least:g}"
        return f"({bound}{unit}: {'reached' if reached else 'MISSED'})"

    if of := results.get("training"):
        print(
            f"training: {of['images_per_second']:.0f} images/s, {of['speedup']:.1f}x the dense reference "
            f"({of['reference_images_per_second']:.1f}); padded : real {of['padded_to_real_tokens']:.1f}; "
            f"share {of['share_of_token_ratio']:.2f} {limit(of['share_of_token_ratio'], least=of['required_share'])}; losses "
            f"differ by {of['largest_relative_loss_difference']:.1e} {limit(of['largest_relative_loss_difference'], most=1e-4)}"
        )
    if of := results.get("generation"):
        print(
            f"generation: {of['seconds_per_image'] * 1e3:.0f} ms per image, {of['speedup']:.1f}x the reference "
            f"({of['reference_seconds_per_image'] * 1e3:.0f} ms) {limit(of['speedup'], least=of['required_speedup'], unit='x')}; "
            f"images differ by {of['largest_pixel_difference']:.1e} {limit(of['largest_pixel_difference'], most=1e-4)}"
        )
    if of := results.get("sweep"):
        print(
            f"sweep: {of['runs']} runs of {of['variant']}, {of['training_minutes_of_all_runs']:.1f} minutes of training, "
            f"{of['minutes']:.1f} with {of['parallel']} at a time, starts and evaluations not counted "
            f"{limit(of['minutes'], most=of['required_minutes'])}; peak memory {of['peak_memory_gb']:.2f} GB per run "
            f"{limit(of['peak_memory_gb'], most=of['required_memory_gb'])}; benchmarks whose 95% lower bound is above chance "
            f"{limit(of['fewest_above_chance'], least=of['required_above_chance'], unit=' of them')}:"
        )
        for setting, names in of["above_chance"].items():
            print(f"  {setting or 'all runs'}: {len(names)} ({', '.join(names)})")
    if of := results.get("figure"):
        seconds = of[f"figure6_{of['records']}_records_seconds"]
        print(
            f"figure: figure6 of {of['records']} records in {seconds:.1f} s, a processor's {of['processor_seconds']:.1f} s "
            f"{limit(seconds, most=of['required_seconds'])}; wrote {', '.join(of['written'])}"
        )
    if of := results.get("status"):
        print(
            f"status: of {of['runs']} runs in {of['status_seconds']:.2f} s, a processor's {of['processor_seconds']:.2f} s "
            f"{limit(of['status_seconds'], most=of['required_seconds'])}"
        )
    for number, of in results.get("start_up", {}).get("processes", {}).items():
        points = [f"{point['filled']:.3f} (planned {point['planned']:.3f}) of {point['model']:.3f} GB" for point in of["starts"]]
        print(
            f"start_up: {number} process(es), at most {', '.join(points)}: {of['filled_per_gb']:.2f} GB for each GB of the model "
            f"{limit(of['filled_per_gb'], most=of['required_per_gb'])} and {of['besides_gb']:.3f} GB; with averages "
            f"{of['averaged_per_gb']:.2f}"
        )
    return good
