"""Diversity: how much the images of one prompt differ from one another, all of them and those that are right.

Two features (fidelity.py), the random network's and pixels: networks that owe nothing to a variant. In each:

- ``distance``: the mean over pairs of images of a prompt, as a share of the mean distance between perfect images of two prompts
  of the set. 0: always the same image; 1: as different as if each had been made for another prompt.
- ``Vendi score`` (arXiv 2210.02410): the exponential of the entropy of the eigenvalues of K / n, where K are the cosines of the
  features of a prompt's n images, measured from the mean of perfect images. From 1, all alike, to n, nothing in common.
- ``distance among right``: the first, among images of GenEval's categories that show what is asked, over prompts with at least
  two such: noise is diverse too, and captions determine their images but for the small displacements of levels 2 and 3.

Split ``renders`` is what captions leave open: perfect images of the same captions, displaced anew. More than that is error.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tunalab.errors import UserError
from tunalab.evaluation.generation.fidelity import LABELS, features, features_by_prompt
from tunalab.evaluation.generation.following import DENSE_PROMPTS, PROMPTS, RENDERS, displaced_renders, generated, renders
from tunalab.evaluation.generation.parser import parse
from tunalab.evaluation.generation.prompts import DENSE, Prompt, right
from tunalab.evaluation.measure import Measure, mean
from tunalab.evaluation.parts import DiversitySettings
from tunalab.evaluation.subject import Subject

KIND = "diversity"


def measure(subject: Subject, settings: DiversitySettings) -> list[Measure]:
    """Raises UserError when there is one image a prompt."""
    if settings.samples < 2:
        raise UserError(f"diversity.samples={settings.samples}: one image of a prompt differs from nothing (choices: from 2)")
    images = generated(subject, settings)
    size = subject.config.data.image_size
    found = []
    for benchmark, dense in ((PROMPTS, False), (DENSE_PROMPTS, True)):
        chosen = [number for number, prompt in enumerate(images.prompts) if (prompt.category == DENSE) == dense]
        if len(chosen) < 2:
            continue
        prompts = tuple(images.prompts[number] for number in chosen)
        images_PSHWC = images.images_PSHWC[chosen]
        perfect_PHWC = renders(prompts, size)
        anew_PSHWC = displaced_renders(prompts, settings.samples, size)
        right_PS = None if dense else _right(prompts, images_PSHWC)
        for name in settings.features:
            reference_PD = features(name, perfect_PHWC)
            for split, of_PSHWC, kept_PS in ((settings.split, images_PSHWC, right_PS), (RENDERS, anew_PSHWC, None)):
                found += _measures(benchmark, split, name, features_by_prompt(name, of_PSHWC), reference_PD, kept_PS)
    return found


def mean_distance(features_ND: Tensor) -> float:
    """Euclidean, over all pairs of different rows."""
    return float(torch.pdist(features_ND).mean())


def vendi(features_ND: Tensor) -> float:
    """exp(-sum l log l) over the eigenvalues l of K / n, K the cosines between the n rows. Raises ValueError for a row of zeros."""
    length_N1 = features_ND.norm(dim=1, keepdim=True)
    if not (length_N1 > 0).all():
        raise ValueError("the cosine with a row of zeros is not defined")
    unit_ND = features_ND / length_N1
    eigenvalues_N = torch.linalg.eigvalsh(unit_ND @ unit_ND.T / len(unit_ND)).clamp(min=0)
    return float(torch.special.entr(eigenvalues_N).sum().exp())


def _measures(
    benchmark: str, split: str, name: str, features_PSD: Tensor, reference_PD: Tensor, right_PS: np.ndarray | None
) -> list[Measure]:
    unit, centre_D = mean_distance(reference_PD), reference_PD.mean(dim=0)
    note = f"features: {LABELS[name]}"
    distances = [mean_distance(samples_SD) / unit for samples_SD in features_PSD]
    scores = [vendi(samples_SD - centre_D) for samples_SD in features_PSD]
    found = [
        mean(KIND, benchmark, distances, metric=f"distance ({name})", split=split, note=note),
        mean(KIND, benchmark, scores, metric=f"Vendi score ({name})", split=split, note=note),
    ]
    if right_PS is not None:
        among = [
            mean_distance(samples_SD[torch.from_numpy(right_S)]) / unit
            for samples_SD, right_S in zip(features_PSD, right_PS, strict=True)
            if right_S.sum() > 1
        ]
        if among:
            some = mean(KIND, benchmark, among, metric=f"distance among right ({name})", split=split, note=note)
            # Not the same prompts for every model: nothing to compare item by item.
            found.append(replace(some, failures=len(right_PS) - len(among), items=[]))
    return found


def _right(prompts: Sequence[Prompt], images_PSHWC: np.ndarray) -> np.ndarray:
    P, S = images_PSHWC.shape[:2]
    read = parse(images_PSHWC.reshape(P * S, *images_PSHWC.shape[2:]))
    verdicts = [right(prompts[n // S].category, prompts[n // S].scene, parsed) for n, parsed in enumerate(read)]
    return np.array(verdicts).reshape(P, S)
