"""The tiny VAE: diffusers' AutoencoderKL on folded pixels, trained on scenes.

Shapes: B images, C channels, H W pixels, h w latent cells.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tunalab.frontends.components.examples import HELD_OUT_SPLIT, CaptionSource, batches, to_tensor
from tunalab.frontends.components.schedule import Progress, cosine_with_warmup, trainer_device
from tunalab.frontends.latents import LatentCodec
from tunalab.frontends.loading import load_strictly, read_json

WEIGHTS, STATISTICS = "vae.safetensors", "latents.json"
HELD_OUT_SEED = 7


@dataclass(frozen=True)
class VaeConfig:
    """Stride = fold * 2 ** (number of widths - 1). Folding first spares the costly convolutions at full resolution."""

    seed: int = 0
    image_size: int = 32
    latent_channels: int = 16
    fold: int = 4
    widths: tuple[int, ...] = (64, 128)
    layers: int = 1
    steps: int = 1000
    batch: int = 32
    lr: float = 2e-3
    kl_weight: float = 1e-6
    held_out: int = 512

    @property
    def stride(self) -> int:
        return self.fold * 2 ** (len(self.widths) - 1)


def architecture(config: VaeConfig) -> nn.Module:
    """The network with random weights."""
    from diffusers import AutoencoderKL

    depth = len(config.widths)
    return AutoencoderKL(
        in_channels=3 * config.fold**2,
        out_channels=3 * config.fold**2,
        latent_channels=config.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=config.widths,
        layers_per_block=config.layers,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=config.image_size // config.fold,
    )


def codec(config: VaeConfig, vae: nn.Module, mean: list[float], std: list[float]) -> LatentCodec:
    return LatentCodec(vae, config.latent_channels, config.stride, mean, std, fold=config.fold)


def train_vae(config: VaeConfig, source: CaptionSource, progress: Progress) -> tuple[LatentCodec, dict[str, Any]]:
    """The trained codec (on the CPU) and its held-out quality."""
    device = trainer_device()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        vae = architecture(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(vae.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=1e-4)
        schedule = cosine_with_warmup(optimizer, config.steps)
        for images_BHWC, _ in progress(batches(source, config.seed, config.batch, config.image_size, config.steps)):
            folded_BFhw = F.pixel_unshuffle(to_tensor(images_BHWC).to(device), config.fold)
            posterior = vae.encode(folded_BFhw).latent_dist
            error = vae.decode(posterior.sample()).sample - folded_BFhw
            # Squared error sets the PSNR; a little absolute error keeps edges from being traded against flat areas.
            loss = error.square().mean() + 0.05 * error.abs().mean() + config.kl_weight * posterior.kl().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    vae = vae.to("cpu", memory_format=torch.contiguous_format).eval().requires_grad_(False)
    mean, std = latent_statistics(config, vae, source)
    trained = codec(config, vae, mean, std)
    return trained, quality(config, trained, source)


@torch.no_grad()
def latent_statistics(config: VaeConfig, vae: nn.Module, source: CaptionSource) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over training images."""
    raw = codec(config, vae, [0.0] * config.latent_channels, [1.0] * config.latent_channels)
    ((images_BHWC, _),) = batches(source, config.seed, config.held_out, config.image_size, 1)
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


def psnr(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """PSNR of each image (B,), of RGB in [-1, 1]."""
    mse_B = (output_BCHW.clamp(-1, 1) - target_BCHW).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)
    return 10 * torch.log10(4 / mse_B)


def save_vae(folder: Path, trained: LatentCodec) -> None:
    save_file({name: tensor.contiguous() for name, tensor in trained.vae.state_dict().items()}, folder / WEIGHTS)
    statistics = {"mean": trained.mean_C.tolist(), "std": trained.std_C.tolist()}
    (folder / STATISTICS).write_text(json.dumps(statistics, indent=1) + "\n")


def load_vae(folder: Path, config: VaeConfig) -> LatentCodec:
    """The codec that :func:`save_vae` wrote. Raises UserError when the weights do not fit the configuration."""
    vae = architecture(config)
    load_strictly(vae, load_file(folder / WEIGHTS), f"component 'vae' in {folder}")
    statistics = read_json(folder / STATISTICS, "component 'vae'")
    return codec(config, vae.eval().requires_grad_(False), statistics["mean"], statistics["std"])
