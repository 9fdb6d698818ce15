"""Commands on one run: `tunalab train`, `tunalab settings`."""

import argparse
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tunalab.cli.common import add_command, add_settings
from tunalab.errors import UserError
from tunalab.library import RUNS, attempt, check_named, default_run_dir, locked, run_config
from tunalab.redaction import restored

if TYPE_CHECKING:
    from tunalab.cli.common import Commands
    from tunalab.settings.schema import RunConfig

MISTAKE = 2  # the exit code of a UserError


def add(commands: "Commands") -> None:
    sub = add_command(commands, train, "train one run, or go on with it")
    sub.add_argument("--experiment", help="a file of experiments/ (default: scenes)")
    sub.add_argument("--variant", help="a file of variants/ (default: tuna2)")
    sub.add_argument("--config", type=Path, help="a run's saved config.yaml: the same run once more, in a directory of its own")
    sub.add_argument("--run-dir", type=_named, help="default: runs/<experiment>/<variant>-seed<seed>, with --config also its hash")
    add_settings(sub)
    sub = add_command(commands, settings, "the settings of a run: value, source, range or choices, help")
    sub.add_argument(
        "settings", nargs="*", metavar="PATTERN | key=value", help="part of a name, or with *; settings over the files"
    )
    sub.add_argument("--experiment", default="scenes", help="a file of experiments/ (default: scenes)")
    sub.add_argument("--variant", default="tuna2", help="a file of variants/ (default: tuna2)")
    sub.add_argument("--markdown", action="store_true", help="print the reference page, docs/settings.md")


def settings(arguments: argparse.Namespace) -> int:
    from tunalab.evaluation.settings import EvaluationSettings
    from tunalab.settings.reference import in_force, markdown, matching, table

    patterns = [word for word in arguments.settings if "=" not in word]
    overrides = [word for word in arguments.settings if "=" in word]
    if arguments.markdown:
        if arguments.settings:
            raise UserError(f"--markdown prints all settings at their defaults: leave out '{arguments.settings[0]}'")
        print(markdown(EvaluationSettings), end="")
        return 0
    check_named(overrides)
    from tunalab.settings.layers import run_files

    files = run_files(arguments.experiment, arguments.variant)
    print(table(matching(patterns, in_force(*files, overrides))))
    return 0


def _named(path: str) -> Path:
    """An empty name (of a variable that is not set, say) is no folder: to pathlib it is this one."""
    if not path:
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(path)


def train(arguments: argparse.Namespace) -> int:
    from tunalab.training.distribution import several_started

    if several_started():
        return _train_together(arguments)
    config, run_dir, lock = _prepared(arguments)
    with lock as held:
        return attempt(config, run_dir, held)


def _train_together(arguments: argparse.Namespace) -> int:
    """As one of the processes that a launcher has started: they meet first, so that a mistake is told once and ends all."""
    from tunalab.training.distribution import ToldByFirst, joined

    try:
        with joined() as ranks:
            with ranks.together(patient=True):  # the first start indexes the shards, which may take hours
                config, run_dir, lock = _prepared(arguments, locks=ranks.first)
            with lock as held:
                return attempt(config, run_dir, held)
    except ToldByFirst:
        return MISTAKE


def _prepared(
    arguments: argparse.Namespace, locks: bool = True
) -> "tuple[RunConfig, Path, AbstractContextManager[IO[str] | None]]":
    """The configuration of a run, its directory, and its lock: of several processes the first holds it for all.

    Raises:
        UserError: a setting is wrong, data is missing, or the directory is another process's.
    """
    arguments.settings = restored(arguments.settings, os.environ)
    if arguments.config is not None:
        config, run_dir = _replayed(arguments)
    else:
        config = run_config(arguments.experiment or "scenes", arguments.variant or "tuna2", arguments.settings)
        run_dir = arguments.run_dir or default_run_dir(config)
    return config, run_dir, locked(config, run_dir, locks)


def _completed(file: Path, config: "RunConfig", setting: str) -> "RunConfig":
    """With a setting of the file once more, with credentials. Raises UserError: it is another one."""
    from tunalab.settings.loading import laid_over, to_plain

    whole = laid_over(config, setting)
    if to_plain(whole) != to_plain(config) or whole == config:
        raise UserError(f"--config {file} replays a run as it was: leave out '{setting}'")
    return whole


def _replayed(arguments: argparse.Namespace) -> "tuple[RunConfig, Path]":
    """The configuration in a saved file, and where its run goes. It reports on its own: it is no part of the sweep it once was of.

    Raises:
        UserError: the file is none, or something on the command line would make it another run.
    """
    from tunalab.settings.layers import read_settings
    from tunalab.settings.loading import config_hash, from_plain
    from tunalab.training.run import check_run

    for name in ("experiment", "variant"):
        if getattr(arguments, name):
            raise UserError(f"--config {arguments.config} replays a run as it was: leave out '--{name}'")
    plain = read_settings(arguments.config)
    if "variant" not in plain:
        raise UserError(f"{arguments.config} is not the saved configuration of a run: use --experiment and --variant")
    config = from_plain(plain)
    for setting in arguments.settings:  # what was saved without its credentials
        config = _completed(arguments.config, config, setting)
    config.tracking.sweep = config.tracking.parent_run = ""
    check_run(config)
    own = RUNS / config.experiment / f"{config.variant}-seed{config.seed}+{config_hash(config)}"
    return config, arguments.run_dir or own
