"""Commands that read records and say what they mean: `tunalab diff` and `tunalab report`."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.cli.common import add_command, check_out
from tunalab.errors import UserError
from tunalab.library import RUNS

if TYPE_CHECKING:
    from tunalab.analysis.report.build import Beside
    from tunalab.cli.common import Commands
    from tunalab.records.record import Record

RUN_HELP = "run directory, record, or name of a committed one (figure6/tuna2-seed0)"


def add(commands: "Commands") -> None:
    sub = add_command(
        commands, diff, "how two runs differ: settings, code, budget, data order, results; and whether it is a fair pair"
    )
    sub.add_argument("a", metavar="RUN", help=RUN_HELP)
    sub.add_argument("b", metavar="RUN", help=RUN_HELP)
    sub.add_argument("--json", action="store_true", help="everything as JSON")
    sub = add_command(
        commands, report, "one HTML page, and its Markdown, about a folder of records; is the comparison equal, what came out"
    )
    sub.add_argument("--records", type=Path, required=True, help="folder of records")
    sub.add_argument("--out", type=Path, help="the page; its Markdown stands beside it; default: report.html beside the records")
    sub.add_argument("--markdown", action="store_true", help="the Markdown alone, for which no figure is drawn")
    sub.add_argument("--runs", type=Path, help="folder of run directories, for samples that are not published (runs/<sweep>)")


def diff(arguments: argparse.Namespace) -> int:
    from tunalab.analysis import diff as differing
    from tunalab.records.record import find_record

    (first, a), (second, b) = find_record(arguments.a), find_record(arguments.b)
    found = differing.diff((first, second), a, b)
    print(json.dumps(differing.to_plain(found), indent=1) if arguments.json else differing.to_text(found))
    return 0


def report(arguments: argparse.Namespace) -> int:
    from tunalab.analysis.report.build import build, to_html, to_markdown
    from tunalab.files import write_atomically
    from tunalab.records.record import read_records

    records, folder = read_records(arguments.records), arguments.records
    page = arguments.out or folder / "report.html"
    check_out(page)
    if page.suffix == ".md" and not arguments.markdown:
        raise UserError(
            f"--out {page} is the page's Markdown, which stands beside it: --out {page.with_suffix('.html')}, or --markdown"
        )
    if arguments.runs is not None and not arguments.runs.is_dir():
        raise UserError(f"--runs {arguments.runs}: there is no such folder")
    command, beside = f"tunalab report --records {folder}", _beside(records, folder, arguments.runs)
    made = build(records, folder, command, beside, draw=not arguments.markdown)
    texts = {page.with_suffix(".md"): to_markdown(made)} | ({} if arguments.markdown else {page: to_html(made)})
    for path, text in texts.items():
        write_atomically(path, text)
        print(f"wrote {path}")
    return 0


def _beside(records: "list[Record]", folder: Path, runs: Path | None) -> "Beside":
    """Samples that were published beside the records, else those of run directories that are here; what sweeps were to run."""
    from tunalab.analysis.report.build import Beside
    from tunalab.files import below
    from tunalab.records.samples import FOLDER, of_run, published
    from tunalab.settings.named import own_or_shipped
    from tunalab.sweeps.grid import expand, load_sweep

    samples = {}
    for record in records:
        run = record.run
        run_dir = below(runs or RUNS, run.name if runs else f"{run.sweep or run.experiment}/{run.name}", links=True)
        beside = below(folder / FOLDER, f"{run.name}.png")
        found = (published(beside) if beside else None) or (of_run(run_dir, record) if run_dir else None)
        if found is not None:
            samples[run.name] = found
    sweeps = dict.fromkeys(record.run.sweep for record in records if record.run.sweep)
    files = {name: file for name in sweeps if name and (file := own_or_shipped(f"sweeps/{name}.yaml"))}
    planned = {name: [cell.name for cell in expand(load_sweep(file))] for name, file in files.items()}
    return Beside(samples=samples, planned=planned)
