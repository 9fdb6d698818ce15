"""Where the decoder looks while it reads a word of a question: softmax weights, and maps over the image made of them.

The decoder's own attention never forms weights. They are computed here from the queries and keys that it attends with, for one row:
the question is cut behind the word and everything before it encoded once, as for answering; attention is causal there, so what
follows the word changes nothing.

Shapes: B rows, Y layers, H query heads, G key-value heads, d head dimension, S tokens attended to, T visual tokens of the image,
R K rows and columns of their grid; H W C image pixels and channels.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from scipy.ndimage import binary_erosion
from torch import Tensor

from tunalab.data.sequence import ImageSpan
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.contract import TargetSpace
from tunalab.inference.prompts import Prompt, batches, encode_prefixes, question_prompt
from tunalab.model.attention import CachedAttention
from tunalab.model.decoder import hidden_states
from tunalab.model.unified import UnifiedModel


class RecordedAttention:
    """Attends to a cache as the cache itself does, one new token a row, and keeps the softmax weights of every layer.

    ``weights``: by layer, for each of the cache's groups of rows (B, H, S), the new token's own column last.
    """

    def __init__(self, cache: CachedAttention) -> None:
        self.cache = cache
        self.weights: dict[int, list[Tensor]] = {}

    def attend(self, layer: int, q_BHLd: Tensor, k_BGLd: Tensor, v_BGLd: Tensor, scale: float) -> Tensor:
        out = self.cache.attend(layer, q_BHLd, k_BGLd, v_BGLd, scale)
        groups = zip(q_BHLd.split(self.cache.group_sizes), self.cache.cache[layer], strict=True)
        self.weights[layer] = [softmax_weights(q_BH1d, k_BGSd, scale) for q_BH1d, (k_BGSd, _) in groups]
        return out


def softmax_weights(q_BH1d: Tensor, k_BGSd: Tensor, scale: float) -> Tensor:
    """(B, H, S), float32 whatever was computed in: the fused kernels do not round their scores either."""
    with torch.autocast(q_BH1d.device.type, enabled=False):
        k_BHSd = k_BGSd.float().repeat_interleave(q_BH1d.shape[1] // k_BGSd.shape[1], dim=1)
        return (scale * q_BH1d.float() @ k_BHSd.transpose(2, 3)).softmax(dim=-1)[:, :, 0]


@torch.no_grad()
def last_rows(model: UnifiedModel, prompts: Sequence[Prompt], batch_tokens: int = 4096) -> Iterator[tuple[int, np.ndarray]]:
    """What the last token of every prompt attends to: the prompt's number and weights (Y, H, S), a sum of 1 over S.

    Batch by batch, because the weights of many prompts are large; ``batch_tokens`` bounds the prompt tokens held at a time.
    """
    for numbers in batches([len(prompt.ids_L) for prompt in prompts], batch_tokens):
        before = [replace(prompts[number], ids_L=prompts[number].ids_L[:-1]) for number in numbers]
        prefixes = encode_prefixes(model, before, flow_head=False)
        row_numbers = [numbers[at] for at in prefixes.prompt_B.tolist()]
        id_B = torch.tensor([int(prompts[number].ids_L[-1]) for number in row_numbers], device=prefixes.length_B.device)
        recorded = RecordedAttention(prefixes.decoder)
        h_B1D = model.decoder.model.embed_tokens(id_B[:, None])
        hidden_states(model.decoder, h_B1D, prefixes.length_B[:, None], recorded)
        of_rows = iter(row_numbers)
        for of_layers in zip(*(recorded.weights[layer] for layer in sorted(recorded.weights)), strict=True):
            for weights_YHS in torch.stack(of_layers, dim=1).cpu().numpy():
                yield next(of_rows), weights_YHS


def cut_prompt(tokenizer: Tokenizer, space: TargetSpace, pixels_HWC: np.ndarray, question: str, tokens: int) -> Prompt:
    """``bos boi [time][patches] eoi question``, cut behind so many tokens of the question, at least one.

    Raises UserError: the space does not cut the image exactly.
    """
    prompt = question_prompt(tokenizer, space, pixels_HWC, question)
    span, ids = prompt.spans[0], tokenizer.encode(question)
    behind_image = span.offset + span.length + 1
    # Within turns of a chat a line ends between the image and the question.
    first = next(at for at in range(behind_image, len(prompt.ids_L)) if prompt.ids_L[at : at + len(ids)].tolist() == ids)
    return replace(prompt, ids_L=prompt.ids_L[: first + tokens])


def tokens_through(tokenizer: Tokenizer, question: str, word: str) -> int:
    """How many tokens of the question are read when the word has been, where it first stands: as a word, else within another one.

    The last of them is the first token that contains the word; of a word of several tokens it is the last, before which nobody can
    know the word. Raises UserError, naming the tokens, when the question does not hold the word.
    """
    ids = tokenizer.encode(question)
    text, pattern = tokenizer.decode(ids), re.escape(word.strip())
    found = re.search(rf"(?<!\w){pattern}(?!\w)", text) or re.search(pattern, text)
    if not pattern or found is None:
        pieces = " | ".join(tokenizer.decode([token]) for token in ids)
        raise UserError(f"the word {word!r} does not occur in the question (its tokens: {pieces})")
    read = text[: found.end()]
    return next(count for count in range(1, len(ids) + 1) if tokenizer.decode(ids[:count]).startswith(read))


def image_columns(weights_YHS: np.ndarray, span: ImageSpan) -> np.ndarray:
    """The weights of the image's visual tokens (Y, H, T), without that of its time token."""
    return weights_YHS[..., span.offset + 1 : span.offset + span.length]


def averaged(image_YHT: np.ndarray, layer: int | None = None, head: int | None = None) -> np.ndarray:
    """A map (T): the mean over all layers and heads, or over the heads of one layer, or of one head of it.

    Raises UserError for a layer or head that there is not, or a head without a layer.
    """
    layers, heads = image_YHT.shape[:2]
    if head is not None and layer is None:
        raise UserError(f"head {head} of which layer? Heads of different layers have nothing in common (layers: 0 to {layers - 1})")
    for what, number, count in (("layer", layer, layers), ("head", head, heads)):
        if number is not None and not 0 <= number < count:
            raise UserError(f"{what} {number} is not there (choices: 0 to {count - 1})")
    chosen = image_YHT if layer is None else image_YHT[layer : layer + 1]
    chosen = chosen if head is None else chosen[:, head : head + 1]
    return np.asarray(chosen.mean(axis=(0, 1)))


def min_max(map_T: np.ndarray) -> np.ndarray:
    """Scaled to reach from 0 to 1; a constant map, which prefers nothing, is 0 everywhere."""
    low, high = map_T.min(), map_T.max()
    return np.zeros_like(map_T) if high == low else (map_T - low) / (high - low)


# Maps, drawn over the image that they belong to.

SIDE = 192  # pixels that small images are enlarged to, or nearly: an overlay of 32 pixels shows nothing
STRENGTH = 0.5  # of the map; the rest is the image


def draw_map(image_HWC: np.ndarray, map_T: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A map over the grid (rows, columns) of an image, scaled to its own range, over the image, enlarged."""
    return overlay(enlarged(image_HWC), min_max(map_T).reshape(grid))


def enlarged(image_HWC: np.ndarray) -> np.ndarray:
    """A small image, or mask (H, W), a whole number of times as large, each pixel a square."""
    scale = max(1, round(SIDE / max(image_HWC.shape[:2])))
    return image_HWC.repeat(scale, axis=0).repeat(scale, axis=1)


def overlay(image_HWC: np.ndarray, map_RK: np.ndarray) -> np.ndarray:
    """A map of values between 0 and 1, enlarged bilinearly, in the colours of ``jet`` over the image: uint8 (H, W, 3)."""
    height, width = image_HWC.shape[:2]
    map_11RK = torch.from_numpy(np.ascontiguousarray(map_RK, dtype=np.float32))[None, None]
    map_HW = F.interpolate(map_11RK, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
    heat_HWC = 255 * colormaps["jet"](map_HW)[..., :3]
    return np.rint(STRENGTH * heat_HWC + (1 - STRENGTH) * image_HWC).astype(np.uint8)


def outlined(image_HWC: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """The image with the edge of a mask in white, and a black line within it: visible on any colour."""
    drawn_HWC = image_HWC.copy()
    inner_HW = binary_erosion(mask_HW, iterations=2)
    drawn_HWC[mask_HW & ~inner_HW] = 255
    drawn_HWC[inner_HW & ~binary_erosion(inner_HW)] = 0
    return drawn_HWC
