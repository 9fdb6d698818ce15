"""A driver of a sweep of counting cells, to be stopped and killed:  drive.py RUNS SWEEP STEPS SECONDS LAUNCH CELL...

A cell whose name begins with "trunk" is one, and those behind it begin at its end.
"""

import json
import sys
from pathlib import Path

from tunalab.records.record import Record, RunInfo, Totals, write_record
from tunalab.sweeps.grid import Cell
from tunalab.sweeps.launcher import SlurmLaunch, Work
from tunalab.sweeps.slurm import SlurmLauncher

runs, sweep, steps, seconds, launch, *names = sys.argv[1:]
cells: list[Cell] = []
for name in names:
    is_trunk = name.startswith("trunk")
    after = next((one.name for one in reversed(cells) if one.until), "")
    until = "pretrain@0.5" if is_trunk else ""
    cells.append(Cell(name, sweep, "scenes", "tuna2", 0, {}, [], Path(runs) / sweep / name, until, "" if is_trunk else after))


def command(cell: Cell) -> list[str]:
    record = Path(runs) / "templates" / f"{cell.name}.json"
    info = RunInfo(cell.name, "scenes", cell.variant, 0, 0.0, cell.sweep, "hash", finished=True)
    write_record(record, Record(info, {}, {}, {"trainable": 1}, {}, Totals(1, 1, 1, 1.0, 1.0, 1), []))
    counting = str(Path(__file__).with_name("counting.py"))
    end = "trunk.json" if cell.until else "record.json"
    return [sys.executable, "-S", counting, str(cell.run_dir), str(record), steps, seconds, end]


work = Work(cells, command, {cell.name: "hash" for cell in cells})
result = SlurmLauncher(SlurmLaunch(**json.loads(launch)), stream=sys.stderr, line_seconds=5.0).run(work)
print(result.table())
sys.exit(result.exit_code)
