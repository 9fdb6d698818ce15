"""A SLURM of two nodes on this machine, for the whole session, and sweeps on it."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.slurm.cluster import HERE, Counting


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Its folder. SLURM's commands find it by SLURM_CONF."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([HERE / "start", folder], check=True, timeout=240)
    before = dict(os.environ)
    # The nodes' names are known to SLURM alone.
    os.environ |= {"SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    yield folder
    subprocess.run([HERE / "stop", folder], check=True, timeout=60)
    os.environ.clear()
    os.environ |= before


@pytest.fixture
def counting(slurm: Path, tmp_path: Path) -> Iterator[Callable[..., Counting]]:
    """``counting(sweep, names, ...)``: a sweep on the cluster; its jobs are gone after the test."""
    yield lambda sweep, names, **settings: Counting(tmp_path / "runs", sweep, names, **settings)
    subprocess.run(["scancel", f"--user={os.getuid()}"], check=True)
