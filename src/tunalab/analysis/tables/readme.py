"""The part of the README that holds numbers: generated from committed records, so that it cannot grow stale unseen."""

from collections.abc import Sequence
from pathlib import Path

from tunalab.analysis.tables.training import accuracy_markdown, accuracy_table
from tunalab.errors import UserError
from tunalab.files import write_atomically
from tunalab.records.labels import Legend
from tunalab.records.record import Record

BEGIN, END = "<!-- figure6: made by `make table` -->", "<!-- end of figure6 -->"


def readme_block(records: Sequence[Record]) -> str:
    """Picture, cost in time and machine, and the table of the in-distribution benchmarks at the easiest level."""
    seeds = sorted({record.run.seed for record in records})
    table = accuracy_table(records)
    easy = table[~table["benchmark"].str.contains("@")]
    return "\n".join(
        [
            "![Accuracy against tokens consumed, a panel a benchmark, a line a front-end](results/figure6.png)",
            "",
            f"{len(records)} runs, {len(seeds)} seeds, {_tokens(records)} tokens a run. {_time(records)} "
            "`make figure6 table` draws it from `results/figure6/`; what was "
            "seen, also against the paper: [results/LOG.md](results/LOG.md). The harder levels: "
            "[results/figure6/accuracy.md](results/figure6/accuracy.md).",
            "",
            accuracy_markdown(easy, Legend(records)).rstrip(),
        ]
    )


def _tokens(records: Sequence[Record]) -> str:
    """Runs of one seed see the same documents; those of another seed end some tokens apart."""
    counts = [record.totals.tokens for record in records]
    return f"{counts[0]:,}" if len(set(counts)) == 1 else f"{min(counts):,} to {max(counts):,} (by seed)"


def _time(records: Sequence[Record]) -> str:
    """Minutes a run by front-end, and of all runs together, by machine: minutes on different machines do not add up."""
    machines: dict[str, list[Record]] = {}
    for record in records:
        machines.setdefault(record.environment["accelerator"] or record.environment["cpu"], []).append(record)
    sentences = []
    for name, runs in machines.items():
        each, legend = [], Legend(runs)
        for variant in legend.ordered(legend.looks):
            minutes = [record.totals.seconds / 60 for record in runs if record.run.variant == variant]
            each.append(f"{legend.label(variant)} {sum(minutes) / len(minutes):.0f}")
        if runs[0].environment["accelerator"]:
            on, together = f"one {name}", f"{sum(record.totals.seconds for record in runs) / 60:.0f} GPU-minutes"
        else:
            on, together = _on_cores(name, runs)
        sentences.append(f"Minutes of training a run, without evaluation, on {on}: {', '.join(each)}; {together} in all.")
    return " ".join(sentences)


def _on_cores(name: str, runs: Sequence[Record]) -> tuple[str, str]:
    threads = {record.environment["threads"] for record in runs}
    minutes = sum(record.totals.seconds / 60 * record.environment["threads"] for record in runs)
    cores = max(record.environment["cores"] for record in runs)  # a run may have been tied to fewer than there are
    hours = f", about {minutes / cores / 60:.1f} hours on {cores} cores," if cores > 1 else ""
    return f"{'a core' if threads == {1} else f'{max(threads)} cores'} of {name}", f"{minutes:.0f} core-minutes{hours}"


def update_readme(readme: Path, records: Sequence[Record]) -> bool:
    """Put the block between its markers; returns whether the file changed.

    Raises:
        UserError: the markers are not there, once each and in order.
    """
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{readme}: the lines '{BEGIN}' and '{END}' must stand there once, in this order")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    new = f"{before}{BEGIN}\n{readme_block(records)}\n{END}{after}"
    if new != text:
        write_atomically(readme, new)
    return new != text
