"""What came out: curves, final accuracies, held-out losses, evaluations of the finished models."""

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from tunalab.errors import UserError
from tunalab.results.analysis.effects import effects_markdown, effects_table
from tunalab.results.analysis.evaluations import differences_table, evaluated, means_table, sides, unequal_settings
from tunalab.results.analysis.fairness import TOLERANCE
from tunalab.results.analysis.lines import benchmarks, lines
from tunalab.results.figures.draw import draw
from tunalab.results.labels import MASK_RATIO, benchmark_label, key_labels, ordered_variants, value_label, variant_label
from tunalab.results.records import Point, Record, usable
from tunalab.results.report.document import Picture, Section, demoted, table
from tunalab.results.settings import told_apart
from tunalab.results.tables.claims import claims_markdown
from tunalab.results.tables.evaluation import evaluation_markdown
from tunalab.results.tables.published import counterpart, read_published
from tunalab.results.tables.training import accuracy_markdown, accuracy_table

COLOURS = 256  # of an embedded figure: flat areas and thin lines need no more, and the file has a third of the size


def undrawable(records: Sequence[Record]) -> str:
    """Why there are no curves of these records, empty where there are."""
    if not benchmarks(records):
        return "these runs asked no questions while they trained"
    try:
        lines(records)
    except UserError as error:
        return str(error)
    return ""


def curves(why_none: str, drawn: Sequence[Picture]) -> Section:
    what = "Accuracy against tokens consumed, a panel a benchmark. In the page; alone: `tunalab figure curves --records FOLDER`."
    return Section("Curves", f"None: {why_none}." if why_none else what, drawn)


def pictures(records: Sequence[Record], command: str) -> list[Picture]:
    """The curves, and accuracy by mask ratio where the runs vary that alone, as the program draws them."""
    varied = {key for setting in told_apart(usable(records)) for key, _ in setting.items}
    with TemporaryDirectory() as folder:
        names = ["curves", *(["mask_ratio"] if varied == {MASK_RATIO} else [])]
        drawn = [path for name in names for path in draw(name, records, Path(folder), command) if path.suffix == ".png"]
        return [Picture(path.stem, _smaller(path)) for path in drawn]


def _smaller(path: Path) -> bytes:
    buffer = BytesIO()
    with Image.open(path) as figure:
        palette = figure.convert("RGB").quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        palette.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def accuracies(records: Sequence[Record]) -> Section:
    if not benchmarks(records):
        return Section("Final accuracies", "None: these runs asked no questions while they trained.")
    finished = usable(records)
    try:
        final = accuracy_table(records)
    except UserError as error:
        return Section("Final accuracies", f"None: {error}.")
    return Section("Final accuracies", accuracy_markdown(final, len(records) - len(finished)).rstrip())


def ahead(records: Sequence[Record]) -> str:
    """Who is ahead at the end by a difference whose interval excludes 0, in one sentence; empty where no two front-ends compare."""
    try:
        final = accuracy_table(records) if benchmarks(records) else None
    except UserError:
        return ""
    if final is None or final["variant"].nunique() < 2:
        return ""
    keys = list(final.columns[1 : final.columns.get_loc("variant")])
    said = []
    for row in final[final["leads"].astype(bool)].to_dict("records"):
        setting = ", ".join(f"{name} {value_label(row[key])}" for key, name in key_labels(keys).items())
        said.append(f"{variant_label(row['variant'])} on {benchmark_label(row['benchmark'])}{f' ({setting})' if setting else ''}")
    return f"Ahead of the next best at the end, 0 excluded: {'; '.join(said) or 'nobody on any benchmark'}."


def effects(records: Sequence[Record]) -> Section | None:
    """Main effects and interactions of what the runs vary, None where no two of them differ in one thing alone."""
    found = effects_table(records)
    return None if found.empty else Section("Effects", demoted(effects_markdown(found).rstrip()))


def held_out(records: Sequence[Record]) -> Section:
    """Losses and one-step PSNR at the last point that all finished runs share: means over seeds, with the least and the most."""
    finished = usable(records)
    arms: dict[tuple[str, str], list[Point]] = {}
    last = min(record.points[-1].tokens for record in finished if record.points)
    for record, setting in zip(finished, told_apart(finished), strict=True):
        near = [point for point in record.points if abs(point.tokens - last) <= TOLERANCE * last]
        if near:
            arms.setdefault((record.run.variant, setting.label), []).append(near[-1])
    order = ordered_variants(variant for variant, _ in arms)
    ordered = sorted(arms, key=lambda arm: order.index(arm[0]))
    rows = []
    for name, values in (
        *((f"loss {key}", [[p.losses.get(key) for p in arms[arm]] for arm in ordered]) for key in _keys(arms.values(), "losses")),
        *(
            (f"one-step PSNR at t = {key}, dB", [[p.one_step_psnr.get(key) for p in arms[arm]] for arm in ordered])
            for key in _keys(arms.values(), "one_step_psnr")
        ),
    ):
        rows.append([name, *(_spread([value for value in of_arm if value is not None]) for of_arm in values)])
    if not rows:
        return Section("Held-out losses and PSNR", "None on record.", folded=True)
    head = ["", *(f"{variant_label(variant)}{f', {label}' if label else ''}" for variant, label in ordered)]
    note = (
        f"At {last:,} tokens, mean over seeds [least, most]. Flow losses of pixels and of latents do not compare; PSNR is measured "
        "in pixels and does."
    )
    return Section("Held-out losses and PSNR", f"{table(head, rows)}\n\n{note}", folded=True)


def _keys(arms: Iterable[Sequence[Point]], name: str) -> list[str]:
    return list(dict.fromkeys(key for points in arms for point in points for key in getattr(point, name)))


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{float(np.mean(values)):.3g}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.3g}, {max(values):.3g}]"


def evaluations(records: Sequence[Record], published: Path) -> Section | None:
    """What `tunalab evaluate` measured of the finished models beside what was published; None where nothing was."""
    found = evaluated(records)
    if not found:
        return None
    try:
        compared = {key: held for key, held in sides(found).items() if counterpart(*key)}
        means, differences = means_table(compared), differences_table(compared)
        text = evaluation_markdown(means, differences, read_published(published), unequal_settings(found))
    except UserError as error:
        return Section("Evaluations of the finished models", f"Cannot be compared: {error}.")
    what = "What has a published counterpart; all that was measured stands in the tables of `tunalab table`."
    return Section("Evaluations of the finished models", f"{what}\n\n{demoted(text).rstrip()}", folded=True)


def claims(records: Sequence[Record]) -> Section | None:
    """The paper's claims with the differences that could show them, where its three front-ends were evaluated."""
    found = evaluated(records)
    if not {"tuna", "tuna_r", "tuna2"} <= {record.run.variant for record in found}:
        return None
    return Section("Claims of the paper", claims_markdown(found).rstrip())
