"""Parity with the official models on tiny configurations: every golden tensor, to 1e-5, by way of conversion and export.

What it holds in place: attention rule, positions of decoder and head, time token, adaLN, connector, target layout.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.official.golden import FOLDER, NAMES, Picture, run
from torch import Tensor

from tunalab.trained.model import Model

TASKS = ("t2i", "mmu")
EXACT = {"rtol": 0.0, "atol": 1e-5}


class Visited(Mapping[str, np.ndarray]):
    """A file of tensors that remembers which of them were looked at."""

    def __init__(self, path: Path) -> None:
        self.tensors = dict(np.load(path))
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> np.ndarray:
        self.seen.add(key)
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_every_file_is_used() -> None:
    of_scorers = {"dpg.json", "lmms_rules.json"}
    assert sorted({path.name for path in FOLDER.iterdir()} - of_scorers) == sorted(
        f"{name}.{kind}" for name in NAMES for kind in ("json", "npz")
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_golden_tensor(name: str, golden_model: Callable[[str], Model]) -> None:
    loaded = golden_model(name)
    model = loaded.model
    assert loaded.config.objective.target_layout == model.target_layout == ("patch" if name == "tuna" else "raster")
    golden = Visited(FOLDER / f"{name}.npz")
    for task in TASKS:
        offset, length = golden[f"{task}/span"].tolist()
        x_Chw, (t,) = torch.from_numpy(golden[f"{task}/x_t"])[0], golden[f"{task}/t"].tolist()
        rows, columns = model.grid(x_Chw[None])
        assert length == 1 + rows * columns
        picture = Picture(offset, x_Chw, t, generate=True)
        expected = {key: torch.from_numpy(golden[f"{task}/{key}"]) for key in ("input_embeds", "logits_last6", "prediction")}
        for backend in ("dense", "document"):
            model.attention = backend
            outputs = run(model, golden[f"{task}/tokens"], [picture], token_pixels=16)
            close(outputs.embeds_LD[None], expected["input_embeds"])
            close(outputs.logits_LV[None, -6:], expected["logits_last6"])
            close(outputs.predictions[0][None], expected["prediction"])
    assert set(golden) - golden.seen == set()


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, **EXACT)
