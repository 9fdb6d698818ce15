"""Commands on the runs of a sweep: `tunalab sweep` and `tunalab publish`."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import add_command, add_settings
from tunalab.driver import check_counts, plan_sweep, read_launch_named, run_sweep
from tunalab.driver import publish as publish_records
from tunalab.errors import UserError

if TYPE_CHECKING:
    from tunalab.cli.common import Commands

# What has no effect beside --status, which trains nothing, and beside --dry-run, which looks at no history.
IDLE = {"status": ("dry_run", "launch", "parallel", "retry"), "dry_run": ("retries", "retry")}


def add(commands: "Commands") -> None:
    sub = add_command(commands, sweep, "train every run of a sweep that is not finished, then draw its figures")
    sub.add_argument("sweep", nargs="?", help="a file of sweeps/")
    sub.add_argument("--variant", help="runs of this variant only")
    sub.add_argument("--launch", help="where it runs: a file of sweeps/launch/ (default: processes on this machine)")
    sub.add_argument("--parallel", type=int, help="runs at a time (default: as the launch file says, or one per core)")
    sub.add_argument("--dry-run", action="store_true", help="print every run with its cost and train nothing")
    sub.add_argument(
        "--status", action="store_true", help="print the state of every run, from the disk alone; on a terminal until Ctrl-C"
    )
    sub.add_argument("--watch", action="store_true", help="with --status: again and again, also where there is no terminal")
    sub.add_argument("--once", action="store_true", help="with --status: print it once, also on a terminal")
    sub.add_argument("--retries", type=int, help="restarts of a run that was killed without progress (default: 3)")
    sub.add_argument("--retry", action="store_true", help="start runs again that have used up their restarts")
    add_settings(sub)
    sub = add_command(commands, publish, "copy the records of a sweep's finished runs to the folder that is committed")
    sub.add_argument("sweep", nargs="?", help="a file of sweeps/")
    sub.add_argument("--variant", help="runs of this variant only")
    sub.add_argument("--records", type=Path, help="folder (default: the sweep's, in results/)")
    add_settings(sub)


def sweep(arguments: argparse.Namespace) -> int:
    from tunalab.sweeps.cells import RETRIES
    from tunalab.sweeps.state import dry_run, look, show

    _take_name(arguments)
    _check_together(arguments)
    check_counts("--", arguments.parallel, arguments.retries)
    launch = read_launch_named(arguments.launch)
    plan = plan_sweep(arguments.sweep, arguments.variant, arguments.settings)
    if arguments.status:
        retries = RETRIES if arguments.retries is None else arguments.retries
        tree = plan.open_tree()
        show(partial(look, tree, plan.resolved, plan.sweep.records, retries), arguments.once, arguments.watch)
        return 0
    if arguments.dry_run:
        from tunalab.planning.sweep import estimate
        from tunalab.sweeps.launcher import at_a_time

        configs = plan.checked()
        threads = max(config.threads for config in configs.values())
        configs |= {name: resolved.config for name, resolved in plan.tree.resolved.items()}
        dry_run(plan.tree, lambda cell: estimate(configs[cell.name]), at_a_time(launch, threads, arguments.parallel))
        return 0
    return run_sweep(plan, launch, arguments.parallel, arguments.retries, arguments.retry)


def publish(arguments: argparse.Namespace) -> int:
    _take_name(arguments)
    written = publish_records(arguments.sweep, arguments.variant, arguments.settings, arguments.records)
    print("\n".join(f"wrote {path}" for path in written) or "no finished run to publish")
    return 0 if written else 1


def _take_name(arguments: argparse.Namespace) -> None:
    """Behind an option argparse takes the sweep's name for the first setting. Raises UserError: there is none."""
    from tunalab.settings.layers import located, names_of

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
    for option in ("once", "watch"):
        if getattr(arguments, option) and not arguments.status:
            raise UserError(f"--{option} does nothing without --status: leave it out, or give both")
    if arguments.once and arguments.watch:
        raise UserError("--once does nothing beside --watch: leave one of them out")
