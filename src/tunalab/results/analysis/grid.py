"""Where runs were evaluated along an axis, and the grid of places that several of them have in common.

The same for every benchmark that was asked at the same evaluations, so it is found once and kept.

    P  evaluations of a run    G  places of a common grid
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TypeVar

import numpy as np

from tunalab.errors import UserError
from tunalab.results.analysis.axes import Axis
from tunalab.results.records import Point, Record

T = TypeVar("T", int, float)


@dataclass(frozen=True, eq=False)
class Weights:
    """How values of runs at their evaluations become values on a grid: groups of seeds that were evaluated at the same places, and
    the matrix (G, P) of each; None where the grid is these places.
    """

    seeds: tuple[int, ...]
    groups: tuple[tuple[tuple[int, ...], np.ndarray | None], ...]
    places: int


@dataclass(frozen=True)
class Grid:
    """Places that several sides were evaluated at, or between, and the weights of each side."""

    x_G: np.ndarray
    sides: tuple[Weights, ...]


@dataclass(frozen=True, eq=False)
class Places:
    """The evaluations of some runs, by seed."""

    runs: dict[int, tuple[Record, tuple[Point, ...]]]
    _on: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    _grids: dict[tuple[object, ...], Grid | None] = field(default_factory=dict)
    _weights: dict[bytes, Weights] = field(default_factory=dict)

    def on(self, axis: Axis) -> dict[int, np.ndarray]:
        """The places of each run, (P,).

        Raises:
            UserError: a run does not move along the axis.
        """
        if axis.name not in self._on:
            self._on[axis.name] = {seed: _placed(record, points, axis) for seed, (record, points) in self.runs.items()}
        return self._on[axis.name]

    def weights(self, seeds: Sequence[int], place_of: dict[int, np.ndarray], x_G: np.ndarray) -> Weights:
        """From the ``seeds`` at places ``place_of`` to a grid. The same object for the same weights, on whatever axis."""
        alike: dict[bytes, list[int]] = {}
        for seed in seeds:
            alike.setdefault(place_of[seed].tobytes(), []).append(seed)
        groups = tuple((tuple(some), _between(place_of[some[0]], x_G)) for some in alike.values())
        text = sha256(repr(seeds).encode())
        for some, weight_GP in groups:
            text.update(repr(some).encode() + (b"" if weight_GP is None else weight_GP.tobytes()))
        return self._weights.setdefault(text.digest(), Weights(tuple(seeds), groups, len(x_G)))


def grid(sides: Sequence[Places], axis: Axis) -> Grid | None:
    """One grid for the seeds that all the sides have: every place where one of their runs was evaluated, from the last of the first
    to the first of the last. None without a common seed or place.

    Raises:
        UserError: a run does not move along the axis.
    """
    first, *others = sides
    key = (axis.name, *others)
    if key not in first._grids:
        first._grids[key] = _grid(sides, axis)
    return first._grids[key]


def _grid(sides: Sequence[Places], axis: Axis) -> Grid | None:
    seeds = sorted(set.intersection(*(set(side.runs) for side in sides)))
    if not seeds:
        return None
    places = [{seed: side.on(axis)[seed] for seed in seeds} for side in sides]
    same = joined(np.concatenate([x_P for of in places for x_P in of.values()]).tolist())
    places = [{seed: np.array([same[x] for x in x_P.tolist()]) for seed, x_P in of.items()} for of in places]
    every = [x_P for of in places for x_P in of.values()]
    first, last = max(x_P[0] for x_P in every), min(x_P[-1] for x_P in every)
    x_G = np.unique(np.concatenate(every))
    x_G = x_G[(first <= x_G) & (x_G <= last)]
    if not len(x_G):
        return None
    return Grid(x_G, tuple(side.weights(seeds, of, x_G) for side, of in zip(sides, places, strict=True)))


def _placed(record: Record, points: Sequence[Point], axis: Axis) -> np.ndarray:
    x_P = np.array([axis.place(record, point) for point in points], dtype=float)
    if x_P[0] <= 0 or (x_P[1:] <= x_P[:-1]).any():
        raise UserError(f"{record.run.name}: {axis.label} do not grow from evaluation to evaluation")
    return x_P


def _between(x_P: np.ndarray, x_G: np.ndarray) -> np.ndarray | None:
    return None if np.array_equal(x_P, x_G) else interpolation(x_P, x_G)


def joined(values: Iterable[T], tolerance: float = 0.02) -> dict[T, T]:
    """Each value -> the largest of those that count as one place with it: within ``tolerance`` above the smallest of them."""
    groups: list[list[T]] = []
    for value in sorted(set(values)):
        if groups and value <= groups[-1][0] * (1 + tolerance):
            groups[-1].append(value)
        else:
            groups.append([value])
    return {member: group[-1] for group in groups for member in group}


def interpolation(x_P: np.ndarray, x_G: np.ndarray) -> np.ndarray:
    """The matrix (G, P) from values at ``x_P`` to values at ``x_G``, which lie between them: straight lines over log x."""
    left_G = np.searchsorted(x_P, x_G, side="right") - 1  # of two values at one place the later counts
    right_G = np.minimum(left_G + 1, len(x_P) - 1)
    length_G = np.log(x_P[right_G] / x_P[left_G])
    share_G = np.divide(np.log(x_G / x_P[left_G]), length_G, out=np.zeros(len(x_G)), where=length_G > 0)
    weight_GP, rows = np.zeros((len(x_G), len(x_P))), np.arange(len(x_G))
    weight_GP[rows, left_G] += 1 - share_G
    weight_GP[rows, right_G] += share_G
    return weight_GP
