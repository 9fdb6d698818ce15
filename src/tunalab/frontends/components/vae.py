"""The tiny VAE: diffusers' AutoencoderKL on folded pixels, started at principal components and trained on scenes.

Shapes: B images, C latent channels, H W pixels, h w latent cells, F channels of folded pixels.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tunalab.data.scenes.vocabulary import CORPUS_VERSION
from tunalab.errors import UserError
from tunalab.frontends.components.training import (
    HELD_OUT_SPLIT,
    MIX,
    TRAIN_SPLIT,
    CaptionSource,
    Progress,
    check_sizes,
    to_tensor,
    train,
    trainer_device,
    training_batch,
)
from tunalab.frontends.vae import LatentCodec, psnr

HELD_OUT_SEED = 7
START_LOG_VARIANCE = -6.0


@dataclass(frozen=True)
class VaeConfig:
    """``stride``: pixels folded into channels along a side; all layers work on the latent grid, where they are cheap.

    Half as many latent channels lose the strokes of small words, and with them any comparison of reading; a higher learning
    rate first forgets the linear start and then spends the budget on finding it again.
    """

    seed: int = 0
    image_size: int = 32
    latent_channels: int = 32
    stride: int = 8
    width: int = 112
    layers: int = 1
    steps: int = 6000
    batch: int = 32
    lr: float = 5e-4
    kl_weight: float = 1e-6
    start_images: int = 2048
    held_out: int = 512
    corpus: int = CORPUS_VERSION

    def __post_init__(self) -> None:
        if self.width < 2 * self.latent_channels:
            raise UserError(f"vae.width={self.width} must be at least twice vae.latent_channels={self.latent_channels}")
        sizes = ("image_size", "latent_channels", "stride", "width", "layers", "steps", "batch", "start_images", "held_out")
        check_sizes("vae", self, sizes)
        if self.image_size % self.stride:
            raise UserError(f"vae.image_size={self.image_size} must be a multiple of vae.stride={self.stride}")


def architecture(config: VaeConfig) -> nn.Module:
    """The network with random weights.

    Group norms are taken out: with them :func:`start_at_principal_components` is not possible, and from random weights, with
    or without them, the same minutes end about ten decibels lower.
    """
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL(
        in_channels=3 * config.stride**2,
        out_channels=3 * config.stride**2,
        latent_channels=config.latent_channels,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(config.width,),
        layers_per_block=config.layers,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=config.image_size // config.stride,
    )
    for module in list(vae.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return vae


@torch.no_grad()
def start_at_principal_components(vae: Any, folded_BFhw: Tensor) -> None:
    """Set the weights so that the network is the best linear codec of single cells, with latents of unit variance.

    Each latent travels as a pair (a, -a) through the SiLU before the last convolution: silu(a) - silu(-a) = a. Residual
    branches start at zero, spare channels at their random weights, so that training leaves the linear start at once.
    """
    channels = int(vae.config.latent_channels)
    samples_SF = folded_BFhw.permute(0, 2, 3, 1).flatten(0, 2)
    mean_F = samples_SF.mean(dim=0)
    _, scale, components = torch.linalg.svd(samples_SF - mean_F, full_matrices=False)
    deviation_C = (scale[:channels] / len(samples_SF) ** 0.5).clamp(min=1e-4)
    components_CF = components[:channels]
    for name, parameter in vae.named_parameters():
        if ".conv2." in name:
            parameter.zero_()
    unit = torch.eye(channels)
    whiten_CF = components_CF / deviation_C[:, None]
    encoder, decoder = vae.encoder, vae.decoder
    _write_pairs(encoder.conv_in, whiten_CF, -whiten_CF @ mean_F)
    _read_pairs(encoder.conv_out, unit, torch.zeros(channels))
    # The rest of the encoder's output is the posterior's log variance: it starts small, or noise drowns the latents.
    encoder.conv_out.bias[channels:] = START_LOG_VARIANCE
    _write_pairs(decoder.conv_in, unit, torch.zeros(channels))
    _read_pairs(decoder.conv_out, components_CF.T * deviation_C, mean_F)
    for layer in (vae.quant_conv, vae.post_quant_conv):
        layer.weight.copy_(torch.eye(len(layer.weight))[:, :, None, None])
        layer.bias.zero_()


def _write_pairs(layer: Any, matrix: Tensor, offset: Tensor) -> None:
    """The layer's first 2K outputs become +(Mx + b) and -(Mx + b) of the cell itself."""
    K = len(matrix)
    layer.weight[: 2 * K] = 0
    layer.weight[: 2 * K, :, 1, 1] = torch.cat([matrix, -matrix])
    layer.bias[: 2 * K] = torch.cat([offset, -offset])


def _read_pairs(layer: Any, matrix: Tensor, offset: Tensor) -> None:
    """The layer's first outputs become Ma + b of the K pairs (silu(a), silu(-a)) in its input; the others 0."""
    rows, K = matrix.shape
    layer.weight.zero_()
    layer.weight[:rows, : 2 * K, 1, 1] = torch.cat([matrix, -matrix], dim=1)
    layer.bias.zero_()
    layer.bias[:rows] = offset


def codec(config: VaeConfig, vae: nn.Module, mean: list[float], std: list[float]) -> LatentCodec:
    return LatentCodec(vae, config.latent_channels, config.stride, mean, std, fold=config.stride)


def train_vae(
    config: VaeConfig,
    source: CaptionSource,
    keep: Callable[[LatentCodec, dict[str, Any]], None],
    state: Path,
    progress: Progress,
    data: dict[str, Any] | None = None,
) -> None:
    """Train a codec; ``keep(codec, record)`` gets the averaged one at the end, on the CPU, with its quality.

    ``state``: file from which a stopped training goes on, if it was of the same ``data`` (what the index says of ``source``).
    """
    device = trainer_device()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        vae: Any = architecture(config)
    start_BHWC, _ = source(TRAIN_SPLIT, config.seed, config.start_images, config.image_size, kinds=MIX)
    start_at_principal_components(vae, F.pixel_unshuffle(to_tensor(start_BHWC), config.stride))
    vae = vae.to(device, memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        images_BHWC, _ = training_batch(source, config.seed, step, config.batch, config.image_size)
        folded_BFhw = F.pixel_unshuffle(to_tensor(images_BHWC).to(device), config.stride)
        posterior = vae.encode(folded_BFhw).latent_dist
        # Noise of its own for each step, so that a training that goes on draws what it would have drawn.
        draws = torch.Generator(device).manual_seed(config.seed * 1_000_000 + step)
        error = vae.decode(posterior.sample(draws)).sample - folded_BFhw
        # Squared error sets the PSNR; a little absolute error keeps edges from being traded against flat areas.
        loss: Tensor = error.square().mean() + 0.05 * error.abs().mean() + config.kl_weight * posterior.kl().mean()
        return loss

    def kept(averaged: nn.Module, record: dict[str, Any]) -> None:
        cpu = averaged.to("cpu", memory_format=torch.contiguous_format).eval().requires_grad_(False)  # type: ignore[call-overload]
        trained = codec(config, cpu, *latent_statistics(config, cpu, source))
        keep(trained, {**record, "images": config.steps * config.batch, "quality": quality(config, trained, source)})

    recipe = {**asdict(config), "data": data}
    train(vae, config.lr, config.steps, loss_of, {config.steps: kept}, state, progress, recipe, weight_decay=1e-4)


@torch.no_grad()
def latent_statistics(config: VaeConfig, vae: nn.Module, source: CaptionSource) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over training images."""
    raw = codec(config, vae, [0.0] * config.latent_channels, [1.0] * config.latent_channels)
    images_BHWC, _ = source(TRAIN_SPLIT, config.seed, config.start_images, config.image_size, kinds=MIX)
    z_BChw = raw.encode(to_tensor(images_BHWC))
    std_C = z_BChw.std(dim=(0, 2, 3)).clamp(min=1e-6)
    return z_BChw.mean(dim=(0, 2, 3)).tolist(), std_C.tolist()


@torch.no_grad()
def quality(config: VaeConfig, trained: LatentCodec, source: CaptionSource) -> dict[str, Any]:
    """Mean over held-out images of each one's PSNR (decibels, reconstruction clamped to [-1, 1])."""
    images_BHWC, _ = source(HELD_OUT_SPLIT, HELD_OUT_SEED, config.held_out, config.image_size)
    image_BCHW = to_tensor(images_BHWC)
    psnr_B = psnr(trained.decode(trained.encode(image_BCHW)), image_BCHW)
    return {
        "psnr_db": round(psnr_B.mean().item(), 3),
        "psnr_db_worst_tenth": round(psnr_B.sort().values[: max(1, len(psnr_B) // 10)].mean().item(), 3),
        "n": len(psnr_B),
        "split": HELD_OUT_SPLIT,
    }
