"""Beyond what the golden files exercise: non-square images, grouped heads, two image spans, images of two sizes.

The slow reference first shows that it is the official model, on the golden tensors; then it is what ours must equal.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from tests.official.golden import FOLDER, NAMES, Picture, golden_checkpoint, golden_weight, run, shapes
from tests.official.reference import Image, Reference, Sizes
from torch import Tensor

from tunalab.trained.convert import convert_to_tunalab
from tunalab.trained.model import Model, load

GOLDEN_SIZES = Sizes(heads=4, kv_heads=2, head_heads=4, head_kv_heads=2, encoder_heads=2, patch=16)
EXACT = {"rtol": 0.0, "atol": 1e-5}


def sizes(name: str, **changes: int) -> Sizes:
    return Sizes(**{**vars(GOLDEN_SIZES), "patch": 1 if name == "tuna" else 16, **changes})


def picture(name: str, offset: int, grid: tuple[int, int], t: float, generate: bool) -> Picture:
    """A random x of ``grid`` visual tokens."""
    channels, patch = (48, 1) if name == "tuna" else (3, 16)
    generator = torch.Generator().manual_seed(offset)
    return Picture(offset, torch.randn((channels, grid[0] * patch, grid[1] * patch), generator=generator), t, generate)


def sequence(pictures: Sequence[Picture], text: Sequence[int], patch: int) -> tuple[np.ndarray, list[Picture]]:
    """bos, then text and pictures by turns, eos; the pictures with their offsets. Token 3 opens an image, 4 closes it."""
    tokens, placed = [1], []
    for number, length in enumerate(text):
        tokens += [20 + 31 * (number + i) % 1900 for i in range(length)]
        if number < len(pictures):
            tokens.append(3)
            item = pictures[number]
            slots = 1 + (item.x_Chw.shape[1] // patch) * (item.x_Chw.shape[2] // patch)
            placed.append(Picture(len(tokens), item.x_Chw, item.t, item.generate))
            tokens += [6] * slots + [4]
    return np.array([*tokens, 2]), placed


def compare(loaded: Model, reference: Reference, tokens: np.ndarray, pictures: Sequence[Picture]) -> None:
    ours = run(loaded.model, tokens, pictures, token_pixels=16)
    embeds, logits, predictions = reference(tokens.tolist(), [Image(p.offset, p.x_Chw, p.t) for p in pictures])
    close(ours.embeds_LD, embeds)
    close(ours.logits_LV, logits)
    expected = [prediction for prediction, item in zip(predictions, pictures, strict=True) if item.generate]
    assert len(ours.predictions) == len(expected) > 0
    for one, other in zip(ours.predictions, expected, strict=True):
        close(one, other)


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours.double(), expected, **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_the_official_model(name: str) -> None:
    golden = np.load(FOLDER / f"{name}.npz")
    reference = Reference(golden_checkpoint(name), sizes(name))
    for task in ("t2i", "mmu"):
        offset = int(golden[f"{task}/span"][0])
        image = Image(offset, torch.from_numpy(golden[f"{task}/x_t"])[0], float(golden[f"{task}/t"][0]))
        embeds, logits, (prediction,) = reference(golden[f"{task}/tokens"].tolist(), [image])
        for made, key in ((embeds, "input_embeds"), (logits[-6:], "logits_last6"), (prediction, "prediction")):
            torch.testing.assert_close(made.float()[None], torch.from_numpy(golden[f"{task}/{key}"]), **EXACT)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", [(2, 5), (3, 1)], ids=["wide", "tall"])
def test_an_image_that_is_not_square(name: str, grid: tuple[int, int], golden_model: Callable[[str], Model]) -> None:
    tokens, pictures = sequence([picture(name, 7, grid, 0.3, True)], [4, 2], sizes(name).patch)
    compare(golden_model(name), Reference(golden_checkpoint(name), sizes(name)), tokens, pictures)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", [(2, 3), (3, 2)], ids=["of one size", "of two sizes"])
def test_two_images_source_and_target_of_an_edit(name: str, target: tuple[int, int], golden_model: Callable[[str], Model]) -> None:
    source = picture(name, 1, (2, 3), 1.0, False)
    tokens, pictures = sequence([source, picture(name, 2, target, 0.6, True)], [0, 3, 0], sizes(name).patch)
    compare(golden_model(name), Reference(golden_checkpoint(name), sizes(name)), tokens, pictures)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kv_heads", [1, 4], ids=["all queries share one", "each its own"])
def test_grouped_heads(name: str, kv_heads: int, settings_of: Callable[[str], list[str]], tmp_path) -> None:
    """Keys and values of another number of heads, in decoder and flow head."""
    rows = 64 * kv_heads
    official = {
        parameter: golden_weight(parameter, [rows, *shape[1:]] if _is_key_or_value(parameter) else shape)
        for parameter, shape in shapes(name).items()
    }
    torch.save(official, tmp_path / "official.pt")
    convert_to_tunalab(tmp_path / "official.pt", tmp_path / "ours", None, None, settings_of(name), lambda line: None)
    loaded = load(tmp_path / "ours", "cpu")
    assert (loaded.config.decoder.kv_heads, loaded.config.head.kv_heads) == (kv_heads, kv_heads)
    tokens, pictures = sequence([picture(name, 5, (2, 2), 0.5, True)], [3, 1], sizes(name).patch)
    compare(loaded, Reference(official, sizes(name, kv_heads=kv_heads, head_kv_heads=kv_heads)), tokens, pictures)


def _is_key_or_value(parameter: str) -> bool:
    grouped = parameter.startswith(("tuna.model.layers.", "diffusion_head_a."))
    return grouped and (".k_proj." in parameter or ".v_proj." in parameter)
