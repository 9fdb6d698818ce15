"""What the curves say beyond their ends: where one passes another, the areas under them, and where they seem to go."""

from collections.abc import Sequence

from tunalab.errors import UserError
from tunalab.results.analysis.axes import AXES
from tunalab.results.analysis.crossing import Crossing, passing
from tunalab.results.labels import benchmark_label, variant_label
from tunalab.results.records import Record
from tunalab.results.report.document import Section, demoted
from tunalab.results.tables.dynamics import Dynamics, areas_markdown, crossings_markdown, dynamics, laws_markdown


def measure(records: Sequence[Record]) -> Dynamics | None:
    """None where nothing was asked, or no evaluations can be compared: the section on curves says why."""
    try:
        return dynamics(records)
    except UserError:
        return None


def passes(found: Dynamics | None) -> str:
    """The crossings that are seen, in one sentence; empty where no two front-ends were compared."""
    every = [] if found is None else found.crossings["tokens"]
    said = [_sentence(one) for one in every if one.seen]
    return f"Crossings that are seen, {len(said)} of {len(every)} pairs of curves: {'; '.join(said) or 'none'}." if every else ""


def sections(found: Dynamics | None) -> list[Section]:
    if found is None:
        return []
    texts = {
        "Crossings": crossings_markdown(found) if found.crossings["tokens"] else "",
        "Areas under the curves": areas_markdown(found),
        "Power laws": laws_markdown(found) if found.laws else "",
    }
    return [
        Section(title, demoted(text).rstrip(), folded=title != "Areas under the curves") for title, text in texts.items() if text
    ]


def _sentence(one: Crossing) -> str:
    leader, other = (variant_label(line.variant) for line in (one.leader, one.other))
    setting = one.leader.setting.label
    where = benchmark_label(one.benchmark) + (f" ({setting})" if setting else "")
    return f"{leader} passes {other} on {where} at {passing(one, AXES['tokens'])} tokens"
