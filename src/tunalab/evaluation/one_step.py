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
from tunalab.frontends.psnr import psnr
from tunalab.model import flow
from tunalab.model.objective import draw, noised, to_space
from tunalab.model.unified import UnifiedModel

NOISE_SEED = 2  # never the run's


@torch.no_grad()
def one_step_psnr(model: UnifiedModel, tokenizer: Tokenizer, config: RunConfig) -> dict[str, float]:
    """Flow time t -> dB, the mean over images, for held-out text-to-image documents with fixed noise."""
    space = model.frontend.space
    times = config.evaluation.psnr_times
    documents = held_out("text_to_image", config.evaluation.psnr_images, config)
    found: dict[float, list[Tensor]] = {t: [] for t in times}
    objective = replace(config.objective, understanding_noise=0.0)
    for cpu_batch, _ in pack(documents, tokenizer, space.token_pixels, config.data) if documents else []:
        batch = cpu_batch.to(model.mask_token.token_D.device)
        draws = draw(batch, objective, NOISE_SEED, space, masking=False)
        x = to_space(model, batch)
        for t in times:
            t_N = torch.full_like(draws.t_N, t)
            x_t = noised(batch, x, draws.noise_nChw, t_N, objective.noise_scale)
            predictions = model(batch, x_t, t_N, draws.mask_nT).prediction_mChw
            for group, t_n, noisy, prediction in zip(batch.groups, batch.by_group(t_N), x_t, predictions, strict=True):
                clean = flow.clean(prediction, noisy, t_n, objective.prediction)
                image_nCHW = group.pixels_nHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
                found[t].append(psnr(model.frontend.from_space(clean), image_nCHW))
    return {f"{t:g}": torch.cat(values).mean().item() for t, values in found.items() if values}
