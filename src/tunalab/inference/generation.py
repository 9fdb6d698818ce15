"""Generating images: the prompts are encoded once, then only the tokens of the image run at every step.

Shapes: N images, C h w of the target space, R rows (an image in one branch of guidance), L = 1 + T slots of an image
(its time token, its visual tokens), D width.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tunalab.config import ObjectiveConfig, SamplingConfig
from tunalab.inference.answering import batches
from tunalab.inference.prefix import Prefixes, device_of, encode_prefixes, join_prefixes
from tunalab.inference.prompts import Prompt
from tunalab.inference.samplers import integrate
from tunalab.model.decoder import hidden_states
from tunalab.model.rotary import rotary_tables
from tunalab.model.unified import UnifiedModel


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

    ``progress`` is told how many images every evaluation of the velocity (samplers.py) has brought on.
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
