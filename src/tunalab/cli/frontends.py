"""`tunalab check-frontend`: whether a front-end keeps the contract, before a run is spent on it."""

import argparse
from typing import TYPE_CHECKING

from tunalab.cli.common import add_command

if TYPE_CHECKING:
    from tunalab.cli.common import Commands


def add(commands: "Commands") -> None:
    sub = add_command(commands, check_frontend, "run the contract's checks on a front-end")
    sub.add_argument("name", help="my_package.module:Class, path/to/file.py:Class, or a name that is registered")
    sub.add_argument("settings", nargs="*", default=[], metavar="key=value", help="its settings, such as frontend.patch=16")
    sub.add_argument("--width", type=int, default=24, help="of the decoder (default: 24)")


def check_frontend(arguments: argparse.Namespace) -> int:
    """A line per check; exit code 1 where one fails."""
    from tunalab.frontends.checks import run_checks
    from tunalab.frontends.registry import build_frontend, look_of
    from tunalab.settings.loading import check, from_plain, laid_over, to_plain
    from tunalab.settings.schema import REVISION, RunConfig, StageConfig

    blank = RunConfig(revision=REVISION, variant="", stages={"pretrain": StageConfig(mix={"scenes/caption": 1.0})})
    config = from_plain(to_plain(blank))
    for setting in (f"frontend.name={arguments.name}", *arguments.settings):
        config = laid_over(config, setting)
    check(config)
    side = build_frontend(config.frontend, arguments.width, 0).space.token_pixels
    look = look_of(config)
    print(f"{look.label} ({look.source}): {', '.join(f'{name} {level}' for name, level in look.factors.items())}")
    failed = 0
    for name, wrong in run_checks(lambda: build_frontend(config.frontend, arguments.width, 4 * side)):
        print(f"{'failed' if wrong else 'ok':>6}  {name}{f': {wrong}' if wrong else ''}")
        failed += bool(wrong)
    return 1 if failed else 0
