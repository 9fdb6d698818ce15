"""A picture of sampled images with their prompts, the same prompts and seeds for every variant and every point of a run."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tunalab.data.tokenizer import Tokenizer
from tunalab.evaluation.along import evaluation_mode, pictured, prompt_of
from tunalab.inference.generation import sample_images
from tunalab.inference.prompts import image_prompt, unconditional_prompt
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import RunConfig

IMAGE_SIDE = 128  # pixels an image is enlarged to, or nearly
CELL_WIDTH = 176
MARGIN = 8
FONT_SIZE = 12
LINE = 15


def sample_grid(model: UnifiedModel, tokenizer: Tokenizer, config: RunConfig) -> Image.Image:
    """``evaluation.sample_prompts`` held-out captions (``along.pictured``), sampled with seeds 0, 1, ..., each above its caption.

    Raises ValueError when no prompts are asked for.
    """
    texts = [prompt_of(document) for document in pictured(config, config.evaluation.sample_prompts)]
    with evaluation_mode(model):
        images_NHWC = sample_texts(model, tokenizer, texts, config, list(range(len(texts))))
    return draw_grid(images_NHWC, texts)


def sample_texts(
    model: UnifiedModel, tokenizer: Tokenizer, texts: Sequence[str], config: RunConfig, seeds: Sequence[int]
) -> np.ndarray:
    """Images uint8 (N, H, W, 3) of the run's size and sampling settings."""
    space = model.frontend.space
    prompts = [image_prompt(tokenizer, space, text) for text in texts]
    size = (config.data.image_size, config.data.image_size)
    unconditional = unconditional_prompt(tokenizer, space, config.sampling)
    return sample_images(model, prompts, unconditional, size, config.sampling, config.objective, seeds)


def draw_grid(images_NHWC: np.ndarray, captions: Sequence[str], columns: int | None = None) -> Image.Image:
    """Images enlarged without smoothing, each above its wrapped caption, in so many columns, or a grid about as wide as high."""
    if not len(images_NHWC):
        raise ValueError("no images to draw")
    N, height, width = images_NHWC.shape[:3]
    scale = max(1, round(IMAGE_SIDE / max(height, width)))
    cell = max(CELL_WIDTH, width * scale)
    font = ImageFont.load_default(FONT_SIZE)
    wrapped = [_wrap(caption, font, cell) for caption in captions]
    cell_height = height * scale + LINE * max(len(lines) for lines in wrapped) + MARGIN
    columns = columns or math.ceil(math.sqrt(N))
    rows = math.ceil(N / columns)
    grid = Image.new("RGB", (columns * (cell + MARGIN) + MARGIN, rows * (cell_height + MARGIN) + MARGIN), "white")
    pen = ImageDraw.Draw(grid)
    for n, (pixels_HWC, lines) in enumerate(zip(images_NHWC, wrapped, strict=True)):
        left = MARGIN + n % columns * (cell + MARGIN)
        top = MARGIN + n // columns * (cell_height + MARGIN)
        enlarged = Image.fromarray(pixels_HWC).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        grid.paste(enlarged, (left, top))
        for number, line in enumerate(lines):
            pen.text((left, top + height * scale + 3 + number * LINE), line, fill="black", font=font)
    return grid


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
