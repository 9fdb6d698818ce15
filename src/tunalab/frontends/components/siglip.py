"""The tiny SigLIP: a timm ViT and an open_clip text tower, trained on captioned scenes with open_clip's sigmoid loss.

Only the image tower is kept. Shapes: B images (or captions), L text tokens, E joint embedding.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tunalab.data.scenes.vocabulary import CORPUS_VERSION
from tunalab.data.tokenizer import Tokenizer
from tunalab.frontends.components.tokenizer import TokenizerConfig
from tunalab.frontends.components.training import (
    HELD_OUT_SPLIT,
    CaptionSource,
    Progress,
    batches,
    cosine_with_warmup,
    to_tensor,
    trainer_device,
)
from tunalab.frontends.loading import load_strictly, read_safetensors

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

WEIGHTS = "encoder.safetensors"
HELD_OUT_SEED = 11


@dataclass(frozen=True)
class EncoderConfig:
    """``tokenizer``: of the text tower, part of what the encoder was trained on and so of its hash."""

    seed: int = 0
    image_size: int = 32
    patch: int = 8
    width: int = 128
    depth: int = 4
    heads: int = 4
    text_layers: int = 2
    context: int = 64
    steps: int = 600
    batch: int = 64
    lr: float = 1e-3
    held_out: int = 256
    corpus: int = CORPUS_VERSION
    tokenizer: TokenizerConfig = TokenizerConfig()


def architecture(config: EncoderConfig) -> "VisionTransformer":
    """The image tower with random weights, in SigLIP's form: no class token, attention pooling, tanh GELU."""
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        class_token=False,
        global_pool="map",
        num_classes=0,
        act_layer="gelu_tanh",
    )
    return vit


class Contrastive(nn.Module):
    """Both towers and the two scalars of the sigmoid loss."""

    def __init__(self, config: EncoderConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        from open_clip.transformer import TextTransformer

        self.image = architecture(config)
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

    def forward(self, image_BCHW: Tensor, text_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B, E) of images and texts."""
        return F.normalize(self.image(image_BCHW), dim=-1), F.normalize(self.text(text_BL), dim=-1)


def text_batch(captions: list[str], tokenizer: Tokenizer, context: int) -> Tensor:
    """Token ids (B, L), bos first (where the tower pools), cut at ``context`` and padded to the longest."""
    rows = [[tokenizer.bos, *tokenizer.encode(caption)][:context] for caption in captions]
    length = max(len(row) for row in rows)
    return torch.tensor([row + [tokenizer.pad] * (length - len(row)) for row in rows])


def train_encoder(
    config: EncoderConfig, tokenizer: Tokenizer, source: CaptionSource, progress: Progress
) -> tuple["VisionTransformer", dict[str, Any]]:
    """The trained image tower (on the CPU) and its held-out quality."""
    from open_clip.loss import SigLipLoss

    device = trainer_device()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = Contrastive(config, tokenizer).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=1e-3)
        schedule = cosine_with_warmup(optimizer, config.steps)
        loss_of = SigLipLoss()
        for images_BHWC, captions in progress(batches(source, config.seed + 1, config.batch, config.image_size, config.steps)):
            text_BL = text_batch(captions, tokenizer, config.context).to(device)
            image_BE, text_BE = model(to_tensor(images_BHWC).to(device), text_BL)
            loss = loss_of(image_BE, text_BE, model.log_scale.exp(), model.bias)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model = model.to("cpu").eval().requires_grad_(False)
    return model.image, quality(config, model, tokenizer, source)


@torch.no_grad()
def quality(config: EncoderConfig, model: Contrastive, tokenizer: Tokenizer, source: CaptionSource) -> dict[str, Any]:
    """Held-out image-to-text retrieval among distinct captions: the share whose own caption ranks first, or in five."""
    images_BHWC, captions = distinct(*source(HELD_OUT_SPLIT, HELD_OUT_SEED, 2 * config.held_out, config.image_size))
    images_BHWC, captions = images_BHWC[: config.held_out], captions[: config.held_out]
    image_BE, text_BE = model(to_tensor(images_BHWC), text_batch(captions, tokenizer, config.context))
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


def save_encoder(folder: Path, vit: "VisionTransformer") -> None:
    save_file({name: tensor.contiguous() for name, tensor in vit.state_dict().items()}, folder / WEIGHTS)


def load_encoder(folder: Path, config: EncoderConfig) -> "VisionTransformer":
    """The tower that :func:`save_encoder` wrote. Raises UserError when the weights do not fit the configuration."""
    vit = architecture(config)
    what = f"component 'encoder' in {folder}"
    load_strictly(vit, read_safetensors(folder / WEIGHTS, what), what)
    return vit.requires_grad_(True)
