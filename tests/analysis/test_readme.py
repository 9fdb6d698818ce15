"""The README's numbers come from records and are those of the committed ones."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.printed import assert_file_alike, assert_printed_alike

from tunalab.analysis.claims import PANELS, in_words, papers_variants
from tunalab.analysis.endpoints import MARGIN, Difference, compared, difference, loss_difference, matched_words, names
from tunalab.analysis.tables import BEGIN, END, readme_block, update_readme, write_tables
from tunalab.collection import Records
from tunalab.errors import UserError
from tunalab.records.record import read_records

ROOT = Path(__file__).parents[2]
CLAIMS = re.findall(r"^CLAIMS  \?= ?(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()


def test_the_readme_is_fresh() -> None:
    records = read_records(ROOT / "results" / "figure6")
    committed = (ROOT / "README.md").read_text().split(f"{BEGIN}\n")[1].split(f"\n{END}")[0]
    words = in_words(records, *(read_records(ROOT / folder) for folder in CLAIMS))
    papers = [record for runs in papers_variants(records).values() for record in runs]
    block = readme_block(Records(records).only(*PANELS), words, matched_words(papers))
    assert_printed_alike(block, committed, "run `make table`")


def test_what_the_readme_says_first_is_what_the_claims_say() -> None:
    found = in_words(read_records(ROOT / "results" / "figure6"))
    said = {
        "Tuna-2 starts slower than Tuna-R": "supported",
        "Tuna-2 has passed it at the end": "undecided",
        "Understanding ends Tuna-2 > Tuna-R": "contradicted",
        "Understanding ends Tuna-R > Tuna": "supported",
        "Ours: a frozen encoder is within .03 nats of one that trains": "supported",
    }
    assert {claim: found[claim][0].split(" (")[0] for claim in said} == said


def test_what_the_readme_says_in_its_own_words_is_what_records_say() -> None:
    """Of numbers below the table, which no command writes."""
    text = " ".join((ROOT / "README.md").read_text().split())
    closed = [panel for panel in PANELS if panel != "ocr"]
    runs = [*read_records(ROOT / "results" / "figure6"), *read_records(ROOT / "results" / "figure6_rates")]
    of = {names(a, b): pairs for a, b, pairs in compared(runs)}

    def said(difference: Difference | None, turn: int, before: str = "", digits: int = 2) -> str:
        assert difference is not None
        middle, low, high = (turn * bound for bound in difference.estimate.bounds)
        bounds = [f"{bound:.{digits}f}".replace("0.", ".", 1) for bound in sorted((low, high))]
        return f"{middle:{before}.{digits}f}".replace("0.", ".", 1) + f"{{}} [{', '.join(bounds)}]"

    at_one, frozen, bare = ("Tuna-R", "Tuna-2, lr_factor 1"), ("Tuna-R", "Tuna-R, frozen"), ("Tuna-2", "Tuna-R, frozen")
    for sentence in (
        f"nine seeds of it there say the same: {said(loss_difference(of[at_one]), -1, '+', 3).format(' nats')} in the area,",
        f"in the area, {said(difference(of[at_one], MARGIN, closed), -1, '+').format('')} at the end",
        f"is {said(difference(of[frozen], MARGIN, closed), 1).format(' nats')} behind one that trains",
        f"not told from Tuna-2 ({said(difference(of[bare], MARGIN, closed), 1).format('')}",
    ):
        assert sentence in text
    pair, rest = of["Tuna-R", "Tuna-2"], [panel for panel in closed if panel != "count"]
    every, without = (difference(pair, MARGIN, kinds) for kinds in (closed, rest))
    assert every is not None and without is not None and min(without.estimate.bounds) < 0 < max(without.estimate.bounds)  # type: ignore[type-var]
    of_counting = 1 - without.estimate.bounds[0] * len(rest) / (every.estimate.bounds[0] * len(closed))
    assert of_counting > 0.5 and "More than half of Tuna-R's lead in margin at the end is confidence on counting" in text


def test_the_figure_shows_what_the_claims_are_of() -> None:
    assert f"PANELS  ?= {' '.join(PANELS)}\n" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("folder", sorted(p.parent.name for p in (ROOT / "results").glob("*/accuracy.md")))
def test_committed_tables_are_fresh(folder: str, tmp_path: Path) -> None:
    for path in write_tables(read_records(ROOT / "results" / folder), tmp_path, f"tunalab table --records results/{folder}"):
        assert_file_alike(path, ROOT / "results" / folder / path.name, "run `make table`")


def test_time_and_tokens_are_those_of_all_runs(records) -> None:  # type: ignore[no-untyped-def]
    made = records(seeds=2, kinds=1)
    made[0] = replace(made[0], environment=made[0].environment | {"cores": 1})  # tied to one core: the machine is the same
    seconds = sum(record.totals.seconds for record in made)
    text = readme_block(made, {"Fish swim": ("supported", "x +1")})
    assert text.endswith("\n| Fish swim | supported | x +1 |")
    seeds, first, last = "(seeds: 2 of Tuna, 2 of Tuna-R, 2 of Tuna-2)", made[0].totals.tokens, made[-1].totals.tokens
    assert f"6 runs {seeds}, {first:,} to {last:,} (by seed) tokens per run." in text
    each = ", ".join(f"{label} 7" for label in ("Tuna", "Tuna-R", "Tuna-2"))
    hours = f"{seconds / 60:.0f} core-minutes, about {seconds / 7200:.1f} hours on 2 cores, in all."
    assert f"without evaluation, on a core of Abacus: {each}; {hours}" in text


def test_runs_of_different_machines_are_not_added_up(records) -> None:  # type: ignore[no-untyped-def]
    made = records(seeds=2, kinds=1)
    gpu = [replace(r, environment=r.environment | {"accelerator": "NVIDIA H200", "cores": 16}) for r in made if r.run.seed == 1]
    text = readme_block([r for r in made if r.run.seed == 0] + gpu, {})
    minutes = sum(record.totals.seconds for record in gpu) / 60
    assert (
        "on a core of Abacus: " in text
        and f"on one NVIDIA H200: Tuna 7, Tuna-R 7, Tuna-2 7; {minutes:.0f} GPU-minutes in all." in text
    )
    assert "core of NVIDIA" not in text


def test_only_the_block_changes(tmp_path: Path) -> None:
    records = read_records(ROOT / "results" / "figure6")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert update_readme(readme, records, {})
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n![") and text.endswith(f"{END}\nafter\n") and "\nold\n" not in text
    assert not update_readme(readme, records, {})


def test_a_readme_without_markers_is_refused(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no place")
    with pytest.raises(UserError, match="must stand there once"):
        update_readme(readme, read_records(ROOT / "results" / "figure6"), {})
    assert readme.read_text() == "no place"
