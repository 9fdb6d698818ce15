"""Fidelity: how far the distribution of generated images is from that of perfect ones of the same captions, as FID and KID.

Real images are renders of the captions that were generated from, their things displaced anew where captions leave it open: no
training image, and no difference but the model's. (Renders of other captions would add the difference between two small samples
of captions, which is larger than that between models: see split ``other renders``.)

Both distances are torchmetrics', in features that are stated (features.py): a random network's, and pixels; KID with the usual
cubic kernel. They are comparable between models measured alike, not with FIDs in Inception's features nor at other numbers
of images, on which FID's bias depends. KID is unbiased for independent sets, which these are not: perfect images get less than 0,
and only the difference from them means anything. Intervals leave out a tenth of the prompts at a time, in both sets (the jackknife
over groups).

Split ``renders``: perfect images, displaced once more: the floor. ``round trip``: these after the space that the model generates
in, the floor of that space. ``other renders``: perfect images of other captions: a scale.

Shapes: N images, P prompts, S samples of each, D features.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from tunalab.evaluation.generation.accuracy import ROUND_TRIP, round_trip
from tunalab.evaluation.generation.features import LABELS, features_by_prompt
from tunalab.evaluation.generation.images import RENDERS, chosen_prompts, displaced_renders, generated
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.settings import FidelitySettings
from tunalab.evaluation.subject import Subject

KIND, BENCHMARK = "fidelity", "scene prompts"
OTHER = "other renders"
_GROUPS = 10
_SUBSETS = 1  # of KID: all images
_OTHER_SERIES = 1  # of prompts, independent of those that are generated from


def measure(subject: Subject, settings: FidelitySettings) -> list[Measure]:
    images = generated(subject, settings)
    size, S = subject.config.data.image_size, settings.samples
    real_PSHWC = displaced_renders(images.prompts, S, size, series=1)
    perfect_PSHWC = displaced_renders(images.prompts, S, size)
    through_NHWC = round_trip(subject.model, perfect_PSHWC.reshape(-1, *perfect_PSHWC.shape[2:]))
    sets = {
        settings.split: images.images_PSHWC,
        RENDERS: perfect_PSHWC,
        ROUND_TRIP: through_NHWC.reshape(perfect_PSHWC.shape),
        OTHER: displaced_renders(chosen_prompts(settings, _OTHER_SERIES), S, size),
    }
    found = []
    for name in settings.features:
        real_PSD = features_by_prompt(name, real_PSHWC)
        for split, images_PSHWC in sets.items():
            samples_PSD = features_by_prompt(name, images_PSHWC)
            for metric, distance in (("FID", frechet), ("KID", kernel)):
                value, low, high = jackknife(distance, real_PSD, samples_PSD)
                n, note = images_PSHWC.shape[0] * S, f"features: {LABELS[name]}"
                found.append(Measure(KIND, BENCHMARK, f"{metric} ({name})", value, n, split, low, high, note=note))
    return found


class _AsGiven(nn.Identity):
    """A metric's feature network where the features are given."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def frechet(real_ND: Tensor, other_ND: Tensor) -> float:
    """The Frechet distance (arXiv 1706.08500) between normal distributions with the mean and covariance of each."""
    return _computed(FrechetInceptionDistance(feature=_AsGiven(real_ND.shape[1])), real_ND, other_ND)


def kernel(real_ND: Tensor, other_ND: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy (arXiv 1801.01401) of two sets, all of each."""
    if len(real_ND) != len(other_ND):
        raise ValueError(f"sets of {len(real_ND)} and {len(other_ND)}: one subset cannot be all of both")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        metric = KernelInceptionDistance(feature=_AsGiven(real_ND.shape[1]), subsets=_SUBSETS, subset_size=len(real_ND))
    with torch.random.fork_rng(devices=[]):  # it draws the order of its subsets from torch's own generator
        return _computed(metric, real_ND, other_ND)


def _computed(metric: FrechetInceptionDistance | KernelInceptionDistance, real_ND: Tensor, other_ND: Tensor) -> float:
    metric.update(real_ND, real=True)
    metric.update(other_ND, real=False)
    result = metric.compute()
    return float(result[0] if isinstance(result, tuple) else result)


def jackknife(
    distance: Callable[[Tensor, Tensor], float], real_PSD: Tensor, samples_PSD: Tensor
) -> tuple[float, float | None, float | None]:
    """The distance between all images, and its 95% interval from leaving out one group of prompts after the other; none for few."""
    value = distance(real_PSD.flatten(0, 1), samples_PSD.flatten(0, 1))
    P = len(samples_PSD)
    if P < 2 * _GROUPS:
        return value, None, None
    without = []
    for group in range(_GROUPS):
        kept_P = torch.arange(P) % _GROUPS != group  # every tenth goes: some of every category
        without.append(distance(real_PSD[kept_P].flatten(0, 1), samples_PSD[kept_P].flatten(0, 1)))
    deviation = ((_GROUPS - 1) / _GROUPS * float(np.square(np.array(without) - np.mean(without)).sum())) ** 0.5
    return value, value - 1.96 * deviation, value + 1.96 * deviation
