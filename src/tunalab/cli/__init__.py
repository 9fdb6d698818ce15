"""`tunalab`: train, sweep, publish, components, figure, table, dashboard, bench. Settings are given as key=value.

Exit codes: 0 done, 1 a run failed, 2 a mistake in the call (one line, no traceback), 75 stopped and resumable.

A module of this folder is a family of commands: its ``add(commands)`` registers them, its name stands in ``FAMILIES``.
Imports of torch and friends stand inside the commands: `tunalab sweep --dry-run` with a typo should not take ten seconds.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from tunalab.cli.output import nobody_need_read
from tunalab.errors import UserError
from tunalab.redaction import hide_credentials, redacted

FAMILIES = (
    "runs",
    "sweeping",
    "records",
    "services",
    "plan",
    "convert",
    "export",
    "using",
    "published_samples",
    "published_scores",
    "evaluation",
    "judging",
    "attention",
    "reporting",
)


def main(argv: Sequence[str] | None = None) -> int:
    hide_credentials()
    with nobody_need_read():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    arguments, rest = _parser().parse_known_args(argv)
    try:
        _take_settings(arguments, rest)
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _take_settings(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Settings that stand behind an option: argparse takes a list of words at one place only."""
    strange = [word for word in rest if word.startswith("-") or "settings" not in arguments]
    if strange:
        raise UserError(f"unknown argument {strange[0]!r}: --help lists what there is")
    if rest:
        arguments.settings = [*arguments.settings, *rest]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(redacted(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tunalab", description="What does the visual front-end buy?")
    commands = parser.add_subparsers(required=True, metavar="command")
    for family in FAMILIES:
        import_module(f"{__name__}.{family}").add(commands)
    return parser
