"""The sections of a report on what came out: curves, final accuracies, crossings, effects, held-out losses, evaluations, claims."""

import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from tunalab.analysis.claims import claims_markdown
from tunalab.analysis.crossing import Crossing, passing
from tunalab.analysis.curves import AXES, TOLERANCE, arms, benchmarks, lines, names_of
from tunalab.analysis.dynamics import Dynamics, areas_markdown, crossings_markdown, dynamics, laws_markdown
from tunalab.analysis.effects import effects_markdown, effects_table
from tunalab.analysis.evaluations import (
    counterpart,
    differences_table,
    evaluated,
    evaluation_markdown,
    means_table,
    read_published,
    sides,
    unequal_settings,
)
from tunalab.analysis.figures import drawn, save
from tunalab.analysis.report_section import Picture, Section
from tunalab.analysis.tables import accuracy_markdown, accuracy_table
from tunalab.analysis.written import markdown_table
from tunalab.errors import UserError
from tunalab.records.labels import (
    MASK_RATIO,
    Legend,
    benchmark_label,
    differing_settings,
    key_labels,
    value_label,
)
from tunalab.records.record import Record, usable


def measure(records: Sequence[Record]) -> Dynamics | None:
    """None where nothing was asked, or no evaluations can be compared: the section on curves says why."""
    try:
        return dynamics(records)
    except UserError:
        return None


def passes(moved: Dynamics | None) -> str:
    """The clear crossings, in one sentence; empty where no two front-ends were compared."""
    every = moved.crossings["tokens"] if moved else []
    sentences = [_sentence(one) for one in every if one.clear]
    text = "; ".join(sentences) or "none"
    return f"Clear crossings, {len(sentences)} of {len(every)} pairs of curves: {text}." if every else ""


def sections(found: Dynamics | None) -> list[Section]:
    if found is None:
        return []
    texts = {
        "Crossings": crossings_markdown(found) if found.crossings["tokens"] else "",
        "Areas under the curves": areas_markdown(found),
        "Power laws": laws_markdown(found) if found.laws else "",
    }
    return [Section(title, demoted(text), folded=title != "Areas under the curves") for title, text in texts.items() if text]


def _sentence(one: Crossing) -> str:
    leader, other = (line.label for line in (one.leader, one.other))
    setting = one.leader.setting.label
    where = benchmark_label(one.benchmark) + (f" ({setting})" if setting else "")
    return f"{leader} passes {other} on {where} at {passing(one, AXES['tokens'])} tokens"


COLOURS = 256  # of an embedded figure: flat areas and thin lines need no more, and the file has a third of the size
NO_QUESTIONS = "these runs asked no questions while they trained"


def undrawable(records: Sequence[Record]) -> str:
    """Why there are no curves of these records, empty where there are."""
    if not benchmarks(records):
        return NO_QUESTIONS
    try:
        lines(records)
    except UserError as error:
        return str(error)
    return ""


def curves(why_none: str, drawn: Sequence[Picture]) -> Section:
    what = "Accuracy against tokens, a panel for each benchmark. In the page; alone: `tunalab figure curves --records FOLDER`."
    return Section("Curves", f"None: {why_none}." if why_none else what, drawn)


def pictures(records: Sequence[Record]) -> list[Picture]:
    """The curves, and accuracy by mask ratio where the runs vary that alone, as the program draws them."""
    varied = {key for setting in differing_settings(usable(records)) for key, _ in setting.items}
    names = ["curves", *(["mask_ratio"] if varied == {MASK_RATIO} else [])]
    return [Picture(stem, _png(figure)) for name in names for stem, figure, _ in drawn(name, records)]


def _png(figure: Figure) -> bytes:
    buffer, smaller = BytesIO(), BytesIO()
    save(figure, buffer)
    palette = Image.open(buffer).convert("RGB").quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette.save(smaller, "PNG", optimize=True)
    return smaller.getvalue()


def final(records: Sequence[Record]) -> pd.DataFrame | str:
    """The table of final accuracies, or why there is none."""
    try:
        return accuracy_table(records) if benchmarks(records) else NO_QUESTIONS
    except UserError as error:
        return str(error)


def accuracies(table: pd.DataFrame | str, records: Sequence[Record]) -> Section:
    if isinstance(table, str):
        return Section("Final accuracies", f"None: {table}.")
    left_out = len(records) - len(usable(records))
    return Section("Final accuracies", accuracy_markdown(table, Legend(records), left_out).rstrip())


def leaders(table: pd.DataFrame | str, records: Sequence[Record]) -> str:
    """Who is ahead at the end by a difference whose interval excludes 0, in one sentence; empty where no two front-ends compare."""
    if isinstance(table, str) or table["variant"].nunique() < 2:
        return ""
    names, legend = key_labels(table.columns[1 : table.columns.get_loc("variant")]), Legend(records)
    ahead = []
    for row in table[table["leads"].astype(bool)].to_dict("records"):
        setting = ", ".join(f"{name} {value_label(row[key])}" for key, name in names.items())
        ahead.append(f"{legend.label(row['variant'])} on {benchmark_label(row['benchmark'])}{f' ({setting})' if setting else ''}")
    return f"Ahead of the next best at the end, 0 excluded: {'; '.join(ahead) or 'nobody on any benchmark'}."


def effects(records: Sequence[Record]) -> Section | None:
    """Main effects and interactions of what the runs vary, None where no two of them differ in one thing alone."""
    table = effects_table(records)
    return None if table.empty else Section("Effects", demoted(effects_markdown(table)))


def held_out(records: Sequence[Record]) -> Section:
    """Losses and one-step PSNR at the last point that all finished runs share: means over seeds, with the least and the most."""
    title, finished = "Held-out losses and PSNR", usable(records)
    last = min(record.points[-1].tokens for record in finished if record.points)
    names, columns = names_of(shown := arms(finished)), {}
    for line in shown:
        near = [[p for p in record.points if abs(p.tokens - last) <= TOLERANCE * last] for record in line.records]
        if points := [point[-1] for point in near if point]:
            columns[names[line]] = points
    rows = []
    for field_name, form in (("losses", "loss {}"), ("one_step_psnr", "one-step PSNR at t = {}, dB")):
        held = {name: [getattr(point, field_name) for point in points] for name, points in columns.items()}
        for key in dict.fromkeys(key for values in held.values() for one in values for key in one):
            rows.append([form.format(key), *(_spread([one[key] for one in values if key in one]) for values in held.values())])
    if not rows:
        return Section(title, "None on record.", folded=True)
    note = (
        f"At {last:,} tokens, mean over the seeds that have it [least, most]. Flow losses of pixels and of latents do not compare; "
        "PSNR is measured in pixels and does."
    )
    return Section(title, f"{markdown_table(['', *columns], rows)}\n\n{note}", folded=True)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{float(np.mean(values)):.3g}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.3g}, {max(values):.3g}]"


def evaluations(records: Sequence[Record], published: Path) -> Section | None:
    """What `tunalab evaluate` measured of the finished models beside what was published; None where nothing was."""
    title, measured = "Evaluations of the finished models", evaluated(records)
    if not measured:
        return None
    try:
        compared = {key: by_variant for key, by_variant in sides(measured).items() if counterpart(*key)}
        means, differences = means_table(compared), differences_table(compared)
        text = evaluation_markdown(means, differences, read_published(published), Legend(measured), unequal_settings(measured))
    except UserError as error:
        return Section(title, f"Cannot be compared: {error}.")
    what = "What has a published counterpart; all that was measured stands in the tables of `tunalab table`."
    return Section(title, f"{what}\n\n{demoted(text)}", folded=True)


def claims(records: Sequence[Record]) -> Section | None:
    """The paper's claims with the differences that could show them, where these records have one."""
    text = claims_markdown(records)
    return Section("Claims of the paper", text.rstrip()) if text else None


def demoted(text: str) -> str:
    """Markdown whose headings of the second level are of the third: to stand inside a section."""
    return re.sub(r"^## ", "### ", text.rstrip(), flags=re.MULTILINE)
