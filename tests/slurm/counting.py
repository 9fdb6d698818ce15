"""What stands in for training:  counting.py RUN_DIR RECORD STEPS SECONDS END

A step takes SECONDS. The "weights" are a hash over the steps that led to them, so two runs end with the same ones only if both
trained every step once, in order. Saved every tenth step, and on SIGTERM, with 75 as exit code; goes on from the newest checkpoint.
RECORD is copied to END at the end. trained.txt gets a line for every step of every attempt, also of those that are lost.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

run_dir, record, steps, seconds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
job = os.environ.get("SLURM_ARRAY_TASK_ID", "") + "." + os.environ.get("SLURM_RESTART_COUNT", "0")
attempt = f"{os.environ.get('SLURM_JOB_ID', 'none')}/{job}/{os.getpid()}"
told: list[int] = []
signal.signal(signal.SIGTERM, lambda number, _: told.append(number))

folder = run_dir / "checkpoints"
folder.mkdir(parents=True, exist_ok=True)
state = {"weights": "", "lineage": []}
for path in sorted(folder.glob("step-*")):
    state = json.loads((path / "state.json").read_text())


def save() -> None:
    final = folder / f"step-{len(state['lineage']):09d}"
    temporary = folder / f".{final.name}.{os.getpid()}"
    temporary.mkdir()
    (temporary / "state.json").write_text(json.dumps(state))
    if not final.exists():
        temporary.rename(final)


with (run_dir / "trained.txt").open("a", buffering=1) as trained:
    while len(state["lineage"]) < steps:
        step = len(state["lineage"])
        trained.write(f"{attempt} {step}\n")
        time.sleep(seconds)
        state["weights"] = hashlib.sha256(f"{state['weights']} {step}".encode()).hexdigest()
        state["lineage"].append([step, attempt])
        if told:
            save()
            sys.exit(75)
        if len(state["lineage"]) % 10 == 0:
            save()
save()
shutil.copy(record, run_dir / ".record.tmp")
(run_dir / ".record.tmp").rename(run_dir / sys.argv[5])
