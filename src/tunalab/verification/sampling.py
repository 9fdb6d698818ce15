"""How close the samplers come to an image when the model predicts exactly that image.

What is missing then is the sampler's own: noise that the official clamp of 1 - t leaves where steps are shorter than it.

Shapes: N images of H x W pixels.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tunalab.data.scenes import benchmark_scenes, render
from tunalab.evaluation.benchmarks import QUESTION_SEED, SPLIT
from tunalab.frontends.contract import signed
from tunalab.inference.generation import OFFICIAL_CLAMP, SAMPLERS, integrate
from tunalab.settings.schema import SamplingConfig
from tunalab.verification import Table

STEPS = (10, 20, 25, 50, 100)
NOISE_SCALES = (1.0, 2.0)
EXACT = 100.0  # dB: beyond it only the rounding of float32 is left


@cache
def scenes(count: int, side: int) -> Tensor:
    """(N, 3, H, W) between -1 and 1."""
    drawn = benchmark_scenes("relations", 1, SPLIT, QUESTION_SEED, count)
    pixels_NHWC = np.stack([render(scene, side) for scene in drawn])
    return signed(torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2))


def oracle_psnr(sampling: SamplingConfig, noise_scale: float, image_NCHW: Tensor) -> float:
    """PSNR in dB, peak to peak 2, of what comes of noise when the prediction is the image itself."""
    noise = torch.randn(image_NCHW.shape, generator=torch.Generator().manual_seed(0))
    made = integrate(lambda x, t: image_NCHW, noise_scale * noise, sampling, "x")
    error = (made - image_NCHW).double().square().mean().item()
    return 10 * math.log10(4 / error) if error else math.inf


def tables(images: int = 8, side: int = 32) -> list[Table]:
    image_NCHW = scenes(images, side)

    def cell(clamp: str, method: str, scale: float, steps: int) -> str:
        psnr = oracle_psnr(SamplingConfig(method, steps, clamp=clamp), scale, image_NCHW)
        return "exact" if psnr >= EXACT else f"{psnr:.1f}"

    rows = [
        [clamp, method, f"{scale:g}", *(cell(clamp, method, scale, steps) for steps in STEPS)]
        for clamp in ("none", "official")
        for method in sorted(SAMPLERS)
        for scale in NOISE_SCALES
    ]
    about = (
        f"PSNR in dB of {images} scenes of {side} px sampled by a predictor that is right about the image (x-prediction, "
        f"equal steps, no guidance), by sampling.clamp, sampling.method and objective.noise_scale. `exact`: over {EXACT:.0f} dB, "
        f"the rounding of float32. The official pixel samplers hold 1 - t at {OFFICIAL_CLAMP} or above. Up to 20 steps none "
        "reaches below that, and both clamps sample the same, bit for bit; in more steps the official one moves too slowly at "
        "the end, and what noise is left then stays. So none is the default; recipes of the released pixel models take theirs. "
        "A v-prediction is never divided by 1 - t: the clamp does nothing to it."
    )
    return [Table("Sampling with a perfect predictor", about, ["clamp", "method", "noise scale", *map(str, STEPS)], rows)]
