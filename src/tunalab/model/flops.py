"""Model FLOPs of a training step: forward and backward of what is trained, forward of what is frozen.

Only the model's own work counts (no recomputation, no padding); a multiplication with its addition is 2 FLOPs. Not counted, as
they are below a thousandth: the time embedding, norms, rotations, softmax. Stages that train a part only are counted as if they
trained all: the backward pass through a frozen part is half of the backward pass, and such stages are short.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tunalab.config import RunConfig
from tunalab.data.packing import PackedBatch
from tunalab.model.build import build_model
from tunalab.model.unified import UnifiedModel

FORWARD_AND_BACKWARD = 3  # the backward pass multiplies twice: by weights and by activations


@dataclass(frozen=True)
class Work:
    """How much there is to compute in a batch, or on average in a row. ``generating``: in documents that generate an image.

    Pairs of tokens that may attend to each other are counted to first order: half of n^2 a document.
    """

    tokens: float
    labels: float
    generating_tokens: float
    images: float
    generated_images: float
    pairs: float
    generating_pairs: float

    @classmethod
    def of(cls, batch: PackedBatch) -> "Work":
        length = batch.length_D.double()
        generating = length[batch.generates_D]
        return cls(
            tokens=batch.tokens,
            labels=len(batch.logit_K),
            generating_tokens=float(generating.sum()),
            images=len(batch.generate_N),
            generated_images=int(batch.generate_N.sum()),
            pairs=float((length**2).sum()) / 2,
            generating_pairs=float((generating**2).sum()) / 2,
        )


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

    def parts(self, work: Work) -> dict[str, float]:
        """Training FLOPs (forward and backward) by part of the model."""
        forward = {
            "front-end": self.embed_image * work.images,
            "decoder": self.decoder_token * work.tokens,
            "decoder attention": self.decoder_pair * work.pairs,
            "logits": self.logits_token * work.labels,
            "flow head": self.head_token * work.generating_tokens + self.head_image * work.generated_images,
            "flow head attention": self.head_pair * work.generating_pairs,
        }
        return {
            "frozen front-end": self.to_space_image * work.images,
            **{name: FORWARD_AND_BACKWARD * flops for name, flops in forward.items()},
        }

    def step(self, batch: PackedBatch) -> float:
        """FLOPs of forward and backward on a batch."""
        return sum(self.parts(Work.of(batch)).values())


def flop_costs(config: RunConfig, vocabulary: int) -> FlopCosts:
    """Costs of the model that ``config`` names, found on the meta device: no weights are read and nothing is computed."""
    with torch.device("meta"):
        model = build_model(config, None, vocabulary)
    return model_costs(model, config.data.image_size)


def model_costs(model: UnifiedModel, image_size: int) -> FlopCosts:
    """Costs of ``model``, on whatever device it is, with images of ``image_size`` pixels along a side."""
    image = torch.zeros(1, 3, image_size, image_size, device=model.mask_token.token_D.device)
    x, to_space = _count(model.frontend.to_space, image)
    visual, embed = _count(model.frontend.embed, x)
    tokens = visual.shape[1]
    modulation = sum(_linear(m) for name, m in model.head.named_modules() if name.endswith("modulation"))
    head_linears = sum(_linear(m) for m in model.head.modules()) - modulation - _linear(model.head.output)
    qwen = model.decoder.config
    return FlopCosts(
        decoder_token=sum(_linear(m) for m in model.decoder.model.layers.modules()),
        logits_token=_linear(model.decoder.lm_head),
        head_token=head_linears,
        head_image=modulation + _linear(model.head.output) * tokens,
        embed_image=embed,
        to_space_image=to_space,
        decoder_pair=4.0 * qwen.hidden_size * qwen.num_hidden_layers,
        head_pair=sum(4.0 * block.heads * block.head_dim for block in model.head.blocks),
    )


def _linear(module: nn.Module) -> float:
    return 2.0 * module.weight.numel() if isinstance(module, nn.Linear) else 0.0


def _count(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, float]:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        result = function(x)
    return result, float(counter.get_total_flops())
