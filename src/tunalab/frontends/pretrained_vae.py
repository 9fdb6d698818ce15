"""VAEs of diffusers by folder or by name on the Hub, with the latent normalisation that was published with them."""

from typing import Any

import torch

from tunalab.data.pretrained import Source, locate, reading
from tunalab.errors import UserError
from tunalab.frontends.latents import LatentCodec
from tunalab.frontends.loading import check_finite, check_report, read_json
from tunalab.frontends.quiet import quiet_diffusers

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
        with reading(source, asks=False), quiet_diffusers():
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
