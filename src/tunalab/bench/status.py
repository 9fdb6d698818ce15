"""How long `tunalab sweep NAME --status --once` takes of a sweep of a thousand runs."""

import resource
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunalab.results.status import Status, write_status
from tunalab.sweeps.attempts import begin, end
from tunalab.sweeps.grid import expand, load_sweep
from tunalab.sweeps.resolving import resolve

REQUIRED_SECONDS = 1.0
_PER_SEED = 12  # three front-ends at four mask ratios
_REPEATS = 5


def bench_status(count: int = 1000) -> dict[str, Any]:
    """Seconds of the whole command, from the start of Python, and of the processor; the median of some calls."""
    with TemporaryDirectory() as folder:
        runs = thousand(Path(folder), -(-count // _PER_SEED))
        command = [sys.executable, "-m", "tunalab", "sweep", "large", "--status", "--once"]
        seconds = []
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for _ in range(_REPEATS):
            start = time.perf_counter()
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "runs": runs,
        "status_seconds": sorted(seconds)[_REPEATS // 2],
        "processor_seconds": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / _REPEATS,
        "required_seconds": REQUIRED_SECONDS,
    }


def thousand(folder: Path, seeds: int = 84) -> int:
    """A checkout with the sweep ``large`` of so many ``seeds``: a third of its runs done, a third interrupted, a third not begun.

    Experiments, variants and a record are those of the current folder. Returns the number of runs.
    """
    for name in ("experiments", "variants"):
        (folder / name).symlink_to(Path(name).absolute())
    record = Path("results/figure6/tuna2-seed0.json").read_text(encoding="utf-8")
    old = record.split('"config_hash": "', 1)[1].split('"', 1)[0]
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "large.yaml").write_text(
        f"experiment: scenes\nvariants: [tuna, tuna_r, tuna2]\nseeds: {list(range(seeds))}\n"
        "factors: {objective.masking.ratio: [0.0, 0.25, 0.5, 0.75]}\n",
        encoding="utf-8",
    )
    with chdir(folder):
        cells = expand(load_sweep(Path("sweeps/large.yaml")))
        resolved = resolve(
            cells, [], lambda experiment, variant: (Path(f"experiments/{experiment}.yaml"), Path(f"variants/{variant}.yaml"))
        )
        for number, cell in enumerate(cells):
            if number % 3 == 2:
                continue
            cell.run_dir.mkdir(parents=True)
            begin(cell.run_dir, "local", "1")
            write_status(cell.run_dir, Status(9000, 1000, 50.0, 16.0, "pretrain"))
            (cell.run_dir / "lock").touch()
            (cell.run_dir / "config.yaml").write_text(f"# hash: {resolved[cell.name].hash}\n", encoding="utf-8")
            end(cell.run_dir, "killed", "signal 9")
            if number % 3 == 0:
                (cell.run_dir / "record.json").write_text(record.replace(old, resolved[cell.name].hash, 1), encoding="utf-8")
    return len(cells)


def _files(experiment: str, variant: str) -> tuple[Path, Path]:
    return Path(f"experiments/{experiment}.yaml"), Path(f"variants/{variant}.yaml")
