"""One-step reconstruction: how near, in pixels, the model's clean prediction from x_t is to the image.

In pixels after ``from_space`` because squared errors of different target spaces cannot be compared.

Shapes: N images, C H W of an image.
"""

from dataclasses import replace

import torch
from torch import Tensor

from tunalab.config import RunConfig
from tunalab.data.tokenizer import Tokenizer
from tunalab.evaluation.held_out import held_out, pack
from tunalab.model import flow
from tunalab.model.objective import draw, space_shape, to_space
from tunalab.model.unified import UnifiedModel

NOISE_SEED = 2  # never the run's
PEAK = 2.0  # of RGB in [-1, 1]
LEAST_ERROR = 1e-10  # a perfect image would be infinitely good: 106 dB instead


@torch.no_grad()
def one_step_psnr(model: UnifiedModel, tokenizer: Tokenizer, config: RunConfig) -> dict[str, float]:
    """Flow time t -> dB, the mean over images, for held-out text-to-image documents with fixed noise."""
    size = config.data.image_size
    rows, columns = model.frontend.space.grid(size, size)
    times = config.evaluation.psnr_times
    documents = held_out("text_to_image", config.evaluation.psnr_images, config)
    found: dict[float, list[Tensor]] = {t: [] for t in times}
    objective = replace(config.objective, understanding_noise=0.0)
    for cpu_batch, _ in pack(documents, tokenizer, rows * columns, config.data) if documents else []:
        batch = cpu_batch.to(model.mask_token.token_D.device)
        shape, tokens = space_shape(model, batch)
        draws = draw(batch, objective, NOISE_SEED, tokens, shape, masking=False)
        x = to_space(model, batch)
        image_NCHW = batch.pixels_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
        for t in times:
            t_N = torch.full_like(draws.t_N, t)
            x_t = flow.interpolate(x, draws.noise_NChw, t_N, objective.noise_scale)
            prediction = model(batch, x_t, t_N, draws.mask_NT).prediction_MChw.float()
            clean = flow.clean(prediction, x_t, t_N, objective.prediction)
            found[t].append(psnr(model.frontend.from_space(clean).float().clamp(-1, 1), image_NCHW))
    return {f"{t:g}": torch.cat(values).mean().item() for t, values in found.items() if values}


def psnr(image_NCHW: Tensor, target_NCHW: Tensor) -> Tensor:
    """(N,) dB of RGB in [-1, 1]."""
    error_N = (image_NCHW - target_NCHW).square().flatten(1).mean(1).clamp(min=LEAST_ERROR)
    return 10 * torch.log10(PEAK**2 / error_N)
