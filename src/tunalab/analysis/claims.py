"""The paper's claims, each as differences between front-ends that could show it, measured here with their intervals.

Which claims, and by which differences, stands in claims.yaml. Its front-ends are levels of factors: a record is one of them by
what it states of its front-end, under whatever name it was trained.

Supported: every difference that the claim names has its sign. Contradicted: some difference has the other sign. Undecided: anything
else, with the number of seeds at which differences as large as these would be found in four of five experiments. All differences of
all claims are one family: a sign counts where its p-value, after Holm's correction, is below 5%.

Shapes: S seeds, I items.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np

from tunalab.analysis.crossing import crossings, passing
from tunalab.analysis.curves import axis_named, benchmarks
from tunalab.analysis.curves import lines as curve_lines
from tunalab.analysis.evaluations import PAPER, Key, Side, earlier_parser, evaluated, in_shares, item_gaps, sides
from tunalab.analysis.learning import learning_curves
from tunalab.analysis.statistics import ALPHA, Estimate, holm, of_seeds, question_error, score_at, seeds_needed
from tunalab.analysis.statistics import item_gaps as score_gaps
from tunalab.analysis.written import markdown_table, with_interval, write_tables_to
from tunalab.data.scenes.vocabulary import BENCHMARKS
from tunalab.evaluation.benchmarks import benchmark_name
from tunalab.records.labels import Legend, benchmark_label
from tunalab.records.record import Record

FRONT_ENDS: dict[str, dict[str, str]] = PAPER["front_ends"]
CLAIMS: list[dict[str, Any]] = PAPER["claims"]


@dataclass(frozen=True, eq=False)
class Gap:
    """``what`` is compared: the front-end ``more`` minus ``less``, by seed and item. ``p``: after Holm's correction for ``family``
    differences.
    """

    what: str
    more: str
    less: str
    gap_SI: np.ndarray
    p: float | None = None
    family: int = 1

    @property
    def questions(self) -> float:
        return question_error([self.gap_SI], shares=in_shares(self.gap_SI))

    @property
    def estimate(self) -> Estimate:
        return of_seeds(self.gap_SI.mean(axis=1), self.questions)

    @property
    def sign(self) -> int:
        """1: as claimed, -1: the other way round, 0: undecided."""
        return 0 if self.p is None or self.p >= ALPHA else 1 if self.estimate.value > 0 else -1

    @property
    def needed(self) -> str:
        """Seeds that would decide a difference as large as this one, at the level that the strictest of the family has."""
        if len(self.gap_SI) < 2 or self.sign:
            return ""
        count = seeds_needed(self.gap_SI.mean(axis=1), self.questions, alpha=ALPHA / self.family)
        return "more questions" if isinf(count) else str(int(count))


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
    pairs_of = [[(variants[more], variants[less]) for more, less in claim["pairs"]] for claim in CLAIMS]
    gaps_of = corrected([list(_gaps(claim, pairs, records, compared)) for claim, pairs in zip(CLAIMS, pairs_of, strict=True)])
    rows: list[list[str]] = []
    for claim, pairs, gaps in zip(CLAIMS, pairs_of, gaps_of, strict=True):
        shown = [
            [
                f"{gap.what}: {legend.label(gap.more)} - {legend.label(gap.less)}",
                with_interval(gap.estimate.bounds, "{:+.3f}".format, bold=bool(gap.sign)),
                gap.needed,
            ]
            for gap in gaps
        ] or [["", "", ""]]
        rows += [[claim["claim"], verdict(gaps), *shown[0]], *(["", "", *row] for row in shown[1:])]
        if claim.get("crossings"):  # what it says in tokens; the verdict is of the differences
            rows += [["", "", *row, ""] for row in _crossings(records, pairs[0], claim["benchmarks"], legend)]
    seeds, family = len({record.run.seed for record in records}), sum(map(len, gaps_of))
    note = (
        f"Differences of shares (PSNR in dB), paired by seed ({seeds}) and item, with 95% intervals of Student's t over seeds "
        f"and the error over items. Bold: it has a sign after Holm's correction for all {family} differences. Supported: all "
        "differences of a claim have its sign; contradicted: one has the other; undecided is no refutation. Seeds needed: to "
        "find a difference as large as this one in four of five experiments, as one of the family; more questions: their "
        "error alone is too large. Levels: of scenes, means over benchmarks. Crossings: as in crossings.md."
    )
    earlier = {result.part: text for record in records for result in record.evaluation if (text := earlier_parser(result))}
    notes = [note, *(f"{part.capitalize()}: {text}." for part, text in sorted(earlier.items()))]
    head = ["claim of the paper", "verdict here", "compared", "difference", "seeds needed"]
    return f"{markdown_table(head, rows, left=4)}\n\n{' '.join(notes)}\n"


def corrected(gaps_of: Sequence[Sequence[Gap]]) -> list[list[Gap]]:
    """The differences of each claim, with their p-values after Holm's correction for all of them."""
    adjusted = holm([gap.estimate.p for gaps in gaps_of for gap in gaps])
    each, family = iter(adjusted), len(adjusted)
    return [[replace(gap, p=next(each), family=family) for gap in gaps] for gaps in gaps_of]


def verdict(gaps: Sequence[Gap]) -> str:
    signs = [gap.sign for gap in gaps]
    if not signs:
        return "not measured"
    return "supported" if all(sign > 0 for sign in signs) else "contradicted" if -1 in signs else "undecided"


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
                yield Gap(label, *pair, gap_SI)


def _levels(claim: Mapping[str, Any], pair: tuple[str, str], compared: dict[Key, dict[str, Side]]) -> Iterable[Gap]:
    """A difference per level, over the items of several benchmarks together: as many of each, or nearly."""
    kinds, given = claim.get("benchmarks", list(BENCHMARKS)), "benchmarks" in claim
    for level in claim["levels"]:
        keys: list[Key] = [("understanding", benchmark_name(kind, level), "test", "accuracy") for kind in kinds]
        items = [item_gaps(compared.get(key, {}), *pair) for key in keys]
        measured = [gap_SI for gap_SI in items if gap_SI is not None]
        if len(measured) == len(items) and len({len(gap_SI) for gap_SI in measured}) == 1:
            what = ", ".join([f"level {level}", *(kinds if given else [])])
            yield Gap(what, *pair, np.concatenate(measured, axis=1))


def _dynamics(claim: Mapping[str, Any], pair: tuple[str, str], records: Sequence[Record]) -> Iterable[Gap]:
    """A difference per benchmark, at the evaluation that is nearest to the share of tokens."""
    points = {point.tokens for record in records for point in record.points}
    tokens = min(sorted(points), key=lambda at: abs(at - claim["tokens"] * max(points)))
    by_seed = [{r.run.seed: r for r in records if r.run.variant == name} for name in pair]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    for kind in claim["benchmarks"]:
        scores = [[score_at(side[seed], kind, tokens) for side in by_seed] for seed in seeds]
        pairs = [(one, other) for one, other in scores if one is not None and other is not None]
        gap_SI = score_gaps(pairs) if pairs else None
        if gap_SI is not None:
            yield Gap(f"{benchmark_label(kind)} at {tokens / 1e6:.1f}M tokens", *pair, gap_SI)


def _crossings(records: Sequence[Record], pair: tuple[str, str], kinds: Sequence[str], legend: Legend) -> Iterable[tuple[str, str]]:
    """Of the two variants on each benchmark: who passes whom, and when."""
    tokens = axis_named("tokens")
    shown = curve_lines([record for record in records if record.run.variant in pair])
    for kind in (kind for kind in kinds if kind in benchmarks(records)):
        for found in crossings(learning_curves(shown, kind), tokens):
            leader, other = (legend.label(line.variant) for line in (found.leader, found.other))
            if not found.level:
                how = f"{passing(found, tokens)} ({'clear' if found.clear else 'not clear'})"
                yield f"{benchmark_label(kind)}, crossing: {leader} passes {other}", how
