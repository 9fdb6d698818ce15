"""Model FLOPs of a training step: forward and backward of what is trained, forward of what is frozen.

Only the model's own work counts (no recomputation, no padding); a multiplication with its addition is 2 FLOPs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tunalab.config import RunConfig
from tunalab.data.packing import PackedBatch
from tunalab.model.build import build_model

FORWARD_AND_BACKWARD = 3  # the backward pass multiplies twice: by weights and by activations


@dataclass(frozen=True)
class FlopCosts:
    """Forward FLOPs per unit of work of one model."""

    decoder_token: float
    logits_token: float
    head_token: float
    head_image: float  # modulation and projection, once an image
    embed_image: float
    to_space_image: float
    decoder_pair: float  # a query-key pair, all layers
    head_pair: float

    def step(self, batch: PackedBatch) -> float:
        """FLOPs of forward and backward on a batch. Pairs are counted as the mask allows them to first order: half of n^2."""
        length = batch.length_D.double()
        generating = length[batch.generates_D]
        images, generated = len(batch.generate_N), int(batch.generate_N.sum())
        trained = (
            self.decoder_token * batch.tokens
            + self.logits_token * len(batch.logit_K)
            + self.head_token * float(generating.sum())
            + self.head_image * generated
            + self.embed_image * images
            + self.decoder_pair * float((length**2).sum()) / 2
            + self.head_pair * float((generating**2).sum()) / 2
        )
        return FORWARD_AND_BACKWARD * trained + self.to_space_image * images


def flop_costs(config: RunConfig, vocabulary: int) -> FlopCosts:
    """Costs of the model that ``config`` names, found on the meta device: no weights are read and nothing is computed."""
    with torch.device("meta"):
        model = build_model(config, None, vocabulary)
        image = torch.empty(1, 3, config.data.image_size, config.data.image_size)
    x, to_space = _count(model.frontend.to_space, image)
    visual, embed = _count(model.frontend.embed, x)
    tokens = visual.shape[1]
    width, decoder, head = config.decoder.width, config.decoder, config.head
    modulation = sum(_linear(m) for name, m in model.head.named_modules() if name.endswith("modulation"))
    head_linears = sum(_linear(m) for m in model.head.modules()) - modulation - _linear(model.head.output)
    return FlopCosts(
        decoder_token=sum(_linear(m) for m in model.decoder.model.layers.modules()),
        logits_token=2.0 * width * vocabulary,
        head_token=head_linears,
        head_image=modulation + _linear(model.head.output) * tokens,
        embed_image=embed,
        to_space_image=to_space,
        decoder_pair=4.0 * width * decoder.layers,
        head_pair=4.0 * head.heads * head.head_dim * head.blocks,
    )


def _linear(module: nn.Module) -> float:
    return 2.0 * module.weight.numel() if isinstance(module, nn.Linear) else 0.0


def _count(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, float]:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        result = function(x)
    return result, float(counter.get_total_flops())
