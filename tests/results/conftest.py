"""Synthetic records, as fixtures."""

from collections.abc import Callable

import pytest
from tests.records import synthetic_record, synthetic_records

from tunalab.results.records import Record


@pytest.fixture
def record() -> Callable[..., Record]:
    return synthetic_record


@pytest.fixture
def records() -> Callable[..., list[Record]]:
    return synthetic_records
