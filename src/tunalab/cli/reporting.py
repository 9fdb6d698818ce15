"""Commands that read records and say what they mean: `tunalab diff` and `tunalab report`."""

import argparse
import json
from typing import TYPE_CHECKING

from tunalab.cli.common import add_command

if TYPE_CHECKING:
    from tunalab.cli.common import Commands

RUN_HELP = "run directory, record, or name of a committed one (figure6/tuna2-seed0)"


def add(commands: "Commands") -> None:
    sub = add_command(
        commands, diff, "how two runs differ: settings, code, budget, data order, results; and whether it is a fair pair"
    )
    sub.add_argument("a", metavar="RUN", help=RUN_HELP)
    sub.add_argument("b", metavar="RUN", help=RUN_HELP)
    sub.add_argument("--json", action="store_true", help="everything as JSON")


def diff(arguments: argparse.Namespace) -> int:
    from tunalab.results import diff as differing
    from tunalab.results.finding import find_record

    (first, a), (second, b) = find_record(arguments.a), find_record(arguments.b)
    found = differing.diff((first, second), a, b)
    print(json.dumps(differing.to_plain(found), indent=1) if arguments.json else differing.to_text(found))
    return 0
