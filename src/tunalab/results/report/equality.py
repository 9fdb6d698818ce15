"""The verdict at the top of a report: is the comparison equal in everything but what it is about?"""

from collections.abc import Mapping, Sequence

from tunalab.results.analysis.fairness import Unequal, unequal
from tunalab.results.records import Record
from tunalab.results.report.document import table

SHARED = "tokens, seeds, data order, components, code, versions, precision, machine and threads"


def verdict(records: Sequence[Record], planned: Mapping[str, Sequence[str]] | None = None) -> tuple[str, str]:
    """The level (broken | asked | doubt | equal) and the Markdown that says why. ``planned``: sweep -> names of all its runs."""
    found = unequal(records)
    broken = [one for one in found if one.breaks and not one.asked]
    asked = [one for one in found if one.breaks and one.asked]
    doubts = [one for one in found if not one.breaks]
    part = [share(records, sweep, names) for sweep, names in (planned or {}).items() if missing(records, names)]
    level = "broken" if broken else "asked" if asked else "doubt" if doubts or part else "equal"
    head = {
        "broken": f"**NOT EQUAL: {_count(broken)} that results depend on differ between runs.** Differences below may be theirs.",
        "asked": f"**{_count(asked).capitalize()} change with the settings that are varied**: part of the question, or not?",
        "doubt": "**Equal in all that decides a result, but not beyond doubt.**",
        "equal": f"**Equal**: all runs share {SHARED}.",
    }[level]
    rows = [["**breaks**", *_row(one, records)] for one in broken]
    rows += [["varied", *_row(one, records)] for one in asked] + [["doubt", *_row(one, records)] for one in doubts]
    told = f"\n\n{table(['', 'what', 'which runs have what', 'why it matters'], rows, left=4)}" if rows else ""
    incomplete = f"**INCOMPLETE: {'; '.join(part)}.** The others may change what is said here.\n\n" if part else ""
    return level, f"{incomplete}{head}{told}\n\n{_by_front_end(records)}"


def missing(records: Sequence[Record], planned: Sequence[str]) -> list[str]:
    """Runs of a sweep that have no finished record."""
    finished = {record.run.name for record in records if record.run.finished}
    return [name for name in planned if name not in finished]


def share(records: Sequence[Record], sweep: str, planned: Sequence[str]) -> str:
    return f"{len(planned) - len(missing(records, planned))} of {len(planned)} runs of the sweep {sweep}"


def _count(found: Sequence[Unequal]) -> str:
    return "one thing" if len(found) == 1 else f"{len(found)} things"


def _row(one: Unequal, records: Sequence[Record]) -> list[str]:
    return [one.what, one.told(records), one.why]


def _by_front_end(records: Sequence[Record]) -> str:
    """What equal tokens do not equalise: said always, as no table of accuracies shows it."""
    parts = []
    for words, of in (
        ("training FLOPs", lambda r: r.totals.flops / max(1, r.totals.tokens)),
        ("trained parameters", lambda r: float(r.parameters.get("trainable", 0))),
        ("minutes", lambda r: r.totals.seconds),
    ):
        values = [of(record) for record in records]
        if min(values) > 0 and max(values) > 1.02 * min(values):
            parts.append(
                f"{words} up to {max(values) / min(values):.2f} times the least" + (" (a token)" if "FLOPs" in words else "")
            )
    return f"Runs are compared at equal tokens. Not equal at equal tokens: {', '.join(parts)}." if parts else ""
