"""`tunalab`: train, sweep, publish, components, figure, table, dashboard, bench. Settings are given as key=value.

Exit codes: 0 done, 1 a run failed, 2 a mistake in the call (one line, no traceback), 75 stopped and resumable.

A module of this folder is a family of commands: its ``add(commands)`` registers them, its name stands in ``FAMILIES``.
Imports of torch and friends stand inside the commands: `tunalab sweep --dry-run` with a typo should not take ten seconds.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from locale import getpreferredencoding
from typing import NoReturn

from tunalab.cli.common import nobody_need_read
from tunalab.errors import UserError, refused_by_system
from tunalab.redaction import hide_credentials, redacted

FAMILIES = ("runs", "sweeping", "records", "services", "models", "convert", "evaluation", "published")


def main(argv: Sequence[str] | None = None) -> int:
    _prepare_output(program=argv is None)
    # Threads of a process that wait for each other must not keep cores busy which other processes use: beside one such process,
    # a training step of two threads takes 3 to 20 times as long. OpenMP reads it when torch is loaded, which is later.
    if argv is None:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    hide_credentials()
    code = 0
    try:
        with nobody_need_read():
            code = _main(argv)
    except OSError as error:  # also of the last lines, which reach a full disk only when all is done
        line = refused_by_system(error)
        if line is None:
            raise
        if code == 0:  # else it is printed
            _print_error(f"error: {redacted(line)}")
            return 2
    return code


def _main(argv: Sequence[str] | None) -> int:
    try:
        arguments, rest = _parser().parse_known_args(argv)
        _take_settings(arguments, rest)
        return int(arguments.run(arguments))
    except UserError as error:
        _print_error(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130
    except Exception as error:  # libraries wrap what the system refused; all else is raised again
        line = refused_by_system(error)
        if line is None:
            raise
        _print_error(f"error: {redacted(line)}")
        return 2


def _print_error(line: str) -> None:
    """On standard error, if that can be written: the exit code says as much."""
    with suppress(OSError):
        print(line, file=sys.stderr)


def _prepare_output(program: bool) -> None:
    """Letters that a terminal cannot show are shown by their numbers. A ``program`` starts again in UTF-8 where the locale is not.

    So files are UTF-8 on every machine, and the locale's encoding is the terminal's alone. Python takes that from its start on
    only, and processes that are started inherit it.
    """
    utf8 = getpreferredencoding(False).lower().replace("-", "") == "utf8"
    if program and not utf8 and not sys.flags.utf8_mode and os.environ.get("PYTHONUTF8") != "1":
        shown = getattr(sys.stdout, "encoding", None) or "ascii"
        os.environ |= {"PYTHONUTF8": "1", "PYTHONIOENCODING": os.environ.get("PYTHONIOENCODING") or f"{shown}:backslashreplace"}
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            with suppress(OSError):  # of what it still holds and nobody reads
                stream.reconfigure(errors="backslashreplace")


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
