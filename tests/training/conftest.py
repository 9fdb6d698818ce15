"""Whole runs on components that were hardly trained: structure is what these tests need, not quality."""

from functools import cache
from pathlib import Path

import pytest

from tests.variants import SETTINGS
from tunalab.frontends.components.build import PARTS, Recipe, TokenizerConfig, train_components
from tunalab.frontends.components.siglip import EncoderConfig
from tunalab.frontends.components.vae import VaeConfig
from tunalab.settings.loading import from_plain
from tunalab.settings.schema import REVISION, RunConfig

MIX = {"scenes/caption": 0.2, "scenes/vqa": 0.4, "scenes/text_to_image": 0.2, "scenes/edit": 0.1, "scenes/text": 0.1}
QUICK = Recipe(
    tokenizer=TokenizerConfig(texts=500, vocabulary=400),
    vae=VaeConfig(latent_channels=4, width=16, steps=2, batch=4, start_images=64, held_out=8),
    encoder=EncoderConfig(snapshots=(2,), batch=4, width=32, heads=2, held_out=8),
)


@cache
def built(base: Path) -> Path:
    """Once a session: of a fixture that is imported, pytest makes one for each file that imports it."""
    root = base / "quick_components"
    train_components(root / "tiny", PARTS, QUICK, lambda line: None)
    return root


@pytest.fixture(scope="session")
def quick_components(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For TUNALAB_COMPONENTS: a collection of the name "tiny", which stands before the one that comes with the package."""
    return built(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def use_quick_components(quick_components: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(quick_components))


@pytest.fixture(params=list(SETTINGS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def quick_config(variant: str = "tuna2", **changes: object) -> RunConfig:
    """Three stages of a few steps, two small evaluations; ``changes`` are dotted keys with __ for the dots."""
    plain: dict[str, object] = {
        "revision": REVISION,
        "variant": variant,
        "checkpoint_seconds": 1e9,
        "data": {"rows": 1, "row_tokens": 256, "lookahead": 12},
        "frontend": dict(SETTINGS[variant]),
        "decoder": {"width": 32, "layers": 2, "mlp": 48},
        "head": {"blocks": 1, "head_dim": 16, "heads": 2, "kv_heads": 1, "mlp": 48},
        "optimizer": {"warmup_steps": 2},
        "stages": {
            "connector": {"tokens": 700, "train": "connector", "mix": MIX},
            "pretrain": {"tokens": 1500, "masking": True, "mix": MIX},
            "sft": {"tokens": 500, "lr": 5e-4, "mix": {"scenes/vqa": 1.0}},
        },
        "objective": {"masking": {"start": 0.3}},
        "sampling": {"steps": 2},
        "evaluation": {
            "points": 2,
            "first": 0.5,
            "levels": [1],
            "groups": 4,
            "easy_vqa": 0,
            "loss_documents": 4,
            "psnr_images": 2,
            "psnr_times": [0.5],
            "sample_prompts": 2,
            "max_answer_tokens": 3,
        },
        "tracking": {"enabled": False},
    }
    for key, value in changes.items():
        node: dict[str, object] = plain
        *path, last = key.split("__")
        for part in path:
            node = node.setdefault(part, {})  # type: ignore[assignment]
        node[last] = value
    return from_plain(plain)
