"""Commands on records: `tunalab figure`, `table`, `power`, `report` and `diff`."""

import argparse
import json
import shlex
import sys
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tunalab.cli.common import add_command, check_out
from tunalab.errors import UserError

if TYPE_CHECKING:
    from tunalab.cli.common import Commands
    from tunalab.collection import Records

RUN_HELP = "run directory, record, or name of a committed record (figure6/tuna2-seed0)"


def add(commands: "Commands") -> None:
    sub = add_command(commands, figure, "draw a figure from records")
    sub.add_argument("name", help="figure6 | curves | mask_ratio | learning_rate | effects")
    sub.add_argument("--records", type=Path, required=True, help="folder of records")
    sub.add_argument("--x", default="tokens", help="tokens | images | flops | wall_clock | parameters (figure6, curves)")
    sub.add_argument("--panels", nargs="+", default=[], metavar="NAME", help="these benchmarks alone (default: all): ocr pairs@2")
    sub.add_argument("--out", type=Path, help="folder (default: that of the records)")
    sub = add_command(commands, table, "write the tables of a folder of records")
    sub.add_argument("--records", type=Path, required=True, help="folder of records")
    sub.add_argument("--out", type=Path, help="folder (default: that of the records)")
    sub.add_argument("--published", type=Path, help="figures to print beside evaluations (default: results/published.csv)")
    sub.add_argument("--readme", type=Path, help="also update the block of this README that is made from the records")
    sub.add_argument("--panels", nargs="+", default=[], metavar="NAME", help="benchmarks of that block (default: all)")
    text = "folders of records that speak about claims of that block of which --records cannot"
    sub.add_argument("--claims", nargs="+", type=Path, default=[], metavar="DIR", help=text)
    sub = add_command(commands, power, "from records: seeds that would tell front-ends apart, and what their runs cost")
    text = "folders of records: runs of one variant under other settings are compared too"
    sub.add_argument("--records", type=Path, required=True, nargs="+", metavar="DIR", help=text)
    sub.add_argument("--panels", nargs="+", default=[], metavar="NAME", help="these benchmarks alone (default: all)")
    sub.add_argument(
        "--power", type=float, default=0.8, help="share of experiments that find the difference (default: %(default)s)"
    )
    sub.add_argument("--price", type=float, help="of an hour of a core (or GPU)")
    sub.add_argument("--out", type=Path, help="also write power.md and power.csv into this folder")
    text = "compare two runs: settings, code, budget, data order, results, and whether they are a fair pair"
    sub = add_command(commands, diff, text)
    sub.add_argument("a", metavar="RUN", help=RUN_HELP)
    sub.add_argument("b", metavar="RUN", help=RUN_HELP)
    sub.add_argument("--json", action="store_true", help="print everything as JSON")
    text = "write one page (HTML and Markdown) about a folder of records: is the comparison equal, what came out"
    sub = add_command(commands, report, text)
    sub.add_argument("--records", type=Path, required=True, help="folder of records")
    sub.add_argument(
        "--out", type=Path, help="the HTML page, with its Markdown beside it (default: report.html beside the records)"
    )
    sub.add_argument("--markdown", action="store_true", help="write the Markdown alone, and draw no figure")
    sub.add_argument("--runs", type=Path, help="run directories, for samples that are not published (default: runs/<sweep>)")


def figure(arguments: argparse.Namespace) -> int:
    from tunalab.analysis.curves import axis_named
    from tunalab.collection import records
    from tunalab.records.labels import FIGURE_NAMES

    axis_named(arguments.x)  # a wrong name is an error before records are read
    if arguments.name not in FIGURE_NAMES:
        raise UserError(f"unknown figure {arguments.name!r}, choices: {', '.join(FIGURE_NAMES)}")
    found, folder = records(arguments.records, evaluation=False), arguments.out or arguments.records
    check_out(folder, folder=True)
    _warn_unequal(found)
    shown = found.only(*arguments.panels) if arguments.panels else found
    for line in shown.partly_asked():
        print(f"a panel shows only a part of the runs: {line}", file=sys.stderr)
    return _wrote(cast("list[Path]", shown.figure(arguments.name, folder, arguments.x)))


def table(arguments: argparse.Namespace) -> int:
    from tunalab.collection import records

    found, folder = records(arguments.records), arguments.out or arguments.records
    check_out(folder, folder=True)
    if arguments.readme is not None and not arguments.readme.is_file():
        raise UserError(f"--readme {arguments.readme}: there is no such file")
    idle = [f"--{name}" for name in ("panels", "claims") if getattr(arguments, name) and arguments.readme is None]
    if idle:
        raise UserError(f"{' and '.join(idle)}: of the block of a README alone, which --readme names")
    shown = found.only(*arguments.panels) if arguments.panels else found
    _warn_unequal(found)
    _wrote(found.write_tables(folder, arguments.published))
    if arguments.readme is not None:
        from tunalab.analysis.claims import in_words, papers_variants
        from tunalab.analysis.endpoints import matched_words
        from tunalab.analysis.tables import update_readme

        words = in_words(found, *(records(folder, evaluation=False) for folder in arguments.claims))
        papers = [record for runs in papers_variants([*found]).values() for record in runs]
        updated = update_readme(arguments.readme, shown, words, matched_words(papers))
        print(f"{'updated' if updated else 'unchanged'} {arguments.readme}")
    return 0


def power(arguments: argparse.Namespace) -> int:
    from tunalab.analysis.power import POWER, power_markdown, power_table
    from tunalab.analysis.written import write_tables_to
    from tunalab.collection import Records, records

    if not 0.05 < arguments.power < 1:
        raise UserError(f"--power {arguments.power:g}: from .05 to below 1")
    if arguments.price is not None and not 0 <= arguments.price < inf:
        raise UserError(f"--price {arguments.price:g}: dollars (or what you pay in) an hour, from 0")
    if arguments.out is not None:
        check_out(arguments.out, folder=True)
    every = Records([record for folder in arguments.records for record in records(folder, evaluation=False)])
    found = power_table([*(every.only(*arguments.panels) if arguments.panels else every)], arguments.power)
    text = power_markdown(found, arguments.power, arguments.price)
    print(text, end="")
    if arguments.out is not None:
        words = ["tunalab", "power", "--records", *map(str, arguments.records)]
        words += ["--panels", *arguments.panels] if arguments.panels else []
        words += ["--power", f"{arguments.power:g}"] if arguments.power != POWER else []
        words += ["--price", f"{arguments.price:g}"] if arguments.price is not None else []
        shown = found.assign(**{name: [one.shown for one in found[name]] for name in ("needed", "needed_in_family")})
        return _wrote(write_tables_to(arguments.out, shlex.join(words), {"power.md": text, "power.csv": shown}))
    return 0


def diff(arguments: argparse.Namespace) -> int:
    from tunalab.analysis import diff as differing
    from tunalab.records.record import find_record

    (first, a), (second, b) = find_record(arguments.a), find_record(arguments.b)
    found = differing.diff((first, second), a, b)
    print(json.dumps(differing.to_plain(found), indent=1) if arguments.json else differing.to_text(found))
    return 0


def report(arguments: argparse.Namespace) -> int:
    from tunalab.collection import records

    found = records(arguments.records)
    page = arguments.out or arguments.records / "report.html"
    check_out(page)
    if page.suffix == ".md" and not arguments.markdown:
        raise UserError(
            f"--out {page} is the page's Markdown, which stands beside it: --out {page.with_suffix('.html')}, or --markdown"
        )
    if arguments.runs is not None and not arguments.runs.is_dir():
        raise UserError(f"--runs {arguments.runs}: there is no such folder")
    return _wrote(found.report(page, not arguments.markdown, arguments.runs))


def _wrote(paths: list[Path]) -> int:
    for path in paths:
        print(f"wrote {path}")
    return 0


def _warn_unequal(records: "Records") -> None:
    for line in records.unequal():
        print(f"not an equal comparison: {line}", file=sys.stderr)
