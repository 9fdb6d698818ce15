"""The README's numbers come from records and are those of the committed ones."""

from pathlib import Path

import pytest

from tunalab.errors import UserError
from tunalab.results.readme import BEGIN, END, readme_block, update_readme
from tunalab.results.records import read_records
from tunalab.results.tables import write_tables

ROOT = Path(__file__).parents[2]


def test_the_readme_is_fresh() -> None:
    records = read_records(ROOT / "results" / "figure6")
    assert f"{BEGIN}\n{readme_block(records)}\n{END}" in (ROOT / "README.md").read_text(), "run `make table`"


@pytest.mark.parametrize("folder", sorted(p.parent.name for p in (ROOT / "results").glob("*/accuracy.md")))
def test_committed_tables_are_fresh(folder: str, tmp_path: Path) -> None:
    for path in write_tables(read_records(ROOT / "results" / folder), tmp_path, f"tunalab table --records results/{folder}"):
        assert path.read_text() == (ROOT / "results" / folder / path.name).read_text(), "run `make table`"


def test_only_the_block_changes(tmp_path: Path) -> None:
    records = read_records(ROOT / "results" / "figure6")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert update_readme(readme, records)
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n![") and text.endswith(f"{END}\nafter\n") and "\nold\n" not in text
    assert not update_readme(readme, records)


def test_a_readme_without_markers_is_refused(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no place")
    with pytest.raises(UserError, match="must stand there once"):
        update_readme(readme, read_records(ROOT / "results" / "figure6"))
    assert readme.read_text() == "no place"
