"""The paper's claims, each as differences between front-ends that could show it, measured here with their intervals.

Seen: every difference that the claim names has its sign and excludes zero. Opposite: some difference excludes zero with the other
sign. Not seen: anything else, which is no refutation: intervals of few seeds are wide.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunalab.analysis.crossing import crossings, passing
from tunalab.analysis.curves import axis_named, benchmarks
from tunalab.analysis.curves import lines as curve_lines
from tunalab.analysis.evaluations import Key, Side, earlier_parser, evaluated, scatter_among, sides
from tunalab.analysis.resampling import Draws, learning_curves
from tunalab.analysis.statistics import Scatter, joint_interval, paired_difference
from tunalab.analysis.tables.training import markdown_row
from tunalab.data.scenes.vocabulary import BENCHMARKS
from tunalab.evaluation.benchmarks import benchmark_name
from tunalab.files import write_atomically
from tunalab.records.labels import benchmark_label, variant_label
from tunalab.records.record import Record

FINE = ("ocr", "pairs", "search")  # of OCRBench, MMVP and V*, which the paper calls fine-grained perception
EARLY = 0.1  # of a run's tokens
LEVELS = (1, 2, 3)
PASSED = "Tuna-2 has passed it at the end"


@dataclass(frozen=True)
class Gap:
    """``what`` is compared: ``more`` minus ``less``, with its 95% interval."""

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
    """Write ``claims.md``; nothing where no run was evaluated, or a claim's variants are not there."""
    found = evaluated(records)
    if not found or not {"tuna", "tuna_r", "tuna2"} <= {record.run.variant for record in found}:
        return []
    write_atomically(folder / "claims.md", f"<!-- made by: {command} -->\n\n" + claims_markdown(found))
    return [folder / "claims.md"]


def claims_markdown(records: Sequence[Record]) -> str:
    """A table with a row a difference, under the claim that it belongs to."""
    compared = sides(records)
    lines = [markdown_row(["claim of the paper", "verdict here", "compared", "difference"]), markdown_row(["---"] * 4)]
    for claim, gaps in _claims(records, compared):
        shown = list(gaps)
        for number, gap in enumerate(shown):
            first = [claim, verdict(shown)] if number == 0 else ["", ""]
            difference = f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
            pair = f"{gap.what}: {variant_label(gap.more)} - {variant_label(gap.less)}"
            lines.append(markdown_row([*first, pair, f"**{difference}**" if gap.sign else difference]))
        if not shown:
            lines.append(markdown_row([claim, "not measured", "", ""]))
        if claim == PASSED:  # what it says in tokens; the verdict is of the differences
            lines += [markdown_row(["", "", *row]) for row in _crossings(records, "tuna2", "tuna_r")]
    seeds = len({record.run.seed for record in records})
    note = (
        f"Differences of shares (PSNR in dB), paired by seed ({seeds}) and item, with 95% intervals from a bootstrap over items "
        "and Student's t of the scatter between seeds, which all front-ends estimate together; bold: 0 is excluded. No correction "
        "for their number. Not seen is no refutation. Levels: of scenes, means over benchmarks. Crossings: as in crossings.md; < "
        "and > are open intervals, and a crossing counts as seen if both leads exclude zero."
    )
    earlier = {result.part: said for record in records for result in record.evaluation if (said := earlier_parser(result))}
    notes = [note, *(f"{part.capitalize()}: {said}." for part, said in sorted(earlier.items()))]
    return "\n".join([*lines, "", " ".join(notes)]) + "\n"


def verdict(gaps: Sequence[Gap]) -> str:
    signs = [gap.sign for gap in gaps]
    return "not measured" if not signs else "seen" if all(sign > 0 for sign in signs) else "opposite" if -1 in signs else "not seen"


def _claims(records: Sequence[Record], compared: dict[Key, dict[str, Side]]) -> Iterable[tuple[str, list[Gap]]]:
    yield "Understanding ends Tuna-2 > Tuna-R", _levels(compared, "tuna2", "tuna_r")
    yield "Understanding ends Tuna-R > Tuna", _levels(compared, "tuna_r", "tuna")
    yield "Tuna-2 > Tuna-R most on fine-grained perception", _levels(compared, "tuna2", "tuna_r", FINE, ", ocr, pairs, search")
    tokens = max(point.tokens for record in records for point in record.points)
    points = sorted({point.tokens for record in records for point in record.points}, key=lambda at: abs(at - EARLY * tokens))
    yield "Tuna-R leads early on OCRBench, MMVP, V*", _dynamics(records, "tuna_r", "tuna2", points[0])
    yield PASSED, _dynamics(records, "tuna2", "tuna_r", tokens)
    overall: Key = ("generation", "scene prompts", "test", "overall")
    yield "Generation: Tuna > Tuna-R > Tuna-2, all close", _gaps(compared, overall, [("tuna", "tuna_r"), ("tuna_r", "tuna2")])
    distance: Key = ("diversity", "scene prompts", "test", "distance (network)")
    yield "Tuna-2's images of a prompt are more diverse", _gaps(compared, distance, [("tuna2", "tuna_r"), ("tuna2", "tuna")])
    psnr: Key = ("reconstruction", "scenes", "test", "PSNR")
    yield "Tuna-2 reconstructs better than Tuna-R", _gaps(compared, psnr, [("tuna2", "tuna_r")])


def _levels(
    compared: dict[Key, dict[str, Side]], more: str, less: str, kinds: Sequence[str] = tuple(BENCHMARKS), name: str = ""
) -> list[Gap]:
    """A difference a level, over the items of several benchmarks together: as many of each, or nearly."""
    gaps = []
    for level in LEVELS:
        keys: list[Key] = [("understanding", benchmark_name(kind, level), "test", "accuracy") for kind in kinds]
        items = [_items(compared.get(key, {}), more, less) for key in keys]
        known = [gap_SI for gap_SI in items if gap_SI is not None]
        if len(known) == len(items) and len({len(gap_SI) for gap_SI in known}) == 1:
            scatter = scatter_among([compared[key] for key in keys])
            gaps.append(_gap(f"level {level}{name}", more, less, np.concatenate(known, axis=1), scatter))
    return gaps


def _gaps(compared: dict[Key, dict[str, Side]], key: Key, pairs: Sequence[tuple[str, str]]) -> list[Gap]:
    label = ", ".join(word for word in (key[1], key[3]) if word)
    items = [(more, less, _items(compared.get(key, {}), more, less)) for more, less in pairs]
    return [_gap(label, more, less, gap_SI, scatter_among([compared[key]])) for more, less, gap_SI in items if gap_SI is not None]


def _gap(what: str, more: str, less: str, gap_SI: np.ndarray, scatter: Scatter | None) -> Gap:
    return Gap(what, more, less, float(gap_SI.mean()), *joint_interval([gap_SI], scatter, 2.0))


def _items(by_variant: dict[str, Side], more: str, less: str) -> np.ndarray | None:
    """Differences (S, I) over the seeds that both have; None where it was not measured, or not item by item."""
    if not {more, less} <= by_variant.keys():
        return None
    seeds = sorted(set(by_variant[more].seeds) & set(by_variant[less].seeds))
    first, second = (by_variant[name].items_of(seeds) if seeds else None for name in (more, less))
    return None if first is None or second is None or first.shape != second.shape else first - second


def _dynamics(records: Sequence[Record], more: str, less: str, tokens: int) -> list[Gap]:
    found = []
    for kind in FINE:
        among = {name: [record for record in records if record.run.variant == name] for name in ("tuna", "tuna_r", "tuna2")}
        gap = paired_difference(among[more], among[less], kind, tokens, list(among.values()))
        if gap is not None:
            what = f"{benchmark_label(kind)} at {tokens / 1e6:.1f}M tokens"
            found.append(Gap(what, more, less, gap.mean, gap.low, gap.high))
    return found


def _crossings(records: Sequence[Record], a: str, b: str) -> Iterable[tuple[str, str]]:
    """Of the two variants on each fine-grained benchmark: who passes whom, and when, in how many of the resamples."""
    draws, tokens = Draws(), axis_named("tokens")
    shown = curve_lines([record for record in records if record.run.variant in (a, b)])
    for kind in sorted(benchmarks(records) & set(FINE), key=FINE.index):
        for found in crossings(learning_curves(shown, kind, draws), tokens, draws):
            leader, other = (variant_label(line.variant) for line in (found.leader, found.other))
            if found.low is None:
                continue
            how = f"{found.within:.0%} of resamples; {'seen' if found.seen else 'not seen'}"
            how = how if found.at else f"ahead at the end in {found.ahead:.0%} of resamples"
            yield f"{benchmark_label(kind)}, crossing: {leader} passes {other}", f"{passing(found, tokens)} ({how})"
