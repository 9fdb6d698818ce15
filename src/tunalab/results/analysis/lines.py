"""The lines of a figure: runs that differ in the seed alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tunalab.errors import UserError
from tunalab.results.analysis.axes import Axis
from tunalab.results.analysis.grid import Places
from tunalab.results.labels import ordered_variants
from tunalab.results.records import Record, usable
from tunalab.results.settings import Setting, told_apart


@dataclass(frozen=True, eq=False)
class Line:
    """Runs of one variant at one setting, which differ in the seed alone, by seed."""

    variant: str
    setting: Setting
    records: tuple[Record, ...]
    _asked: dict[tuple[tuple[int, ...], ...], Places] = field(default_factory=dict)

    def asked(self, benchmark: str) -> Places:
        """The evaluations that asked a benchmark, of the runs that were asked it: one object for all benchmarks asked at them."""
        at = tuple(
            tuple(index for index, point in enumerate(record.points) if benchmark in point.benchmarks) for record in self.records
        )
        if at not in self._asked:
            pairs = zip(self.records, at, strict=True)
            self._asked[at] = Places(
                {record.run.seed: (record, tuple(record.points[index] for index in of)) for record, of in pairs if of}
            )
        return self._asked[at]


def lines(records: Sequence[Record]) -> list[Line]:
    """The lines of a figure: variants in their order, settings by size.

    Raises:
        UserError: two records are the same run.
    """
    shown = usable(records)
    groups: dict[tuple[str, Setting], dict[int, Record]] = {}
    for record, setting in zip(shown, told_apart(shown), strict=True):
        runs = groups.setdefault((record.run.variant, setting), {})
        if record.run.seed in runs:
            raise UserError(
                f"records {runs[record.run.seed].run.name} and {record.run.name} are the same run: variant {record.run.variant}, "
                f"seed {record.run.seed}, no setting differs"
            )
        runs[record.run.seed] = record
    order = ordered_variants(variant for variant, _ in groups)
    keys = sorted(groups, key=lambda key: (order.index(key[0]), key[1].place))
    return [Line(*key, tuple(record for _, record in sorted(groups[key].items()))) for key in keys]


def moves(shown: Sequence[Line], axis: Axis) -> bool:
    """Whether every run has a place on the axis, and a later one at every evaluation."""
    try:
        places = [[axis.place(record, point) for point in record.points] for line in shown for record in line.records]
    except UserError:  # a record lacks what the axis needs
        return False
    return all(a < b for x in places for a, b in pairwise([0.0, *x]))


def benchmarks(records: Iterable[Record]) -> set[str]:
    return {name for record in records for point in record.points for name in point.benchmarks}
