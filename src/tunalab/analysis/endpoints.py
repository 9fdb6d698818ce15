"""What two front-ends are compared by, along their runs: differences by seed, with the error over what all of them are asked.

Primary is what sees a difference with the fewest seeds: the area under the loss of answers and descriptions, and margins
(Score.margins), which still move where all answers are right, or all at chance. Accuracy is what figures draw.

That loss is in nats a predicted token of held-out question documents (``text/vqa``), and three in four of these tokens belong to
descriptions of the picture. The loss of the choice is of questions alone, ln(1 + exp(-margin)): of the right answer against the
best wrong one. So is that of short answers, which records have since 2026-11-30.

Two runs are compared where both have been: areas over the stretch of tokens that both cover, early and the end by the tokens of the
shorter one. Early are the evaluations nearest to the shares ``EARLY`` of these tokens, averaged; the end is the nearest to all.

    S  seeds    I  questions    D  documents    P  evaluations    G  places of a grid
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from math import hypot, log, nan
from pathlib import Path

import numpy as np
import pandas as pd

from tunalab.analysis.curves import AXES, TOLERANCE, Line, benchmarks, interpolation, lines, named
from tunalab.analysis.learning import log_weights
from tunalab.analysis.statistics import ALPHA, Estimate, benjamini_hochberg, lasting_error, of_seeds, question_error
from tunalab.analysis.tables import ANSWERS
from tunalab.analysis.written import markdown_table, percent, with_interval, write_tables_to
from tunalab.errors import UserError
from tunalab.evaluation.measure import Score
from tunalab.records.labels import benchmark_label, ordered_benchmarks
from tunalab.records.record import Point, Record

EARLY = (0.135, 0.223, 0.367)  # of the tokens: three in a row of the eight evaluations of a run
LOSS, MARGIN, ACCURACY = "loss of answers and descriptions, area over log tokens", "margin", "accuracy"
SHORT = "short/vqa"
SHORT_LOSS, CHOICE_LOSS = "loss of short answers, area over log tokens", "loss of the choice, area over log tokens"
# Equal tokens are not equal cost. Seconds are not among them: runs share machines with whatever else these do.
MATCHED = {
    "flops": "loss of answers and descriptions, area over log FLOPs that both have",
    "parameters": "the same over log tokens x parameters",
}


@dataclass(frozen=True, eq=False)
class Difference:
    """``what`` of one side less that of the other, by seed, (S,). ``questions``: its standard error over them; ``step`` as in
    ``of_seeds``; ``parts``: of each seed, the pretrained encoder behind it; ``lasting``: the part of ``questions`` that more seeds
    do not make smaller (statistics.lasting_error), by default all of it.
    """

    what: str
    value_S: np.ndarray
    questions: float = 0.0
    nats: bool = True
    step: float = 0.0
    parts: Sequence[str] = ()
    lasting: float | None = None

    @property
    def planned(self) -> float:
        """The error over questions that seeds to come will have too."""
        return self.questions if self.lasting is None else self.lasting

    @property
    def estimate(self) -> Estimate:
        return of_seeds(self.value_S, self.questions, step=self.step)

    def over_parts(self) -> Estimate | None:
        """With the means of runs that share an encoder in place of seeds: what is said of other encoders that are trained so.

        Seeds that share an encoder do not scatter as other encoders would; an interval over them speaks about these encoders.
        None where each seed has its own, or all have one.
        """
        if not any(self.parts):
            return None
        groups: dict[str, list[float]] = {}
        for part, value in zip(self.parts, self.value_S.tolist(), strict=True):
            groups.setdefault(part, []).append(value)
        if not 1 < len(groups) < len(self.value_S):
            return None
        return of_seeds([float(np.mean(values)) for values in groups.values()], self.questions, step=self.step)

    def less(self, other: "Difference", what: str) -> "Difference":
        """Of the same seeds, other questions."""
        value_S, questions = self.value_S - other.value_S, hypot(self.questions, other.questions)
        parts = self.parts if not any(other.parts) else other.parts if not any(self.parts) else _merged(self.parts, other.parts)
        return Difference(what, value_S, questions, self.nats, self.step, parts, hypot(self.planned, other.planned))

    def shown(self, bold: bool = False, found: Estimate | None = None) -> str:
        form = "{:+.3f}".format if self.nats else partial(percent, sign="+")
        return with_interval((found or self.estimate).bounds, form, bold)


def _merged(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """Of each seed what stands behind it on either side."""
    return [", ".join(sorted({*a.split(", "), *b.split(", ")} - {""})) for a, b in zip(one, other, strict=True)]


Pairs = Sequence[tuple[Record, Record]]  # of the two sides, by seed
OfQuestions = Callable[[tuple[Record, Record], str], Sequence[np.ndarray] | None]  # a pair, a benchmark -> by question, (I,) twice


@dataclass(frozen=True, eq=False)
class LossCurve:
    """A held-out loss at the evaluations of a run: places ``x_P``, losses ``loss_P`` in nats a token, and ``off_PD``, how much each
    document adds to the loss above or below that of all (nats a token, of mean 0); None where a record has no losses by document.
    """

    x_P: np.ndarray
    loss_P: np.ndarray
    off_PD: np.ndarray | None

    def weighed(self, weight_P: np.ndarray) -> tuple[float, np.ndarray | None]:
        """A weighted sum over evaluations, and by document."""
        return float(weight_P @ self.loss_P), None if self.off_PD is None else weight_P @ self.off_PD


def loss_curve(record: Record, name: str = ANSWERS, axis: str = "tokens") -> LossCurve:
    having = [point for point in record.points if name in point.losses]
    off = [point.loss_items[name].off(point.losses[name]) for point in having if name in point.loss_items]
    return LossCurve(
        np.array([AXES[axis].place(record, point) for point in having], dtype=float),
        np.array([point.losses[name] for point in having]),
        np.stack(off) if off and len(off) == len(having) else None,
    )


def loss_area(record: Record, name: str = ANSWERS) -> float:
    """Mean loss over the logarithm of tokens, from the first evaluation to the last; nan of less than two."""
    curve = loss_curve(record, name)
    return nan if len(curve.x_P) < 2 else curve.weighed(log_weights(curve.x_P))[0]


def nearest(pair: tuple[Record, Record], share: float) -> tuple[Point, Point] | None:
    """Of both runs the evaluation that is nearest, on the log axis, to a share of the tokens that both have consumed; None where
    these two are not at equal tokens.
    """
    tokens = share * min(record.totals.tokens for record in pair)
    one, other = (min(record.points, key=lambda point: abs(log(point.tokens / tokens))) for record in pair)
    return (one, other) if abs(one.tokens - other.tokens) <= TOLERANCE * max(one.tokens, other.tokens) else None


def loss_difference(pairs: Pairs, name: str = ANSWERS, what: str = LOSS, axis: str = "tokens") -> Difference | None:
    """Of areas under a held-out loss over the logarithm of an axis, over the stretch that both runs of a pair cover.

    Straight lines between evaluations. None where two runs have no stretch in common.
    """
    sides = []
    for pair in pairs:
        curves = [loss_curve(record, name, axis) for record in pair]
        weights = _weights(*(curve.x_P for curve in curves))
        if weights is None:
            return None
        sides.append([curve.weighed(weight_P) for curve, weight_P in zip(curves, weights, strict=True)])
    return _of_weighed(what, pairs, sides)


def _weights(one_P: np.ndarray, other_P: np.ndarray) -> list[np.ndarray] | None:
    """Of two runs' evaluations, at places x, such that their sum is the mean over log x of what both cover; None of no stretch."""
    if min(len(one_P), len(other_P)) < 2:
        return None
    low, high = max(one_P[0], other_P[0]), min(one_P[-1], other_P[-1])
    if low >= high:
        return None
    every = np.unique(np.concatenate([one_P, other_P, [low, high]]))
    x_G = every[(every >= low) & (every <= high)]
    return [log_weights(x_G) @ interpolation(x_P, x_G) for x_P in (one_P, other_P)]


def _of_weighed(what: str, pairs: Pairs, sides: Sequence[Sequence[tuple[float, np.ndarray | None]]]) -> Difference:
    """All runs are asked the same documents. The error over these is of the difference averaged over the seeds that have losses by
    document; fewer seeds leave more of their scatter in it, not less. Raises UserError: runs were asked other numbers of documents.
    """
    value_S = np.array([one - other for (one, _), (other, _) in sides])
    having = [(one, other) for (_, one), (_, other) in sides if one is not None and other is not None]
    counts = sorted({len(off_D) for pair in having for off_D in pair})
    if len(counts) > 1:
        raise UserError(f"held-out losses of {' and '.join(map(str, counts))} documents do not compare (evaluation.loss_documents)")
    if not having:
        return Difference(what, value_S, parts=parts_of(pairs))
    gap_KSD = [np.stack([one - other for one, other in having])]
    error = question_error(gap_KSD, shares=False)
    return Difference(what, value_S, error, parts=parts_of(pairs), lasting=lasting_error(gap_KSD))


def matched_difference(pairs: Pairs, axis: str) -> Difference | None:
    """``loss_difference`` over another axis (``MATCHED``)."""
    return loss_difference(pairs, what=MATCHED[axis], axis=axis)


def choice_difference(pairs: Pairs, kinds: Sequence[str]) -> Difference | None:
    """Of areas under the loss of the choice, the mean over benchmarks ``kinds`` with margins."""
    gap_KSI = _gaps(pairs, kinds, _choice_areas)
    return None if gap_KSI is None else _of_questions(CHOICE_LOSS, pairs, gap_KSI, shares=False)


def _choice_areas(pair: tuple[Record, Record], kind: str) -> Sequence[np.ndarray] | None:
    sides = []
    for record in pair:
        points = [point for point in record.points if kind in point.benchmarks]
        margins = [margin_I for point in points if (margin_I := point.benchmarks[kind].margin_items()) is not None]
        if not margins or len(margins) < len(points):
            return None
        sides.append((np.array([point.tokens for point in points], dtype=float), np.logaddexp(0, -np.stack(margins))))
    weights = _weights(*(x_P for x_P, _ in sides))
    return weights and [weight_P @ loss_PI for weight_P, (_, loss_PI) in zip(weights, sides, strict=True)]


def _gaps(pairs: Pairs, kinds: Sequence[str], of: OfQuestions) -> list[np.ndarray] | None:
    """Of each benchmark the differences by seed and question, (S, I); None where a run lacks one, or was asked another number."""
    gap_KSI = []
    for kind in kinds:
        sides = [of(pair, kind) for pair in pairs]
        found = [side for side in sides if side is not None]
        if not found or len(found) < len(sides) or len({len(of_I) for side in found for of_I in side}) > 1:
            return None
        gap_KSI.append(np.stack([one - other for one, other in found]))
    return gap_KSI or None


def _of_questions(what: str, pairs: Pairs, gap_KSI: Sequence[np.ndarray], shares: bool) -> Difference:
    """``shares``: of right and wrong answers, which are multiples of a question's share."""
    value_S = np.mean([gap_SI.mean(axis=1) for gap_SI in gap_KSI], axis=0)
    step = 1 / sum(gap_SI.shape[1] for gap_SI in gap_KSI) if shares else 0.0
    error, lasting = question_error(gap_KSI, shares), lasting_error(gap_KSI)
    return Difference(what, value_S, error, not shares, step, parts_of(pairs), lasting)


def front_end_parts(record: Record) -> dict[str, str]:
    """Pretrained part of the front-end -> which one."""
    parts = {name: part for name, part in record.components.items() if isinstance(part, dict) and name in ("encoder", "vae")}
    return {name: str(part.get("name") or part.get("folder")) for name, part in parts.items()}


def parts_of(pairs: Pairs) -> list[str]:
    """The encoders behind each pair: of either side."""
    return [", ".join(sorted({front_end_parts(record).get("encoder", "") for record in pair} - {""})) for pair in pairs]


def matched_words(records: Sequence[Record]) -> str:
    """A sentence: what is left of the differences in loss where compute is equal, not tokens; empty of less than two seeds."""
    found = [
        f"{' - '.join(names(a, b))} {flops.shown()} (tokens x trainable parameters: {size.shown()}; tokens: {tokens.shown()})"
        for a, b, pairs in compared(records)
        if (flops := matched_difference(pairs, "flops")) is not None
        and (size := matched_difference(pairs, "parameters")) is not None
        and (tokens := loss_difference(pairs)) is not None
    ]
    if not found:
        return ""
    return (
        "At equal training FLOPs instead of tokens, the loss of answers and descriptions (area over the log of each) differs by "
        f"{'; '.join(found)}. What encoders and VAEs cost before, in their own pretraining, is not counted."
    )


def difference(pairs: Pairs, outcome: str, kinds: Sequence[str], early: bool = False) -> Difference | None:
    """Of margins or accuracies, the mean over benchmarks ``kinds``; None where a run has not measured one, or margins are bare.

    ``early``: the mean of the early evaluations, else the one at the end. None too where two runs have no evaluations at equal
    tokens there, or what is early is the end.
    """
    gap_KSI = item_differences(pairs, outcome, kinds, early)
    return None if gap_KSI is None else _of_questions(_named(outcome, early), pairs, gap_KSI, outcome == ACCURACY)


def _named(outcome: str, early: bool) -> str:
    return f"{outcome} {'early' if early else 'at the end'}"


def item_differences(pairs: Pairs, outcome: str, kinds: Sequence[str], early: bool = False) -> list[np.ndarray] | None:
    """Of each benchmark by seed and question, (S, I)."""
    items = Score.margin_items if outcome == MARGIN else Score.items
    shares = EARLY if early else (1.0,)

    def means_of(pair: tuple[Record, Record], kind: str) -> Sequence[np.ndarray] | None:
        at = [points for share in shares if (points := nearest(pair, share)) is not None]
        if len(at) < len(shares) or (early and nearest(pair, 1.0) in at):
            return None
        means = []
        for points in zip(*at, strict=True):
            scores = [point.benchmarks.get(kind) for point in points]
            found = [one for score in scores if score is not None and (one := items(score)) is not None]
            if len(found) < len(shares) or len({len(one) for one in found}) > 1:
                return None
            means.append(np.mean(found, axis=0))
        return means

    return _gaps(pairs, kinds, means_of)


def double_difference(first: Pairs, second: Pairs, outcome: str, kinds: Sequence[str]) -> Difference | None:
    """How much larger the difference of the first pairs is at the end, over the seeds that both have and the same questions."""
    seeds = {pair[0].run.seed for pair in first} & {pair[0].run.seed for pair in second}
    both = [[pair for pair in pairs if pair[0].run.seed in seeds] for pairs in (first, second)]
    one, other = (item_differences(pairs, outcome, kinds) if pairs else None for pairs in both)
    if one is None or other is None or any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return None
    gap_KSI = [a - b for a, b in zip(one, other, strict=True)]
    found = _of_questions(_named(outcome, False), both[0], gap_KSI, outcome == ACCURACY)
    return replace(found, parts=_merged(parts_of(both[0]), parts_of(both[1])))


def endpoints(pairs: Pairs) -> list[Difference]:
    """All that both sides have: losses (one at equal compute too), margin and accuracy, and these by benchmark, early and late."""
    kinds = ordered_benchmarks(set.intersection(*(benchmarks([record]) for pair in pairs for record in pair)))
    last = [record.points[-1].benchmarks for pair in pairs for record in pair]
    closed = [kind for kind in kinds if all(kind in scores and scores[kind].margins is not None for scores in last)]
    having = [pair for pair in pairs if all(SHORT in point.losses for record in pair for point in record.points)]
    found = [loss_difference(pairs), *(matched_difference(pairs, axis) for axis in MATCHED)]
    fewer = f" ({len(having)} seeds)" if len(having) < len(pairs) else ""
    found += [loss_difference(having, SHORT, SHORT_LOSS + fewer)] if len(having) > 1 else []
    found += [choice_difference(pairs, closed)] if closed else []
    for early in (True, False):
        found += [difference(pairs, MARGIN, closed, early) if closed else None, difference(pairs, ACCURACY, kinds, early)]
    for kind in kinds:
        outcomes = [MARGIN, ACCURACY] if kind in closed else [ACCURACY]
        every = [difference(pairs, outcome, [kind], early) for outcome in outcomes for early in (True, False)]
        found += [replace(one, what=f"{benchmark_label(kind)}: {one.what}") for one in every if one is not None]
    return [one for one in found if one is not None]


def compared(records: Sequence[Record]) -> list[tuple[Line, Line, Pairs]]:
    """Every two lines with two seeds in common, and their runs by seed."""
    found: list[tuple[Line, Line, Pairs]] = []
    for a, b in combinations(lines(records), 2):
        pairs = paired(a.records, b.records)
        if len(pairs) > 1:
            found.append((a, b, pairs))
    return found


def paired(first: Sequence[Record], second: Sequence[Record]) -> Pairs:
    """The runs of the seeds that both sides have."""
    one, other = ({record.run.seed: record for record in side} for side in (first, second))
    return [(one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())]


def names(a: Line, b: Line) -> tuple[str, str]:
    return named(a.label, a.setting.label), named(b.label, b.setting.label)


def endpoints_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row per two lines and endpoint. ``q``: after Benjamini and Hochberg's correction for all rows."""
    rows = [
        (*names(a, b), one.what, one.nats, *one.estimate.bounds, one.estimate.p, len(one.value_S), one.shown())
        for a, b, pairs in compared(records)
        for one in endpoints(pairs)
    ]
    table = pd.DataFrame(rows, columns=["a", "b", "endpoint", "nats", "difference", "low", "high", "p", "seeds", "shown"])
    table = table.astype(dict.fromkeys(("low", "high", "p"), float))
    return table.assign(q=pd.Series(benjamini_hochberg(table["p"].tolist()), dtype=float))


def write_endpoints(records: Sequence[Record], folder: Path, command: str) -> list[Path]:
    """Write ``endpoints.md`` and ``endpoints.csv``; nothing where no two front-ends have two seeds in common, or where settings
    differ besides: effects.py compares those.
    """
    shown = lines(records)
    table = endpoints_table(records) if len(shown) == len({line.variant for line in shown}) else pd.DataFrame()
    if table.empty:
        return []
    files: dict[str, str | pd.DataFrame] = {"endpoints.md": endpoints_markdown(table), "endpoints.csv": table.drop(columns="shown")}
    return write_tables_to(folder, command, files)


def endpoints_markdown(table: pd.DataFrame) -> str:
    """A row per endpoint, a column per two lines."""
    columns = list(dict.fromkeys(zip(table["a"], table["b"], strict=True)))
    cells = {
        (row["endpoint"], (row["a"], row["b"])): f"**{row['shown']}**" if row["q"] < ALPHA else row["shown"]
        for row in table.to_dict("records")
    }
    rows = [[what, *(cells.get((what, pair), "") for pair in columns)] for what in dict.fromkeys(table["endpoint"])]
    seeds = sorted(set(table["seeds"]))
    shares = ", ".join(f"{share:.1%}" for share in EARLY)
    note = (
        f"Differences over {' or '.join(map(str, seeds))} seeds, paired by seed and question, with 95% intervals (Student's t over "
        "seeds and the error over questions; of losses over documents, where records hold losses by document). Losses and "
        "margins in nats, where a lower loss and a higher margin are better; three in four tokens of answers and descriptions are "
        "of descriptions, the choice is that between the right answer and the best wrong one (ln(1 + exp(-margin))); "
        f"accuracies in points. Early: mean of the evaluations nearest to {shares} of the tokens. Margin: log-likelihood of the "
        "right option less that of the best wrong one. Bold: 0 is excluded after Benjamini and Hochberg's correction for the "
        f"{len(table)} numbers here (q < {ALPHA})."
    )
    return f"{markdown_table(['endpoint', *(f'{a} - {b}' for a, b in columns)], rows)}\n\n{note}\n"
