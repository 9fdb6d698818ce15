"""Sizes and a stand-in corpus for front-end tests: noise with captions, components of two steps."""

from collections.abc import Sequence

import numpy as np

from tunalab.frontends.components.build import Recipe, TokenizerConfig
from tunalab.frontends.components.siglip import EncoderConfig
from tunalab.frontends.components.vae import VaeConfig

WIDTH = 24
TINY = Recipe(
    tokenizer=TokenizerConfig(vocabulary=300, texts=50),
    vae=VaeConfig(latent_channels=16, width=32, steps=2, batch=4, start_images=32, held_out=8),
    encoder=EncoderConfig(width=32, depth=3, heads=2, text_layers=1, snapshots=(1, 2), batch=4, held_out=8),
)


def noise_captions(
    split: str, seed: int, count: int, image_size: int, kinds: Sequence[str] = (), short: float = 0
) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng([seed, *split.encode()])
    images = rng.integers(0, 256, (count, image_size, image_size, 3), dtype=np.uint8)
    return images, [f"picture {rng.integers(10**6)}" for _ in range(count)]


def noise_texts(seed: int, count: int) -> list[str]:
    return noise_captions("components", seed, count, 16)[1]
