"""A driver in a process of its own, to be stopped and killed."""

import subprocess
import sys
import time

DRIVER = """
from pathlib import Path
from tunalab.sweeps.grid import Cell
from tunalab.sweeps.launcher import Work
from tunalab.sweeps.local import LocalLauncher
names = {names!r}
cells = [Cell(name, "s", "scenes", "tuna", 0, {{}}, [], Path({runs!r}) / name) for name in names]
commands = {commands!r}
work = Work(cells, lambda cell: commands[cell.name], dict.fromkeys(names, "hash"), retries={retries})
result = LocalLauncher(parallel={parallel}, line_seconds=0.5).run(work)
print(result.table())
raise SystemExit(result.exit_code)
"""


def start_driver(cells, command, parallel=2, retries=3):
    script = DRIVER.format(
        names=[cell.name for cell in cells],
        runs=str(cells[0].run_dir.parent),
        commands={cell.name: command(cell) for cell in cells},
        parallel=parallel,
        retries=retries,
    )
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
