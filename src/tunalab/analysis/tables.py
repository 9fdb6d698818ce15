"""The tables of a folder of records: accuracy by benchmark and variant, what each run cost, the numbers of the README."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from tunalab.analysis.curves import Line, align_tokens, arms, curves, last_common_tokens
from tunalab.analysis.effects import write_effects
from tunalab.analysis.fairness import flagged
from tunalab.analysis.statistics import ALPHA, benjamini_hochberg, paired_difference, pooled
from tunalab.analysis.written import markdown_table, percent, replace_block, with_interval, write_tables_to
from tunalab.errors import UserError
from tunalab.records.labels import Legend, Setting, benchmark_label, key_labels, ordered_benchmarks, value_label
from tunalab.records.record import Record, usable

ANSWERS = "text/vqa"  # the loss of answers to questions about images


def write_tables(records: Sequence[Record], folder: Path, command: str) -> list[Path]:
    """Write ``accuracy`` (where questions were asked, else ``losses``), ``cost`` and ``effects`` (where runs differ in one choice
    alone), each as ``.md`` and ``.csv``.

    Raises:
        UserError: the records share no point at equal tokens, or hold the same run twice.
    """
    finished, legend = usable(records), Legend(records)
    tables: dict[str, str | pd.DataFrame] = {}
    if not finished or any(point.benchmarks for record in finished for point in record.points):
        accuracy, left_out = accuracy_table(records), len(records) - len(finished)
        tables["accuracy.md"] = accuracy_markdown(accuracy, legend, left_out, flagged(finished))
        tables["accuracy.csv"] = accuracy
    elif any(point.losses for record in finished for point in record.points):
        losses = loss_table(records)
        tables |= {"losses.md": losses_markdown(losses, legend), "losses.csv": losses}
    cost = cost_table(records)
    tables |= {"cost.md": cost_markdown(cost, legend, shared_note(records)), "cost.csv": cost}
    return write_tables_to(folder, command, tables) + write_effects(records, folder, command)


def accuracy_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row per benchmark, setting and variant at the last point that all finished runs share.

    Every setting that differs has a column of its own, named by its key. ``rank`` orders the variants of one benchmark and
    setting; the first row of each also holds the paired difference to the second (``lead``, ``lead_low``, ``lead_high``), and
    ``leads`` says that it is above chance and ahead of every other: ``p`` is the largest p-value against one of them, times the
    number of variants, any of which might have come out first; ``q`` is that after Benjamini and Hochberg's correction for all
    rows.
    """
    finished = usable(records)
    if not finished:
        raise UserError("no records to make a table of")
    aligned = align_tokens(curves(finished))
    tokens = last_common_tokens(aligned)
    means = pooled(aligned[aligned["tokens"] == tokens])
    lines, legend = arms(finished), Legend(finished)
    runs = {(line.variant, line.setting): line.records for line in lines}
    settings = _settings(lines)
    rows = []
    for benchmark, setting in product(ordered_benchmarks(means["benchmark"]), settings):
        part = means[(means["benchmark"] == benchmark) & (means["setting"] == setting.label)]
        ranked = part.sort_values("accuracy", ascending=False, kind="stable").to_dict("records")
        for rank, row in enumerate(ranked, start=1):
            row |= dict(setting.items)
            row |= {"rank": rank, "lead": None, "lead_low": None, "lead_high": None, "p": None}
        if len(ranked) > 1:
            best, second, *others = (runs[str(row["variant"]), setting] for row in ranked)
            gaps = [paired_difference(best, other, benchmark, tokens) for other in (second, *others)]
            if (gap := gaps[0]) is not None:
                ranked[0] |= {"lead": gap.value, "lead_low": gap.low, "lead_high": gap.high}
            # The best by mean over all its seeds may lose over the seeds both have: then it leads nobody.
            p_values = [one.p for one in gaps if one is not None and one.p is not None and one.value > 0]
            if len(p_values) == len(gaps):
                ranked[0]["p"] = min(1.0, len(ranked) * max(p_values))
        rows += sorted(ranked, key=lambda row: legend.ordered(part["variant"]).index(str(row["variant"])))
    keys = [key for key, _ in settings[0].items]
    columns = ["benchmark", *keys, "variant", "tokens", "accuracy", "low", "high", "n", "seeds", "chance"]
    table = pd.DataFrame(rows, columns=[*columns, "rank", "lead", "lead_low", "lead_high", "p"])
    table = table.astype(dict.fromkeys(("lead", "lead_low", "lead_high", "p"), float))
    table["q"] = pd.Series(benjamini_hochberg(table["p"].tolist()), dtype=float)
    return table.assign(leads=(table["q"] < ALPHA) & (table["low"] > table["chance"]))


def loss_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row per variant and setting: means over seeds of the held-out losses at the end."""
    rows: list[dict[str, Any]] = []
    for line in arms(usable(records)):
        last = [record.points[-1] for record in line.records]
        names = sorted(set.intersection(*(set(point.losses) for point in last)))
        row = {"variant": line.variant, **dict(line.setting.items), "setting": line.setting.label, "seeds": len(last)}
        rows.append(row | {name: sum(point.losses[name] for point in last) / len(last) for name in names})
    return pd.DataFrame(rows)


def losses_markdown(table: pd.DataFrame, legend: Legend) -> str:
    """A row per variant and setting; bold: the least loss of answers of each variant."""
    names = [name for name in table.columns if name.startswith(("text/", "flow/"))]
    rows = []
    for _, row in table.iterrows():
        least = table[table["variant"] == row["variant"]][ANSWERS].min() if ANSWERS in names else None
        shown = {name: "" if pd.isna(row[name]) else f"{row[name]:.3f}" for name in names}
        cells = [f"**{text}**" if name == ANSWERS and row[name] == least else text for name, text in shown.items()]
        rows.append([legend.label(row["variant"]), row["setting"], str(row["seeds"]), *cells])
    note = (
        "Held-out losses at the end, means over seeds: text in nats per token, flow as in training (of pixels and of latents "
        "it does not compare). Bold: a front-end's least loss of answers."
    )
    return f"{markdown_table(['front-end', 'settings', 'seeds', *names], rows, left=2)}\n\n{note}\n"


def cost_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row per variant and setting: means over seeds of what a run consumed, and its parameters."""
    rows: list[dict[str, Any]] = []
    for line in arms(usable(records)):
        group = line.records
        row = {"variant": line.variant, **dict(line.setting.items), "seeds": len(group)}
        for name in ("tokens", "steps", "images", "flops"):
            row[name] = sum(getattr(record.totals, name) for record in group) / len(group)
        row["minutes"] = sum(record.totals.seconds for record in group) / len(group) / 60
        row["peak_memory_gb"] = max(record.totals.peak_memory_bytes for record in group) / 1e9
        parameters = sorted(group[0].parameters.items(), key=lambda item: item[0] == "trainable")
        rows.append(row | {f"{part}_parameters": count for part, count in parameters})
    return pd.DataFrame(rows)


def accuracy_markdown(table: pd.DataFrame, legend: Legend, left_out: int = 0, unequal: Sequence[str] = ()) -> str:
    """The accuracy table with a column per variant; bold where one leads.

    ``unequal``: what makes it no equal comparison.
    """
    variants = legend.ordered(table["variant"])
    keys = list(table.columns[1 : table.columns.get_loc("variant")])
    names = key_labels(keys)
    rows = []
    for _, part in table.groupby(["benchmark", *keys], sort=False, dropna=False):
        by_variant = {str(row["variant"]): row for row in part.to_dict("records")}
        first = part.iloc[0]
        cells = [
            with_interval([row[name] for name in ("accuracy", "low", "high")], percent, row["leads"]) if row else ""
            for row in map(by_variant.get, variants)
        ]
        n = "/".join(sorted({f"{row['n'] / row['seeds']:.0f}" for row in by_variant.values()}))
        labels = [benchmark_label(str(first["benchmark"])), *(_value(first[key]) for key in keys)]
        rows.append([*labels, *cells, percent(part["chance"].mean()), n])
    seeds = sorted(set(table["seeds"].tolist()))
    of = f", the mean of {' or '.join(map(str, seeds))} seeds" if seeds != [1] else ", one seed"
    tokens = f"{int(table['tokens'].iloc[0]):,} tokens"
    note = f"Accuracy in percent at {tokens}{of}, with its 95% interval; n: questions, the same ones for every seed."
    if seeds == [1]:
        note += " The interval is of the questions alone: one seed says nothing about another."
    else:
        note += " The interval covers questions (Wilson's) and seeds (Student's t)."
    if table["leads"].any():
        note += f" Bold: above chance and ahead of every other, paired by seed and question, corrected for all rows (q < {ALPHA})."
    if left_out:
        note += f" Unfinished runs left out: {left_out}."
    if unequal:
        note += f" **Not an equal comparison:** {'; '.join(unequal)}."
    head = ["benchmark", *(names[key] for key in keys), *(legend.label(name) for name in variants), "chance", "n"]
    return f"{markdown_table(head, rows)}\n\n{note}\n"


def cost_markdown(table: pd.DataFrame, legend: Legend, shared: str = "") -> str:
    """The cost table with units spelled out. ``shared``: :func:`shared_note`."""
    parts = [name for name in table.columns if name.endswith("_parameters")]
    keys = list(table.columns[1 : table.columns.get_loc("seeds")])
    names = key_labels(keys)
    head = ["variant", *(names[key] for key in keys), "seeds", "tokens", "steps", "images", "training FLOPs", "minutes"]
    head += ["peak memory, GB", *(name.removesuffix("_parameters") + " parameters" for name in parts)]
    rows = [
        [
            *(legend.label(row["variant"]), *(_value(row[key]) for key in keys), str(row["seeds"])),
            *(f"{row[name]:,.0f}" for name in ("tokens", "steps", "images")),
            *(f"{row['flops']:.2e}", f"{row['minutes']:.1f}", f"{row['peak_memory_gb']:.2f}"),
            *("" if pd.isna(row[name]) else f"{row[name]:,.0f}" for name in parts),
        ]
        for row in table.to_dict("records")
    ]
    note = "Means over seeds; minutes add up over interruptions, on the machine named in the records."
    return f"{markdown_table(head, rows)}\n\n{note}{shared}\n"


def shared_note(records: Sequence[Record]) -> str:
    """What a sweep trained once for several runs; empty where it trained each alone."""
    trunks: dict[str, int] = {}  # name -> tokens of its own
    own = 0
    for record in usable(records):
        chain = record.lineage.get("trunks", [])
        ends = [record.totals.tokens, *(tokens for _, tokens in chain), 0]
        own += ends[0] - ends[1]
        trunks.update({name: ends[at] - ends[at + 1] for at, (name, _) in enumerate(chain, start=1)})
    if not trunks:
        return ""
    alone = sum(record.totals.tokens for record in usable(records))
    together = own + sum(trunks.values())
    return (
        f" A row says what a run costs alone. What runs share was trained once: {together:,} tokens in place of {alone:,}, "
        f"{together / alone:.2f} of them."
    )


def _settings(lines: Sequence[Line]) -> list[Setting]:
    return sorted({line.setting for line in lines}, key=lambda setting: setting.place)


def _value(value: Any) -> str:
    return "" if pd.isna(value) else value_label(value)


# The part of the README that holds numbers, between these lines.
BEGIN, END = "<!-- figure6: made by `make table` -->", "<!-- end of figure6 -->"


def readme_block(records: Sequence[Record], claims: Mapping[str, tuple[str, str]], matched: str = "") -> str:
    """Picture, cost in time and machine, the table of accuracies, a row for each claim of the paper, and what is ``matched``."""
    legend = Legend(records)
    of_variant = {name: [record for record in records if record.run.variant == name] for name in legend.ordered(legend.looks)}
    seeds = ", ".join(f"{len(runs)} of {legend.label(name)}" for name, runs in of_variant.items())
    table = accuracy_table(records)
    counts = [record.totals.tokens for record in records]  # runs of another seed see other documents, and end some tokens apart
    tokens = f"{counts[0]:,}" if len(set(counts)) == 1 else f"{min(counts):,} to {max(counts):,} (by seed)"
    return "\n".join(
        [
            "![Accuracy against tokens consumed: a panel for each benchmark, a line for each front-end](results/figure6.png)",
            "",
            f"{len(records)} runs (seeds: {seeds}), {tokens} tokens per run. {_time(records)} "
            "`make figure6 table` draws it from `results/figure6/`; what was predicted: "
            "[results/PREREGISTRATION.md](results/PREREGISTRATION.md); what was seen: [results/LOG.md](results/LOG.md). "
            "All levels: [results/figure6/accuracy.md](results/figure6/accuracy.md).",
            "",
            _scale(of_variant, legend),
            "",
            accuracy_markdown(table, legend).rstrip(),
            "",
            "The paper's claims, as far as scenes can speak about them, and two questions of our own "
            "([differences and endpoints](results/figure6/claims.md)):",
            "",
            markdown_table(["claim", "here", "differences"], [[claim, *words] for claim, words in claims.items()], left=3),
            *(["", f"{matched} `--x flops` draws the figure so."] if matched else []),
        ]
    )


def _scale(of_variant: Mapping[str, Sequence[Record]], legend: Legend) -> str:
    """How small the world is: the side of its images and the parameters."""
    parts = ("frontend", "decoder", "flow_head")
    sizes = [
        f"{legend.label(name)} {' / '.join(f'{runs[0].parameters.get(part, 0) / 1e6:.2f}' for part in parts)}"
        for name, runs in of_variant.items()
    ]
    sides = " or ".join(sorted({str(runs[0].config["data"]["image_size"]) for runs in of_variant.values()}))
    return (
        f"The scale: images of {sides} px; millions of parameters, front-end / decoder / flow head: {', '.join(sizes)}. Encoders "
        "were pretrained on captioned images of this same world ([method](docs/method.md))."
    )


def _time(records: Sequence[Record]) -> str:
    """Minutes a run by front-end, and of all runs together, by machine: minutes on different machines do not add up."""
    machines: dict[str, list[Record]] = {}
    for record in records:
        machines.setdefault(record.environment["accelerator"] or record.environment["cpu"], []).append(record)
    sentences = []
    for name, runs in machines.items():
        each, legend = [], Legend(runs)
        for variant in legend.ordered(legend.looks):
            minutes = [record.totals.seconds / 60 for record in runs if record.run.variant == variant]
            each.append(f"{legend.label(variant)} {sum(minutes) / len(minutes):.0f}")
        if runs[0].environment["accelerator"]:
            units = sorted({record.units for record in runs})
            on = " or ".join(f"one {name}" if count == 1 else f"{count} x {name}" for count in units)
            together = f"{sum(record.totals.seconds * record.units for record in runs) / 60:.0f} GPU-minutes"
        else:
            on, together = _on_cores(name, runs)
        sentences.append(f"Minutes of training per run, without evaluation, on {on}: {', '.join(each)}; {together} in all.")
    return " ".join(sentences)


def _on_cores(name: str, runs: Sequence[Record]) -> tuple[str, str]:
    threads = {record.environment["threads"] for record in runs}
    minutes = sum(record.totals.seconds / 60 * record.units for record in runs)
    cores = max(record.environment["cores"] for record in runs)  # a run may have been tied to fewer than there are
    hours = f", about {minutes / cores / 60:.1f} hours on {cores} cores," if cores > 1 else ""
    return f"{'a core' if threads == {1} else f'{max(threads)} cores'} of {name}", f"{minutes:.0f} core-minutes{hours}"


def update_readme(readme: Path, records: Sequence[Record], claims: Mapping[str, tuple[str, str]], matched: str = "") -> bool:
    """Put the block between its markers; returns whether the file changed. ``claims``: each with its verdict and numbers.
    ``matched``: a sentence about equal compute.

    Raises:
        UserError: the markers are not there, once each and in order.
    """
    return replace_block(readme, BEGIN, END, readme_block(records, claims, matched))
