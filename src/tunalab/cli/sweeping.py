"""Commands on the runs of a sweep: `tunalab sweep` and `tunalab publish`."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunalab.cli.common import LOCK_HELD, RUNS, add_command, add_settings, build_components, run_config, tracking_uri, yaml_path
from tunalab.errors import EXIT_STOPPED, UserError

if TYPE_CHECKING:
    from tunalab.cli.common import Commands
    from tunalab.config import RunConfig, TrackingConfig
    from tunalab.results.records import Record
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
    from tunalab.config import budget
    from tunalab.sweeps.cells import collect
    from tunalab.sweeps.cells import publish as publish_cells
    from tunalab.sweeps.devices import visible_gpus
    from tunalab.sweeps.launcher import Work
    from tunalab.sweeps.local import LocalLauncher, default_parallel
    from tunalab.training.preflight import open_data

    if arguments.parallel is not None and arguments.parallel < 1:
        raise UserError(f"--parallel {arguments.parallel} is out of range (from 1)")
    plan = _plan(arguments)
    cells, configs = plan.cells, plan.configs
    threads = max(config.threads for config in configs.values())
    gpus = visible_gpus()
    parallel = arguments.parallel or default_parallel(threads, gpus)
    if arguments.dry_run:
        from tunalab.sweeps.plan import dry_run

        dry_run(cells, lambda cell: _describe(configs[cell.name]), parallel)
        return 0
    if len(collect(cells, plan.hash, plan.sweep.records)) < len(cells):
        for config in configs.values():
            open_data(config)
        build_components({config.components_seed for config in configs.values()})
    with _tracked(plan.sweep.name, next(iter(configs.values())).tracking) as tracked:
        os.environ[LOCK_HELD] = "1"

        def command(cell: "Cell") -> list[str]:
            settings = [*cell.overrides, *arguments.settings, f"seed={cell.seed}", f"tracking.sweep={cell.sweep}"]
            settings += [f"tracking.parent_run={tracked.parent}"] if tracked.parent else []
            names = ["--experiment", cell.experiment, "--variant", cell.variant, "--run-dir", str(cell.run_dir)]
            return [sys.executable, "-m", "tunalab", "train", *names, *settings]

        work = Work(cells, command, plan.hashes, plan.sweep.records, lambda cell: budget(configs[cell.name]))
        result = LocalLauncher(parallel, threads, gpus).run(work)
        tracked.exit_code = result.exit_code
    print(result.table())
    if plan.sweep.records:
        publish_cells(cells, plan.hash, plan.sweep.records)
    records = collect(cells, plan.hash, plan.sweep.records)
    if records:
        flags = [f"--variant {arguments.variant}"] if arguments.variant else []
        _write_results(records, plan.sweep, " ".join(["tunalab sweep", arguments.sweep, *flags, *arguments.settings]))
    return result.exit_code


def publish(arguments: argparse.Namespace) -> int:
    from tunalab.sweeps.cells import publish as publish_cells

    plan = _plan(arguments)
    written = publish_cells(plan.cells, plan.hash, arguments.records or plan.sweep.records or Path("results") / plan.sweep.name)
    print("\n".join(f"wrote {path}" for path in written) or "no finished run to publish")
    return 0 if written else 1


@dataclass(frozen=True)
class _Plan:
    """The runs of a sweep under the settings of the command line, checked. ``configs`` and ``hashes`` by name of the cell."""

    sweep: "Sweep"
    cells: "list[Cell]"
    configs: "dict[str, RunConfig]"
    hashes: dict[str, str]

    def hash(self, cell: "Cell") -> str:
        return self.hashes[cell.name]


def _plan(arguments: argparse.Namespace) -> _Plan:
    """Raises UserError: a file or setting is wrong, or two cells are the same run."""
    from tunalab.config import config_hash
    from tunalab.sweeps.cells import finished_record
    from tunalab.sweeps.directories import own_directory, with_settings
    from tunalab.sweeps.grid import check_distinct, check_settings, expand, load_sweep

    loaded = load_sweep(yaml_path("sweeps", arguments.sweep))
    cells = expand(loaded, arguments.variant, RUNS)
    configs = {cell.name: cell_config(cell, arguments.settings) for cell in cells}
    check_settings(loaded, arguments.settings)
    hashes = {name: config_hash(config) for name, config in configs.items()}
    check_distinct(loaded.name, hashes)
    if arguments.settings and any(config_hash(cell_config(cell, [])) != hashes[cell.name] for cell in cells):
        loaded = with_settings(loaded, arguments.settings)
        cells = expand(loaded, arguments.variant, RUNS)
        print(f"settings of the command line: the runs are in {RUNS / loaded.name}")
    done = {cell.name for cell in cells if finished_record(cell, hashes[cell.name], loaded.records)}
    moved = {cell.name: own_directory(cell, hashes[cell.name]) for cell in cells if cell.name not in done}
    apart = [cell for cell in cells if moved.get(cell.name, cell) != cell]
    if apart:
        name, where = apart[0].run_dir, moved[apart[0].name].run_dir
        print(f"{len(apart)} directories hold runs of other settings and stay as they are: {name} goes to {where}, and so on")
    return _Plan(loaded, [moved.get(cell.name, cell) for cell in cells], configs, hashes)


def cell_config(cell: "Cell", settings: list[str]) -> "RunConfig":
    return run_config(cell.experiment, cell.variant, [*cell.overrides, *settings, f"seed={cell.seed}"])


@dataclass
class _Tracked:
    parent: str | None = None
    exit_code: int = 1


@contextmanager
def _tracked(sweep_name: str, tracking: "TrackingConfig") -> Iterator[_Tracked]:
    """The sweep's parent run in MLflow: finished, failed, or killed where the sweep was stopped and can go on."""
    if not tracking.enabled:
        yield _Tracked()
        return
    from tunalab.results.tracking import End, end_sweep, prepare, start_sweep

    uri = tracking_uri(tracking)
    prepare(uri, tracking.experiment)
    tracked = _Tracked(start_sweep(uri, tracking.experiment, sweep_name))
    ends: dict[int, End] = {0: "FINISHED", EXIT_STOPPED: "KILLED"}
    try:
        yield tracked
    finally:
        end_sweep(uri, tracked.parent, ends.get(tracked.exit_code, "FAILED"))


def _write_results(records: "list[Record]", sweep: "Sweep", call: str) -> None:
    """Curves, the sweep's figures and tables, of whatever is finished. What cannot be drawn is said, and ends no sweep."""
    from tunalab.results.figures import draw
    from tunalab.results.tables import write_tables

    folder = RUNS / sweep.name
    # Figure 6 is the curves, under the name the paper gave it.
    names = [*([] if "figure6" in sweep.figures or "curves" in sweep.figures else ["curves"]), *sweep.figures]
    steps: list[Callable[[], list[Path]]] = [partial(draw, name, records, folder, call) for name in names]
    steps.append(partial(write_tables, records, folder, call))
    for step in steps:
        try:
            print("\n".join(f"wrote {path}" for path in step()))
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)


def _describe(config: "RunConfig") -> dict[str, Any]:
    """What a run would cost, from a sample of its own stream: for `--dry-run`."""
    from tunalab.planning.estimate import estimate

    return estimate(config)
