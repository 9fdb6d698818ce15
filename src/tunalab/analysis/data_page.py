"""How a report on data (data/inspection.py) is shown: as text, as one HTML page, as plain values for JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from tunalab.data.documents import printed
from tunalab.data.inspection import ALIKE, THUMBNAIL, DataReport, Example, Source, shown
from tunalab.terminal import columns

LONGEST_PIECE = 600  # characters of a text on a page; in a terminal a third of it
LARGEST_PICTURE = 256  # pixels along a side on a page
LISTED = 10  # pairs of pictures of a benchmark; JSON has all
FINE = "A run can train on these data, as far as they were read."


@dataclass(frozen=True)
class Table:
    """The first ``left`` columns hold words, the others numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    left: int = 1


def title(report: DataReport) -> str:
    of = report.about
    run = f"{of['experiment']} {of['variant']}" if of["variant"] else ", ".join(source.name for source in report.sources)
    return f"Data of {run}"


def about(report: DataReport) -> str:
    of = report.about
    return (
        f"Pictures of {', '.join(of['sizes'])} pixels (height x width), {of['token_pixels']} pixels along the side of a visual "
        f"token, rows of {of['row_tokens']:,} tokens. Up to {of['limit']:,} documents of each source were read (--limit), those "
        f"that a run of seed {of['seed']} reads first."
    )


def tables(report: DataReport) -> list[Table]:
    """All of a report but its examples; empty ones are left out."""
    made = [_documents(report), _left_out(report), _lengths(report), _pictures(report), _buckets(report), _mix(report)]
    made += [_held_out(report), _pairs(report), _digests(report)]
    return [table for table in made if table.rows]


def _documents(report: DataReport) -> Table:
    rows = [
        [
            source.name,
            ", ".join(f"{kind} {count:,}" for kind, count in source.kinds.most_common()) or "-",
            *(f"{number:,}" for number in (source.read, len(source.lengths), source.broken, source.unfit)),
            "endless" if source.has is None else f"{source.has:,}",
        ]
        for source in report.sources
    ]
    head = ["source", "usable, by kind", "read", "usable", "broken", "do not fit", "of"]
    return Table("Documents", head, rows, left=2)


def _left_out(report: DataReport) -> Table:
    rows = []
    for source in report.sources:
        for group in source.left_out:
            (where, reason), *others = group.first
            also = ", ".join([*(place for place, _ in others), *(["..."] if group.count > len(group.first) else [])])
            what = f"{group.count:,} {'broken' if group.broken else 'unfit'}"
            rows.append([source.name, what, f"{where}: {reason}" + (f"; also {also}" if also else "")])
    note = "By reason. Broken documents are errors of the data; unfit ones are sound, and the settings have no place for them."
    return Table("Left out", ["source", "documents", "the first, and why"], rows, note, left=3)


def _lengths(report: DataReport) -> Table:
    rows = [
        [
            source.name,
            f"{source.mean:,.1f}" if source.lengths else "-",
            f"{statistics.median(source.lengths):,.0f}" if source.lengths else "-",
            f"{source.longest:,}",
            f"{source.too_long:,}",
            percent(source.too_long, source.read),
        ]
        for source in report.sources
    ]
    note = "Mean and median of usable documents, the longest of all. One that is longer than a row is never cut, but left out."
    return Table("Length in tokens", ["source", "mean", "median", "longest", "too long", "share"], rows, note)


def _pictures(report: DataReport) -> Table:
    rows = []
    for source in report.sources:
        if source.sizes:
            by_area = sorted(source.sizes, key=lambda size: size[0] * size[1])
            three = (by_area[0], by_area[len(by_area) // 2], by_area[-1])
            shares = [percent(number, len(by_area)) for number in (source.enlarged, source.cropped)]
            rows.append([source.name, f"{len(by_area):,}", *map(shown, three), *shares])
    note = (
        "Sizes as stored (height x width). Pictures beyond data.max_upscale or data.max_crop are left out with their documents. "
        "Sources that draw their pictures, or have them of one size, do not stand here."
    )
    head = ["source", "pictures", "smallest", "median", "largest", "enlarged too much", "cropped too much"]
    return Table("Pictures in files", head, rows, note)


def _buckets(report: DataReport) -> Table:
    rows = [
        [source.name, shown(size), f"{count:,}", percent(count, source.buckets.total())]
        for source in report.sources
        for size, count in sorted(source.buckets.items())
    ]
    return Table("Sizes that the model gets", ["source", "bucket", "pictures", "share"], rows, "Of usable documents.", left=2)


def _mix(report: DataReport) -> Table:
    rows = [
        [
            f"{stage} ({report.about['tokens'][stage]:,} tokens)",
            share.source,
            f"{share.documents:.1%}",
            f"{share.tokens:.1%}",
            f"{share.documents_read:,.0f}",
            "-" if share.passes is None else f"{share.passes:,.{0 if share.passes >= 10 else 2}f}",
        ]
        for stage, shares in report.stages.items()
        for share in shares
    ]
    note = (
        "A mix's weights count documents; long documents have more of the tokens. Documents read: what the tokens of the stage "
        "come to at these lengths. Passes: how often each usable document is read."
    )
    head = ["stage", "source", "of the documents", "of the tokens", "documents read", "passes"]
    return Table("The mix", head, rows, note, left=2)


def _held_out(report: DataReport) -> Table:
    rows = [
        [
            one.name,
            *(f"{number:,}" for number in (one.has, one.read, one.unread, one.pictures, one.same)),
            percent(one.same, one.pictures),
            f"{one.alike:,}",
        ]
        for one in report.held_out
    ]
    reasons = "".join(f" Unreadable: {one.reason}." for one in report.held_out if one.reason)
    note = (
        "Different pictures of what is held out. In training: the same pixels, as the model gets them, in a document that was "
        f"read. Others look alike if no cell of their thumbnails ({THUMBNAIL}x{THUMBNAIL}) differs by more than {ALIKE} of 255."
        f"{reasons}"
    )
    head = ["held out", "items", "read", "unreadable", "pictures", "in training", "share", "look alike"]
    return Table("Benchmarks in the training data", head, rows, note)


def _pairs(report: DataReport) -> Table:
    rows = [
        [pair.held_out, pair.training, "the same pixels" if pair.distance == 0 else f"{pair.distance:g} of 255"]
        for one in report.held_out
        for pair in one.pairs[:LISTED]
    ]
    note = f"At most {LISTED} of each; --json has all."
    return Table("Pictures in both", ["held out", "in training", "difference"], rows, note, left=3)


def _digests(report: DataReport) -> Table:
    rows = [
        [source.name, source.version, *(cell for part in ("files", "images") for cell in _digest(source, part))]
        for source in report.sources
    ]
    note = "As runs keep them, to notice data that changed; of many images a sample. The version is in the record of a run."
    return Table("Digests", ["source", "version", "files", "digest", "images", "digest"], rows, note, left=6)


def _digest(source: Source, part: str) -> list[str]:
    number, digest = source.files.get(part, (0, "-"))
    return [f"{number:,}", digest]


def percent(number: int, of: int) -> str:
    return f"{number / of:.1%}" if of else "-"


def to_text(report: DataReport) -> str:
    parts = [title(report), about(report)]
    for table in tables(report):
        body = columns([[printed(cell) for cell in row] for row in (table.head, *table.rows)], table.left)
        parts.append("\n".join(filter(None, (table.title, body, table.note))))
    parts += ["What the model gets: tokens, decoded; in {} what it learns to produce"]
    parts += [
        f"{source.name}, {one.kind}: {one.place}\n{sequence(one)}" for source in report.sources for one in source.examples[:1]
    ]
    parts += [f"Warning: {line}" for line in report.warnings]
    parts.append("\n".join(f"A run would stop: {problem}" for problem in report.problems) or FINE)
    return "\n\n".join(parts)


def sequence(example: Example) -> str:
    """On one line; images by their size and tokens."""
    words = [
        piece.text
        if piece.kind == "mark"
        else f"[{piece.text}]"
        if piece.kind == "image"
        else short(piece.text, LONGEST_PIECE // 3)
        for piece in example.pieces
    ]
    return "".join(
        f"{{{word}}}" if piece.predicted else word for word, piece in zip(map(printed, words), example.pieces, strict=True)
    )


def short(text: str, longest: int = LONGEST_PIECE) -> str:
    """The beginning of a long text, with how much is left out."""
    return text if len(text) <= longest else f"{text[:longest]} ... ({len(text) - longest:,} more characters)"


def to_html(report: DataReport) -> str:
    from tunalab.analysis.report import environment  # with Markdown and figures, which no other form needs

    made = environment()
    made.filters |= {"small": _small, "short": short}
    values = {"report": report, "title": title(report), "about": about(report), "tables": tables(report), "fine": FINE}
    return made.get_template("data.html.j2").render(values)


def _small(picture_HWC: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(picture_HWC)
    picture.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    return np.asarray(picture)


def to_plain(report: DataReport) -> dict[str, Any]:
    """Numbers, texts, lists and mappings; no pictures. Keys as of the report's classes."""
    return {
        **report.about,
        "problems": report.problems,
        "warnings": report.warnings,
        "sources": [_plain_source(source) for source in report.sources],
        "stages": {name: [asdict(share) for share in shares] for name, shares in report.stages.items()},
        "held_out": [
            {**vars(one), "pairs": [{key: value for key, value in vars(pair).items() if key != "pictures"} for pair in one.pairs]}
            for one in report.held_out
        ],
    }


def _plain_source(source: Source) -> dict[str, Any]:
    by_area = sorted(source.sizes, key=lambda size: size[0] * size[1])
    return {
        **vars(source),
        "usable": len(source.lengths),
        "left_out": [asdict(group) for group in source.left_out],
        "lengths": {"mean": source.mean, "median": statistics.median(source.lengths)} if source.lengths else None,
        "sizes": {"count": len(by_area), "smallest": shown(by_area[0]), "largest": shown(by_area[-1])} if by_area else None,
        "buckets": {shown(size): count for size, count in source.buckets.items()},
        "files": {part: {"count": count, "digest": value} for part, (count, value) in source.files.items()},
        "examples": [{"kind": one.kind, "place": one.place, "tokens": sequence(one)} for one in source.examples],
    }
