"""Parameters of the full-scale models against the published numbers."""

from functools import cache
from pathlib import Path

import pytest
import torch
from tests.variants import FULL_SCALE

from tunalab.model.unified import UnifiedModel, build_model
from tunalab.planning.memory import FRONT_END, parts, totals, trained_in
from tunalab.settings.loading import load_config
from tunalab.training.optimisation import learnt_parameters

ROOT = Path(__file__).parents[2]
# The checkpoints' own numbers of parameters: 7.61 and 1.54 billion on their pages, 6.53 and 1.31 without embeddings.
QWEN = {"paper_7b": 7_615_616_512, "paper_1_5b": 1_543_714_304}
QWEN_WITHOUT_EMBEDDINGS = {"paper_7b": 6.53e9, "paper_1_5b": 1.31e9}


@cache
def full_scale(experiment: str, variant: str) -> UnifiedModel:
    config = load_config(ROOT / f"experiments/{experiment}.yaml", ROOT / f"variants/{variant}.yaml", [])
    with torch.device("meta"):
        return build_model(config, None, config.decoder.vocabulary)


@pytest.mark.parametrize("experiment", list(QWEN))
def test_the_decoder_is_the_published_one(experiment: str) -> None:
    model = full_scale(experiment, "tuna2")
    counts = parts(model)
    decoder = {name: count.trained for name, count in counts.items() if name.startswith("decoder: ")}
    assert sum(decoder.values()) == sum(p.numel() for p in model.decoder.parameters()) == QWEN[experiment]
    assert decoder["decoder: layers"] == pytest.approx(QWEN_WITHOUT_EMBEDDINGS[experiment], rel=2e-3)
    assert ("decoder: output table" in decoder) == (experiment == "paper_7b"), "1.5B has one table for both"


@pytest.mark.parametrize("variant", FULL_SCALE)
def test_the_7b_models_train_about_12_6_billion(variant: str) -> None:
    """7.6 of the decoder, 5.0 of the flow head in blocks of 313 million; an encoder of 0.4 comes on top."""
    model = full_scale("paper_7b", variant)
    counts, total = parts(model), totals(model)
    assert counts["flow head: blocks"].trained == pytest.approx(5.0e9, rel=2e-3)
    assert counts["flow head: blocks"].trained / len(model.head.blocks) == pytest.approx(313e6, rel=1e-3)
    front_end = sum(count.trained for name, count in counts.items() if name.startswith(FRONT_END))
    assert total.trained - front_end == pytest.approx(12.6e9, rel=0.01)
    # An encoder that stays as it was is averaged and stored like what learns, and planned so: too much, never too little.
    assert total.trained == sum(p.numel() for p in learnt_parameters(model).values())
    assert total.trained + total.frozen == sum(p.numel() for p in model.parameters())
    assert total.in_blocks == sum(p.numel() for part in (model.decoder.model.layers, model.head.blocks) for p in part.parameters())


@pytest.mark.parametrize("variant", FULL_SCALE)
def test_the_1_5b_models_have_the_flow_head_of_tunas(variant: str) -> None:
    """40 blocks, 2.47 billion, of 24 and 8 heads of 64 with qk-norm, SwiGLU and six vectors of adaLN.

    Tokens are of 768 pixels or 48 latent channels.
    """
    model = full_scale("paper_1_5b", variant)
    counts, total = parts(model), totals(model)
    width, query, key, mlp = 1536, 24 * 64, 8 * 64, 8960
    attention = 2 * width * query + 2 * width * key + 2 * 64
    assert counts["flow head: blocks"].trained == 40 * (attention + 3 * width * mlp + 2 * width + 6 * (width**2 + width))
    space = model.frontend.space
    assert (space.token_pixels, space.token_dim) == (16, 48 if space.stride > 1 else 768)
    assert counts["flow head: output"].trained == width + 2 * (width**2 + width) + (width + 1) * space.token_dim
    front_end = sum(count.trained for name, count in counts.items() if name.startswith(FRONT_END))
    assert total.trained - front_end == pytest.approx(QWEN["paper_1_5b"] + 2.47e9, rel=5e-3)
    assert (front_end > 4e8) == hasattr(model.frontend, "encoder"), "SigLIP 2 So400M"


def test_front_ends_are_those_of_the_paper() -> None:
    tuna2 = parts(full_scale("paper_7b", "tuna2"))
    # A convolution of 16 x 16 x 3 numbers to 3584 with its bias, and an RMSNorm.
    assert sum(count.trained for name, count in tuna2.items() if name.startswith(FRONT_END)) == 768 * 3584 + 3584 + 3584
    width, blocks = 1152, 26
    # A block of SigLIP So400M: attention and an MLP of 4304 with biases, two LayerNorms.
    block = 4 * width**2 + 4 * width + 2 * width * 4304 + 4304 + width + 4 * width
    tuna_r, tuna = full_scale("paper_7b", "tuna_r"), full_scale("paper_7b", "tuna")
    for model in (tuna_r, tuna):
        assert len(model.frontend.encoder.blocks) == blocks
        encoder = parts(model)[FRONT_END + "encoder"]
        assert encoder.trained == blocks * block + 24 * 24 * width, "and a grid of positions for 384 px"
        # RMSNorm, Linear(1152, 3584), GELU, Linear(3584, 3584).
        assert parts(model)[FRONT_END + "connector"].trained == width + width * 3584 + 3584 + 3584**2 + 3584
    assert (tuna.frontend.space.channels, tuna.frontend.space.stride, tuna.frontend.space.patch) == (48, 16, 1)
    vae = parts(tuna)[FRONT_END + "vae"]
    assert vae.trained == 0 and vae.frozen > 5e8
    assert totals(tuna).frozen == vae.frozen and totals(tuna_r).frozen == 0


def test_the_two_front_ends_that_the_paper_lacks_are_of_its_size() -> None:
    """Patches of 768 numbers to 3584 through the 128 of JiT-B/16; and the 48 channels of Tuna's VAE straight to 3584."""
    width = 3584
    counts = {variant: parts(full_scale("paper_7b", variant)) for variant in ("bottleneck", "vae_latents", "tuna")}
    trained = {
        variant: sum(count.trained for name, count in found.items() if name.startswith(FRONT_END))
        for variant, found in counts.items()
    }
    assert trained["bottleneck"] == 768 * 128 + (128 + 1) * width + width
    assert trained["vae_latents"] == (48 + 1) * width + width
    assert counts["vae_latents"][FRONT_END + "vae"] == counts["tuna"][FRONT_END + "vae"]


def test_stages_train_what_they_say() -> None:
    config = load_config(ROOT / "experiments/paper_7b.yaml", ROOT / "variants/tuna.yaml", [])
    model = full_scale("paper_7b", "tuna")
    counts, total = parts(model), totals(model)
    new = counts[FRONT_END + "connector"].trained + counts[FRONT_END + "patch embedding"].trained
    assert trained_in(model, config.stages["connector"], config.optimizer) == new
    assert trained_in(model, config.stages["pretrain"], config.optimizer) == total.trained
    assert trained_in(model, config.stages["sft"], config.optimizer) == total.trained
