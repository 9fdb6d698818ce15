"""What is exported computes what the run computed, and stands alone."""

from pathlib import Path

import pytest
import torch
from tests.model.samples import random_batch
from torch import Tensor

from tunalab.exporting import Loaded, load_exported, load_run
from tunalab.exporting.export import export_run
from tunalab.model.objective import to_space


def outputs(loaded: Loaded) -> tuple[Tensor, Tensor]:
    """Logits and predictions of a batch of every kind of document."""
    batch = random_batch("cvget", 1, loaded.tokenizer)
    generator = torch.Generator().manual_seed(0)
    x = to_space(loaded.model, batch)
    x = x + torch.randn(x.shape, generator=generator)
    t_N = torch.where(batch.generate_N, 0.4, 1.0)
    with torch.no_grad():
        output = loaded.model(batch, x, t_N, torch.zeros(batch.span_N_1T[:, 1:].shape, dtype=torch.bool))
    return output.logits_KV, output.prediction_MChw


@pytest.mark.parametrize("raw", [False, True], ids=["averaged", "raw"])
def test_an_export_computes_what_the_run_computed_bit_for_bit(run_dir: Path, tmp_path: Path, raw: bool, monkeypatch) -> None:
    export_run(run_dir, tmp_path / "out", raw)
    expected = outputs(load_run(run_dir, raw=raw))
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(tmp_path / "nothing"))
    loaded = load_exported(tmp_path / "out")
    for one, other in zip(outputs(loaded), expected, strict=True):
        assert torch.equal(one, other)
