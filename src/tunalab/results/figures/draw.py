"""The figures, drawn from records alone."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tunalab.errors import UserError
from tunalab.files import write_atomically
from tunalab.results.analysis.axes import AXES, axis_named
from tunalab.results.analysis.lines import Line, lines, moves
from tunalab.results.analysis.panels import learned
from tunalab.results.figures.figure6 import figure6
from tunalab.results.figures.interactive import page
from tunalab.results.labels import FIGURE_NAMES
from tunalab.results.records import Record

DPI = 160


def draw(name: str, records: Sequence[Record], folder: Path, command: str, x: str = "tokens") -> list[Path]:
    """Draw a figure of ``FIGURE_NAMES`` into ``folder`` and return its files; the command stands in each of them.

    Curves of several variants, each at several settings, are one file a variant. Figure 6 is also a page that opens from disk.

    Raises:
        UserError: unknown figure or axis, or records that cannot stand in one picture.
    """
    if name not in FIGURE_NAMES:
        raise UserError(f"unknown figure {name!r}, choices: {', '.join(FIGURE_NAMES)}")
    axis = axis_named(x)
    if name in ("mask_ratio", "effects"):
        if x != "tokens":
            raise UserError(f"figure {name} has its own x axis, not {x!r}")
        return [_save(_of_tables(name, records), folder / f"{name}.png", command)]
    written = []
    for variant, shown in _pictures(records).items():
        stem = "-".join(word for word in (name, variant, "" if x == "tokens" else x) if word)
        paged = name == "figure6" and x == "tokens"  # the page has all axes
        every = [one for one in AXES.values() if moves(shown, one)] if paged else []
        found = learned(shown, list(dict.fromkeys([axis, *every])))
        written.append(_save(figure6(found, axis), folder / f"{stem}.png", command))
        if paged:
            write_atomically(folder / f"{stem}.html", page(found, command))
            written.append(folder / f"{stem}.html")
    return written


def _of_tables(name: str, records: Sequence[Record]) -> Figure:
    """Figures of tables import what makes tables, which takes longer than drawing curves."""
    if name == "effects":
        from tunalab.results.analysis.effects import effects_table
        from tunalab.results.figures.forest import forest

        return forest(effects_table(records))
    from tunalab.results.figures.mask_ratio import mask_ratio

    return mask_ratio(records)


def _pictures(records: Sequence[Record]) -> dict[str, list[Line]]:
    """Lines by variant where a common picture would need colours for variants and for settings at once; else all under ''."""
    shown = lines(records)
    variants = list(dict.fromkeys(line.variant for line in shown))
    if len(variants) == 1 or len(shown) == len(variants):
        return {"": shown}
    return {name: lines([one for line in shown if line.variant == name for one in line.records]) for name in variants}


def _save(figure: Figure, path: Path, command: str) -> Path:
    """Not by `savefig`, which draws a figure with a layout twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_dpi(DPI)
    # No software version in the file: the same records give the same bytes until the picture itself changes.
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None, "Description": f"made by: {command}"})
    return path
