"""The paper's claims, each as differences between front-ends that could show it, measured here with their intervals.

Which claims, and by which differences, stands in claims.yaml. Its front-ends are levels of factors: a record is one of them by
what it states of its front-end, under whatever name it was trained.

Supported: every difference that the claim names has its sign. Contradicted: some difference has the other sign. Undecided: anything
else, with the number of seeds at which differences as large as these would be found in four of five experiments. All differences of
all claims are one family: a sign counts where its p-value, after Holm's correction, is below 5%. Close: the claim also needs both
sides within a margin that it states, by two one-sided tests. Where a benchmark stands in a claim by its accuracy, and both sides
end at the ceiling, there is no room for a difference and it is left out.

Our own questions stand beside the claims, as a family of their own.

    S  seeds    I  questions
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import copysign
from pathlib import Path
from typing import Any

from tunalab.analysis.crossing import crossings, passing
from tunalab.analysis.curves import axis_named, benchmarks, lines
from tunalab.analysis.endpoints import (
    ACCURACY,
    MARGIN,
    Difference,
    Pairs,
    difference,
    double_difference,
    loss_difference,
    paired,
    parts_of,
)
from tunalab.analysis.evaluations import PAPER, Key, Side, earlier_parser, evaluated, in_shares, item_gaps, sides
from tunalab.analysis.learning import learning_curves
from tunalab.analysis.statistics import (
    ALPHA,
    Needed,
    equivalence_p,
    equivalent,
    half_width,
    holm,
    lasting_error,
    needed,
    question_error,
)
from tunalab.analysis.written import markdown_table, write_tables_to
from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure
from tunalab.records.labels import MASK_RATIO, Legend, benchmark_label, identity
from tunalab.records.record import Record, usable

FRONT_ENDS: dict[str, dict[str, str]] = PAPER["front_ends"]
CLAIMS: list[dict[str, Any]] = PAPER["claims"]
OURS: list[dict[str, Any]] = PAPER["ours"]
PANELS: list[str] = PAPER["panels"]
LOSS, MASKING = "loss", "masking"
CEILING = 0.97  # accuracy of both sides from which on a benchmark says nothing about their order
FEWEST = 3  # seeds whose scatter says how many seeds are needed; of two it may be off by a factor of 30


@dataclass(frozen=True, eq=False)
class Gap:
    """A difference that a claim says to be above 0. ``what``: of whom; ``p``: after Holm's correction for ``family`` differences.

    ``close``: the claim also says that the sides are within so much; with ``equal`` it says that alone. ``full``: both sides are at
    the ceiling, ``floor``: at chance. ``accuracy``: beside a margin, which also grows with how sure a model is. ``without``: of a
    mean over benchmarks, the same without the one on which the sign hangs most. ``p_parts``: as ``p``, over encoders where seeds
    share some.
    """

    what: str
    found: Difference
    close: float | None = None
    equal: bool = False
    full: bool = False
    floor: bool = False
    accuracy: Difference | None = None
    without: Difference | None = None
    p: float | None = None
    p_parts: float | None = None
    family: int = 1

    @property
    def within(self) -> bool:
        return self.close is not None and equivalent(self.found.value_S, self.close, self.found.questions)

    @property
    def beyond(self) -> bool:
        """Whether the whole interval lies outside of the margin."""
        _, low, high = self.found.estimate.bounds
        return self.close is not None and low is not None and high is not None and max(low, -high) > self.close

    @property
    def sign(self) -> int:
        """1: as claimed, -1: the other way round, 0: undecided."""
        if self.full or self.floor:
            return 0
        if self.beyond:
            return -1
        decided = self.p is not None and self.p < ALPHA
        if self.equal:
            return int(decided)
        sign = 0 if not decided else 1 if self.found.estimate.value > 0 else -1
        return 0 if sign > 0 and self.close is not None and not self.within else sign

    @property
    def needed(self) -> Needed | None:
        """What would decide a difference as large as this one, at the level that the strictest of the family has."""
        if len(self.found.value_S) < FEWEST or self.sign or self.full or self.floor or self.equal:
            return None
        value_S = self.found.value_S
        if self.close is not None and self.p is not None and self.p < ALPHA:  # which is ahead is known, not whether by so little
            return needed(value_S - copysign(self.close, value_S.mean()), self.found.planned, alpha=2 * ALPHA)
        return needed(value_S, self.found.planned, alpha=ALPHA / self.family)

    @property
    def shown(self) -> str:
        text = self.found.shown(bold=bool(self.sign) and not self.equal)
        if self.accuracy is not None:
            text += f" (accuracy {self.accuracy.shown()})"
        if self.without is not None:
            text += f"; {self.without.what} {self.without.shown()}"
        if self.full or self.floor:
            return f"{text}; both at {'the ceiling' if self.full else 'chance'}, left out"
        if self.close is None:
            return text
        mean, half = float(self.found.value_S.mean()), half_width(self.found.value_S, self.found.questions, 1 - 2 * ALPHA)
        inside = f"{'within' if self.within else 'not shown to be within'} {self.close:g}"
        return f"{text}; {inside} (90% [{mean - half:+.3f}, {mean + half:+.3f}])"

    @property
    def elsewhere(self) -> str:
        """The interval over encoders in place of seeds, where seeds share some."""
        found = self.found.over_parts()
        stands = bool(self.sign) and not self.equal and self.p_parts is not None and self.p_parts < ALPHA
        return "" if found is None else self.found.shown(bold=stands, found=found)


def write_claims(records: Sequence[Record], folder: Path, command: str) -> list[Path]:
    """Write ``claims.md``; nothing where no claim can be measured by these records."""
    text = claims_markdown(records)
    return write_tables_to(folder, command, {"claims.md": text} if text else {})


def papers_variants(records: Sequence[Record], of: Mapping[str, Mapping[str, str]] = FRONT_ENDS) -> dict[str, list[Record]]:
    """The paper's front-ends -> the runs of one variant that is one, of those that are in the records.

    Of several variants at the same levels the first in order stands for them.
    """
    found: dict[str, list[Record]] = {}
    legend = Legend(records)
    for name, levels in of.items():
        at = {record.run.variant for record in records if levels.items() <= record.look.factors.items()}
        if at:
            first = legend.ordered(at)[0]
            found[name] = [record for record in records if record.run.variant == first]
    return found


def claims_markdown(records: Sequence[Record]) -> str:
    """A table with a row per difference, under the claim that it belongs to; empty where there is none to make."""
    gaps_of = claims(records)
    if not any(gaps_of.values()):
        return ""
    rows: list[list[str]] = []
    for claim in (*CLAIMS, *OURS):
        gaps = gaps_of[claim["claim"]]
        shown = [[gap.what, gap.shown, gap.elsewhere, gap.needed.shown if gap.needed else ""] for gap in gaps] or [["", "", "", ""]]
        rows += [[claim["claim"], verdict(gaps), *shown[0]], *(["", "", *row] for row in shown[1:])]
        if gaps and claim.get("crossings"):  # what it says in tokens; the verdict is of the differences
            rows += [["", "", *row, "", ""] for row in _crossings(records, claim)]
    family = max((gap.family for claim in CLAIMS for gap in gaps_of[claim["claim"]]), default=0)
    seeds = sorted({len(gap.found.value_S) for gaps in gaps_of.values() for gap in gaps})
    note = (
        f"Differences over {' or '.join(map(str, seeds))} seeds, paired by seed and question, with 95% intervals (Student's t over "
        "seeds and the error over questions or documents): losses and margins in nats, accuracies in points, PSNR in dB, others in "
        f"shares. Bold: a sign after Holm's correction for all {family} differences of the paper's claims, those of one seed "
        "included; ours are a family of their own. Supported: all differences of a claim have its sign; contradicted: one has the "
        "other; undecided is no refutation. Left out: what both sides do at the ceiling (accuracies from "
        f"{CEILING:.0%} on), or at chance. Without: the mean without the benchmark on which its sign hangs most. Within: by two "
        "one-sided tests, each by itself; beyond: by the 95% interval. Over encoders: the same with the means of runs that share a "
        "pretrained encoder in place of seeds, for what is said of other encoders that are trained so; bold where the sign stands "
        "there too, after the same correction. Verdicts are about the encoders that are here. Seeds needed: to find a difference "
        "as large as this one in four of five experiments, as one of the family, with so many times the questions where those "
        "that were asked leave too large an error. Losses, early, at the end: as in endpoints.md. Crossings: as in crossings.md."
    )
    earlier = {result.part: text for record in records for result in record.evaluation if (text := earlier_parser(result))}
    notes = [note, *(f"{part.capitalize()}: {text}." for part, text in sorted(earlier.items()))]
    head = ["claim of the paper", "verdict here", "compared", "difference", "over encoders", "seeds needed"]
    return f"{markdown_table(head, rows, left=5)}\n\n{' '.join(notes)}\n"


def claims(records: Sequence[Record]) -> dict[str, list[Gap]]:
    """Claim -> its differences, with p-values after Holm's correction for all of them; none where these records cannot tell.

    The paper's, then our own questions.
    """
    finished = usable(records)
    found: dict[str, list[Gap]] = {}
    for family, runs in ((CLAIMS, papers_variants(finished)), (OURS, papers_variants(finished, FRONT_ENDS | PAPER["beside"]))):
        gaps_of = corrected([list(_gaps(claim, runs)) for claim in family])
        found |= dict(zip((claim["claim"] for claim in family), gaps_of, strict=True))
    return found


def corrected(gaps_of: Sequence[Sequence[Gap]]) -> list[list[Gap]]:
    """The differences of each claim, with their p-values after Holm's correction for all of them."""
    counted = [gap for gaps in gaps_of for gap in gaps if not gap.full]
    adjusted = iter(zip(holm([_alone(gap) for gap in counted]), holm([_over_parts(gap) for gap in counted]), strict=True))

    def told(gap: Gap) -> Gap:
        if gap.full:
            return gap
        p, p_parts = next(adjusted)
        return replace(gap, p=p, p_parts=p_parts, family=len(counted))

    return [[told(gap) for gap in gaps] for gaps in gaps_of]


def _alone(gap: Gap) -> float:
    """Before the correction. Of one seed 1: it will be of several, and has its place in the family."""
    found = gap.found
    if gap.equal and gap.close is not None:
        return equivalence_p(found.value_S, gap.close, found.questions)
    p = found.estimate.p
    return 1.0 if p is None else p


def _over_parts(gap: Gap) -> float:
    """As ``_alone``, over encoders where seeds share some."""
    found = gap.found.over_parts()
    return _alone(gap) if found is None or found.p is None or gap.equal else found.p


def verdict(gaps: Sequence[Gap]) -> str:
    signs = [gap.sign for gap in gaps if not (gap.full or gap.floor)]
    if not signs:
        return "no room for a difference" if gaps else "not measured"
    return "supported" if all(sign > 0 for sign in signs) else "contradicted" if -1 in signs else "undecided"


def in_words(*studies: Sequence[Record]) -> dict[str, tuple[str, str]]:
    """Claim -> its verdict and its numbers, by the first of ``studies`` that can speak about it; each is a family of its own."""
    found = [claims(records) for records in studies]
    measured = {claim: next((gaps[claim] for gaps in found if gaps[claim]), []) for claim in found[0]}
    return {claim: _in_words(gaps) for claim, gaps in measured.items() if gaps}


def _in_words(gaps: Sequence[Gap]) -> tuple[str, str]:
    """A verdict, with the seeds that it needs, and its numbers, a line of a table's cell each."""
    over = [f" (over encoders {gap.elsewhere})" if gap.sign and gap.elsewhere else "" for gap in gaps]
    numbers = "<br>".join(f"{gap.what} {gap.shown}{other}" for gap, other in zip(gaps, over, strict=True))
    asked = [one for gap in gaps if (one := gap.needed)]
    against = [one for gap in gaps if (one := gap.needed) and gap.close is None and gap.found.value_S.mean() < 0]
    most = Needed(max(one.seeds for one in asked), max(one.times for one in asked)) if asked else None
    if against:  # the first difference that stands the other way round decides
        most = min(against, key=lambda one: one.seeds)
    more = f" (seeds needed: {most.shown})" if most and verdict(gaps) == "undecided" else ""
    return f"{verdict(gaps)}{more}", numbers


def _gaps(claim: Mapping[str, Any], runs: Mapping[str, Sequence[Record]]) -> Iterable[Gap]:
    if MASKING in claim:
        yield from _masking(claim, runs)
        return
    if any(len({identity(record) for record in of}) > 1 for of in runs.values()):
        return  # a sweep over settings: front-ends are compared where each has one
    for more, less in claim["pairs"]:
        if not {more, less} <= runs.keys():
            continue
        if "measure" in claim:
            yield from _measured(claim, more, less, runs)
        else:
            yield from _along(claim, more, less, paired(runs[more], runs[less]))


def _along(claim: Mapping[str, Any], more: str, less: str, pairs: Pairs) -> Iterable[Gap]:
    """Of points of the runs."""
    whom, early = f"{more} - {less}", claim.get("at") == "early"
    if not pairs:
        return
    if claim["outcome"] == LOSS:
        loss = loss_difference(pairs)
        if loss is not None:
            yield Gap(f"{loss.what}: {whom}", loss, claim.get("close"), equal="close" in claim)
        return
    if not set(PANELS) <= set.intersection(*(benchmarks([record]) for pair in pairs for record in pair)):
        return  # other levels, or a part of the skills: no answer to what the paper says of all
    kinds = claim.get("benchmarks", PANELS)
    if claim.get("each"):
        outcomes = [claim["outcome"] if _closed(pairs, kind) else ACCURACY for kind in kinds]
        found = [difference(pairs, outcome, [kind], early) for outcome, kind in zip(outcomes, kinds, strict=True)]
        if any(one is None for one in found):
            return  # not all that the claim names
        for kind, outcome, one in zip(kinds, outcomes, found, strict=True):
            if one is not None:
                accuracy = difference(pairs, ACCURACY, [kind], early) if outcome == MARGIN else None
                full = outcome == ACCURACY and not early and _full(pairs, kind)
                yield Gap(f"{benchmark_label(kind)}, {one.what}: {whom}", one, full=full, accuracy=accuracy)
        return
    if claim["outcome"] == MARGIN:
        kinds = [kind for kind in kinds if _closed(pairs, kind)]
    found_all = difference(pairs, claim["outcome"], kinds, early)
    if found_all is None:
        return
    of = f", {', '.join(kinds)}" if "benchmarks" in claim else ""
    accuracy = difference(pairs, ACCURACY, kinds, early) if claim["outcome"] == MARGIN else None
    without = _without_one(pairs, kinds, early) if claim["outcome"] == MARGIN else None
    ahead = Gap(f"{found_all.what}{of}: {whom}", found_all, accuracy=accuracy, without=without)
    if not claim.get("beyond_others"):
        yield ahead
        return
    others = difference(pairs, claim["outcome"], [kind for kind in PANELS if kind not in kinds], early)
    if others is not None:
        yield ahead
        beyond = found_all.less(others, f"{found_all.what}{of} beyond the other panels")
        yield Gap(f"{beyond.what}: {whom}", beyond)


def _without_one(pairs: Pairs, kinds: Sequence[str], early: bool) -> Difference | None:
    """Of the mean margin, where one benchmark is left out: the one without which the sign is least certain."""
    if len(kinds) < 3 or len(pairs) < 2:
        return None
    left = {kind: difference(pairs, MARGIN, [one for one in kinds if one != kind], early) for kind in kinds}
    known = {kind: one for kind, one in left.items() if one is not None}
    least = max(known, key=lambda kind: known[kind].estimate.p or 0.0)
    return replace(known[least], what=f"without {benchmark_label(least)}")


def _closed(pairs: Pairs, kind: str) -> bool:
    """Whether some run has margins of it: its questions have few answers."""
    return any(record.points[-1].benchmarks[kind].margins is not None for pair in pairs for record in pair)


def _full(pairs: Pairs, kind: str) -> bool:
    """Whether both sides end at the ceiling."""
    sides = zip(*pairs, strict=True)
    ends = [[record.points[-1].benchmarks[kind].accuracy for record in side] for side in sides]
    return min(sum(side) / len(side) for side in ends) >= CEILING


def _measured(claim: Mapping[str, Any], more: str, less: str, runs: Mapping[str, Sequence[Record]]) -> Iterable[Gap]:
    """Of finished models, by `tunalab evaluate`."""
    measured = evaluated([*runs[more], *runs[less]])
    compared: dict[Key, dict[str, Side]] = sides(measured) if measured else {}
    kind, benchmark, split, metric = claim["measure"]
    variants = runs[more][0].run.variant, runs[less][0].run.variant
    side = compared.get((kind, benchmark, split, metric), {})
    gap_SI = item_gaps(side, *variants)
    if gap_SI is not None:
        seeds = side[variants[0]].keys() & side[variants[1]].keys()
        pairs = [pair for pair in paired(runs[more], runs[less]) if pair[0].run.seed in seeds]
        label = ", ".join(word for word in (benchmark, metric) if word)
        shares = in_shares(gap_SI)
        error, step = question_error([gap_SI], shares), 1 / gap_SI.shape[1] if shares else 0.0
        found = Difference(label, gap_SI.mean(axis=1), error, step=step, parts=parts_of(pairs), lasting=lasting_error([gap_SI]))
        floor = all(_at_chance([side[name][seed] for seed in seeds]) for name in variants)
        yield Gap(f"{label}: {more} - {less}", found, claim.get("close"), floor=floor)


def _at_chance(measures: Sequence[Measure]) -> bool:
    """Whether their mean is no more than guessing gets; not where there is no chance."""
    chance = max((one.chance or 0.0) for one in measures)
    return chance > 0 and sum(one.value for one in measures) / len(measures) <= chance


def _masking(claim: Mapping[str, Any], runs: Mapping[str, Sequence[Record]]) -> Iterable[Gap]:
    """Of runs with and without masking, where the records hold both and nothing else that differs."""
    pairs_of: dict[str, Pairs] = {}
    kinds_of: dict[str, list[str]] = {}
    for name in claim.get("of") or claim["more"]:
        at = [
            [record for record in runs.get(name, ()) if record.config["objective"]["masking"]["ratio"] == ratio]
            for ratio in claim[MASKING]
        ]
        pairs = paired(*at)
        closed = [kind for kind in sorted(benchmarks(at[0])) if difference(pairs, MARGIN, [kind]) is not None] if pairs else []
        if not closed or any(len({identity(record) for record in side}) > 1 for side in at):
            return
        pairs_of[name], kinds_of[name] = pairs, closed
    if "of" in claim:
        for name, pairs in pairs_of.items():
            found = difference(pairs, MARGIN, kinds_of[name])
            assert found is not None  # each of the benchmarks has one
            yield Gap(f"{found.what}, {name}: {MASK_RATIO.rsplit('.', 1)[-1]} {claim[MASKING][0]:g} - none", found)
    else:
        first, second = claim["more"]
        kinds = [kind for kind in kinds_of[first] if kind in kinds_of[second]]
        both = double_difference(pairs_of[first], pairs_of[second], MARGIN, kinds) if kinds else None
        if both is not None:
            yield Gap(f"{both.what}, effect of masking: {first} - {second}", both)


def _crossings(records: Sequence[Record], claim: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Of the claim's two front-ends on each benchmark: who passes whom, and when."""
    tokens, runs = axis_named("tokens"), papers_variants(records)
    ((more, less),) = claim["pairs"]
    try:
        shown = lines([*runs[more], *runs[less]])
    except UserError:
        return
    legend = Legend(records)
    for kind in (kind for kind in claim["benchmarks"] if kind in benchmarks(records)):
        for found in crossings(learning_curves(shown, kind), tokens):
            leader, other = (legend.label(line.variant) for line in (found.leader, found.other))
            if not found.level:
                how = f"{passing(found, tokens)} ({'clear' if found.clear else 'not clear'})"
                yield f"{benchmark_label(kind)}, crossing: {leader} passes {other}", how
