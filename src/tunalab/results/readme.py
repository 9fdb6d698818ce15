"""The part of the README that holds numbers: generated from committed records, so that it cannot grow stale unseen."""

from collections.abc import Sequence
from pathlib import Path

from tunalab.errors import UserError
from tunalab.results.files import write_atomically
from tunalab.results.labels import ordered_variants, variant_label
from tunalab.results.records import Record
from tunalab.results.tables import accuracy_markdown, accuracy_table

BEGIN, END = "<!-- figure6: made by `make table` -->", "<!-- end of figure6 -->"


def readme_block(records: Sequence[Record]) -> str:
    """Picture, cost in time and machine, and the table of the in-distribution benchmarks at the easiest level."""
    variants = ordered_variants(record.run.variant for record in records)
    seeds = sorted({record.run.seed for record in records})
    minutes = {name: [r.totals.seconds / 60 for r in records if r.run.variant == name] for name in variants}
    each = ", ".join(f"{variant_label(name)} {sum(times) / len(times):.0f}" for name, times in minutes.items())
    machine = "; ".join(sorted({f"{r.environment['accelerator'] or r.environment['cpu']}" for r in records}))
    table = accuracy_table(records)
    easy = table[~table["benchmark"].str.contains("@")]
    return "\n".join(
        [
            "![Accuracy against tokens consumed, a panel a benchmark, a line a front-end](results/figure6.png)",
            "",
            f"{len(records)} runs, {len(seeds)} seeds, {records[0].totals.tokens:,} tokens each. Minutes of training a run, "
            f"without evaluation, on a core of {machine}: {each}. `make figure6 table` draws it from `results/figure6/`; what was "
            "seen, also against the paper: [results/LOG.md](results/LOG.md). The harder levels: "
            "[results/figure6/accuracy.md](results/figure6/accuracy.md).",
            "",
            accuracy_markdown(easy).rstrip(),
        ]
    )


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
