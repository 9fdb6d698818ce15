"""Images from prompts: solvers of the flow's ODE from noise (t = 0) to an image (t = 1), pure functions of a prediction.

Time is cut into intervals (:func:`times`). Each solver walks all of them, and none needs a velocity at t = 1.

Shapes: N images, C h w of the target space, R rows (an image in one branch of guidance), L = 1 + T slots of an image (its time
token, its visual tokens), D width.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tunalab.inference.prompts import Prefixes, Prompt, batches, device_of, encode_prefixes, join_prefixes
from tunalab.model import flow
from tunalab.model.decoder import hidden_states
from tunalab.model.flow_head import rotary_tables
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import ObjectiveConfig, SamplingConfig

Velocity = Callable[[Tensor, float], Tensor]  # (x_t, t) -> dx/dt
Predictor = Callable[[Tensor, float], Tensor]  # (x_t, t) -> x or v

OFFICIAL_CLAMP = 0.05  # least 1 - t in the official pixel samplers
_NO_CLAMP = 2.0**-24  # the least 1 - t of a float32 t below 1: bounds nothing, and keeps a t that was rounded to 1 finite


def times(sampling: SamplingConfig) -> list[float]:
    """The ends of all intervals, from 0 to 1: t = u / (u + s - s u) at evenly spaced u.

    ``grid`` steps: that many intervals; points: that many ends, one interval less. A shift s above 1 takes
    more steps near the noise (arXiv 2403.03206, section 5.3.2, with t = 1 clean).
    """
    intervals = sampling.steps - (sampling.grid == "points")
    return [u / (sampling.shift - (sampling.shift - 1) * u) for u in (n / intervals for n in range(intervals + 1))]


def clamps(sampling: SamplingConfig) -> bool:
    """Whether the clamp of 1 - t changes anything on this grid (of an x-prediction)."""
    return sampling.clamp == "official" and 1 - times(sampling)[-2] < OFFICIAL_CLAMP


def integrate(predict: Predictor, noise: Tensor, sampling: SamplingConfig, prediction: str) -> Tensor:
    """x (N, ...) from noise of that shape at t = 0, by what a model predicts (``prediction``: x | v).

    Without clamp a perfect x-prediction is reached exactly: the last interval, 1 - t long, is one Euler
    step. With the official clamp, steps shorter than 0.05 leave noise (results/verification/sampling.md).
    """
    clamp = OFFICIAL_CLAMP if sampling.clamp == "official" else _NO_CLAMP

    def velocity(x: Tensor, t: float) -> Tensor:
        return flow.velocity(predict(x, t), x, torch.full((len(x),), t, device=x.device), prediction, clamp)

    return SAMPLERS[sampling.method](velocity, noise, times(sampling))


def euler(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """One evaluation an interval, at its start."""
    for t, t_next in pairwise(times):
        x = x + (t_next - t) * velocity(x, t)
    return x


def heun(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """The mean of the velocities at both ends of an interval, the far one at Euler's estimate.

    The last interval is Euler's: at t = 1 the velocity of an x-prediction divides by 1 - t = 0.
    """
    for step, (t, t_next) in enumerate(pairwise(times)):
        v = velocity(x, t)
        if step < len(times) - 2:
            v = (v + velocity(x + (t_next - t) * v, t_next)) / 2
        x = x + (t_next - t) * v
    return x


SAMPLERS: dict[str, Callable[[Velocity, Tensor, Sequence[float]], Tensor]] = {"euler": euler, "heun": heun}


def evaluations(sampling: SamplingConfig) -> int:
    """How often a solver evaluates the velocity."""
    intervals = len(times(sampling)) - 1
    return {"euler": intervals, "heun": 2 * intervals - 1}[sampling.method]


# Images: the prompts are encoded once, then only the tokens of the image run at every step.


def noise_of(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal (N, *shape), every image from its own seed, the same on every device: a function of the seed alone."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def sample_images(
    model: UnifiedModel,
    prompts: Sequence[Prompt],
    unconditional: Prompt | Sequence[Prompt],
    size: tuple[int, int],
    sampling: SamplingConfig,
    objective: ObjectiveConfig,
    seeds: Sequence[int],
    batch_tokens: int = 16384,
) -> np.ndarray:
    """An image for every prompt (:func:`image_prompt`, :func:`edit_prompt`): uint8 (N, H, W, 3).

    ``unconditional``: what guidance starts from, one for all images or one for each. ``size``: height and width in pixels.
    ``seeds``: one an image; it and the prompt determine the image, whatever else is sampled beside it. ``batch_tokens`` bounds
    the prompt and image tokens held at a time.

    Raises:
        UserError: the size is not cut exactly by the front-end's tokens.
    """
    images = np.empty((len(prompts), *size, 3), dtype=np.uint8)
    for numbers, batch in sample_batches(model, prompts, unconditional, size, sampling, objective, seeds, batch_tokens):
        images[numbers] = batch
    return images


def sample_batches(
    model: UnifiedModel,
    prompts: Sequence[Prompt],
    unconditional: Prompt | Sequence[Prompt],
    size: tuple[int, int],
    sampling: SamplingConfig,
    objective: ObjectiveConfig,
    seeds: Sequence[int],
    batch_tokens: int = 16384,
    progress: Callable[[int], object] = lambda images: None,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """As :func:`sample_images`, batch by batch as they are done: numbers of the images, and the images.

    ``progress`` is called after every evaluation of the velocity with the number of its images.
    """
    space = model.frontend.space
    rows, columns = space.grid(*size)
    shape = (space.channels, rows * space.patch, columns * space.patch)
    shared = isinstance(unconditional, Prompt)
    plain = [unconditional] * len(prompts) if isinstance(unconditional, Prompt) else unconditional
    # Both branches hold an image's tokens.
    lengths = [len(prompt.ids_L) + (0 if shared else len(other.ids_L)) for prompt, other in zip(prompts, plain, strict=True)]
    for numbers in batches([length + 2 * (1 + rows * columns) for length in lengths], batch_tokens):
        x_NChw = sample(
            model,
            [prompts[number] for number in numbers],
            [plain[number] for number in numbers],
            noise_of([seeds[number] for number in numbers], shape).to(device_of(model)),
            sampling,
            objective,
            progress,
        )
        yield numbers, to_pixels(model, x_NChw)


@torch.no_grad()
def to_pixels(model: UnifiedModel, x_NChw: Tensor) -> np.ndarray:
    """x to RGB uint8 (N, H, W, 3), decoded in float32 also where the model computes in less."""
    with torch.autocast(x_NChw.device.type, enabled=False):
        image_NCHW = model.frontend.from_space(x_NChw.float()).clamp(-1, 1)
    return ((image_NCHW + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def sample(
    model: UnifiedModel,
    prompts: Sequence[Prompt],
    unconditional: Sequence[Prompt],
    noise_NChw: Tensor,
    sampling: SamplingConfig,
    objective: ObjectiveConfig,
    progress: Callable[[int], object] = lambda images: None,
) -> Tensor:
    """x (N, C, h, w) from standard normal noise of that shape, all images in one batch."""
    predictor = GuidedPredictor(model, prompts, unconditional, sampling.guidance)

    def predict(x_NChw: Tensor, t: float) -> Tensor:
        prediction_NChw = predictor(x_NChw, t)
        progress(len(x_NChw))
        return prediction_NChw

    return integrate(predict, objective.noise_scale * noise_NChw, sampling, objective.prediction)


class GuidedPredictor:
    """What the model predicts (x or v) for images that stand behind encoded prompts, with guidance on the prediction.

    ``unconditional + guidance * (conditional - unconditional)``. A branch that this weighs with 0 is never run: the unconditional
    one at guidance 1, the conditional one at guidance 0.
    """

    def __init__(self, model: UnifiedModel, prompts: Sequence[Prompt], unconditional: Sequence[Prompt], guidance: float) -> None:
        self.model = model
        weighted = [(guidance, prompts), (1 - guidance, unconditional)]
        branches = [(weight, branch) for weight, branch in weighted if weight != 0]
        self.weights = [weight for weight, _ in branches]
        encoded: list[Prefixes] = [encode_prefixes(model, branch, flow_head=True) for _, branch in branches]
        prefixes = join_prefixes(encoded)
        self.decoder, self.head = prefixes.decoder, prefixes.head
        self.decoder.append = self.head.append = False
        self.length_R = prefixes.length_B
        self.image_R = prefixes.prompt_B
        # Row of every image in every branch: the inverse of image_R within a branch.
        first = 0
        self.row_KN: list[Tensor] = []
        for part in encoded:
            self.row_KN.append(first + part.prompt_B.argsort())
            first += len(part.prompt_B)

    def __call__(self, x_NChw: Tensor, t: float) -> Tensor:
        model = self.model
        grid = model.grid(x_NChw)
        T = grid[0] * grid[1]
        device = x_NChw.device
        time_1D = model.time(torch.tensor([t], device=device))
        visual_NTD = model.visual(x_NChw, torch.zeros((len(x_NChw), T), dtype=torch.bool, device=device))
        span_NLD = torch.cat([time_1D.expand(len(x_NChw), 1, -1).to(visual_NTD.dtype), visual_NTD], dim=1)
        position_RL = self.length_R[:, None] + torch.arange(1 + T, device=device)
        h_RLD = hidden_states(model.decoder, span_NLD[self.image_R], position_RL, self.decoder)
        # One time for all rows and, in the head, one set of positions: image tokens are placed by row and column alone.
        span_1L = torch.zeros((1, 1 + T), dtype=torch.int64, device=device)
        patch_1L = torch.arange(-1, T, device=device)[None]
        rotary = rotary_tables(span_1L, span_1L >= 0, patch_1L, grid[1], model.head.head_dim)
        h_RLD = model.head(h_RLD, time_1D, span_1L, rotary, self.head)
        tokens_RTP = model.head.predict(h_RLD[:, 1:], time_1D).float()
        tokens_NTP = sum(
            (weight * tokens_RTP[row_N] for weight, row_N in zip(self.weights, self.row_KN, strict=True)),
            torch.zeros((), device=device),
        )
        return model.to_image(tokens_NTP, grid)
