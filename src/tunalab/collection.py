"""Records of runs as a collection: frame, figures, tables and report. The commands on records are thin calls of it.

Imports are inside functions: reading records needs neither pandas nor matplotlib.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from tunalab.errors import UserError
from tunalab.files import below, write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from tunalab.analysis.report import Beside
    from tunalab.records.record import Record

RUNS = Path("runs")
TABLES = ("accuracy", "areas", "cost", "crossings", "differences", "effects", "evaluation", "power_laws")


def records(path: str | Path, evaluation: bool = True) -> "Records":
    """The records of a folder (``*.json``), of one file, or of a run directory.

    ``evaluation=False``: without what was measured of the finished models, ten times as fast.

    Raises UserError: there is none, or one is damaged.
    """
    from tunalab.records.record import RECORD_FILE, read_record, read_records

    path = Path(path)
    one = path if path.is_file() else path / RECORD_FILE
    return Records([read_record(one, evaluation)] if one.is_file() else read_records(path, evaluation), path)


class Records(Sequence["Record"]):
    """Records of runs, in the order of their files: a sequence of :class:`tunalab.Record`, and what can be made of them.

    Where runs are compared, only finished ones count, unless none is. UserError: they cannot stand in one table or figure, or
    nothing of the kind was measured.
    """

    def __init__(self, found: "Sequence[Record]", source: str | Path = "runs", panels: Sequence[str] = ()) -> None:
        self._records = tuple(found)
        self.source = Path(source)
        self._panels = tuple(panels)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> "Record": ...

    @overload
    def __getitem__(self, index: slice) -> "Records": ...

    def __getitem__(self, index: int | slice) -> "Record | Records":
        return Records(self._records[index], self.source, self._panels) if isinstance(index, slice) else self._records[index]

    def only(self, *panels: str) -> "Records":
        """With these benchmarks alone along the runs: ``records("results/figure6").only("ocr", "pairs@2").figure("figure6")``.

        Raises UserError: no run was asked one of them.
        """
        from dataclasses import replace

        there = dict.fromkeys(name for record in self._records for point in record.points for name in point.benchmarks)
        for name in panels:
            if name not in there:
                raise UserError(f"no benchmark {name!r} along these runs, choices: {', '.join(there) or 'none'}")
        found = [
            replace(
                record,
                points=[
                    replace(point, benchmarks={name: score for name, score in point.benchmarks.items() if name in panels})
                    for point in record.points
                ],
            )
            for record in self._records
        ]
        return Records(found, self.source, panels)

    def __repr__(self) -> str:
        names = ", ".join(record.run.name for record in self._records[:4])
        return f"<{len(self)} records: {names}{', ...' if len(self) > 4 else ''}>"

    def frame(self) -> "pd.DataFrame":
        """A row per run, point and measure, whatever was measured along the runs.

        Columns: run, experiment, variant, seed; each setting that differs, by its key; tokens, steps, images, flops, seconds of
        training; measure (accuracy | margin | loss | psnr), name; value (a share; nats of margins and of text, mean squared errors
        of images; dB); low, high (95% interval), n and chance of accuracies.
        """
        import pandas as pd

        from tunalab.records.labels import differing_settings

        rows = []
        for record, setting in zip(self._records, differing_settings(self._records), strict=True):
            run = record.run
            of_run = {
                "run": run.name,
                "experiment": run.experiment,
                "variant": run.variant,
                "seed": run.seed,
                **dict(setting.items),
            }
            for point in record.points:
                place = {name: getattr(point, name) for name in ("tokens", "steps", "images", "flops", "seconds")}
                here = {**of_run, **place}
                for name, score in point.benchmarks.items():
                    interval = {"low": score.low, "high": score.high, "n": score.n, "chance": score.chance}
                    rows.append({**here, "measure": "accuracy", "name": name, "value": score.accuracy, **interval})
                    if score.margin is not None:
                        rows.append({**here, "measure": "margin", "name": name, "value": score.margin, "n": score.n})
                for measure, values in (("loss", point.losses), ("psnr", point.one_step_psnr)):
                    rows += [{**here, "measure": measure, "name": name, "value": value} for name, value in values.items()]
        return pd.DataFrame(rows)

    def figure(self, name: str, out: str | Path | None = None, x: str = "tokens") -> "Figure | dict[str, Figure] | list[Path]":
        """A figure: figure6, curves, mask_ratio, learning_rate or effects. ``x``, of curves: tokens, images, flops, wall_clock,
        parameters.

        Without ``out`` as a matplotlib figure (a dictionary of figures by name where the records need several); with ``out``, a
        folder, as PNG files that say how they were made, and their paths.
        """
        from tunalab.analysis.figures import draw, drawn

        if out is not None:
            return draw(name, self._records, Path(out), self._call(f"figure {name}", x), x)
        figures = {stem: figure for stem, figure, _ in drawn(name, self._records, x)}
        return next(iter(figures.values())) if len(figures) == 1 else figures

    def table(self, name: str) -> "pd.DataFrame":
        """A table: accuracy, areas, cost, crossings, differences, effects, evaluation, power_laws."""
        from tunalab.analysis import dynamics
        from tunalab.analysis.effects import effects_table
        from tunalab.analysis.evaluations import differences_table, evaluated, means_table, sides
        from tunalab.analysis.tables import accuracy_table, cost_table

        if name not in TABLES:
            raise UserError(f"unknown table {name!r}, choices: {', '.join(TABLES)}")
        of_runs = {"accuracy": accuracy_table, "cost": cost_table, "effects": effects_table}
        if name in of_runs:
            return of_runs[name](self._records)
        if name in ("evaluation", "differences"):
            measured = evaluated(self._records)
            if not measured:
                raise UserError(f"table {name}: no run of these records was evaluated (tunalab evaluate RUN)")
            return (means_table if name == "evaluation" else differences_table)(sides(measured))
        found = dynamics.dynamics(self._records)
        if found is None:
            raise UserError(f"table {name}: these records have too few points in common")
        tables = {"areas": dynamics.areas_table, "crossings": dynamics.crossings_table, "power_laws": dynamics.laws_table}
        return tables[name](found)

    def unequal(self) -> list[str]:
        """In what the runs cannot be compared as equals, one line per reason: budget, batch, data, schedule."""
        from tunalab.analysis.fairness import flagged

        return flagged(self._records)

    def partly_asked(self) -> list[str]:
        """Benchmarks that only some finished runs were asked, one line each with the runs that lack it."""
        from tunalab.analysis.curves import benchmarks
        from tunalab.records.record import usable

        asked = {record.run.name: benchmarks([record]) for record in usable(self._records)}
        every = sorted(set().union(*asked.values()))
        without = {name: [run for run, names in asked.items() if name not in names] for name in every}
        return [f"{name}: not asked of {', '.join(runs[:4])}{', ...' * (len(runs) > 4)}" for name, runs in without.items() if runs]

    def write_tables(self, out: str | Path, published: str | Path | None = None) -> list[Path]:
        """Write every table that these records fill into a folder, as CSV and Markdown; returns the files.

        ``published``: figures to print beside evaluations (default: results/published.csv, or the shipped one).
        """
        from tunalab.analysis.claims import write_claims
        from tunalab.analysis.components import write_components
        from tunalab.analysis.dynamics import write_dynamics
        from tunalab.analysis.endpoints import write_endpoints
        from tunalab.analysis.evaluations import published_file, write_evaluation_tables
        from tunalab.analysis.tables import write_tables

        records, folder, call = self._records, Path(out), self._call("table")
        beside = Path(published) if published else published_file()
        written = write_tables(records, folder, call) + write_evaluation_tables(records, beside, folder, call)
        written += write_endpoints(records, folder, call) + write_components(records, folder, call)
        written += write_claims(records, folder, call)
        return written + write_dynamics(records, folder, call)

    def report(self, out: str | Path, figures: bool = True, runs: str | Path | None = None) -> list[Path]:
        """Write one page about these records: whether the comparison is equal, and what came out; returns the files.

        ``out``: the HTML page; the same as Markdown stands beside it. Without ``figures`` the Markdown alone. ``runs``: folder of
        run directories, for samples that are not published (default: runs/<sweep>).
        """
        from tunalab.analysis.report import build, to_html, to_markdown

        page = Path(out)
        made = build(self._records, self.source, self._call("report"), self._beside(runs), draw=figures)
        texts = {page.with_suffix(".md"): to_markdown(made)} | ({page: to_html(made)} if figures else {})
        for path, text in texts.items():
            write_atomically(path, text)
        return list(texts)

    def _beside(self, runs: str | Path | None) -> "Beside":
        """Samples that were published beside the records, else those of run directories; the runs that sweeps planned."""
        from tunalab.analysis.report import Beside
        from tunalab.records.samples import FOLDER, of_run, published
        from tunalab.settings.layers import own_or_shipped
        from tunalab.sweeps.grid import expand, load_sweep

        samples = {}
        for record in self._records:
            run = record.run
            place = below(Path(runs or RUNS), run.name if runs else f"{run.sweep or run.experiment}/{run.name}", links=True)
            beside = below(self.source / FOLDER, f"{run.name}.png")
            found = (published(beside) if beside else None) or (of_run(place, record) if place else None)
            if found is not None:
                samples[run.name] = found
        sweeps = dict.fromkeys(record.run.sweep for record in self._records if record.run.sweep)
        files = {name: file for name in sweeps if name and (file := own_or_shipped(f"sweeps/{name}.yaml"))}
        planned = {}
        for name, file in files.items():
            try:
                planned[name] = [cell.name for cell in expand(load_sweep(file))]
            except UserError as error:  # today's file is no longer that of the records
                print(f"warning: what the sweep planned is not compared with its records: {error}", file=sys.stderr)
        return Beside(samples=samples, planned=planned)

    def _call(self, command: str, x: str = "tokens") -> str:
        words = ["tunalab", *command.split(), "--records", str(self.source), *(["--x", x] if x != "tokens" else [])]
        # Tables and pages are of all benchmarks that these records have: only figures have the option.
        return shlex.join([*words, *(["--panels", *self._panels] if self._panels and command.startswith("figure") else [])])
