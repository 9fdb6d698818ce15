"""Image generation speed against the reference that runs the whole padded sequence again at every step."""

import statistics
import time
from typing import Any

import torch

from tunalab.bench.reference import reference_sample
from tunalab.config import RunConfig
from tunalab.data.documents import Text
from tunalab.data.scenes import EXAMPLE_LEVELS, ScenesCorpus, SceneSettings
from tunalab.data.tokenizer import Tokenizer
from tunalab.inference.generation import noise_of, sample
from tunalab.inference.prompts import image_prompt
from tunalab.model.unified import UnifiedModel


def bench_generation(
    model: UnifiedModel, config: RunConfig, tokenizer: Tokenizer, images: int = 8, repeats: int = 3, padded: int = 512
) -> dict[str, Any]:
    """Seconds an image of both, in turns, over the same prompts and noise; median ratio; largest difference of the images."""
    settings = SceneSettings(config.data.image_size, EXAMPLE_LEVELS, config.data.questions_per_image, seed=0)
    corpus = ScenesCorpus("text_to_image", "test", settings)
    space = model.frontend.space
    texts = [s.text for n in range(images) for s in corpus.document(n).segments if isinstance(s, Text)]
    prompts = [image_prompt(tokenizer, space, text) for text in texts]
    plain = [image_prompt(tokenizer, space, "")] * images
    side = config.data.image_size // space.stride
    noise = noise_of(range(images), (space.channels, side, side))
    ours, reference, difference = [], [], 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        fast = sample(model, prompts, plain, noise, config.sampling, config.objective)
        ours.append((time.perf_counter() - began) / images)
        began = time.perf_counter()
        slow = reference_sample(model, prompts, plain, noise, config.sampling, config.objective, padded, tokenizer.pad)
        reference.append((time.perf_counter() - began) / images)
        difference = max(difference, (fast - slow).abs().max().item())
    return {
        "speedup": statistics.median(slow / fast for fast, slow in zip(ours, reference, strict=True)),
        "required_speedup": 10.0,
        "seconds_per_image": statistics.median(ours),
        "reference_seconds_per_image": statistics.median(reference),
        "largest_pixel_difference": difference,
        "images": images,
        "tokens_per_image": (side // space.patch) ** 2,
        "sampler": f"{config.sampling.method}, {config.sampling.steps} steps, guidance {config.sampling.guidance}",
        "repeats": repeats,
    }


def randomise_zero_layers(model: UnifiedModel) -> None:
    """Draw the layers that start at zero: an untrained model predicts 0 everywhere, and equality would prove nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
