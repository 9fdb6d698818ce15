"""Where runs of other settings go: into directories of their own, so that earlier runs stay whole and can go on.

runs/<sweep>/<cell>               as the sweep file says
runs/<sweep>+<digest>/<cell>      with settings of the command line that change what is computed
runs/<sweep>/<cell>+<hash>        where the cell's own directory holds an earlier run, of a file that was edited since
"""

from collections.abc import Sequence
from dataclasses import replace

from omegaconf import OmegaConf

from tunalab.config import NOT_IDENTITY, config_hash, digest, from_plain
from tunalab.errors import UserError
from tunalab.layers import read_yaml
from tunalab.results.records import CONFIG_FILE
from tunalab.sweeps.grid import Cell, Sweep
from tunalab.training.claiming import claimed_hash


def with_settings(sweep: Sweep, settings: Sequence[str]) -> Sweep:
    """The sweep under a name of its own for these settings, without committed records: those are of the sweep as its file says."""
    merged = OmegaConf.to_container(OmegaConf.from_dotlist(list(settings)))
    assert isinstance(merged, dict)
    told = {str(key): value for key, value in merged.items() if key not in NOT_IDENTITY}
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
        return config_hash(from_plain(read_yaml(saved)))
    except UserError:  # unreadable, or of an earlier revision: not this run in any case
        return "another"
