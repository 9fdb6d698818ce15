"""GenEval's scores of a folder of images: per tag, and overall as the mean over tags."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.published_generation.detection import ColourClassifier, Detector, judge
from tunalab.evaluation.published_generation.geneval import TAGS, GenEvalPrompt, folder_of
from tunalab.evaluation.published_generation.lines import read_lines
from tunalab.evaluation.published_generation.outcomes import Outcomes
from tunalab.evaluation.published_generation.summary import group_measures
from tunalab.terminal import progress_bar

BENCHMARK = "GenEval"


def score_geneval(
    folder: Path, prompts: Sequence[GenEvalPrompt], detector: Detector, classifier: ColourClassifier | None, outcomes: Outcomes
) -> list[Measure]:
    """The share of right images per tag, items being prompts, and their mean over tags.

    Raises UserError, before anything is detected: images are missing or of other prompts, a class that the detector does not know,
    a colour without classifier. Later: of a tag no image can be read.
    """
    asked = {clause.thing for prompt in prompts for clause in (*prompt.include, *prompt.exclude)}
    if unknown := sorted(asked - detector.things):
        raise UserError(f"{detector.name} does not know {', '.join(unknown[:6])}{', ...' if len(unknown) > 6 else ''}")
    if classifier is None and any(prompt.needs_colour for prompt in prompts):
        raise UserError("GenEval asks for colours: name the CLIP that tells them (--clip)")
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
            wanted = len(samples[0]) if samples else "some"
            raise UserError(f"{place / 'samples'} holds {len(found)} images (0000.png, ...), {wanted} are needed")
        samples.append(found)
    return samples
