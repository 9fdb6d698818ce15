"""A frozen VAE as a map between RGB images and latents of about unit variance, and front-ends that generate there.

VAEs are diffusers' own, by folder or by name on the Hub, with the latent normalisation that was published with
them. Reconstructions of different target spaces are compared in pixels, by :func:`psnr`.

Shapes: B images, H W pixels, C latent channels, h w latent cells, F fold * fold * 3 channels of a folded image.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tunalab.data.pretrained import Source, locate, reading
from tunalab.errors import UserError
from tunalab.frontends.contract import TargetSpace, VisualFrontEnd
from tunalab.frontends.loading import check_finite, check_report, quiet_diffusers, read_json
from tunalab.settings.schema import FrontEndConfig

if TYPE_CHECKING:
    from tunalab.frontends.components.store import Components


PEAK = 2.0  # of RGB in [-1, 1]
LEAST_ERROR = 1e-10  # a perfect image would be infinitely good: 106 dB instead


def psnr(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """PSNR in dB of each image (B,), of RGB in [-1, 1]; what the output has beyond that range is cut off, as in a picture."""
    error_B = (output_BCHW.float().clamp(-1, 1) - target_BCHW).square().flatten(1).mean(1).clamp(min=LEAST_ERROR)
    return 10 * torch.log10(PEAK**2 / error_B)


class LatentCodec(nn.Module):
    """Encodes to the posterior's mean, normalised per channel by stored statistics; decoding undoes both.

    ``sampled``: whether training sees a draw from the posterior instead, for which it gives :meth:`encode` the noise.
    ``fold`` > 1 folds blocks of fold x fold pixels into channels before the VAE (Wan 2.2 does so inside its own).
    """

    mean_C: Tensor
    std_C: Tensor
    sampled = False

    def __init__(
        self, vae: nn.Module, channels: int, stride: int, mean: Sequence[float], std: Sequence[float], fold: int = 1
    ) -> None:
        """``stride``: image pixels per latent cell along a side. Raises UserError when the statistics do not fit."""
        super().__init__()
        if len(mean) != channels or len(std) != channels or not all(s > 0 for s in std):
            raise UserError(f"vae has {channels} latent channels, but statistics of {len(mean)} means and {len(std)} deviations")
        self.vae = vae
        self.channels = channels
        self.stride = stride
        self.fold = fold
        self.register_buffer("mean_C", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std_C", torch.tensor(std, dtype=torch.float32))
        # A video VAE takes a time axis; an image is a video of one frame.
        self.video = hasattr(getattr(vae, "config", None), "temperal_downsample")

    def encode(self, image_BCHW: Tensor, noise_BChw: Tensor | None = None) -> Tensor:
        """RGB in [-1, 1], (B, 3, H, W), to normalised latents (B, C, H / stride, W / stride).

        ``noise_BChw``, standard normal: the posterior's draw mean + deviation * noise takes the place of its mean.
        """
        folded_BFHW = F.pixel_unshuffle(image_BCHW, self.fold) if self.fold > 1 else image_BCHW
        posterior = self.vae.encode(folded_BFHW[:, :, None] if self.video else folded_BFHW).latent_dist  # type: ignore[operator]
        z_BChw = posterior.mode()[:, :, 0] if self.video else posterior.mode()
        if noise_BChw is not None:
            z_BChw = z_BChw + (posterior.std[:, :, 0] if self.video else posterior.std) * noise_BChw
        return (z_BChw - self.mean_C[:, None, None]) / self.std_C[:, None, None]

    def decode(self, x_BChw: Tensor) -> Tensor:
        """Normalised latents to RGB (B, 3, H, W), not clamped."""
        z_BChw = x_BChw * self.std_C[:, None, None] + self.mean_C[:, None, None]
        decoded = self.vae.decode(z_BChw[:, :, None] if self.video else z_BChw).sample  # type: ignore[operator]
        folded_BFHW = decoded[:, :, 0] if self.video else decoded
        return F.pixel_shuffle(folded_BFHW, self.fold) if self.fold > 1 else folded_BFHW

    def with_official_statistics(self) -> "LatentCodec":
        """The normalisation that the released Tuna checkpoint was trained with: its means are the deviations (its code says so).

        Doing it twice changes nothing.
        """
        self.mean_C.copy_(self.std_C)
        return self


SETTING = "frontend.vae"
KL, WAN = "AutoencoderKL", "AutoencoderKLWan"
WAN_2_2 = {
    "_class_name": WAN,
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "in_channels": 12,
    "out_channels": 12,
    "is_residual": True,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}
_KL = {
    "_class_name": KL,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
SD = {**_KL, "latent_channels": 4}
FLUX = {**_KL, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
# Architectures that are published, so that a plan needs no file. Statistics are not among them: they come with the weights.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers/vae": WAN_2_2,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae": {"_class_name": WAN},
    "Wan-AI/Wan2.1-T2V-14B-Diffusers/vae": {"_class_name": WAN},
    "black-forest-labs/FLUX.1-dev/vae": FLUX,
    "black-forest-labs/FLUX.1-schnell/vae": FLUX,
    "stabilityai/sd-vae-ft-mse": SD,
    "stabilityai/sdxl-vae": SD,
    "stable-diffusion-v1-5/stable-diffusion-v1-5/vae": SD,
}


def pretrained_vae(given: str) -> LatentCodec:
    """A VAE that diffusers saved (AutoencoderKL or AutoencoderKLWan), in float32, with the statistics of its config.

    ``given``: a folder, or OWNER/NAME[/SUBFOLDER] on the Hub. Under ``torch.device("meta")`` the architecture alone: for published
    names nothing is read, else config.json.
    Raises UserError, one line: nothing there, another class, damaged files, weights that do not fit (both sides listed),
    statistics or a stride that contradict the architecture.
    """
    source = locate(given, SETTING)
    if torch.get_default_device().type == "meta":
        plain = PUBLISHED[given] if given in PUBLISHED and source.folder is None else _read_config(source)
        with reading(source, hub=False), quiet_diffusers():
            vae = _class(plain, source).from_config(plain)
        channels = vae.config.z_dim if plain["_class_name"] == WAN else vae.config.latent_channels
        return LatentCodec(vae, channels, _stride(vae, source), [0.0] * channels, [1.0] * channels)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        vae = _load(_class(_read_config(source), source), source)
    return LatentCodec(vae, *_geometry(vae, source))


def _read_config(source: Source) -> dict[str, Any]:
    """config.json, whose `_class_name` says which VAE it is."""
    if source.folder:
        return read_json(source.folder / "config.json", source.what)
    from diffusers import AutoencoderKL

    with reading(source):
        plain: dict[str, Any] = AutoencoderKL.load_config(source.name, **_place(source))
    return plain


def _class(plain: dict[str, Any], source: Source) -> Any:
    import diffusers

    name = plain.get("_class_name")
    if name not in (KL, WAN):
        raise UserError(f"{source.what} is a {name} (choices: {KL}, {WAN})")
    return getattr(diffusers, name)


def _load(vae_class: Any, source: Source) -> Any:
    # Without safetensors diffusers would turn to a pickle.
    options = {**_place(source), "torch_dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    with reading(source), quiet_diffusers():
        try:
            vae, report = vae_class.from_pretrained(source.name, **options)
        except ValueError:
            # Another shape than the architecture's: once more in the slow way, which reports every one of them.
            vae, report = vae_class.from_pretrained(source.name, **options, low_cpu_mem_usage=False, ignore_mismatched_sizes=True)
    check_report(report, source.what)
    check_finite(vae.state_dict(), source.what)
    return vae


def _place(source: Source) -> dict[str, str]:
    return {"subfolder": source.subfolder} if source.subfolder else {}


def _stride(vae: Any, source: Source) -> int:
    """Image pixels per latent cell along a side: what the layers do, and what the config says of it."""
    config = vae.config
    if type(vae).__name__ == KL:
        return 2 ** (len(config.block_out_channels) - 1)
    stride: int = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
    if config.scale_factor_spatial != stride:
        raise UserError(f"{source.what}: scale_factor_spatial={config.scale_factor_spatial}, but its layers reduce by {stride}")
    return stride


def _geometry(vae: Any, source: Source) -> tuple[int, int, list[float], list[float]]:
    """Channels, stride, and mean and deviation that normalise a latent."""
    config = vae.config
    if type(vae).__name__ == WAN:
        return config.z_dim, _stride(vae, source), list(config.latents_mean), list(config.latents_std)
    channels, scale = config.latent_channels, config.scaling_factor
    # One scale and shift for all channels, unless the VAE states statistics by channel: then the scale applies after them.
    mean = config.latents_mean or [config.shift_factor or 0.0] * channels
    std = [deviation / scale for deviation in config.latents_std or [1.0] * channels]
    return channels, _stride(vae, source), list(mean), std


class LatentFrontEnd(VisualFrontEnd):
    """The target space is that of normalised latents, cut into ``patch`` x ``patch`` cells per token."""

    frozen_parts = ("vae",)

    def __init__(self, vae: LatentCodec, width: int, patch: int) -> None:
        super().__init__(TargetSpace(channels=vae.channels, stride=vae.stride, patch=patch), width)
        self.vae = vae

    @staticmethod
    def codec(config: FrontEndConfig, components: "Components") -> LatentCodec:
        """The VAE that a variant names, with the statistics it asks for."""
        vae = components.vae(config.vae)
        vae.sampled = config.vae_posterior == "sample"
        return vae.with_official_statistics() if config.vae_statistics == "official" else vae

    @property
    def sampled(self) -> bool:
        return self.vae.sampled

    def encode(self, image_BCHW: Tensor) -> Tensor:
        return self.vae.encode(image_BCHW)

    def draw(self, image_BCHW: Tensor, noise_BChw: Tensor) -> Tensor:
        return self.vae.encode(image_BCHW, noise_BChw)

    def decode(self, x_BChw: Tensor) -> Tensor:
        return self.vae.decode(x_BChw)
