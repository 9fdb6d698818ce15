"""A whole run on files of several shapes beside drawn squares: every variant reads, trains, counts and ends alike."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from tests.training.conftest import quick_config
from tests.variants import SETTINGS
from tunalab.data.packing import PackedBatch
from tunalab.model.objective import SumCount, losses
from tunalab.model.unified import UnifiedModel
from tunalab.training import module
from tunalab.training.run import train

SHAPES = [(40, 24), (24, 40), (32, 32), (100, 70), (64, 160)]  # the last two: turned into buckets of 32 px


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, str]:
    rng = np.random.default_rng(0)
    lines = []
    for n, (height, width) in enumerate(SHAPES):
        PillowImage.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{n}.png")
        lines.append({"raw_image": f"{n}.png", "out_image": f"{(n + 1) % len(SHAPES)}.png", "instruction": "turn it"})
        lines.append({"image": f"{n}.png", "caption": "a red ring"})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"path": str(tmp_path / "data.jsonl"), "kind": "text_to_image"}


@pytest.mark.slow
def test_every_variant_trains_on_the_same_images_of_several_sizes(
    manifest: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[list[tuple[int, int]]] = []

    def noting(model: UnifiedModel, batch: PackedBatch, *rest: Any) -> dict[str, SumCount]:
        sizes.append([group.size for group in batch.groups])
        return losses(model, batch, *rest)

    monkeypatch.setattr(module, "losses", noting)
    runs = []
    for variant in SETTINGS:
        config = quick_config(
            variant,
            data__buckets=["32x32", "24x40", "40x24"],
            data__manifests={"mine": manifest},
            stages={"only": {"tokens": 1200, "masking": True, "mix": {"manifest/mine": 0.8, "scenes/caption": 0.2}}},
        )
        sizes.clear()
        assert train(config, tmp_path / variant) == 0
        record = json.loads((tmp_path / variant / "record.json").read_text())
        assert record["points"][-1]["losses"] and np.isfinite(record["points"][-1]["flops"])
        assert not (tmp_path / variant / "rejects.jsonl").exists()
        runs.append(([(point["tokens"], point["steps"], point["images"]) for point in record["points"]], list(sizes)))
    trained_on = runs[0][1]
    assert {size for batch in trained_on for size in batch} == {(32, 32), (24, 40), (40, 24)}
    assert all(len(batch) > 1 for batch in trained_on), "one packed row, images of several sizes"
    assert all(run == runs[0] for run in runs)
