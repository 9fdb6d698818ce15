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

from tunalab.cli.common import (
    LOCK_HELD,
    RUNS,
    add_command,
    add_settings,
    build_components,
    build_tokenizer,
    check_named,
    run_config,
    tracking_uri,
)
from tunalab.errors import EXIT_STOPPED, UserError
from tunalab.redaction import hand_over, redacted

if TYPE_CHECKING:
    from tunalab.cli.common import Commands
    from tunalab.records.record import Record
    from tunalab.settings.schema import RunConfig, TrackingConfig
    from tunalab.sweeps.grid import Cell, Resolved, Sweep

# What has no effect beside --status, which trains nothing, and beside --dry-run, which looks at no history.
IDLE = {"status": ("dry_run", "launch", "parallel", "retry"), "dry_run": ("retries", "retry")}


def add(commands: "Commands") -> None:
    sub = add_command(commands, sweep, "train every run of a sweep that is not finished, then draw its figure")
    sub.add_argument("sweep", nargs="?", help="a file of sweeps/")
    sub.add_argument("--variant", help="only this front-end")
    sub.add_argument("--launch", help="where it runs: a file of sweeps/launch/ (default: processes of this machine)")
    sub.add_argument("--parallel", type=int, help="runs at a time; default: the launch file's, or as many as there are cores")
    sub.add_argument("--dry-run", action="store_true", help="print every run with its cost and train nothing")
    sub.add_argument("--status", action="store_true", help="how far every run is, from the disk alone; on a terminal until Ctrl-C")
    sub.add_argument("--once", action="store_true", help="with --status: print it once, also on a terminal")
    sub.add_argument("--retries", type=int, help="starts again of a run that was killed without getting further (3)")
    sub.add_argument("--retry", action="store_true", help="start runs again that have failed as often as they may")
    add_settings(sub)
    sub = add_command(commands, publish, "copy the records of a sweep's finished runs to the folder that is committed")
    sub.add_argument("sweep", nargs="?", help="a file of sweeps/")
    sub.add_argument("--variant")
    sub.add_argument("--records", type=Path)
    add_settings(sub)


def sweep(arguments: argparse.Namespace) -> int:
    from tunalab.settings.named import find
    from tunalab.sweeps.cells import RETRIES, collect, forgive, is_finished, read_history
    from tunalab.sweeps.cells import publish as publish_cells
    from tunalab.sweeps.launcher import LocalLaunch, read_launch
    from tunalab.sweeps.state import look, show

    _take_name(arguments)
    _check_together(arguments)
    for name, least in (("parallel", 1), ("retries", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value} is out of range (from {least})")
    launch = read_launch(find("sweeps/launch", arguments.launch)) if arguments.launch else LocalLaunch()
    retries = RETRIES if arguments.retries is None else arguments.retries
    plan = _plan(arguments)
    cells = plan.cells
    if arguments.status:
        show(partial(look, cells, plan.resolved, plan.sweep.records, retries), arguments.once)
        return 0
    from tunalab.sweeps.grid import own_settings
    from tunalab.sweeps.launcher import Work, at_a_time, launcher
    from tunalab.training.run import open_data

    configs = plan.checked()
    threads = max(config.threads for config in configs.values())
    if arguments.dry_run:
        from tunalab.sweeps.state import dry_run

        if any(not (config.decoder.tokenizer or config.decoder.pretrained) for config in configs.values()):
            build_tokenizer()
        dry_run(cells, lambda cell: _describe(configs[cell.name]), at_a_time(launch, threads, arguments.parallel))
        return 0
    if not all(is_finished(cell, plan.hash(cell), plan.sweep.records) for cell in cells):
        for name in {_reads(one.plain): name for name, one in plan.resolved.items()}.values():
            open_data(configs[name])
        build_components({config.components_seed for config in configs.values()})
    for cell in cells:
        if arguments.retry and read_history(cell.run_dir).in_vain():
            forgive(cell.run_dir)
    with _tracked(plan.sweep.name, next(iter(configs.values())).tracking) as tracked:
        os.environ[LOCK_HELD] = "1"

        def command(cell: "Cell") -> list[str]:
            settings = [*own_settings(cell, arguments.settings), f"tracking.sweep={cell.sweep}"]
            settings += [f"tracking.parent_run={tracked.parent}"] if tracked.parent else []
            settings = hand_over(settings, os.environ)
            names = ["--experiment", cell.experiment, "--variant", cell.variant, "--run-dir", str(cell.run_dir)]
            return [sys.executable, "-m", "tunalab", "train", *names, *settings]

        hashes = {cell.name: plan.hash(cell) for cell in cells}
        work = Work(cells, command, hashes, plan.sweep.records, lambda cell: plan.resolved[cell.name].tokens, retries)
        result = launcher(launch, threads, arguments.parallel).run(work)
        tracked.exit_code = result.exit_code
    print(result.table())
    if plan.sweep.records:
        publish_cells(cells, plan.hash, plan.sweep.records)
    records = collect(cells, plan.hash, plan.sweep.records)
    if records:
        flags = [f"--variant {arguments.variant}"] if arguments.variant else []
        written = _write_results(
            records, plan.sweep, redacted(" ".join(["tunalab sweep", arguments.sweep, *flags, *arguments.settings]))
        )
        if tracked.parent:
            from tunalab.tracking.tracker import log_files

            log_files(tracked.uri, tracked.parent, written)
    return result.exit_code


def publish(arguments: argparse.Namespace) -> int:
    from tunalab.sweeps.cells import publish as publish_cells

    _take_name(arguments)
    plan = _plan(arguments)
    written = publish_cells(plan.cells, plan.hash, arguments.records or plan.sweep.records or Path("results") / plan.sweep.name)
    print("\n".join(f"wrote {path}" for path in written) or "no finished run to publish")
    return 0 if written else 1


def _take_name(arguments: argparse.Namespace) -> None:
    """Behind an option argparse takes the sweep's name for the first setting. Raises UserError: there is none."""
    from tunalab.settings.named import located, names_of

    if arguments.sweep is None and arguments.settings:
        arguments.sweep, *arguments.settings = arguments.settings
    name = arguments.sweep
    there = located("sweeps", name) if name else None
    if not name or ("=" in name and not (there and there.exists())):
        found = f", {name!r} is a setting" if name else ""
        raise UserError(f"the name of a sweep is missing{found}, choices: {', '.join(names_of('sweeps'))}")


def _check_together(arguments: argparse.Namespace) -> None:
    """Raises UserError: an option that does nothing beside another, or without it."""
    given = {name for name, value in vars(arguments).items() if value is not None and value is not False}
    for mode, others in IDLE.items():
        for other in others:
            if {mode, other} <= given:
                raise UserError(
                    f"--{other.replace('_', '-')} does nothing beside --{mode.replace('_', '-')}: leave one of them out"
                )
    if arguments.once and not arguments.status:
        raise UserError("--once does nothing without --status: leave it out, or give both")


@dataclass(frozen=True)
class _Plan:
    """The runs of a sweep under the settings of the command line. ``resolved``: by name of the cell."""

    sweep: "Sweep"
    cells: "list[Cell]"
    resolved: "dict[str, Resolved]"

    def hash(self, cell: "Cell") -> str:
        return self.resolved[cell.name].hash

    def checked(self) -> "dict[str, RunConfig]":
        """The configurations by name of the cell. Raises UserError: one is of a run that could not begin."""
        from tunalab.training.run import check_run

        configs = {name: resolved.config for name, resolved in self.resolved.items()}
        for config in configs.values():
            check_run(config)
        return configs


def _plan(arguments: argparse.Namespace) -> _Plan:
    """Raises UserError: a file or setting is wrong, or two cells are the same run."""
    from tunalab.settings.layers import run_files
    from tunalab.settings.named import find
    from tunalab.sweeps.cells import is_finished
    from tunalab.sweeps.grid import check_distinct, check_settings, expand, load_sweep, own_directory, resolve, with_settings

    loaded = load_sweep(find("sweeps", arguments.sweep))
    cells = expand(loaded, arguments.variant, RUNS)
    check_named(arguments.settings)
    resolved = resolve(cells, arguments.settings, run_files)
    check_settings(loaded, arguments.settings)
    check_distinct(loaded.name, {name: one.hash for name, one in resolved.items()})
    if arguments.settings:
        plain = resolve(cells, [], run_files)
        if any(one.hash != plain[name].hash for name, one in resolved.items()):
            loaded = with_settings(loaded, arguments.settings)
            cells = expand(loaded, arguments.variant, RUNS)
            print(f"settings of the command line: the runs are in {RUNS / loaded.name}")
    done = {cell.name for cell in cells if is_finished(cell, resolved[cell.name].hash, loaded.records)}
    moved = {cell.name: own_directory(cell, resolved[cell.name].hash) for cell in cells if cell.name not in done}
    apart = [cell for cell in cells if moved.get(cell.name, cell) != cell]
    if apart:
        name, where = apart[0].run_dir, moved[apart[0].name].run_dir
        print(f"{len(apart)} directories hold runs of other settings and stay as they are: {name} goes to {where}, and so on")
    return _Plan(loaded, [moved.get(cell.name, cell) for cell in cells], resolved)


def _reads(plain: dict[str, Any]) -> str:
    """The same for two runs, by their plain configurations, that read the same files."""
    from tunalab.settings.schema import digest

    mixes = [sorted(name for name, weight in stage["mix"].items() if weight > 0) for stage in plain["stages"].values()]
    return digest([plain["data"], mixes, plain["evaluation"]["easy_vqa"] > 0])


def cell_config(cell: "Cell", settings: list[str]) -> "RunConfig":
    from tunalab.sweeps.grid import own_settings

    return run_config(cell.experiment, cell.variant, own_settings(cell, settings))


@dataclass
class _Tracked:
    parent: str | None = None
    exit_code: int = 1
    uri: str = ""


@contextmanager
def _tracked(sweep_name: str, tracking: "TrackingConfig") -> Iterator[_Tracked]:
    """The sweep's parent run in MLflow: finished, failed, or killed where the sweep was stopped and can go on."""
    if not tracking.enabled:
        yield _Tracked()
        return
    from tunalab.tracking.tracker import End, end_sweep, prepare, start_sweep

    uri = tracking_uri(tracking)
    prepare(uri, tracking.experiment)
    tracked = _Tracked(start_sweep(uri, tracking.experiment, sweep_name), uri=uri)
    ends: dict[int, End] = {0: "FINISHED", EXIT_STOPPED: "KILLED"}
    try:
        yield tracked
    finally:
        end_sweep(uri, tracked.parent, ends.get(tracked.exit_code, "FAILED"))


def _write_results(records: "list[Record]", sweep: "Sweep", call: str) -> list[Path]:
    """Curves, the sweep's figures and tables, of whatever is finished. What cannot be drawn is said, and ends no sweep.

    Returns what is written.
    """
    from tunalab.analysis.figures.draw import draw
    from tunalab.analysis.tables.training import write_tables

    folder = RUNS / sweep.name
    # Figure 6 is the curves, under the name the paper gave it.
    names = [*([] if "figure6" in sweep.figures or "curves" in sweep.figures else ["curves"]), *sweep.figures]
    steps: list[Callable[[], list[Path]]] = [partial(draw, name, records, folder, call) for name in names]
    steps.append(partial(write_tables, records, folder, call))
    written = []
    for step in steps:
        try:
            paths = step()
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
            continue
        written += paths
        print("\n".join(f"wrote {path}" for path in paths))
    return written


def _describe(config: "RunConfig") -> dict[str, Any]:
    """What a run would cost, from a sample of its own stream: for `--dry-run`."""
    from tunalab.planning.sweep import estimate

    return estimate(config)
