"""`tunalab`: train, sweep, components, figure, table, publish, dashboard, bench. Settings are given as key=value.

Exit codes: 0 done, 1 a run failed, 2 a mistake in the call (one line, no traceback), 75 stopped and resumable.
Imports of torch and friends stand inside the commands: `tunalab sweep --dry-run` with a typo should not take ten seconds.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunalab.errors import UserError

if TYPE_CHECKING:
    from tunalab.config import RunConfig
    from tunalab.sweeps.grid import Cell, Sweep

RUNS = Path("runs")
LOCK_HELD = "TUNALAB_RUN_LOCK_HELD"  # set by the sweep driver, whose lock on the run directory its cells inherit


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def train(arguments: argparse.Namespace) -> int:
    config = _config(arguments.experiment, arguments.variant, arguments.settings)
    run_dir = arguments.run_dir or RUNS / config.experiment / f"{config.variant}-seed{config.seed}"
    from tunalab.sweeps.cells import take_lock

    lock = None if os.environ.get(LOCK_HELD) else take_lock(run_dir)
    if lock is None and not os.environ.get(LOCK_HELD):
        raise UserError(f"{run_dir} is being trained by another process")
    from tunalab.training.run import train as train_run

    return train_run(config, run_dir)


def sweep(arguments: argparse.Namespace) -> int:
    from tunalab.sweeps.cells import collect
    from tunalab.sweeps.cells import publish as publish_cells
    from tunalab.sweeps.grid import expand
    from tunalab.sweeps.local import default_parallel, run_cells

    loaded = _sweep(arguments.sweep)
    cells = expand(loaded, arguments.variant, RUNS)
    # Later settings win, so those of the command line come last.
    configs = {cell.name: _cell_config(cell, arguments.settings) for cell in cells}
    threads = max(config.threads for config in configs.values())
    if arguments.parallel is not None and arguments.parallel < 1:
        raise UserError(f"--parallel {arguments.parallel} is out of range (from 1)")
    parallel = arguments.parallel or default_parallel(threads)
    if arguments.dry_run:
        from tunalab.sweeps.plan import dry_run

        dry_run(cells, lambda cell: _describe(configs[cell.name]), parallel)
        return 0
    hashes = _hashes(configs)
    if len(collect(cells, hashes, loaded.records)) < len(cells):
        _build_components({config.components_seed for config in configs.values()})
    tracking = next(iter(configs.values())).tracking
    parent = _start_tracking(loaded.name, tracking) if tracking.enabled else None
    os.environ[LOCK_HELD] = "1"

    def command(cell: "Cell") -> list[str]:
        settings = [*cell.overrides, *arguments.settings, f"seed={cell.seed}", f"tracking.sweep={cell.sweep}"]
        settings += [f"tracking.parent_run={parent}"] if parent else []
        names = ["--experiment", cell.experiment, "--variant", cell.variant, "--run-dir", str(cell.run_dir)]
        return [sys.executable, "-m", "tunalab", "train", *names, *settings]

    result = run_cells(
        cells,
        command,
        hashes,
        records=loaded.records,
        parallel=parallel,
        threads=threads,
        total_tokens=lambda cell: sum(stage.tokens for stage in configs[cell.name].stages.values()),
    )
    print(result.table())
    if parent:
        from tunalab.results.tracking import end_sweep

        end_sweep(_uri(tracking), parent, "FINISHED" if result.exit_code == 0 else "FAILED")
    if loaded.records and not arguments.settings:  # with settings of one's own the records are not the sweep's
        publish_cells(cells, hashes, loaded.records)
    records = collect(cells, hashes, loaded.records)
    if records and loaded.figure:
        from tunalab.results.figures import draw
        from tunalab.results.tables import write_tables

        folder = RUNS / loaded.name
        call = f"tunalab sweep {loaded.name}" + (f" --variant {arguments.variant}" if arguments.variant else "")
        written = [draw(loaded.figure, records, folder, call), *write_tables(records, folder, call)]
        print("\n".join(f"wrote {path}" for path in written))
    return result.exit_code


def components(arguments: argparse.Namespace) -> int:
    _build_components({arguments.seed})
    return 0


def figure(arguments: argparse.Namespace) -> int:
    from tunalab.results.figures import draw
    from tunalab.results.labels import FIGURE_NAMES
    from tunalab.results.records import read_records

    if arguments.name not in FIGURE_NAMES:
        raise UserError(f"unknown figure {arguments.name!r}, choices: {', '.join(FIGURE_NAMES)}")
    command = f"tunalab figure {arguments.name} --records {arguments.records}"
    print(f"wrote {draw(arguments.name, read_records(arguments.records), arguments.out or arguments.records.parent, command)}")
    return 0


def table(arguments: argparse.Namespace) -> int:
    from tunalab.results.records import read_records
    from tunalab.results.tables import write_tables

    command = f"tunalab table --records {arguments.records}"
    records = read_records(arguments.records)
    for path in write_tables(records, arguments.out or arguments.records, command):
        print(f"wrote {path}")
    if arguments.readme is not None:
        from tunalab.results.readme import update_readme

        print(f"{'updated' if update_readme(arguments.readme, records) else 'unchanged'} {arguments.readme}")
    return 0


def publish(arguments: argparse.Namespace) -> int:
    from tunalab.sweeps.cells import publish as publish_cells
    from tunalab.sweeps.grid import expand

    loaded = _sweep(arguments.sweep)
    cells = expand(loaded, arguments.variant, RUNS)
    hashes = _hashes({cell.name: _cell_config(cell, arguments.settings) for cell in cells})
    written = publish_cells(cells, hashes, arguments.records or loaded.records or Path("results") / loaded.name)
    print("\n".join(f"wrote {path}" for path in written) or "no finished run to publish")
    return 0 if written else 1


def dashboard(arguments: argparse.Namespace) -> int:
    from tunalab.results.dashboard import serve
    from tunalab.results.mlflow_client import default_uri

    return serve(arguments.uri or default_uri(), arguments.port)


def bench(arguments: argparse.Namespace) -> int:
    from tunalab.bench.run import bench as run_bench

    return run_bench(arguments.only, arguments.out)


def _config(experiment: str, variant: str, settings: list[str]) -> "RunConfig":
    from tunalab.config import load_config
    from tunalab.data.sources import check_sources

    for setting in settings:
        if setting.split("=")[0] in ("experiment", "variant"):
            raise UserError(f"setting '{setting}' would only relabel the run: use --{setting.split('=')[0]} NAME")
    config = load_config(_yaml("experiments", experiment), _yaml("variants", variant), settings)
    check_sources(config)
    return config


def _cell_config(cell: "Cell", settings: list[str]) -> "RunConfig":
    return _config(cell.experiment, cell.variant, [*cell.overrides, *settings, f"seed={cell.seed}"])


def _hashes(configs: "dict[str, RunConfig]") -> "Callable[[Cell], str]":
    from tunalab.config import config_hash

    hashes = {name: config_hash(config) for name, config in configs.items()}
    return lambda cell: hashes[cell.name]


def _sweep(name: str) -> "Sweep":
    from tunalab.sweeps.grid import load_sweep

    return load_sweep(_yaml("sweeps", name))


def _yaml(folder: str, name: str) -> Path:
    """A name is a file of the folder; anything with a path or an ending is taken as it is."""
    return Path(name) if name.endswith(".yaml") else Path(folder) / f"{name}.yaml"


def _uri(tracking: Any) -> str:
    from tunalab.results.mlflow_client import default_uri

    return tracking.uri or default_uri()


def _build_components(seeds: set[int]) -> None:
    from tunalab.frontends.components.build import build_components
    from tunalab.frontends.components.settings import ComponentSettings

    for seed in sorted(seeds):
        build_components(ComponentSettings.seeded(seed))


def _start_tracking(sweep_name: str, tracking: Any) -> str | None:
    from tunalab.results.tracking import prepare, start_sweep

    prepare(_uri(tracking), tracking.experiment)
    return start_sweep(_uri(tracking), tracking.experiment, sweep_name)


def _describe(config: "RunConfig") -> dict[str, Any]:
    """What a run would cost, from a sample of its own stream: for `--dry-run`."""
    from tunalab.training.estimate import estimate

    return estimate(config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tunalab", description="What does the visual front-end buy?")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = command(train, "train one run, or go on with it")
    sub.add_argument("--experiment", default="scenes", help="a file of experiments/")
    sub.add_argument("--variant", default="tuna2", help="a file of variants/")
    sub.add_argument("--run-dir", type=Path, help="default: runs/<experiment>/<variant>-seed<seed>")
    _add_settings(sub)
    sub = command(sweep, "train every run of a sweep that is not finished, then draw its figure")
    sub.add_argument("sweep", help="a file of sweeps/")
    sub.add_argument("--variant", help="only this front-end")
    sub.add_argument("--parallel", type=int, help="runs at a time; default: as many as there are cores")
    sub.add_argument("--dry-run", action="store_true", help="print every run with its cost and train nothing")
    _add_settings(sub)
    sub = command(components, "build the tiny tokenizer, VAE and encoder that are not built yet")
    sub.add_argument("--seed", type=int, default=0)
    sub = command(figure, "draw a figure from records")
    sub.add_argument("name", help="figure6 | mask_ratio")
    sub.add_argument("--records", type=Path, required=True)
    sub.add_argument("--out", type=Path, help="folder; default: the one above the records")
    sub = command(table, "write the tables of a folder of records")
    sub.add_argument("--records", type=Path, required=True)
    sub.add_argument("--out", type=Path)
    sub.add_argument("--readme", type=Path, help="also renew the block of this README that is made from the records")
    sub = command(publish, "copy the records of a sweep's finished runs to the folder that is committed")
    sub.add_argument("sweep")
    sub.add_argument("--variant")
    sub.add_argument("--records", type=Path)
    _add_settings(sub)
    sub = command(dashboard, "open MLflow's page on the runs")
    sub.add_argument("--uri", help="default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    sub.add_argument("--port", type=int, default=5000)
    sub = command(bench, "measure training and generation against their slow references")
    sub.add_argument("--only", choices=("training", "generation"))
    sub.add_argument("--out", type=Path, default=Path("results/bench.json"))
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings over experiment and variant")


if __name__ == "__main__":
    sys.exit(main())
