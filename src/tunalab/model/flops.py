"""Model FLOPs of a training step: forward and backward of what is trained, forward of what is frozen.

Only the model's own work counts (no recomputation, no padding); a multiplication with its addition is 2 FLOPs. Not counted, as
they are below a thousandth: the time embedding, norms, rotations, softmax. Stages that train a part only are counted as if they
trained all: the backward pass through a frozen part is half of the backward pass, and such stages are short.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tunalab.data.buckets import Buckets, Size
from tunalab.data.packing import PackedBatch
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.model.objective import loss_counts
from tunalab.model.unified import UnifiedModel, build_model
from tunalab.settings.schema import DataConfig, RunConfig

FORWARD_AND_BACKWARD = 3  # the backward pass multiplies twice: by weights and by activations


@dataclass(frozen=True)
class Work:
    """How much there is to compute in a batch, or on average in a row. ``generating``: in documents that generate an image.

    ``images``: how many of each size; ``generated_visual``: visual tokens of images that are generated; ``pairs`` of a query and a
    key that the mask lets through.
    """

    tokens: float
    labels: float
    generating_tokens: float
    images: Mapping[Size, float]
    generated_images: float
    generated_visual: float
    pairs: float
    generating_pairs: float

    @classmethod
    def of(cls, batch: PackedBatch) -> "Work":
        pairs_D = attended_pairs(batch)
        return cls(
            tokens=batch.tokens,
            labels=len(batch.logit_K),
            generating_tokens=int(batch.length_D[batch.generates_D].sum()),
            images={group.size: len(group) for group in batch.groups},
            generated_images=int(batch.generate_N.sum()),
            generated_visual=loss_counts(batch)["flow"],
            pairs=int(pairs_D.sum()),
            generating_pairs=int(pairs_D[batch.generates_D].sum()),
        )


def attended_pairs(batch: PackedBatch) -> Tensor:
    """Pairs of (query, key) in every document, (D,): each token sees itself and what is earlier, those of an image all of it."""
    slots = [group.span_n_1T.shape for group in batch.groups]
    later_N = torch.tensor([size * (size - 1) // 2 for images, size in slots for _ in range(images)], dtype=torch.int64)
    causal_D = batch.length_D * (batch.length_D + 1) // 2
    return causal_D.index_add(0, batch.document_of_images(), later_N.to(causal_D.device))


@dataclass(frozen=True)
class FlopCosts:
    """Forward FLOPs per unit of work of one model; those of the front-end by the size of an image."""

    decoder_token: float
    logits_token: float
    head_token: float
    head_image: float  # modulation, once an image
    output_token: float  # projection to the target space, once a visual token
    embed_image: Mapping[Size, float]
    to_space_image: Mapping[Size, float]
    decoder_pair: float  # a query-key pair, all layers
    head_pair: float

    def parts(self, work: Work) -> dict[str, float]:
        """Training FLOPs (forward and backward) by part of the model."""
        head = self.head_token * work.generating_tokens
        head += self.head_image * work.generated_images + self.output_token * work.generated_visual
        forward = {
            "front-end": sum(self.embed_image[size] * count for size, count in work.images.items()),
            "decoder": self.decoder_token * work.tokens,
            "decoder attention": self.decoder_pair * work.pairs,
            "logits": self.logits_token * work.labels,
            "flow head": head,
            "flow head attention": self.head_pair * work.generating_pairs,
        }
        return {
            "frozen front-end": sum(self.to_space_image[size] * count for size, count in work.images.items()),
            **{name: FORWARD_AND_BACKWARD * flops for name, flops in forward.items()},
        }

    def step(self, batch: PackedBatch) -> float:
        """FLOPs of forward and backward on a batch."""
        return sum(self.parts(Work.of(batch)).values())


def flop_costs(config: RunConfig, vocabulary: int) -> FlopCosts:
    """Costs of the model that ``config`` names, found on the meta device: no weights are read and nothing is computed."""
    with torch.device("meta"):
        model = build_model(config, None, vocabulary)
    return model_costs(model, image_sizes(config.data))


def image_sizes(data: DataConfig) -> list[Size]:
    """Every size that images of a run may have: buckets for files, squares for what is drawn."""
    return sorted({*Buckets.of(data).sizes, (data.image_size, data.image_size)})


def model_costs(model: UnifiedModel, sizes: Sequence[Size]) -> FlopCosts:
    """Costs of ``model``, on whatever device it is, with images of some sizes (height, width)."""
    to_space, embed = {}, {}
    for height, width in sizes:
        image = torch.zeros(1, 3, height, width, device=model.mask_token.token_D.device)
        x, to_space[height, width] = _count(model.frontend.to_space, image)
        _, embed[height, width] = _count(model.frontend.embed, x)
        once, twice = _fixed(model.frontend, x)
        embed[height, width] -= once + twice
        to_space[height, width] += once + 2 * twice
    modulation = sum(_linear(m) for name, m in model.head.named_modules() if name.endswith("modulation"))
    head_linears = sum(_linear(m) for m in model.head.modules()) - modulation - _linear(model.head.output)
    qwen = model.decoder.config
    head_blocks: list[Any] = list(model.head.blocks)
    return FlopCosts(
        decoder_token=sum(_linear(m) for m in model.decoder.model.layers.modules()),
        logits_token=_linear(model.decoder.lm_head),
        head_token=head_linears,
        head_image=modulation,
        output_token=_linear(model.head.output),
        embed_image=embed,
        to_space_image=to_space,
        decoder_pair=4.0 * qwen.hidden_size * qwen.num_hidden_layers,
        head_pair=sum(4.0 * block.heads * block.head_dim for block in head_blocks),
    )


def _fixed(frontend: VisualFrontEnd, x: Tensor) -> tuple[float, float]:
    """Forward FLOPs of the fixed parts: of those that are passed forward only, and of those that what is trained below them takes
    gradients through (to their inputs, as much again; none to their weights).
    """
    costs = {False: 0.0, True: 0.0}
    for name in frontend.fixed_parts:
        part = frontend.get_submodule(name)
        taken: list[tuple[Tensor, ...]] = []

        def take(_: nn.Module, inputs: tuple[Tensor, ...], taken: list[tuple[Tensor, ...]] = taken) -> None:
            taken.append(inputs)

        handle = part.register_forward_pre_hook(take)
        with torch.enable_grad():
            frontend.embed(x)
        handle.remove()
        ((first, *rest),) = taken
        _, flops = _count(partial(_passed_on, part, rest), first.detach())
        costs[first.requires_grad] += flops
    return costs[False], costs[True]


def _passed_on(part: nn.Module, rest: Sequence[Any], first: Tensor) -> Tensor:
    result: Tensor = part(first, *rest)
    return result


def _linear(module: nn.Module) -> float:
    return 2.0 * module.weight.numel() if isinstance(module, nn.Linear) else 0.0


def _count(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, float]:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        result = function(x)
    return result, float(counter.get_total_flops())
