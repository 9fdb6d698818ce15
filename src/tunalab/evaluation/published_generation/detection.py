"""GenEval's verdict on an image, from what a detector finds in it.

The rules of https://github.com/djghosh13/geneval (evaluation/evaluate_images.py), with its thresholds. The official detector is
mmdet's Mask2Former (Swin-S, COCO); any other gives other numbers, which must not be called GenEval's without saying so.

Shapes: H W C image pixels and channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tunalab.evaluation.published_generation.geneval import Clause, GenEvalPrompt

THRESHOLD = 0.3  # a thing counts as seen above this score,
COUNTING_THRESHOLD = 0.9  # where things are counted above this one
MOST = 16  # things of a class that are looked at, those of the highest scores
POSITION_THRESHOLD = 0.1  # share of both sizes by which centres must differ to be apart
DIRECTION = 0.5  # of the distance: how much must be along an axis


@dataclass(frozen=True, eq=False)
class Detection:
    """``thing``: a class by GenEval's name; ``box``: left, top, right, bottom in pixels, the last two exclusive."""

    thing: str
    score: float
    box: tuple[float, float, float, float]
    mask_HW: np.ndarray | None = None


class Detector(Protocol):
    """``name``: what notes call it; ``things``: the classes it knows, by GenEval's names."""

    name: str
    things: frozenset[str]

    def detect(self, pixels_HWC: np.ndarray) -> list[Detection]:
        """Everything it sees with a score above :data:`THRESHOLD`."""


class ColourClassifier(Protocol):
    name: str

    def colours(self, pixels_HWC: np.ndarray, seen: Sequence[Detection]) -> list[str]:
        """The colour of each, one of geneval.COLOURS."""


@dataclass(frozen=True)
class Verdict:
    """``reasons``: why an image is wrong."""

    right: bool
    reasons: tuple[str, ...] = ()


def judge(
    prompt: GenEvalPrompt, detections: Sequence[Detection], pixels_HWC: np.ndarray, classifier: ColourClassifier | None
) -> Verdict:
    """Right: every clause of ``include`` holds and none of ``exclude``.

    Raises ValueError: a colour is asked for, and there is no classifier.
    """
    seen = strongest(detections, COUNTING_THRESHOLD if prompt.tag == "counting" else THRESHOLD)
    reasons = []
    held: list[Sequence[Detection] | None] = []
    for clause in prompt.include:
        found = seen.get(clause.thing, [])[: clause.count]
        reason = _wrong(clause, found, held, pixels_HWC, classifier)
        held.append(found if reason is None else None)
        if reason is not None:
            reasons.append(reason)
    for clause in prompt.exclude:
        if (count := len(seen.get(clause.thing, []))) >= clause.count:
            reasons.append(f"{clause.thing}: {count} seen, fewer than {clause.count} wanted")
    return Verdict(not reasons, tuple(reasons))


def strongest(detections: Sequence[Detection], threshold: float) -> Mapping[str, list[Detection]]:
    """Per class the detections above ``threshold``, those of the highest scores first, at most :data:`MOST`."""
    seen: dict[str, list[Detection]] = {}
    for one in sorted(detections, key=lambda one: -one.score):
        same = seen.setdefault(one.thing, [])
        if one.score > threshold and len(same) < MOST:
            same.append(one)
    return seen


def relations(one: Detection, other: Detection) -> set[str]:
    """Where ``one`` is, seen from ``other``: centres count as apart by what exceeds a share of both sizes."""
    (left, top, right, bottom), (left_, top_, right_, bottom_) = one.box, other.box
    offset = np.array([left + right - left_ - right_, top + bottom - top_ - bottom_]) / 2
    sizes = np.array([abs(right - left) + abs(right_ - left_), abs(bottom - top) + abs(bottom_ - top_)])
    apart = np.sign(offset) * np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes, 0)
    if (np.abs(apart) < 1e-3).all():
        return set()
    x, y = apart / np.linalg.norm(offset)
    signs = {"left of": x < -DIRECTION, "right of": x > DIRECTION, "above": y < -DIRECTION, "below": y > DIRECTION}
    return {name for name, holds in signs.items() if holds}


def _wrong(
    clause: Clause,
    found: Sequence[Detection],
    held: Sequence[Sequence[Detection] | None],
    pixels_HWC: np.ndarray,
    classifier: ColourClassifier | None,
) -> str | None:
    """Why the clause does not hold; None where it does. Position is looked at only where number and colour are right."""
    if len(found) < clause.count:
        return f"{clause.thing}: {len(found)} seen, {clause.count} wanted"
    if clause.colour is not None:
        if classifier is None:
            raise ValueError(f"{clause.thing} is to be {clause.colour}, and there is no colour classifier")
        colours = classifier.colours(pixels_HWC, found)
        if colours.count(clause.colour) < clause.count:
            return f"{clause.thing}: {', '.join(colours)} seen, {clause.colour} wanted"
    if clause.relation is None:
        return None
    others = held[clause.target]
    if others is None:
        return f"{clause.thing}: nothing there to be {clause.relation}"
    seen = [relations(one, other) for one in found for other in others]
    if all(clause.relation in each for each in seen):
        return None
    return f"{clause.thing}: {clause.relation} wanted, {' and '.join(sorted(set().union(*seen))) or 'no relation'} seen"
