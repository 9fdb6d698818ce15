"""GenEval: its prompts, its verdict on an image from what a detector finds, and scores of a folder.

The rules of https://github.com/djghosh13/geneval (evaluation/evaluate_images.py), with its
thresholds. The official detector is mmdet's Mask2Former (Swin-S, COCO); any other gives other
numbers, which must not be called GenEval's without saying so.

Shapes: H W C image pixels and channels, N detections.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure
from tunalab.frontends.loading import read_transformers
from tunalab.interop.outcomes import Outcomes, described, group_measures, read_lines, stamps, text_of
from tunalab.terminal import progress_bar

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Clause:
    """``count`` things of a class; of one ``colour``; in a ``relation`` to those of another clause, ``target`` (its number)."""

    thing: str
    count: int
    colour: str | None = None
    relation: str | None = None
    target: int = 0


@dataclass(frozen=True)
class GenEvalPrompt:
    """``line``: the object as it stood in the file."""

    tag: str
    text: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...]
    line: dict[str, Any]

    @property
    def needs_colour(self) -> bool:
        return any(clause.colour is not None for clause in self.include)


def read_prompts(path: Path) -> list[GenEvalPrompt]:
    """Raises UserError, one line: the file cannot be read, a line lacks a key or holds what GenEval does not know."""
    return [_prompt(where, line) for where, line in read_lines(path, "GenEval's metadata")]


def folder_of(number: int) -> str:
    return f"{number:05d}"


def sample_of(place: int) -> str:
    return f"{place:04d}.png"


def metadata_of(prompt: GenEvalPrompt) -> str:
    return json.dumps(prompt.line, ensure_ascii=False) + "\n"


def _prompt(where: str, line: dict[str, Any]) -> GenEvalPrompt:
    tag = text_of(where, line, "tag")
    if tag not in TAGS:
        raise UserError(f"{where}: unknown tag {tag!r} (choices: {', '.join(TAGS)})")
    text = text_of(where, line, "prompt")
    include, exclude = (_clauses(where, line, key) for key in ("include", "exclude"))
    if not include and not exclude:
        raise UserError(f"{where}: neither 'include' nor 'exclude' describes the image")
    return GenEvalPrompt(tag, text, include, exclude, line)


def _clauses(where: str, line: Mapping[str, Any], key: str) -> tuple[Clause, ...]:
    clauses: list[Clause] = []
    given = line.get(key, [])
    for plain in given if isinstance(given, list) else [given]:
        if not isinstance(plain, dict):
            raise UserError(f"{where}: {key!r} must be a list of objects")
        count = plain.get("count")
        if not isinstance(count, int) or count < 1:
            raise UserError(f"{where}: 'count' of {key!r} must be a number from 1, not {count!r}")
        colour = plain.get("color")
        if colour is not None and colour not in COLOURS:
            raise UserError(f"{where}: unknown colour {colour!r} (choices: {', '.join(COLOURS)})")
        relation, target = _position(where, plain.get("position"), len(clauses))
        clauses.append(Clause(text_of(where, plain, "class"), count, colour, relation, target))
    return tuple(clauses)


def _position(where: str, given: Any, before: int) -> tuple[str | None, int]:
    if given is None:
        return None, 0
    if not isinstance(given, list) or len(given) != 2 or given[0] not in RELATIONS or given[1] not in range(before):
        raise UserError(
            f"{where}: 'position' must be [relation, number of an earlier clause] with a relation of {', '.join(RELATIONS)}"
        )
    return given[0], given[1]


THRESHOLD = 0.3  # a thing counts as found above this score,
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


class ColourClassifier(Protocol):
    name: str

    def colours(self, pixels_HWC: np.ndarray, detections: Sequence[Detection]) -> list[str]:
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

    Raises ValueError: a colour is needed, and there is no classifier.
    """
    by_thing = strongest(detections, COUNTING_THRESHOLD if prompt.tag == "counting" else THRESHOLD)
    reasons = []
    held: list[Sequence[Detection] | None] = []
    for clause in prompt.include:
        found = by_thing.get(clause.thing, [])[: clause.count]
        reason = _wrong(clause, found, held, pixels_HWC, classifier)
        held.append(found if reason is None else None)
        if reason is not None:
            reasons.append(reason)
    for clause in prompt.exclude:
        if (count := len(by_thing.get(clause.thing, []))) >= clause.count:
            reasons.append(f"{clause.thing}: {count} found, fewer than {clause.count} expected")
    return Verdict(not reasons, tuple(reasons))


def strongest(detections: Sequence[Detection], threshold: float) -> Mapping[str, list[Detection]]:
    """Per class the detections above ``threshold``, those of the highest scores first, at most :data:`MOST`."""
    by_thing: dict[str, list[Detection]] = {}
    for one in sorted(detections, key=lambda one: -one.score):
        same = by_thing.setdefault(one.thing, [])
        if one.score > threshold and len(same) < MOST:
            same.append(one)
    return by_thing


def relations(one: Detection, other: Detection) -> set[str]:
    """Where ``one`` is relative to ``other``: centres count as apart by what exceeds a share of both sizes."""
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
        return f"{clause.thing}: {len(found)} found, {clause.count} expected"
    if clause.colour is not None:
        if classifier is None:
            raise ValueError(f"{clause.thing} is to be {clause.colour}, and there is no colour classifier")
        colours = classifier.colours(pixels_HWC, found)
        if colours.count(clause.colour) < clause.count:
            return f"{clause.thing}: {', '.join(colours)} found, {clause.colour} expected"
    if clause.relation is None:
        return None
    others = held[clause.target]
    if others is None:
        return f"{clause.thing}: nothing there to be {clause.relation}"
    found_relations = [relations(one, other) for one in found for other in others]
    if all(clause.relation in each for each in found_relations):
        return None
    return (
        f"{clause.thing}: {clause.relation} expected, {' and '.join(sorted(set().union(*found_relations))) or 'no relation'} found"
    )


# Other names of classes -> GenEval's: it renamed three of COCO's, and checkpoints write some as VOC does.
_NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}


class Mask2Former:
    """A checkpoint for instances, such as facebook/mask2former-swin-small-coco-instance in a folder of its own.

    Raises UserError, one line: no such folder, another kind of model, weights that do not fit.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

        source, config, self.processor = described(folder, "detector", Mask2FormerImageProcessor)
        if not isinstance(config, Mask2FormerConfig):
            raise UserError(f"{source.what} is a {config.model_type}: a mask2former is needed")
        self.labels = {number: _NAMES.get(label, label) for number, label in dict(config.id2label or {}).items()}
        self.model: Any = read_transformers(Mask2FormerForUniversalSegmentation, source, config).to(device).eval()
        self.name = f"Mask2Former of transformers ({folder.resolve().name}), not official"
        self.identity = stamps(folder)
        self.things = frozenset(self.labels.values())

    @torch.no_grad()
    def detect(self, pixels_HWC: np.ndarray) -> list[Detection]:
        """Everything with a score above :data:`THRESHOLD`."""
        inputs = self.processor(images=pixels_HWC, return_tensors="pt").to(self.model.device)
        (found,) = self.processor.post_process_instance_segmentation(
            self.model(**inputs), threshold=THRESHOLD, target_sizes=[pixels_HWC.shape[:2]], return_binary_maps=True
        )
        if not found["segments_info"]:
            return []
        masks_NHW = found["segmentation"].bool().cpu().numpy()
        return [
            Detection(self.labels[info["label_id"]], info["score"], _box(mask_HW), mask_HW)
            for info, mask_HW in zip(found["segments_info"], masks_NHW, strict=True)
        ]


def _box(mask_HW: np.ndarray) -> tuple[float, float, float, float]:
    """Around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


BENCHMARK = "GenEval"


def score_geneval(
    folder: Path, prompts: Sequence[GenEvalPrompt], detector: Mask2Former, classifier: ColourClassifier | None, outcomes: Outcomes
) -> list[Measure]:
    """The share of right images per tag, items being prompts, and their mean over tags.

    Raises UserError, before anything is detected: images are missing or of other prompts, a class that the detector does not know,
    a colour without classifier. Later: of a tag no image can be read.
    """
    things = {clause.thing for prompt in prompts for clause in (*prompt.include, *prompt.exclude)}
    if unknown := sorted(things - detector.things):
        raise UserError(f"{detector.name} does not know {', '.join(unknown[:6])}{', ...' if len(unknown) > 6 else ''}")
    if classifier is None and any(prompt.needs_colour for prompt in prompts):
        raise UserError("GenEval has questions about colours: name a CLIP for them (--clip)")
    samples = find_samples(folder, prompts)

    def find(prompt: GenEvalPrompt, pixels_HWC: np.ndarray) -> dict[str, Any]:
        verdict = judge(prompt, detector.detect(pixels_HWC), pixels_HWC, classifier)
        return {"right": verdict.right, "reasons": list(verdict.reasons)}

    values: dict[str, list[float | None]] = {tag: [] for tag in TAGS}
    failures = dict.fromkeys(TAGS, 0)
    for prompt, paths in progress_bar(list(zip(prompts, samples, strict=True)), desc=BENCHMARK):
        found = [outcomes.of(path, prompt.line, lambda pixels, prompt=prompt: find(prompt, pixels)) for path in paths]  # type: ignore[misc]
        rights = [one["right"] for one in found if one is not None]
        failures[prompt.tag] += len(found) - len(rights)
        values[prompt.tag].append(float(np.mean(rights)) if rights else None)
    colours = "" if classifier is None else f", colours {classifier.name}"
    return group_measures(BENCHMARK, values, failures, f"{detector.name}{colours}; {len(samples[0])} images a prompt")


def find_samples(folder: Path, prompts: Sequence[GenEvalPrompt]) -> list[list[Path]]:
    """The images of every prompt. Raises UserError: some are missing, or were made of another prompt."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    samples: list[list[Path]] = []
    for number, prompt in enumerate(prompts):
        place = folder / folder_of(number)
        metadata = place / "metadata.jsonl"
        if not metadata.is_file():
            raise UserError(f"{metadata} is missing: {folder} is to hold a folder of images for each of {len(prompts)} prompts")
        if read_lines(metadata, BENCHMARK)[0][1] != prompt.line:
            raise UserError(f"{metadata} is of another prompt than line {number + 1} of the data")
        found = sorted(path for path in (place / "samples").glob("*.png") if path.stem.isdecimal())
        if len(found) != len(samples[0] if samples else found) or not found:
            expected = len(samples[0]) if samples else "some"
            raise UserError(f"{place / 'samples'} holds {len(found)} images (0000.png, ...), {expected} are needed")
        samples.append(found)
    return samples
