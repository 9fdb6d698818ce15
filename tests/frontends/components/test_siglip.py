"""The tiny SigLIP: it learns a pairing that can be learnt, and its retrieval measure cannot be fooled.

Shapes: B images (or captions), H W pixels, C colours.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stand_ins import TINY, noise_captions
from torch import Tensor, nn

from tunalab.frontends.components.siglip import Contrastive, EncoderConfig, distinct, quality, text_batch, train_encoder
from tunalab.frontends.components.store import Components
from tunalab.frontends.components.training import training_batch

CONFIG = EncoderConfig(width=32, depth=2, heads=2, text_layers=1, snapshots=(40,), batch=16, lr=3e-3, held_out=16)


def shades(
    split: str, seed: int, count: int, image_size: int, kinds: Sequence[str] = (), short: float = 0
) -> tuple[np.ndarray, list[str]]:
    """16 flat grey images, each with its own word."""
    shade = np.arange(count) % 16
    images = np.broadcast_to((shade * 16).astype(np.uint8)[:, None, None, None], (count, image_size, image_size, 3))
    return images.copy(), [f"shade {'abcdefghijklmnop'[s]}" for s in shade]


def test_it_learns_a_pairing(components: Components, tmp_path: Path) -> None:
    kept: list[dict[str, Any]] = []
    train_encoder(
        CONFIG,
        components.tokenizer,
        shades,
        lambda steps, tower, record: kept.append(record),
        tmp_path / "state",
        lambda steps: steps,
    )
    measured = kept[0]["quality"]
    assert measured["n"] == 16
    assert measured["image_to_text_recall_at_5"] > 2 * 5 / 16 and measured["image_to_text_recall_at_1"] > 3 / 16


class Collapsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4) / 2)

    def forward(self, image_BCHW: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        return self.weight.expand(len(image_BCHW), 4), self.weight.expand(len(captions), 4)


def test_a_collapsed_model_scores_nothing() -> None:
    measured = quality(TINY.encoder, Collapsed(), noise_captions)
    assert measured["image_to_text_recall_at_1"] == 0 and measured["image_to_text_recall_at_5"] == 0


def test_captions_become_padded_rows(components: Components) -> None:
    tokenizer = components.tokenizer
    rows_BL = text_batch([[7], [7, 8, 9]], tokenizer.pad)
    assert rows_BL.tolist() == [[7, tokenizer.pad, tokenizer.pad], [7, 8, 9]]


def test_the_text_tower_reads_each_caption_as_if_it_were_alone(components: Components) -> None:
    """Bos first, cut at ``context``; neither the order nor the lengths of the others matter."""
    torch.manual_seed(0)
    model = Contrastive(EncoderConfig(width=32, heads=2, text_layers=1, context=6), components.tokenizer).eval()
    captions = ["abcdef XYZ 123", "b", "ab", "red circle", "a b c", "", "q" * 40]
    with torch.no_grad():
        together = model.read(captions)
        alone = torch.cat([model.read([caption]) for caption in captions])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    first = [model.text(torch.tensor([[model.tokenizer.bos, *model.tokenizer.encode(captions[0])][:6]]))]
    torch.testing.assert_close(together[:1], torch.cat(first), rtol=1e-4, atol=1e-5)


def test_distinct_keeps_the_first_of_each_caption() -> None:
    images_BHWC = np.arange(5)[:, None, None, None] * np.ones((5, 1, 1, 3), int)
    kept_BHWC, captions = distinct(images_BHWC, ["a", "b", "a", "c", "b"])
    assert captions == ["a", "b", "c"] and kept_BHWC[:, 0, 0, 0].tolist() == [0, 1, 3]


def test_batches_are_fresh_and_repeat() -> None:
    def observed(seed: int) -> list[bytes]:
        return [training_batch(noise_captions, seed, step, 4, 16)[0].tobytes() for step in range(3)]

    assert len({*observed(0), *observed(1)}) == 6 and observed(0) == observed(0)
