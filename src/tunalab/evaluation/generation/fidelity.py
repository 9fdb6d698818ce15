"""Fidelity: how far the distribution of generated images is from that of perfect ones of the same captions, as FID and KID.

Features in which images are near or far: no network that was trained on photographs can be had
offline, nor does it know 32-pixel shapes; and the encoder that was trained on scenes is where
Tuna and Tuna-R begin, so it would judge its own. Two that owe nothing to any variant:

- ``network``: convolutions with fixed random weights. Random networks rank generators as trained ones do, and better far
  from photographs (arXiv 2002.09797, section 4).
- ``pixels``: colours averaged over an 8 x 8 grid: what is where in which colour, blind to shape.

Distances in one are not comparable with distances in the other, nor with published FIDs.

Real images are renders of the captions that were generated from, their things displaced anew
where captions leave it open: no training image, and no difference but the model's. (Renders of
other captions would add the difference between two small samples of captions, which is larger
than that between models: see split ``other renders``.)

Both distances are torchmetrics', in the features above; KID with the usual cubic kernel. They are
comparable between models measured alike, not with FIDs in Inception's features nor at other
numbers of images, on which FID's bias depends. KID is unbiased for independent sets, which these
are not: perfect images get less than 0, and only the difference from them means anything.
Intervals leave out a tenth of the prompts at a time, in both sets (the jackknife over groups).

Split ``renders``: perfect images, displaced once more: the floor. ``round trip``: these after the
space that the model generates in, the floor of that space. ``other renders``: perfect images of
other captions: a scale.

Shapes: N images, C H W channels and pixels, D features, P prompts, S samples of each.
"""

import warnings
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from tunalab.evaluation.generation.accuracy import ROUND_TRIP, round_trip
from tunalab.evaluation.generation.following import RENDERS, chosen_prompts, displaced_renders, generated
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.parts import FidelitySettings
from tunalab.evaluation.subject import Subject
from tunalab.frontends.contract import signed

SIDE = 32  # pixels that an image is averaged down to, if it has more
GRID = 4  # cells a side of the network's features: where something is matters in scenes
_WIDTHS = (3, 32, 64, 64)
_CHANNELS = 8  # a cell
_PIXELS = 8
_SEED = 0


class RandomNetwork(nn.Module):
    """Three convolutions with rectifiers, the same weights on every machine: (N, 3, H, W) uint8 to (N, 128) float32."""

    num_features = GRID * GRID * _CHANNELS

    def __init__(self) -> None:
        super().__init__()
        # The one generator whose stream numpy promises never to change.
        draws = np.random.RandomState(_SEED)
        layers: list[nn.Module] = []
        for number, (wide_in, wide_out) in enumerate(pairwise(_WIDTHS)):
            layers += [_fixed(draws, nn.Conv2d(wide_in, wide_out, 3, stride=1 if number == 0 else 2, padding=1)), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(GRID), _fixed(draws, nn.Conv2d(_WIDTHS[-1], _CHANNELS, 1)), nn.Flatten()]
        self.layers = nn.Sequential(*layers).requires_grad_(False).eval()

    def forward(self, image_NCHW: Tensor) -> Tensor:
        x_NCHW = signed(image_NCHW)
        features_ND: Tensor = self.layers(F.adaptive_avg_pool2d(x_NCHW, SIDE) if x_NCHW.shape[-1] > SIDE else x_NCHW)
        return features_ND


class Pixels(nn.Module):
    """(N, 3, H, W) uint8 to (N, 192) float32 between -1 and 1."""

    num_features = 3 * _PIXELS**2

    def forward(self, image_NCHW: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(signed(image_NCHW), _PIXELS).flatten(1)


NETWORKS: dict[str, type[nn.Module]] = {"network": RandomNetwork, "pixels": Pixels}
LABELS = {"network": "random convolutions", "pixels": "8 x 8 pixels"}


@torch.no_grad()
def features(name: str, images_NHWC: np.ndarray) -> Tensor:
    """Features (N, D) float64 of uint8 images; ``name`` one of NETWORKS."""
    image_NCHW = torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2)
    module = NETWORKS[name]()
    return torch.cat([module(part_NCHW) for part_NCHW in image_NCHW.split(256)]).double()


def features_by_prompt(name: str, images_PSHWC: np.ndarray) -> Tensor:
    """Features (P, S, D) of S images of each of P prompts."""
    P, S = images_PSHWC.shape[:2]
    return features(name, images_PSHWC.reshape(P * S, *images_PSHWC.shape[2:])).reshape(P, S, -1)


def _fixed(draws: np.random.RandomState, layer: nn.Conv2d) -> nn.Conv2d:
    """Weights of variance 2 / fan-in, as for rectifiers, and small shifts so that their bends are not all at grey."""
    fan_in = layer.weight[0].numel()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(draws.standard_normal(tuple(layer.weight.shape)) * (2 / fan_in) ** 0.5))
        assert layer.bias is not None
        layer.bias.copy_(torch.from_numpy(0.2 * draws.standard_normal(len(layer.bias))))
    return layer


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
