"""The ways in which tests compare numbers, and that no test compares printed ones byte by byte."""

import ast
from pathlib import Path

import pytest
import torch

from tests.printed import assert_file_alike, assert_printed_alike
from tests.tolerances import assert_sums_close, tolerance

TESTS = Path(__file__).parent
TABLE = "# made by: x\na,tuna,0.3118,1.172e+05,9001598,3,2\n"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("43.1 [40.0, 45.2]", "43.2 [40.1, 45.2]"),
        ("**+0.0** [-0.1, 0.2]", "**-0.0** [-0.1, 0.2]"),
        ("1.79M tokens", "1.8M tokens"),  # zeros at the end are dropped: the finer of the two decides
        ("exponent 10", "exponent 9.9"),
        ("1.461e+16", "1.462e+16"),
        ("same\ntext 3\n", "same\ntext 3\n"),
    ],
)
def test_a_last_printed_digit_may_differ(found: str, expected: str) -> None:
    assert_printed_alike(found, expected)
    assert_printed_alike(expected, found)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("43.1", "43.3"),
        ("43.1", "-43.1"),
        ("1.461e+16", "1.463e+16"),
        ("1.461e+16", "1.461e+15"),
        ("6 runs", "7 runs"),
        ("9,001,598 tokens", "9,001,599 tokens"),
        ("1.5M", "1.5k"),
        ("43.1 points", "43.1 percent"),
        ("commit a251ba8", "commit a252ba8"),
        ("version 3.11.4", "version 3.11.5"),
        ("a 1.0", "a"),
        ("one\ntwo", "one"),
        ("one\n1.0", "one\n1.0\n1.0"),
        ("1.0 2.0", "2.0 1.0"),
        ("nan", "0.0"),
    ],
)
def test_anything_else_may_not(found: str, expected: str) -> None:
    with pytest.raises(AssertionError, match="make it"):
        assert_printed_alike(found, expected, "make it")
    with pytest.raises(AssertionError):
        assert_printed_alike(expected, found)


@pytest.mark.parametrize(
    ("old", "new", "alike"),
    [
        ("0.3118", "0.3119", True),
        ("0.3118", "0.31", False),  # not the finer of the two: this one had four digits too
        ("0.3118", "0.312", False),
        ("1.172e+05", "1.171e+05", True),
        ("1.172e+05", "1.17e+05", False),
        ("9001598", "9001599", False),  # no rounded number
        (",3,", ",4,", False),
        (",3,", ",3.001,", True),
        ("tuna", "tuna2", False),
        ("1.172e+05", "inf", False),
    ],
)
def test_a_csv_was_printed_with_so_many_digits(tmp_path: Path, old: str, new: str, alike: bool) -> None:
    one, two = tmp_path / "a" / "power_laws.csv", tmp_path / "b" / "power_laws.csv"
    for path, text in ((one, TABLE), (two, TABLE.replace(old, new))):
        path.parent.mkdir()
        path.write_text(text)
    if alike:
        assert_file_alike(two, one)
        return
    with pytest.raises(AssertionError, match=r"power_laws.csv: make it"):
        assert_file_alike(two, one, "make it")


@pytest.mark.parametrize("terms", [1, 100, 10_000])
def test_sums_in_another_order_are_close_and_a_lost_term_is_not(terms: int) -> None:
    """The rule against exact sums: of numbers of one sign and of both."""
    generator = torch.Generator().manual_seed(terms)
    for numbers in (torch.rand(64, terms, generator=generator), torch.randn(64, terms, generator=generator)):
        exact = numbers.double().sum(dim=1).float()
        one_by_one = numbers.cumsum(dim=1)[:, -1]
        assert_sums_close(one_by_one, exact, terms)
        assert_sums_close(numbers.flip(1).sum(dim=1), exact, terms)
    if terms < 10_000:
        with pytest.raises(AssertionError):
            assert_sums_close(exact - 2 * tolerance(terms, exact)["atol"], exact, terms)


def test_a_sum_too_long_for_its_type_is_refused() -> None:
    with pytest.raises(AssertionError, match="needs float64"):
        assert_sums_close(torch.ones(1), torch.ones(1), terms=10**9)
    assert_sums_close(torch.ones(1).double(), torch.ones(1).double(), terms=10**9)


# Tests that compare two files byte by byte, and why none of them compares printed numbers of two machines.
WHOLE_FILES = {
    "test_anywhere.py::test_a_wheel_works_in_an_empty_folder": "the copies in a wheel are the files of the repository",
    "data/test_rejects.py::test_resume_equals_an_uninterrupted_run": "lines of text and places in files",
    "analysis/test_figures.py::test_draw_writes_a_picture_that_names_its_command_and_repeats_exactly": "drawn twice in one "
    "process from the same numbers: no time or random name gets in",
}


def comparisons_of_files(path: Path) -> set[str]:
    """``file::function`` of every == or != that has `read_text` or `read_bytes` on both sides."""
    found = set()
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
                sides = [node.left, *node.comparators]
                names = [{part.attr for part in ast.walk(side) if isinstance(part, ast.Attribute)} for side in sides]
                if all(used & {"read_text", "read_bytes"} for used in names):
                    found.add(f"{path.relative_to(TESTS)}::{function.name}")
    return found


def test_no_test_compares_printed_numbers_byte_by_byte() -> None:
    """Over the whole tests folder: two files are compared by `assert_file_alike`, or are listed with the reason."""
    paths = list(TESTS.rglob("*.py"))
    found = set().union(*map(comparisons_of_files, paths))
    assert found - WHOLE_FILES.keys() == set(), "compare them with tests.printed, or list why not"
    assert WHOLE_FILES.keys() - found == set(), "no longer there"
    assert not [path for path in paths if path != Path(__file__) and "filecmp" in path.read_text()]
