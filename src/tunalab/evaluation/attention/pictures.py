"""Pictures of attention: of one question every head, and the same questions for several models.

Shapes: H W image pixels, C 3 channels; Y layers, H heads, T visual tokens.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tunalab.data.tokenizer import Tokenizer
from tunalab.evaluation.attention.asked import KINDS, Asked, asked_things, row_prompt
from tunalab.evaluation.mode import evaluation_mode
from tunalab.evaluation.samples import draw_grid
from tunalab.inference.answering import answer
from tunalab.inference.attention_maps import averaged, image_columns, last_rows
from tunalab.inference.overlays import draw_map, enlarged, outlined
from tunalab.model.unified import UnifiedModel

LEVEL = 1
Captioned = list[tuple[np.ndarray, str]]


def draw_heads(image_HWC: np.ndarray, image_YHT: np.ndarray, grid: tuple[int, int]) -> Image.Image:
    """A row a layer, a column a head."""
    layers, heads = image_YHT.shape[:2]
    cells = np.stack([draw_map(image_HWC, map_T, grid) for of_layer in image_YHT for map_T in of_layer])
    return draw_grid(cells, [f"layer {layer}, head {head}" for layer in range(layers) for head in range(heads)], columns=heads)


def example_questions(count: int, image_size: int, token_pixels: int) -> list[Asked]:
    """The first questions of each kind in turn, at the easiest level."""
    each = -(-count // len(KINDS))
    asked = asked_things((LEVEL,), each, image_size, token_pixels)
    return [asked[kind * each + number] for number in range(each) for kind in range(len(KINDS))][:count]


def shown_questions(asked: Sequence[Asked]) -> Captioned:
    """Every image with the named thing outlined, and its question, the word in brackets."""
    return [
        (outlined(enlarged(one.image_HWC), enlarged(one.thing_HW)), one.question.replace(one.word, f"[{one.word}]", 1))
        for one in asked
    ]


def shown_attention(
    name: str,
    model: UnifiedModel,
    tokenizer: Tokenizer,
    asked: Sequence[Asked],
    max_tokens: int,
    layer: int | None = None,
    head: int | None = None,
) -> list[Captioned]:
    """Every image under the model's attention, with the answer that it gives: at the word, then at the question's last token.

    Raises UserError: no such layer or head.
    """
    space = model.frontend.space
    with evaluation_mode(model):
        answers = answer(model, tokenizer, [(one.image_HWC, one.question) for one in asked], max_tokens)
    shown: list[Captioned] = []
    for row in ("word", "last token"):
        prompts = [row_prompt(tokenizer, space, one, row) for one in asked]
        with evaluation_mode(model):
            weights = dict(last_rows(model, prompts))
        cells = []
        for number, one in enumerate(asked):
            map_T = averaged(image_columns(weights[number], prompts[number].spans[0]), layer, head)
            picture_HWC = draw_map(one.image_HWC, map_T, space.grid(*one.image_HWC.shape[:2]))
            share = f"{map_T @ one.cover_T / map_T.sum():.0%} on it, area {one.area:.0%}"
            cells.append((outlined(picture_HWC, enlarged(one.thing_HW)), f"{name}, {row}: {share}; answer: {answers[number]}"))
        shown.append(cells)
    return shown


def draw_examples(rows: Sequence[Captioned]) -> Image.Image:
    """Rows of equal length under each other."""
    cells = [cell for row in rows for cell in row]
    return draw_grid(np.stack([image for image, _ in cells]), [caption for _, caption in cells], columns=len(rows[0]))
