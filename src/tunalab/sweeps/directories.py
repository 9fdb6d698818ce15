"""Where runs of other settings go: into directories of their own, so that earlier runs stay whole and can go on.

runs/<sweep>/<cell>               as the sweep file says
runs/<sweep>+<digest>/<cell>      with settings of the command line that change what is computed
runs/<sweep>/<cell>+<hash>        where the cell's own directory holds an earlier run, of a file that was edited since
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tunalab.config import NOT_IDENTITY, RunConfig, config_hash, digest, read_config
from tunalab.errors import UserError
from tunalab.layers import read_setting
from tunalab.redaction import redacted_settings
from tunalab.results.records import CONFIG_FILE
from tunalab.sweeps.grid import Cell, Sweep
from tunalab.training.claiming import claimed_hash
from tunalab.values import texts


def with_settings(sweep: Sweep, settings: Sequence[str]) -> Sweep:
    """The sweep under a name of its own for these settings, without committed records: those are of the sweep as its file says."""
    merged: dict[str, Any] = {}
    for text in settings:
        names, value = read_setting(text)
        node = merged
        for name in names[:-1]:
            inner = node.get(name)
            node[name] = node = inner if isinstance(inner, dict) else {}
        node[names[-1]] = texts(value, RunConfig, ".".join(names))
    told = {key: redacted_settings(value) for key, value in merged.items() if key not in NOT_IDENTITY}
    return replace(sweep, name=f"{sweep.name}+{digest(told)[:8]}", records=None)


def own_directory(cell: Cell, config_hash: str) -> Cell:
    """The cell, in a directory beside its own where that holds a run of another configuration."""
    if claimed_hash(cell.run_dir) == config_hash or _holds(cell) in (None, config_hash):
        return cell
    return replace(cell, run_dir=cell.run_dir.with_name(f"{cell.name}+{config_hash}"))


def _holds(cell: Cell) -> str | None:
    """The hash of the configuration that lives in a cell's directory, None where there is none."""
    saved = cell.run_dir / CONFIG_FILE
    if not saved.exists():
        return None
    try:
        return config_hash(read_config(saved))
    except UserError:  # unreadable, or of an earlier revision: not this run in any case
        return "another"
