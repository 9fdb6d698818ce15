"""The loss of answers and descriptions by learning rate: where each front-end learns best, and at which share of it its encoder."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tunalab.analysis.figure6 import FAINT, INK, caption
from tunalab.analysis.tables import ANSWERS
from tunalab.errors import UserError
from tunalab.records.labels import Legend, flat_settings
from tunalab.records.record import Record, usable

RATE = "optimizer.lr_factor"


def encoder_rate(record: Record) -> float | None:
    """The factor of the encoder's rate: that of the group that matches it, else 1; 0 where it is frozen, None without one."""
    frontend, groups = record.config["frontend"], record.config["optimizer"].get("groups") or {}
    if not frontend.get("encoder"):
        return None
    if not frontend.get("encoder_trained", True):
        return 0.0
    return next((float(group["lr"]) for group in groups.values() if group["match"].startswith("frontend.")), 1.0)


def learning_rate(records: Sequence[Record]) -> Figure:
    """The loss at the end against the factor of the stages' rates, and against that of the encoder's; a line a front-end.

    Each line is of the runs at one value of the other factor, that with the most runs. Dots: seeds.

    Raises UserError: no held-out loss of answers, or one rate alone.
    """
    finished = [record for record in usable(records) if record.points and ANSWERS in record.points[-1].losses]
    legend = Legend(finished)
    of_variant = {name: [record for record in finished if record.run.variant == name] for name in legend.ordered(legend.looks)}
    rates = {name: _by(runs, _rate, encoder_rate) for name, runs in of_variant.items()}
    shares = {name: _by(runs, encoder_rate, _rate) for name, runs in of_variant.items()}
    panels = [
        ("learning rate, times the stages' own", rates),
        ("rate of the encoder, times the decoder's", shares),
    ]
    panels = [(label, {name: losses for name, losses in drawn.items() if len(losses) > 1}) for label, drawn in panels]
    panels = [(label, drawn) for label, drawn in panels if drawn]
    if not panels:
        raise UserError("learning_rate needs records with a loss of answers at two learning rates or more")
    figure, colours = Figure(figsize=(4.6 * len(panels), 3.6)), legend.colours()
    for index, (label, drawn) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1, xscale="log")
        values = sorted({value or 0.0 for losses in drawn.values() for value in losses})
        # Frozen stands left of the smallest rate.
        place = {value: value or min(other for other in values if other) / 3 for value in values}
        for name, losses in drawn.items():
            _draw(axes, {place[value or 0.0]: of for value, of in losses.items()}, legend.label(name), colours[name])
        axes.set_xticks([*place.values()], [f"{value:g}" if value else "frozen" for value in place])
        axes.set_xlabel(label, color=INK, fontsize=9)
    figure.axes[0].set_ylabel("loss of answers and descriptions, nats", color=INK, fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False, fontsize=10, labelcolor=INK)
    figure.subplots_adjust(left=0.18 / len(panels), right=0.98, top=0.88, bottom=0.15, wspace=0.2)
    other = " Each panel at one value of the other." if len(panels) > 1 else ""
    caption(figure, f"Line: mean over seeds. Dots: single seeds. Ring: the least mean.{other}")
    return figure


def _rate(record: Record) -> float | None:
    return float(flat_settings(record)[RATE] or 0)


def _by(
    runs: Sequence[Record], along: Callable[[Record], float | None], other: Callable[[Record], float | None]
) -> dict[float | None, list[float]]:
    """Losses by the value of ``along``, of the runs at the value of ``other`` that has most such values, then the least loss."""
    held: dict[float | None, dict[float | None, list[float]]] = {}
    for record in runs:
        held.setdefault(other(record), {}).setdefault(along(record), []).append(record.points[-1].losses[ANSWERS])
    best = max(held.values(), key=lambda losses: (len(losses), -min(np.mean(of) for of in losses.values())))
    return dict(sorted(best.items(), key=lambda item: item[0] or 0.0))


def _draw(axes: Axes, losses: dict[float, list[float]], label: str, colour: str) -> None:
    mean = {at: float(np.mean(of)) for at, of in losses.items()}
    axes.plot([*mean], [*mean.values()], "-", color=colour, linewidth=1.8, label=label)
    for at, of in losses.items():
        axes.plot([at] * len(of), of, ".", color=colour, markersize=5, alpha=0.7, markeredgewidth=0)
    best = min(mean, key=lambda at: mean[at])
    axes.plot([best], [mean[best]], "o", mfc="none", mec=colour, ms=9, mew=1.5)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")
    axes.grid(axis="y", color="#EBEBEB", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=INK, color=FAINT, length=3)
