"""The tiny SigLIP: a timm ViT and an open_clip text tower, trained on captioned scenes with open_clip's sigmoid loss.

Of the image tower everything but the pooling is kept. Shapes: B images (or captions), L text tokens, E joint embedding.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tunalab.data.scenes.vocabulary import CORPUS_VERSION
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.components.training import (
    HELD_OUT_SPLIT,
    CaptionSource,
    Progress,
    check_sizes,
    to_tensor,
    train,
    trainer_device,
    training_batch,
)

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

HELD_OUT_SEED = 11


@dataclass(frozen=True)
class EncoderConfig:
    """``snapshots``: after how many steps the averaged weights are kept; the last of them is the end of the training."""

    seed: int = 0
    image_size: int = 32
    patch: int = 8
    width: int = 128
    depth: int = 4
    heads: int = 4
    text_layers: int = 2
    context: int = 64
    snapshots: tuple[int, ...] = (300, 1000, 3000, 10_000)
    batch: int = 64
    lr: float = 1e-3
    held_out: int = 256
    corpus: int = CORPUS_VERSION

    def __post_init__(self) -> None:
        if not self.snapshots or list(self.snapshots) != sorted(set(self.snapshots)) or self.snapshots[0] < 1:
            raise UserError(f"encoder.snapshots={list(self.snapshots)}: numbers of steps from 1 that increase")
        sizes = ("image_size", "patch", "width", "depth", "heads", "text_layers", "context", "batch", "held_out")
        check_sizes("encoder", self, sizes)
        for whole, part in (("image_size", "patch"), ("width", "heads")):
            if getattr(self, whole) % getattr(self, part):
                raise UserError(
                    f"encoder.{whole}={getattr(self, whole)} must be a multiple of encoder.{part}={getattr(self, part)}"
                )


def architecture(config: EncoderConfig, pooled: bool = False) -> "VisionTransformer":
    """The image tower with random weights, in SigLIP's form: no class token, tanh GELU; ``pooled``: with attention pooling."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        class_token=False,
        global_pool="map" if pooled else "",
        num_classes=0,
        act_layer="gelu_tanh",
    )


class Contrastive(nn.Module):
    """Both towers and the two scalars of the sigmoid loss."""

    def __init__(self, config: EncoderConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        from open_clip.transformer import TextTransformer

        self.tokenizer, self.context = tokenizer, config.context
        self.image = architecture(config, pooled=True)
        self.text = TextTransformer(
            context_length=config.context,
            vocab_size=tokenizer.vocabulary,
            width=config.width,
            heads=config.heads,
            layers=config.text_layers,
            output_dim=config.width,
            no_causal_mask=True,
            use_pad_mask=True,
            pad_id=tokenizer.pad,
            pool_type="first",
        )
        # The published start: scale 10, bias -10, so that the many negatives do not dominate the first steps.
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, image_BCHW: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B, E) of images and captions."""
        return F.normalize(self.image(image_BCHW), dim=-1), F.normalize(self.read(captions), dim=-1)

    def read(self, captions: list[str]) -> Tensor:
        """Embeddings (B, E). bos comes first, where the tower pools; captions are cut at ``context`` tokens.

        The text tower costs more than the image tower, and a third of the captions is twice as long as the others: these are
        read apart, so that the others are not padded to their length.
        """
        tokenizer, context = self.tokenizer, self.context
        rows = [[tokenizer.bos, *tokenizer.encode(caption)][:context] for caption in captions]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        cut = -(-2 * len(rows) // 3)
        parts = [text_batch([rows[i] for i in part], tokenizer.pad) for part in (order[:cut], order[cut:]) if part]
        device = self.bias.device
        sorted_BE = torch.cat([self.text(part_BL.to(device)) for part_BL in parts])
        return sorted_BE[torch.tensor(order, device=device).argsort()]


def text_batch(rows: list[list[int]], pad: int) -> Tensor:
    """Token ids (B, L), padded to the longest row."""
    length = max(map(len, rows))
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


def train_encoder(
    config: EncoderConfig,
    tokenizer: Tokenizer,
    source: CaptionSource,
    keep: Callable[[int, nn.Module, dict[str, Any]], None],
    state: Path,
    progress: Progress,
    data: dict[str, Any] | None = None,
) -> None:
    """Train both towers; ``keep(steps, image_tower, record)`` gets the averaged image tower at each snapshot, with its quality.

    ``state``: file from which a stopped training goes on, if it was of the same ``data`` (what the index says of ``source``).
    """
    from open_clip.loss import SigLipLoss

    device = trainer_device()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = Contrastive(config, tokenizer).to(device)
    loss = SigLipLoss()

    def loss_of(step: int) -> Tensor:
        images_BHWC, captions = training_batch(source, config.seed + 1, step, config.batch, config.image_size)
        image_BE, text_BE = model(to_tensor(images_BHWC).to(device), captions)
        value: Tensor = loss(image_BE, text_BE, model.log_scale.exp(), model.bias)
        return value

    def kept(steps: int) -> Callable[[nn.Module, dict[str, Any]], None]:
        def call(averaged: nn.Module, record: dict[str, Any]) -> None:
            assert isinstance(averaged, Contrastive)
            keep(steps, averaged.image, {**record, "images": steps * config.batch, "quality": quality(config, averaged, source)})

        return call

    snapshots = {steps: kept(steps) for steps in config.snapshots}
    recipe = {**asdict(config), "tokens": tokenizer.backend.backend_tokenizer.to_str(), "data": data}
    train(model, config.lr, config.snapshots[-1], loss_of, snapshots, state, progress, recipe)


@torch.no_grad()
def quality(config: EncoderConfig, model: nn.Module, source: CaptionSource) -> dict[str, Any]:
    """Held-out image-to-text retrieval among distinct captions: the share whose own caption ranks first, or in five."""
    images_BHWC, captions = distinct(*source(HELD_OUT_SPLIT, HELD_OUT_SEED, 2 * config.held_out, config.image_size))
    images_BHWC, captions = images_BHWC[: config.held_out], captions[: config.held_out]
    device = next(model.parameters()).device
    image_BE, text_BE = model(to_tensor(images_BHWC).to(device), captions)
    score_BB = image_BE @ text_BE.T
    own_B = score_BB.diagonal()[:, None]
    # A tie counts against the image, so that a collapsed tower cannot score.
    ahead_B = (score_BB >= own_B).sum(dim=1) - 1
    n = len(captions)
    return {
        "image_to_text_recall_at_1": round((ahead_B < 1).float().mean().item(), 4),
        "image_to_text_recall_at_5": round((ahead_B < 5).float().mean().item(), 4),
        "chance_recall_at_1": round(1 / n, 4),
        "n": n,
        "split": HELD_OUT_SPLIT,
    }


def distinct(images_BHWC: np.ndarray, captions: list[str]) -> tuple[np.ndarray, list[str]]:
    """The first example of each caption."""
    first = list({caption: captions.index(caption) for caption in captions}.values())
    return images_BHWC[first], [captions[i] for i in first]
