"""A sweep from its file to its figures: every run is a process of its own, which `tunalab train` carries out.

Imports are inside functions, so that the command line answers a mistake at once.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunalab.errors import EXIT_STOPPED, UserError
from tunalab.library import LOCK_HELD, RUNS, Settings, as_texts, check_named
from tunalab.redaction import hand_over, redacted

if TYPE_CHECKING:
    from tunalab.collection import Records
    from tunalab.records.record import Record
    from tunalab.settings.schema import RunConfig, TrackingConfig
    from tunalab.sweeps.grid import Cell, Resolved, Sweep
    from tunalab.sweeps.launcher import Launch
    from tunalab.sweeps.trunks import Tree


def sweep(
    name: str,
    variant: str | None = None,
    settings: Settings = (),
    parallel: int | None = None,
    launch: str | None = None,
    retries: int | None = None,
    retry: bool = False,
) -> "Records":
    """Train every run of a sweep that is not finished, draw its figures into runs/<sweep>, and return the records of all.

    ``name``: a file of sweeps/. ``variant``: this front-end alone. ``settings`` as for :func:`train`. ``parallel``: runs at a
    time, by default the launch file's, or as many as there are cores. ``launch``: a file of sweeps/launch/, by default processes of
    this machine. ``retries``: starts again of a run that was killed without progress (3). ``retry``: start runs again that have
    failed as often as they may.

    Raises UserError: a file or setting is wrong, data is missing, or runs have failed, whose names and reasons are printed.
    KeyboardInterrupt: it was stopped, every run has saved; the same call goes on.
    """
    from tunalab.collection import Records
    from tunalab.sweeps.cells import collect

    check_counts("", parallel, retries)
    plan = plan_sweep(name, variant, as_texts(settings))
    code = run_sweep(plan, read_launch_named(launch), parallel, retries, retry)
    if code == EXIT_STOPPED:
        raise KeyboardInterrupt(f"sweep {name}: stopped; the same call goes on")
    if code:
        raise UserError(f"sweep {name}: not every run is finished (the table above says why); the same call goes on")
    return Records(collect(plan.cells, plan.hash, plan.sweep.records), RUNS / plan.sweep.name)


def check_counts(prefix: str, parallel: int | None, retries: int | None) -> None:
    for name, value, least in (("parallel", parallel, 1), ("retries", retries, 0)):
        if value is not None and value < least:
            raise UserError(f"{prefix}{name} {value} is out of range (from {least})")


def read_launch_named(name: str | None) -> "Launch":
    from tunalab.settings.layers import find
    from tunalab.sweeps.launcher import LocalLaunch, read_launch

    return read_launch(find("sweeps/launch", name)) if name else LocalLaunch()


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep under further ``settings``, of one ``variant`` or all. ``resolved``: by name of the cell; ``trunks``:
    whether what cells share is trained once.
    """

    name: str
    variant: str | None
    settings: list[str]
    sweep: "Sweep"
    cells: "list[Cell]"
    resolved: "dict[str, Resolved]"

    trunks: bool = True

    def hash(self, cell: "Cell") -> str:
        return self.resolved[cell.name].hash

    @cached_property
    def tree(self) -> "Tree":
        """The cells with what they share, or each alone where ``trunks`` are off."""
        from tunalab.sweeps.trunks import alone, make_tree

        return (make_tree if self.trunks else alone)(self.cells, self.resolved)

    def checked(self) -> "dict[str, RunConfig]":
        """The configurations by name of the cell. Raises UserError: one is of a run that could not begin."""
        from tunalab.training.preflight import check_run

        configs = {name: resolved.config for name, resolved in self.resolved.items()}
        for config in configs.values():
            check_run(config)
        return configs

    def open_tree(self) -> "Tree":
        """The tree without trunks that nothing needs any more."""
        from tunalab.sweeps.cells import is_finished

        return self.tree.needed(lambda cell: is_finished(cell, "" if cell.until else self.hash(cell), self.sweep.records))

    @property
    def command(self) -> str:
        flags = ["--variant", self.variant] if self.variant else []
        return redacted(shlex.join(["tunalab", "sweep", self.name, *flags, *self.settings]))


TRUNKS_OFF = "trunks=off"  # among the settings: every cell is trained alone, for checking


def plan_sweep(name: str, variant: str | None, settings: list[str]) -> Plan:
    """Raises UserError: a file or setting is wrong, or two cells are the same run."""
    from tunalab.settings.layers import find, run_files
    from tunalab.sweeps.cells import is_finished
    from tunalab.sweeps.grid import check_distinct, check_settings, expand, load_sweep, own_directory, resolve, with_settings

    shares = True
    if TRUNKS_OFF in settings:
        settings, shares = [text for text in settings if text != TRUNKS_OFF], False
    loaded = load_sweep(find("sweeps", name))
    cells = expand(loaded, variant, RUNS)
    check_named(settings)
    resolved = resolve(cells, settings, run_files)
    check_settings(loaded, settings)
    check_distinct(loaded.name, {name: one.hash for name, one in resolved.items()})
    if settings:
        plain = resolve(cells, [], run_files)
        if any(one.hash != plain[name].hash for name, one in resolved.items()):
            loaded = with_settings(loaded, settings)
            cells = expand(loaded, variant, RUNS)
            print(f"settings of the command line: the runs are in {RUNS / loaded.name}")
    done = {cell.name for cell in cells if is_finished(cell, resolved[cell.name].hash, loaded.records)}
    moved = {cell.name: own_directory(cell, resolved[cell.name].hash) for cell in cells if cell.name not in done}
    apart = [cell for cell in cells if moved.get(cell.name, cell) != cell]
    if apart:
        first, where = apart[0].run_dir, moved[apart[0].name].run_dir
        print(f"{len(apart)} directories hold runs of other settings and stay as they are: {first} goes to {where}, and so on")
    return Plan(name, variant, settings, loaded, [moved.get(cell.name, cell) for cell in cells], resolved, shares)


def run_sweep(plan: Plan, launch: "Launch", parallel: int | None = None, retries: int | None = None, retry: bool = False) -> int:
    """Train what is not finished, write figures and tables of what is; the exit code: 0, 1 of failures, 75 when it was stopped."""
    from tunalab.frontends.components.store import Components
    from tunalab.sweeps.cells import (
        RETRIES,
        check_publishing,
        collect,
        forgive,
        is_finished,
        publish,
        read_history,
        warn_of_other_components,
    )
    from tunalab.sweeps.grid import own_settings
    from tunalab.sweeps.launcher import SHIPPED, Work, launcher
    from tunalab.sweeps.trunks import alone
    from tunalab.training.preflight import open_data

    cells, configs = plan.cells, plan.checked()
    threads = max(config.threads for config in configs.values())
    if plan.sweep.records:
        check_publishing(cells, plan.hash, plan.sweep.records)
    if not all(is_finished(cell, plan.hash(cell), plan.sweep.records) for cell in cells):
        for name in {_reads(one.plain): name for name, one in plan.resolved.items()}.values():
            open_data(configs[name])
        described = {name: Components(config.components_seed).describe(config) for name, config in configs.items()}
        warn_of_other_components(cells, plan.hash, plan.sweep.records, described)
    for cell in [*cells, *plan.tree.trunks]:
        if retry and read_history(cell.run_dir).in_vain():
            forgive(cell.run_dir)
    with _tracked(plan.sweep.name, next(iter(configs.values())).tracking) as tracked, _lock_held():

        def command(cell: "Cell") -> list[str]:
            begin = ["--until", cell.until] if cell.until else []
            begin += ["--trunk", str(folders[cell.after])] if cell.after else []
            if cell.name in tree.saved:
                names = ["--config", str(tree.saved[cell.name]), "--run-dir", str(cell.run_dir)]
                return [sys.executable, "-m", "tunalab", "train", *names, *begin]
            settings = [*own_settings(cell, plan.settings), f"tracking.sweep={cell.sweep}"]
            settings += [f"tracking.parent_run={tracked.parent}"] if tracked.parent else []
            settings = hand_over(settings, os.environ)
            names = ["--experiment", cell.experiment, "--variant", cell.variant, "--run-dir", str(cell.run_dir)]
            return [sys.executable, "-m", "tunalab", "train", *names, *begin, *settings]

        # A launcher from outside knows nothing of trunks: there every cell is trained alone.
        tree = plan.open_tree() if isinstance(launch, SHIPPED) else alone(cells, plan.resolved)
        folders = {cell.name: cell.run_dir for cell in tree.trunks}
        hashes = {cell.name: (tree.resolved | plan.resolved)[cell.name].hash for cell in tree.cells}
        again = RETRIES if retries is None else retries
        work = Work(tree.cells, command, hashes, plan.sweep.records, lambda cell: tree.tokens[cell.name], again, tree.begins_at)
        result = launcher(launch, threads, parallel).run(work)
        tracked.exit_code = result.exit_code
    print(result.table())
    if plan.sweep.records:
        publish(cells, plan.hash, plan.sweep.records)
    found = collect(cells, plan.hash, plan.sweep.records)
    if found:
        written = _write_results(found, plan.sweep, plan.command)
        if tracked.parent:
            from tunalab.tracking.tracker import log_files

            log_files(tracked.uri, tracked.parent, written)
    return result.exit_code


def _reads(plain: dict[str, Any]) -> str:
    """The same for two runs, by their plain configurations, that read the same files."""
    from tunalab.settings.loading import digest

    mixes = [sorted(name for name, weight in stage["mix"].items() if weight > 0) for stage in plain["stages"].values()]
    return digest([plain["data"], mixes, plain["evaluation"]["easy_vqa"] > 0, plain["evaluation"]["benchmarks"]])


@contextmanager
def _lock_held() -> Iterator[None]:
    before = os.environ.get(LOCK_HELD)
    os.environ[LOCK_HELD] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[LOCK_HELD]


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
    from tunalab.tracking.client import full_uri
    from tunalab.tracking.tracker import End, end_sweep, prepare, start_sweep

    uri = full_uri(tracking.uri)
    prepare(uri, tracking.experiment)
    tracked = _Tracked(start_sweep(uri, tracking.experiment, sweep_name), uri=uri)
    ends: dict[int, End] = {0: "FINISHED", EXIT_STOPPED: "KILLED"}
    try:
        yield tracked
    finally:
        end_sweep(uri, tracked.parent, ends.get(tracked.exit_code, "FAILED"))


def _write_results(found: "list[Record]", sweep: "Sweep", call: str) -> list[Path]:
    """Curves, the sweep's figures and tables, of whatever is finished. What cannot be drawn is printed, and ends no sweep.

    Returns what is written.
    """
    from tunalab.analysis.figures import draw
    from tunalab.analysis.tables import write_tables

    folder = RUNS / sweep.name
    # Figure 6 is the curves, under the name the paper gave it.
    names = [*([] if "figure6" in sweep.figures or "curves" in sweep.figures else ["curves"]), *sweep.figures]
    steps: list[Callable[[], list[Path]]] = [partial(draw, name, found, folder, call) for name in names]
    steps.append(partial(write_tables, found, folder, call))
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


def publish(name: str, variant: str | None = None, settings: Settings = (), records: str | Path | None = None) -> list[Path]:
    """Copy the records of a sweep's finished runs to ``records``, by default the sweep's folder in results/; returns the copies.

    Raises UserError: a file or setting is wrong.
    """
    from tunalab.sweeps.cells import publish as publish_cells

    plan = plan_sweep(name, variant, as_texts(settings))
    folder = Path(records) if records else plan.sweep.records or Path("results") / plan.sweep.name
    return publish_cells(plan.cells, plan.hash, folder)
