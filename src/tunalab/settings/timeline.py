"""Where in the training settings begin to act (their declarations say when), and what two runs share until there.

Without torch: a sweep's state and dry run are made of it.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from tunalab.errors import UserError
from tunalab.settings.layers import leaves
from tunalab.settings.loading import budget, digest, to_plain
from tunalab.settings.schema import SETTINGS, EvaluationConfig, RunConfig


def evaluation_tokens(evaluation: EvaluationConfig, budget: int) -> list[int]:
    """Token counts, log-spaced from ``first`` (a share of the budget) to the budget."""
    if evaluation.points == 1:
        return [budget]
    first = math.log(evaluation.first)
    shares = [math.exp(first * (1 - k / (evaluation.points - 1))) for k in range(evaluation.points)]
    return sorted({max(1, round(share * budget)) for share in shares})


@dataclass(frozen=True, order=True)
class Place:
    """A place in the training: before the first step of a stage (by its number) that has at least ``share`` of the stage's tokens
    behind it.
    """

    stage: int
    share: float

    def text(self, config: RunConfig) -> str:
        """As ``--until`` has it."""
        return f"{list(config.stages)[self.stage]}@{self.share!r}"

    def tokens(self, config: RunConfig) -> int:
        """About where that is; a step more or less."""
        stages = [stage.tokens for stage in config.stages.values()]
        return sum(stages[: self.stage]) + math.ceil(self.share * stages[self.stage])


START = Place(0, 0.0)


def place_of(text: str, config: RunConfig) -> Place:
    """From the text of ``--until``. Raises UserError."""
    stage, at, share = text.rpartition("@")
    place = None
    with suppress(ValueError):
        place = Place(list(config.stages).index(stage), float(share))
    if not at or place is None or not 0 <= place.share <= 1:
        raise UserError(f"--until {text} is no STAGE@SHARE (stages: {', '.join(config.stages)}; a share from 0 to 1)")
    return place


def timeline(config: RunConfig, plain: Mapping[str, Any] | None = None) -> dict[Place, str]:
    """Where settings begin to act, in order, and a digest of those that begin there. ``plain``: ``to_plain(config)``.

    What is about the evaluation along a run acts from the start: a trunk's points are its branches' points.
    """
    masked = _first_masked(config)
    acting: dict[Place, dict[str, Any]] = {START: {"points": evaluation_tokens(config.evaluation, budget(config))}}
    # Of finite sources the order depends on how many there are.
    acting[START]["sources"] = sorted({source for stage in config.stages.values() for source in stage.mix})
    numbers = {name: number for number, name in enumerate(config.stages)}
    plain = plain or to_plain(config)
    for key, value in leaves({key: value for key, value in plain.items() if key != "stages"}):
        acts = SETTINGS[key].acts if key in SETTINGS else "start"  # a member of a mapping that a user named
        if acts == "never" and not key.startswith(("evaluation.", "sampling.")):
            continue
        place = masked if acts == "masking" else START
        if place is not None:
            acting.setdefault(place, {})[key] = value
    for name, stage in plain["stages"].items():
        acting.setdefault(Place(numbers[name], 0.0), {})[f"stages.{name}"] = stage
    return {place: digest(acting[place]) for place in sorted(acting)}


def _first_masked(config: RunConfig) -> Place | None:
    """Where masking begins, or would with a ratio above 0; None where no stage masks."""
    for number, stage in enumerate(config.stages.values()):
        if stage.masking and stage.tokens:
            return Place(number, config.objective.masking.start)
    return None


def shared(config: RunConfig, until: Place) -> str:
    """A digest of a place and all that acts before it."""
    return digest([asdict(until), [[asdict(place), what] for place, what in timeline(config).items() if place < until]])
