"""The tiny SigLIP: it learns a pairing that can be learnt, and its retrieval measure cannot be fooled.

Shapes: B images (or captions), H W pixels, C colours.
"""

import numpy as np
import torch
from stand_ins import TINY, noise_captions
from torch import Tensor, nn

from tunalab.frontends.components.siglip import EncoderConfig, distinct, quality, text_batch, train_encoder
from tunalab.frontends.components.store import Components
from tunalab.frontends.components.training import batches

CONFIG = EncoderConfig(width=32, depth=2, heads=2, text_layers=1, steps=40, batch=16, lr=3e-3, held_out=16)


def shades(split: str, seed: int, count: int, image_size: int) -> tuple[np.ndarray, list[str]]:
    """16 flat grey images, each with its own word."""
    shade = np.arange(count) % 16
    images = np.broadcast_to((shade * 16).astype(np.uint8)[:, None, None, None], (count, image_size, image_size, 3))
    return images.copy(), [f"shade {'abcdefghijklmnop'[s]}" for s in shade]


def test_it_learns_a_pairing(components: Components) -> None:
    _, measured = train_encoder(CONFIG, components.tokenizer, shades, lambda steps: steps)
    assert measured["n"] == 16
    assert measured["image_to_text_recall_at_5"] > 2 * 5 / 16 and measured["image_to_text_recall_at_1"] > 3 / 16


class Collapsed(nn.Module):
    def forward(self, image_BCHW: Tensor, text_BL: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones(len(image_BCHW), 4) / 2, torch.ones(len(text_BL), 4) / 2


def test_a_collapsed_model_scores_nothing(components: Components) -> None:
    measured = quality(TINY.encoder, Collapsed(), components.tokenizer, noise_captions)  # type: ignore[arg-type]
    assert measured["image_to_text_recall_at_1"] == 0 and measured["image_to_text_recall_at_5"] == 0


def test_captions_become_padded_rows(components: Components) -> None:
    tokenizer = components.tokenizer
    rows_BL = text_batch(["ab", "abcdef XYZ"], tokenizer, context=6)
    assert rows_BL.shape == (2, 6)
    assert (rows_BL[:, 0] == tokenizer.bos).all()
    assert tokenizer.decode(rows_BL[0].tolist()) == "ab" and rows_BL[0, -1] == tokenizer.pad


def test_distinct_keeps_the_first_of_each_caption() -> None:
    images_BHWC = np.arange(5)[:, None, None, None] * np.ones((5, 1, 1, 3), int)
    kept_BHWC, captions = distinct(images_BHWC, ["a", "b", "a", "c", "b"])
    assert captions == ["a", "b", "c"] and kept_BHWC[:, 0, 0, 0].tolist() == [0, 1, 3]


def test_batches_are_fresh_and_repeat() -> None:
    observed = [images.tobytes() for images, _ in batches(noise_captions, 0, 4, 16, 3)]
    assert len(set(observed)) == 3
    assert observed == [images.tobytes() for images, _ in batches(noise_captions, 0, 4, 16, 3)]
    assert observed[0] != next(batches(noise_captions, 1, 4, 16, 3))[0].tobytes()
