"""Training: a run from its settings to its record. Here: what the environment says of it, before torch is imported."""

import os
from pathlib import Path


def several_started() -> bool:
    """Whether this process is one of several that are to train one run together.

    Of a batch script itself, SLURM tells how many tasks srun would start; of a step, how many it has started. What a script starts
    without srun, such as a sweep, is one process each.
    """
    name = "WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_STEP_NUM_TASKS"
    return int(os.environ.get(name, "1")) > 1


def kept_at(path: str | Path) -> tuple[Path, int | None]:
    """``RUN@TOKENS`` as the run and the tokens of a kept checkpoint; anything else as it is."""
    path = Path(path)
    run, at, tokens = path.name.rpartition("@")
    if run and at and tokens.replace("_", "").isdecimal() and not path.exists():
        return path.with_name(run), int(tokens)
    return path, None
