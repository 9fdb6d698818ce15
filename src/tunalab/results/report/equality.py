"""The verdict at the top of a report: is the comparison equal in everything but what it is about?"""

from collections.abc import Sequence

from tunalab.results.analysis.fairness import Unequal, unequal
from tunalab.results.records import Record
from tunalab.results.report.document import table

SHARED = "tokens, seeds, data order, components, code, versions, precision, machine and threads"
FEW = 3  # runs that are named one by one


def verdict(records: Sequence[Record]) -> tuple[str, str]:
    """The level (broken | asked | doubt | equal) and the Markdown that says why."""
    found = unequal(records)
    broken = [one for one in found if one.breaks and not one.asked]
    asked = [one for one in found if one.breaks and one.asked]
    doubts = [one for one in found if not one.breaks]
    level = "broken" if broken else "asked" if asked else "doubt" if doubts else "equal"
    head = {
        "broken": f"**NOT EQUAL: {_count(broken)} that results depend on differ between runs.** Differences below may be theirs.",
        "asked": f"**{_count(asked).capitalize()} change with the settings that are varied**: part of the question, or not?",
        "doubt": "**Equal in all that decides a result, but not beyond doubt.**",
        "equal": f"**Equal**: all runs share {SHARED}.",
    }[level]
    rows = [["**breaks**", *_row(one, records)] for one in broken]
    rows += [["varied", *_row(one, records)] for one in asked] + [["doubt", *_row(one, records)] for one in doubts]
    told = f"\n\n{table(['', 'what', 'which runs have what', 'why it matters'], rows, left=4)}" if rows else ""
    return level, f"{head}{told}\n\n{_by_front_end(records)}"


def _count(found: Sequence[Unequal]) -> str:
    return "one thing" if len(found) == 1 else f"{len(found)} things"


def _row(one: Unequal, records: Sequence[Record]) -> list[str]:
    return [one.what, "; ".join(f"{value}: {_names(names, records)}" for value, names in one.values.items()), one.why]


def _names(names: Sequence[str], records: Sequence[Record]) -> str:
    if set(names) == {record.run.name for record in records}:
        return "all runs"
    of = "runs" if {record.run.name for record in records} >= set(names) else "front-ends"
    return f"{len(names)} {of}" if len(names) > FEW else ", ".join(names)


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
