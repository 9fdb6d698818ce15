"""The ladder: rungs name what is there, tables are written between their markers, and the pages hold them."""

import re
from dataclasses import replace
from math import inf
from pathlib import Path

import pandas as pd
import pytest
from tests.printed import assert_file_alike

from tunalab.analysis.statistics import Needed
from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.planning.ladder import Cost, Rung, long_table, rungs, seeds_table, short_table, write_blocks

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- {}: made by `make ladder` -->\n", "<!-- end of {} -->\n"


def block(page: str, name: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.partition(BEGIN.format(name))[2].partition(END.format(name))[0].rstrip()


def test_rungs_name_experiments_and_sweeps_that_are_there() -> None:
    found = rungs()
    assert len(found) == len({rung.machine for rung in found}) >= 4
    for rung in found:
        folder = "experiments" if rung.variant else "sweeps"
        assert (ROOT / folder / f"{rung.name}.yaml").is_file() and rung.name in rung.command
    assert found[0].source == f"tunalab sweep {found[0].name} --dry-run"
    assert Rung("m", "c", "a", "x", "v", gpus=8).source == "tunalab plan x v --gpus 8"
    assert Rung("m", "c", "a", "x", gpu="l40s", utilisation=0.2).source == "tunalab plan x --gpu l40s --utilisation 0.2"


def test_both_pages_hold_a_row_per_rung_with_the_same_numbers() -> None:
    """Of the numbers, `make test-plans` compares them with what is printed today."""
    long, short = block("docs/ladder.md", "ladder").splitlines()[2:], block("README.md", "short ladder").splitlines()[2:]
    for rung, one, other in zip(rungs(), long, short, strict=True):
        assert f"| {rung.machine} | `{rung.command}` | {rung.answers} | `{rung.source}` |" in one
        assert one.split(" | ")[-3:] == other.split(" | ")[-3:] and f"`{rung.command}`" in other


def test_tables_go_between_their_markers(tmp_path: Path) -> None:
    rung = Rung("a machine", "do it", "what", "x", cores=2)
    costs = [(rung, Cost(3, 7200.0, None)), (replace(rung, cores=0), Cost(1, 60.0, 2.5))]
    assert short_table(costs).splitlines()[2:] == [
        "| a machine | `do it` | 3 | 2 h | - |",
        "| a machine | `do it` | 1 | 1 min | $2.5 |",
    ]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN.format('ladder')}old\n{END.format('ladder')}after\n", encoding="utf-8")
    blocks = {"ladder": long_table(costs), "seeds": "none"}
    assert write_blocks(page, blocks) == ["ladder"] and write_blocks(page, blocks) == []
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "| do it |" not in text and "`do it`" in text
    page.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(UserError, match="has none of the lines"):
        write_blocks(page, blocks)


def test_seeds_of_the_pooled_endpoints_alone() -> None:
    row = {"a": "A", "b": "B", "needed": Needed(3, 4), "needed_in_family": Needed(inf, 1)}
    table = pd.DataFrame([{"endpoint": "accuracy early", **row}, {"endpoint": "ocr: accuracy early", **row}])
    assert seeds_table(table).splitlines()[2:] == ["| accuracy early | A - B | 3 with 4 x the questions | over 1,000 |"]


def test_a_page_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ladder", "--into", "nowhere.md"]) == 2
    assert capsys.readouterr().err == "error: --into nowhere.md: there is no such file\n"


@pytest.mark.plans
def test_the_pages_hold_what_is_printed_today(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    pages = {}
    for name in ("docs/ladder.md", "README.md"):
        pages[name] = tmp_path / re.sub("/", "-", name)
        pages[name].write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["ladder", "--into", *map(str, pages.values())]) == 0
    for name, copy in pages.items():
        assert_file_alike(copy, ROOT / name, "run `make ladder`")
