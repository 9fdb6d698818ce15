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


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all tests: creating it takes seconds. Each uses runs or an experiment of its own."""
    from tunalab.results.mlflow.tracking import prepare

    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"
    assert prepare(uri, "scenes") and prepare(uri, "scenes")
    return uri
