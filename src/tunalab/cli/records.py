"""Commands on records alone: `tunalab figure` and `tunalab table`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import add_command, check_out
from tunalab.errors import UserError

if TYPE_CHECKING:
    from tunalab.cli.common import Commands
    from tunalab.records.record import Record


def add(commands: "Commands") -> None:
    sub = add_command(commands, figure, "draw a figure from records")
    sub.add_argument("name", help="figure6 | curves | mask_ratio | effects")
    sub.add_argument("--records", type=Path, required=True)
    sub.add_argument("--x", default="tokens", help="tokens | images | flops | wall_clock | parameters (figure6, curves)")
    sub.add_argument("--out", type=Path, help="folder; default: the one above the records")
    sub = add_command(commands, table, "write the tables of a folder of records")
    sub.add_argument("--records", type=Path, required=True)
    sub.add_argument("--out", type=Path)
    sub.add_argument("--published", type=Path, help="what stands beside evaluations: results/published.csv, or the shipped one")
    sub.add_argument("--readme", type=Path, help="also renew the block of this README that is made from the records")


def figure(arguments: argparse.Namespace) -> int:
    from tunalab.analysis.curves import axis_named
    from tunalab.analysis.figures.draw import draw
    from tunalab.records.labels import FIGURE_NAMES
    from tunalab.records.record import read_records

    axis_named(arguments.x)
    if arguments.name not in FIGURE_NAMES:
        raise UserError(f"unknown figure {arguments.name!r}, choices: {', '.join(FIGURE_NAMES)}")
    command = f"tunalab figure {arguments.name} --records {arguments.records}"
    command += f" --x {arguments.x}" if arguments.x != "tokens" else ""
    records, folder = read_records(arguments.records, evaluation=False), arguments.out or arguments.records.parent
    check_out(folder, folder=True)
    _tell_unequal(records)
    for path in draw(arguments.name, records, folder, command, arguments.x):
        print(f"wrote {path}")
    return 0


def table(arguments: argparse.Namespace) -> int:
    from tunalab.analysis.tables.claims import write_claims
    from tunalab.analysis.tables.dynamics import write_dynamics
    from tunalab.analysis.tables.evaluation import published_file, write_evaluation_tables
    from tunalab.analysis.tables.training import write_tables
    from tunalab.records.record import read_records

    command = f"tunalab table --records {arguments.records}"
    records, folder = read_records(arguments.records), arguments.out or arguments.records
    check_out(folder, folder=True)
    if arguments.readme is not None and not arguments.readme.is_file():
        raise UserError(f"--readme {arguments.readme}: there is no such file")
    _tell_unequal(records)
    published = arguments.published or published_file()
    written = write_tables(records, folder, command) + write_evaluation_tables(records, published, folder, command)
    written += write_claims(records, folder, command) + write_dynamics(records, folder, command)
    for path in written:
        print(f"wrote {path}")
    if arguments.readme is not None:
        from tunalab.analysis.tables.readme import update_readme

        print(f"{'updated' if update_readme(arguments.readme, records) else 'unchanged'} {arguments.readme}")
    return 0


def _tell_unequal(records: "Sequence[Record]") -> None:
    from tunalab.analysis.fairness import flagged

    for line in flagged(records):
        print(f"not an equal comparison: {line}", file=sys.stderr)
