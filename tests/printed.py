"""Printed results compared as what they are: numbers as numbers, text as text.

Another processor's exp and log differ in last bits, so a printed number may differ in its last digit.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

# Not within a word: digests, versions and names are text.
NUMBER = re.compile(r"(?<![\w.])([+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?)(?=[kMBT%]?(?![\w]|\.\d))")
SIGNIFICANT = {"power_laws.csv": 4, "areas.csv": 4, "crossings.csv": 4}  # of %.4g; of other tables 6


def assert_printed_alike(found: str, expected: str, hint: str = "", significant: int = 0) -> None:
    """Line by line: the same text, and every number equal but for one in its last printed digit.

    Whole numbers are counts: equal. ``significant``: digits that a number was printed with before its trailing zeros were dropped,
    as ``%.6g`` does; 0 where each says by itself how exact it is.
    """
    lines, others = found.split("\n"), expected.split("\n")
    assert len(lines) == len(others), f"{len(lines)} lines instead of {len(others)}. {hint}"
    for number, (line, other) in enumerate(zip(lines, others, strict=True), start=1):
        different = list(_differences(line, other, significant))
        assert not different, f"line {number}: {'; '.join(different)}. {hint}\n{line}\n{other}"


def assert_file_alike(found: Path, expected: Path, hint: str = "") -> None:
    """The same of two files; a CSV's name says how many digits were printed."""
    significant = SIGNIFICANT.get(found.name, 6) if found.suffix == ".csv" else 0
    assert_printed_alike(found.read_text(), expected.read_text(), f"{found.name}: {hint}", significant)


def _differences(line: str, other: str, significant: int) -> Iterator[str]:
    parts, expected = NUMBER.split(line), NUMBER.split(other)
    if parts[::2] != expected[::2]:
        yield "other text"
        return
    for one, two in zip(parts[1::2], expected[1::2], strict=True):
        if one != two and not _near(Decimal(one.replace(",", "")), Decimal(two.replace(",", "")), significant):
            yield f"{one} instead of {two}"


def _near(one: Decimal, two: Decimal, significant: int) -> bool:
    exponents = [int(value.as_tuple().exponent) for value in (one, two)]
    whole, last = exponents == [0, 0], min(exponents)
    if significant:
        last = max(one.adjusted(), two.adjusted()) - significant + 1
        whole = whole and last > 0  # more digits than a rounded number would have
    return one == two or (not whole and abs(one - two) <= Decimal(1).scaleb(last))
