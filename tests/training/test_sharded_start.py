"""Two processes that share a model out start from the very numbers of one process (two_starts.py says what they do)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_distributed import ROOT, environment, free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # the first test waits for both processes


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, quick_components: Path) -> list[dict[str, dict[str, object]]]:
    folder = tmp_path_factory.mktemp("two_starts")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tests.training.two_starts", str(folder)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    variables = environment(quick_components)
    started = [subprocess.Popen([*command, rank, port], cwd=ROOT, env=variables, **quiet) for rank in "01"]
    ends = [process.communicate()[1][-2000:] for process in started]
    assert [process.returncode for process in started] == [0, 0], ends
    return [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in "01"]


@pytest.mark.parametrize("kind", ["scratch", "pretrained", "earlier weights"])
def test_parameters_are_those_of_one_process(kind: str, reports: list[dict[str, dict[str, object]]]) -> None:
    for report in reports:
        found = report[kind]["outcome"]
        assert isinstance(found, dict), found
        assert found["names"] and found["other"] == [] and found["sharded"] > 20
        assert found["tied"] == (kind != "pretrained")
