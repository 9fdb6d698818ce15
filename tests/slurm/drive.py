"""A driver of a sweep of counting cells, to be stopped and killed:  drive.py RUNS SWEEP STEPS SECONDS LAUNCH CELL..."""

import json
import sys
from pathlib import Path

from tunalab.records.record import Record, RunInfo, Totals, write_record
from tunalab.sweeps.grid import Cell
from tunalab.sweeps.launcher import SlurmLaunch, Work
from tunalab.sweeps.slurm import SlurmLauncher

runs, sweep, steps, seconds, launch, *names = sys.argv[1:]
cells = [Cell(name, sweep, "scenes", "tuna2", 0, {}, [], Path(runs) / sweep / name) for name in names]


def command(cell: Cell) -> list[str]:
    record = Path(runs) / "templates" / f"{cell.name}.json"
    info = RunInfo(cell.name, "scenes", cell.variant, 0, 0.0, cell.sweep, "hash", finished=True)
    write_record(record, Record(info, {}, {}, {"trainable": 1}, {}, Totals(1, 1, 1, 1.0, 1.0, 1), []))
    return [sys.executable, "-S", str(Path(__file__).with_name("counting.py")), str(cell.run_dir), str(record), steps, seconds]


work = Work(cells, command, {cell.name: "hash" for cell in cells})
result = SlurmLauncher(SlurmLaunch(**json.loads(launch)), stream=sys.stderr, line_seconds=5.0).run(work)
print(result.table())
sys.exit(result.exit_code)
