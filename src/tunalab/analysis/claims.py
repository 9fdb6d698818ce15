"""The paper's claims, each as differences between front-ends that could show it, measured here with their intervals.

Which claims, and by which differences, stands in claims.yaml. Its front-ends are levels of factors: a record is one of them by
what it states of its front-end, under whatever name it was trained.

Shown: every difference that the claim names has its sign and excludes zero. Opposite: some difference excludes zero with the other
sign. Not shown: anything else, which is no refutation: intervals of few seeds are wide.

Shapes: S seeds, I items.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunalab.analysis.crossing import crossings, passing
from tunalab.analysis.curves import axis_named, benchmarks
from tunalab.analysis.curves import lines as curve_lines
from tunalab.analysis.evaluations import PAPER, Key, Side, earlier_parser, evaluated, item_gaps, scatter_among, sides
from tunalab.analysis.resampling import Draws, learning_curves
from tunalab.analysis.statistics import Scatter, joint_interval, paired_difference
from tunalab.analysis.written import markdown_table, write_tables_to
from tunalab.data.scenes.vocabulary import BENCHMARKS
from tunalab.evaluation.benchmarks import benchmark_name
from tunalab.records.labels import Legend, benchmark_label
from tunalab.records.record import Record

FRONT_ENDS: dict[str, dict[str, str]] = PAPER["front_ends"]
CLAIMS: list[dict[str, Any]] = PAPER["claims"]


@dataclass(frozen=True)
class Gap:
    """``what`` is compared: the front-end ``more`` minus ``less``, with its 95% interval."""

    what: str
    more: str
    less: str
    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1: as claimed, -1: the other way round, 0: zero is not excluded."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def write_claims(records: Sequence[Record], folder: Path, command: str) -> list[Path]:
    """Write ``claims.md``; nothing where the paper's front-ends were not all evaluated."""
    measured = evaluated(records)
    files = {"claims.md": claims_markdown(measured)} if papers_variants(measured) else {}
    return write_tables_to(folder, command, files)


def papers_variants(records: Sequence[Record]) -> dict[str, str]:
    """The paper's front-ends -> the variant of the records that is one; empty where one of them is not there.

    Of several variants at the same levels the first in order stands for them.
    """
    found: dict[str, str] = {}
    legend = Legend(records)
    for name, levels in FRONT_ENDS.items():
        at = {record.run.variant for record in records if levels.items() <= record.look.factors.items()}
        if at:
            found[name] = legend.ordered(at)[0]
    return found if len(found) == len(FRONT_ENDS) else {}


def claims_markdown(records: Sequence[Record]) -> str:
    """A table with a row per difference, under the claim that it belongs to."""
    compared, variants, legend = sides(records), papers_variants(records), Legend(records)
    rows: list[list[str]] = []
    for claim in CLAIMS:
        pairs = [(variants[more], variants[less]) for more, less in claim["pairs"]]
        gaps = list(_gaps(claim, pairs, records, compared))
        shown = [
            [
                f"{gap.what}: {legend.label(gap.more)} - {legend.label(gap.less)}",
                "{0}{1:+.3f} [{2:+.3f}, {3:+.3f}]{0}".format("**" * abs(gap.sign), gap.mean, gap.low, gap.high),
            ]
            for gap in gaps
        ] or [["", ""]]
        rows += [[claim["claim"], verdict(gaps), *shown[0]], *(["", "", *row] for row in shown[1:])]
        if claim.get("crossings"):  # what it says in tokens; the verdict is of the differences
            rows += [["", "", *row] for row in _crossings(records, pairs[0], claim["benchmarks"], legend)]
    seeds = len({record.run.seed for record in records})
    note = (
        f"Differences of shares (PSNR in dB), paired by seed ({seeds}) and item, with 95% intervals from a bootstrap over items "
        "and Student's t of the scatter between seeds, which all front-ends estimate together; bold: 0 is excluded. No correction "
        "for their number. Not shown is no refutation. Levels: of scenes, means over benchmarks. Crossings: as in crossings.md; < "
        "and > are open intervals, and a crossing is clear if both leads exclude zero."
    )
    earlier = {result.part: text for record in records for result in record.evaluation if (text := earlier_parser(result))}
    notes = [note, *(f"{part.capitalize()}: {text}." for part, text in sorted(earlier.items()))]
    head = ["claim of the paper", "verdict here", "compared", "difference"]
    return f"{markdown_table(head, rows, left=4)}\n\n{' '.join(notes)}\n"


def verdict(gaps: Sequence[Gap]) -> str:
    signs = [gap.sign for gap in gaps]
    return (
        "not measured" if not signs else "shown" if all(sign > 0 for sign in signs) else "opposite" if -1 in signs else "not shown"
    )


def _gaps(
    claim: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    records: Sequence[Record],
    compared: dict[Key, dict[str, Side]],
) -> Iterable[Gap]:
    for pair in pairs:
        if "levels" in claim:
            yield from _levels(claim, pair, compared)
        elif "tokens" in claim:
            yield from _dynamics(claim, pair, records)
        else:
            kind, benchmark, split, metric = claim["measure"]
            of_variant = compared.get((kind, benchmark, split, metric), {})
            gap_SI = item_gaps(of_variant, *pair)
            if gap_SI is not None:
                label = ", ".join(word for word in (benchmark, metric) if word)
                yield _gap(label, pair, gap_SI, scatter_among([of_variant]))


def _levels(claim: Mapping[str, Any], pair: tuple[str, str], compared: dict[Key, dict[str, Side]]) -> Iterable[Gap]:
    """A difference per level, over the items of several benchmarks together: as many of each, or nearly."""
    kinds, given = claim.get("benchmarks", list(BENCHMARKS)), "benchmarks" in claim
    for level in claim["levels"]:
        keys: list[Key] = [("understanding", benchmark_name(kind, level), "test", "accuracy") for kind in kinds]
        items = [item_gaps(compared.get(key, {}), *pair) for key in keys]
        measured = [gap_SI for gap_SI in items if gap_SI is not None]
        if len(measured) == len(items) and len({len(gap_SI) for gap_SI in measured}) == 1:
            scatter = scatter_among([compared[key] for key in keys])
            what = ", ".join([f"level {level}", *(kinds if given else [])])
            yield _gap(what, pair, np.concatenate(measured, axis=1), scatter)


def _gap(what: str, pair: tuple[str, str], gap_SI: np.ndarray, scatter: Scatter | None) -> Gap:
    return Gap(what, *pair, float(gap_SI.mean()), *joint_interval([gap_SI], scatter, 2.0))


def _dynamics(claim: Mapping[str, Any], pair: tuple[str, str], records: Sequence[Record]) -> Iterable[Gap]:
    """A difference per benchmark, at the evaluation that is nearest to the share of tokens."""
    points = {point.tokens for record in records for point in record.points}
    tokens = min(sorted(points), key=lambda at: abs(at - claim["tokens"] * max(points)))
    among = {name: [r for r in records if r.run.variant == name] for name in papers_variants(records).values()}
    for kind in claim["benchmarks"]:
        gap = paired_difference(among[pair[0]], among[pair[1]], kind, tokens, list(among.values()))
        if gap is not None:
            yield Gap(f"{benchmark_label(kind)} at {tokens / 1e6:.1f}M tokens", *pair, gap.mean, gap.low, gap.high)


def _crossings(records: Sequence[Record], pair: tuple[str, str], kinds: Sequence[str], legend: Legend) -> Iterable[tuple[str, str]]:
    """Of the two variants on each benchmark: who passes whom, and when, in how many of the resamples."""
    draws, tokens = Draws(), axis_named("tokens")
    shown = curve_lines([record for record in records if record.run.variant in pair])
    for kind in (kind for kind in kinds if kind in benchmarks(records)):
        for found in crossings(learning_curves(shown, kind, draws), tokens, draws):
            leader, other = (legend.label(line.variant) for line in (found.leader, found.other))
            if found.low is None:
                continue
            how = f"{found.within:.0%} of resamples; {'clear' if found.clear else 'not clear'}"
            how = how if found.at else f"ahead at the end in {found.ahead:.0%} of resamples"
            yield f"{benchmark_label(kind)}, crossing: {leader} passes {other}", f"{passing(found, tokens)} ({how})"
