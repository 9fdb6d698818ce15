"""A report of records, in the order in which a sceptical reader asks: Markdown, and one HTML page."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from tunalab.analysis import report_results as results
from tunalab.analysis import report_runs as runs
from tunalab.analysis.evaluations import published_file
from tunalab.analysis.report_section import Report, Section
from tunalab.records.labels import Legend, differing_settings
from tunalab.records.record import Record
from tunalab.records.samples import Samples, png

MOST_COLUMNS = 8  # of samples side by side


@dataclass(frozen=True)
class Beside:
    """What a report may show beside the records, and beside the files that the settings find."""

    samples: Mapping[str, Samples] = field(default_factory=dict)  # by name of the run
    planned: Mapping[str, Sequence[str]] = field(default_factory=dict)  # sweep -> names of all its runs


def build(records: Sequence[Record], folder: Path, command: str, beside: Beside, draw: bool = True) -> Report:
    """``folder``: where the records are, for titles and commands. Nothing but ``records`` and ``beside`` is read.

    ``draw``: whether figures are drawn, which the Markdown does not hold. Raises UserError: they cannot be.
    """
    sweeps = list(dict.fromkeys(record.run.sweep for record in records if record.run.sweep))
    level, text = runs.verdict(records, beside.planned)
    moved, why_none = results.measure(records), results.undrawable(records)
    final = results.final(records)
    sections = [
        _in_short(results.leaders(final, records), results.passes(moved)),
        runs.question(records, sweeps),
        runs.settings(records),
        runs.budget(records),
        results.curves(why_none, results.pictures(records) if draw and not why_none else []),
        results.accuracies(final, records),
        *results.sections(moved),
        results.effects(records),
        results.claims(records),
        results.held_out(records),
        results.evaluations(records, published_file()),
        samples(records, beside.samples),
        runs.failures(records, beside.planned),
        runs.cost(records),
        runs.made(records),
        runs.reproduce(records, sweeps, folder),
    ]
    return Report(_title(records, folder), command, level, text, [one for one in sections if one is not None])


def _title(records: Sequence[Record], folder: Path) -> str:
    legend = Legend(records)
    variants = ", ".join(legend.label(name) for name in legend.ordered(legend.looks))
    seeds = len({record.run.seed for record in records})
    count = "one run" if len(records) == 1 else f"{len(records)} runs"
    return f"{folder.name}: {variants}; {count}, {seeds} seed{'s' if seeds > 1 else ''}"


def _in_short(*sentences: str) -> Section | None:
    lines = [f"- {line}" for line in sentences if line]
    if not lines:
        return None
    return Section("In short", "\n".join([*lines, "- What it means, and what else was observed, stands in `results/LOG.md`."]))


def samples(records: Sequence[Record], by_run: Mapping[str, Samples]) -> Section:
    """The runs of the first seed that has samples, side by side, as far as they drew the same prompts."""
    title = "Samples for the same prompts and noise"
    having = [record for record in records if record.run.name in by_run]
    if not having:
        return Section(
            title, "None: neither beside the records nor in run directories (`tunalab publish` puts them beside the records)."
        )
    seeds = sorted({record.run.seed for record in having})
    seeds = seeds if len(having) <= MOST_COLUMNS else seeds[:1]
    shown: dict[str, Samples] = {}
    settings = {record.run.name: setting.label for record, setting in zip(records, differing_settings(records), strict=True)}
    legend = Legend(having)
    order = legend.ordered(legend.looks)
    chosen = sorted((record for record in having if record.run.seed in seeds), key=lambda record: order.index(record.run.variant))
    for record in chosen[:MOST_COLUMNS]:
        labels = [settings[record.run.name], f"seed {record.run.seed}" if len(seeds) > 1 else ""]
        shown[", ".join([legend.label(record.run.variant), *filter(None, labels)])] = by_run[record.run.name]
    prompts = [text for text in next(iter(shown.values())).prompts if all(text in one.prompts for one in shown.values())]
    same = {name: _only(one, prompts) for name, one in shown.items()}
    tokens = sorted({one.tokens for one in same.values()})
    left = len(having) - len(shown)
    whose = f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} of each front-end"
    text = (
        f"{whose}, after {' to '.join(f'{count:,}' for count in tokens)} tokens, {len(prompts)} held-out prompts in their order: "
        "nothing is chosen. In one row all start from the same noise seed; in equal target spaces that is the same noise. "
        + (f"{left} more runs have samples that are not shown. " if left else "")
        + "In the page; the files are in `samples/` beside the records."
    )
    return Section(title, text, samples=same)


def _only(one: Samples, prompts: Sequence[str]) -> Samples:
    places = [one.prompts.index(text) for text in prompts]
    return Samples(one.tokens, tuple(prompts), tuple(one.images[place] for place in places))


# What records say is text: no HTML, and no image or link that would ask somebody else's server.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink"])


def to_markdown(report: Report) -> str:
    parts = [f"<!-- made by: {report.command} -->", f"# {report.title}", report.verdict]
    parts += [f"## {section.title}\n\n{section.text}" for section in report.sections]
    return "\n\n".join(parts) + "\n"


def to_html(report: Report) -> str:
    return environment().get_template("report.html.j2").render(report=report)


def environment() -> Environment:
    """Of pages: what data and records say is escaped, pictures stand inside."""
    environment = Environment(
        loader=PackageLoader("tunalab.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = lambda text: Markup(_MARKDOWN.render(text))
    environment.filters["data_uri"] = lambda content: f"data:image/png;base64,{b64encode(content).decode()}"
    environment.filters["png"] = png
    return environment
