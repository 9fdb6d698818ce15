"""The dense reference of the training benchmark computes the losses it is compared with."""

from collections.abc import Callable

import pytest
from tests.conftest import small_config
from tests.model.samples import plain_draws, random_batch
from tests.tolerances import assert_sums_close, model_terms

from tunalab.bench.reference import dense_losses
from tunalab.data.tokenizer import Tokenizer
from tunalab.frontends.registry import FRONTENDS
from tunalab.model.objective import losses
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import ObjectiveConfig


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
