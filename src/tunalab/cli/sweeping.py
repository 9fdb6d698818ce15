"""Commands on the runs of a sweep: `tunalab sweep` and `tunalab publish`."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunalab.cli.common import LOCK_HELD, RUNS, add_command, add_settings, build_components, run_config, tracking_uri, yaml_path
from tunalab.errors import UserError

if TYPE_CHECKING:
    from tunalab.cli.common import Commands
    from tunalab.config import RunConfig, TrackingConfig
    from tunalab.sweeps.grid import Cell, Sweep


def add(commands: "Commands") -> None:
    sub = add_command(commands, sweep, "train every run of a sweep that is not finished, then draw its figure")
    sub.add_argument("sweep", help="a file of sweeps/")
    sub.add_argument("--variant", help="only this front-end")
    sub.add_argument("--parallel", type=int, help="runs at a time; default: as many as there are cores")
    sub.add_argument("--dry-run", action="store_true", help="print every run with its cost and train nothing")
    add_settings(sub)
    sub = add_command(commands, publish, "copy the records of a sweep's finished runs to the folder that is committed")
    sub.add_argument("sweep")
    sub.add_argument("--variant")
    sub.add_argument("--records", type=Path)
    add_settings(sub)


def sweep(arguments: argparse.Namespace) -> int:
    from tunalab.sweeps.cells import collect
    from tunalab.sweeps.cells import publish as publish_cells
    from tunalab.sweeps.grid import expand
    from tunalab.sweeps.local import default_parallel, run_cells
    from tunalab.training.preflight import open_data

    loaded = _sweep(arguments.sweep)
    cells = expand(loaded, arguments.variant, RUNS)
    # Later settings win, so those of the command line come last.
    configs = {cell.name: cell_config(cell, arguments.settings) for cell in cells}
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
        for config in configs.values():
            open_data(config)
        build_components({config.components_seed for config in configs.values()})
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

        end_sweep(tracking_uri(tracking), parent, "FINISHED" if result.exit_code == 0 else "FAILED")
    if loaded.records and not arguments.settings:  # with settings of one's own the records are not the sweep's
        publish_cells(cells, hashes, loaded.records)
    records = collect(cells, hashes, loaded.records)
    if records and loaded.figure:
        from tunalab.results.figures import draw
        from tunalab.results.tables import write_tables

        folder = RUNS / loaded.name
        call = f"tunalab sweep {loaded.name}" + (f" --variant {arguments.variant}" if arguments.variant else "")
        written = [*draw(loaded.figure, records, folder, call), *write_tables(records, folder, call)]
        print("\n".join(f"wrote {path}" for path in written))
    return result.exit_code


def publish(arguments: argparse.Namespace) -> int:
    from tunalab.sweeps.cells import publish as publish_cells
    from tunalab.sweeps.grid import expand

    loaded = _sweep(arguments.sweep)
    cells = expand(loaded, arguments.variant, RUNS)
    hashes = _hashes({cell.name: cell_config(cell, arguments.settings) for cell in cells})
    written = publish_cells(cells, hashes, arguments.records or loaded.records or Path("results") / loaded.name)
    print("\n".join(f"wrote {path}" for path in written) or "no finished run to publish")
    return 0 if written else 1


def cell_config(cell: "Cell", settings: list[str]) -> "RunConfig":
    return run_config(cell.experiment, cell.variant, [*cell.overrides, *settings, f"seed={cell.seed}"])


def _hashes(configs: "dict[str, RunConfig]") -> "Callable[[Cell], str]":
    from tunalab.config import config_hash

    hashes = {name: config_hash(config) for name, config in configs.items()}
    return lambda cell: hashes[cell.name]


def _sweep(name: str) -> "Sweep":
    from tunalab.sweeps.grid import load_sweep

    return load_sweep(yaml_path("sweeps", name))


def _start_tracking(sweep_name: str, tracking: "TrackingConfig") -> str | None:
    from tunalab.results.tracking import prepare, start_sweep

    uri = tracking_uri(tracking)
    prepare(uri, tracking.experiment)
    return start_sweep(uri, tracking.experiment, sweep_name)


def _describe(config: "RunConfig") -> dict[str, Any]:
    """What a run would cost, from a sample of its own stream: for `--dry-run`."""
    from tunalab.planning.estimate import estimate

    return estimate(config)
