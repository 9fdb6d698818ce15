"""Held-out losses by kind of document, on fixed documents with fixed draws, nothing masked.

Shapes: D documents, N images, K labelled tokens.
"""

from collections import defaultdict
from dataclasses import replace

import torch
import torch.nn.functional as F

from tunalab.config import RunConfig
from tunalab.data.documents import KINDS, Kind
from tunalab.data.tokenizer import Tokenizer
from tunalab.evaluation.held_out import held_out, pack
from tunalab.model.objective import draw, flow_loss, noised, to_space
from tunalab.model.unified import UnifiedModel

DRAW_SEED = 1  # never the run's


def trained_kinds(config: RunConfig) -> list[Kind]:
    """Kinds of scenes documents that some stage trains on."""
    mixed = {name for stage in config.stages.values() for name, weight in stage.mix.items() if weight > 0}
    return [kind for kind in KINDS if f"scenes/{kind}" in mixed]


@torch.no_grad()
def held_out_losses(model: UnifiedModel, tokenizer: Tokenizer, config: RunConfig) -> dict[str, float]:
    """``text/<kind>``: nats a predicted token. ``flow/<kind>``: as in training, averaged over visual tokens.

    For every kind of scenes document in the run's stages; a loss that a kind has no targets for is left out.
    """
    kinds = trained_kinds(config)
    count = config.evaluation.loss_documents
    if not kinds or not count:
        return {}
    # One document of every kind in turn: packed together, no batch is without images unless all are.
    documents = [document for group in zip(*(held_out(kind, count, config) for kind in kinds)) for document in group]
    # Held-out images are clean: the light noise of training is an augmentation.
    objective = replace(config.objective, understanding_noise=0.0)
    device = model.mask_token.token_D.device
    space = model.frontend.space
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for cpu_batch, numbers in pack(documents, tokenizer, space.token_pixels, config.data):
        batch = cpu_batch.to(device)
        kind_D = torch.tensor([number % len(kinds) for number in numbers], device=device)
        draws = draw(batch, objective, DRAW_SEED, space, masking=False)
        x = to_space(model, batch)
        x_t = noised(batch, x, draws.noise_nChw, draws.t_N, objective.noise_scale)
        output = model(batch, x_t, draws.t_N, draws.mask_nT)
        error_K = F.cross_entropy(output.logits_KV, batch.label_K, reduction="none")
        kind_K = kind_D[batch.document_BL.flatten()[batch.logit_K]]
        kind_N = kind_D[batch.document_of_images()]
        for k, kind in enumerate(kinds):
            sums[f"text/{kind}"] += error_K[kind_K == k].sum().item()
            counts[f"text/{kind}"] += int((kind_K == k).sum())
            part = flow_loss(output.prediction_mChw, x, batch, draws, objective, kind_N == k)
            sums[f"flow/{kind}"] += part.sum.item()
            counts[f"flow/{kind}"] += part.count
    return {name: sums[name] / counts[name] for name in sorted(counts) if counts[name]}
