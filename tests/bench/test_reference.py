"""The speed benchmarks at small sizes: fast and slow paths agree, and the figures are consistent. Speeds are not tested here."""

import math
from collections.abc import Callable

import pytest
from tests.conftest import small_config
from tests.model.samples import plain_draws, random_batch
from tests.tolerances import assert_sums_close, model_terms

from tunalab.bench.reference import bench_generation, bench_training, dense_losses
from tunalab.bench.run import report
from tunalab.data.tokenizer import Tokenizer
from tunalab.frontends.registry import FRONTENDS
from tunalab.model.objective import losses
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import ObjectiveConfig

Model = Callable[..., UnifiedModel]


def test_training_agrees_with_its_dense_reference(tiny_model: Model, tokenizer: Tokenizer) -> None:
    config = small_config()
    config.data.rows, config.data.row_tokens, config.data.lookahead = 1, 256, 8
    found = bench_training(tiny_model("patch_embed", config=config), config, tokenizer, repeats=1, padded=160)
    assert found["largest_relative_loss_difference"] < 1e-4
    assert found["padded_to_real_tokens"] > 1
    assert found["share_of_token_ratio"] == pytest.approx(found["speedup"] / found["padded_to_real_tokens"])
    speeds = found["images_per_second"] / found["reference_images_per_second"]
    assert speeds == pytest.approx(found["speedup"])  # one turn, one ratio


def test_generation_agrees_with_its_padded_reference(tiny_model: Model, tokenizer: Tokenizer) -> None:
    config = small_config()
    config.sampling.steps = 2
    found = bench_generation(tiny_model("patch_embed", config=config), config, tokenizer, images=2, repeats=1, padded=96)
    assert found["largest_pixel_difference"] < 1e-4
    assert (found["images"], found["tokens_per_image"]) == (2, 16)
    assert found["reference_seconds_per_image"] / found["seconds_per_image"] == pytest.approx(found["speedup"])


TRAINING = {
    "images_per_second": 100.0,
    "reference_images_per_second": 10.0,
    "speedup": 10.0,
    "padded_to_real_tokens": 5.0,
    "share_of_token_ratio": 2.0,
    "required_share": 0.95,
    "largest_relative_loss_difference": 1e-7,
}
GENERATION = {
    "speedup": 20.0,
    "required_speedup": 10.0,
    "seconds_per_image": 0.1,
    "reference_seconds_per_image": 2.0,
    "largest_pixel_difference": 1e-6,
}


@pytest.mark.parametrize(
    "worse",
    [
        {},
        {"share_of_token_ratio": 0.9},
        {"largest_relative_loss_difference": 1e-3},
        {"largest_relative_loss_difference": math.nan},
    ],
)
def test_a_training_figure_that_is_missed_is_said(worse: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    assert report({"training": TRAINING | worse}) is not bool(worse)
    assert ("MISSED" in capsys.readouterr().out) is bool(worse)


@pytest.mark.parametrize("worse", [{}, {"speedup": 9.9}, {"largest_pixel_difference": 1e-3}])
def test_a_generation_figure_that_is_missed_is_said(worse: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    assert report({"generation": GENERATION | worse}) is not bool(worse)
    assert ("MISSED" in capsys.readouterr().out) is bool(worse)


@pytest.mark.parametrize("sizes", [((32, 32),), ((32, 32), (24, 40), (40, 24))], ids=["one size", "several sizes"])
@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_every_document_by_itself_gives_the_same_losses(
    name: str, sizes: tuple[tuple[int, int], ...], tiny_model: Callable[..., UnifiedModel], tokenizer: Tokenizer
) -> None:
    model = tiny_model(name)
    batch = random_batch("cegvtge", 2, tokenizer, sizes=sizes)
    assert len(batch.groups) == len(sizes)
    draws = plain_draws(model, batch, masked=0.3)
    fast = losses(model, batch, draws, ObjectiveConfig())
    slow = dense_losses(model, batch, draws, ObjectiveConfig(), padded=80, pad=tokenizer.pad)
    for key, part in fast.items():
        assert slow[key].count == part.count > 0
        terms = model_terms(small_config(), batch.ids_BL.shape[1]) + tokenizer.vocabulary + part.count
        assert_sums_close(slow[key].sum, part.sum, terms)
