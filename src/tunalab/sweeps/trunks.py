"""The tree of what the cells of a sweep share: trunks, each trained once, and the branches that begin where one ends.

    trunk-3f9c21d04b1e               runs/<sweep>/trunks/<digest of what is shared>, until pretrain@0.6
        <variant>-ratio0-seed0
        <variant>-ratio0.5-seed0

A trunk is found by what it shares, so that a grid that was changed finds those that fit. It is trained under the settings of one
of its branches; the settings in which they differ have no effect before it ends. Cells of one trunk share its noise: they are
no independent runs, and have one seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from tunalab.records.record import CONFIG_FILE
from tunalab.settings.loading import read_config
from tunalab.settings.timeline import START, Place, shared, timeline
from tunalab.sweeps.cells import newest_step
from tunalab.sweeps.grid import Cell, Resolved
from tunalab.training.claiming import claimed_hash

FOLDER = "trunks"


@dataclass(frozen=True)
class Tree:
    """``cells`` in the order of training, a trunk before what begins at its end; each knows its trunk (``Cell.after``).

    ``tokens``: where a cell or trunk ends, by name; of a trunk a step more or less. ``resolved``: of trunks. ``saved``: the
    configuration of a trunk that was begun under the settings of another branch than would be taken now.
    """

    cells: list[Cell]
    tokens: dict[str, int]
    resolved: dict[str, Resolved] = field(default_factory=dict)
    saved: dict[str, Path] = field(default_factory=dict)

    @property
    def trunks(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.until]

    def begins_at(self, cell: Cell) -> int:
        """The tokens that a cell has from its trunk."""
        return self.tokens[cell.after] if cell.after else 0

    def totals(self) -> tuple[int, int]:
        """Tokens of all runs: each trained alone, and with what they share trained once."""
        alone = sum(self.tokens[cell.name] for cell in self.cells if not cell.until)
        return alone, sum(self.tokens[cell.name] - self.begins_at(cell) for cell in self.cells)

    def needed(self, is_finished: Callable[[Cell], bool]) -> "Tree":
        """Without trunks that nothing will begin at: the runs behind them are finished, or have checkpoints of their own."""
        wanted: set[str] = set()
        for cell in reversed(self.cells):
            goes_on = cell.name in wanted if cell.until else True
            if cell.after and goes_on and not is_finished(cell) and not newest_step(cell.run_dir):
                wanted.add(cell.after)
        kept = [cell for cell in self.cells if not cell.until or cell.name in wanted]
        names = {cell.name for cell in kept}
        return replace(self, cells=[cell if cell.after in names else replace(cell, after="") for cell in kept])

    def depth(self, cell: Cell) -> int:
        """How many trunks stand above a cell."""
        return 1 + self.depth(self._by_name[cell.after]) if cell.after else 0

    @cached_property
    def _by_name(self) -> dict[str, Cell]:
        return {cell.name: cell for cell in self.cells}


def alone(cells: Sequence[Cell], resolved: Mapping[str, Resolved]) -> Tree:
    """Every cell trained from its start."""
    return Tree(list(cells), {cell.name: resolved[cell.name].tokens for cell in cells})


def make_tree(cells: Sequence[Cell], resolved: Mapping[str, Resolved]) -> Tree:
    """With a trunk for all cells whose settings are equal at the start and begin to differ later, and so on behind it."""
    times = {cell.name: timeline(resolved[cell.name].config, resolved[cell.name].plain) for cell in cells}
    tree = alone([], resolved)

    def grow(group: Sequence[Cell], begun: Place, after: str) -> None:
        until = _first_difference([times[cell.name] for cell in group])
        if until is None:  # one cell
            tree.cells.extend(replace(cell, after=after) for cell in group)
            tree.tokens.update({cell.name: resolved[cell.name].tokens for cell in group})
            return
        if until > begun:
            trunk = _trunk(group[0], resolved[group[0].name], until, after)
            tree.cells.append(trunk)
            settings, saved = resolved[group[0].name], trunk.run_dir / CONFIG_FILE
            if claimed_hash(trunk.run_dir) not in (None, settings.hash):
                settings, tree.saved[trunk.name] = Resolved(read_config(saved)), saved
            tree.resolved[trunk.name] = settings
            tree.tokens[trunk.name] = until.tokens(settings.config)
            after = trunk.name
        parts: dict[str | None, list[Cell]] = {}
        for cell in group:
            parts.setdefault(times[cell.name].get(until), []).append(cell)
        for part in parts.values():
            grow(part, until, after)

    grow(cells, START, "")
    return tree


def _trunk(cell: Cell, resolved: Resolved, until: Place, after: str) -> Cell:
    digest = shared(resolved.config, until)
    folder = cell.run_dir.parent / FOLDER / digest
    return replace(cell, name=f"trunk-{digest}", run_dir=folder, until=until.text(resolved.config), after=after)


def _first_difference(timelines: Sequence[Mapping[Place, str]]) -> Place | None:
    places = sorted({place for one in timelines for place in one})
    return next((place for place in places if len({one.get(place) for one in timelines}) > 1), None)
