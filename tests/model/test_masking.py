"""Which visual tokens are masked: exact counts, the law of the ratio, and never the time token."""

import pytest
import torch

from tunalab.model.masking import MaskToken, choose_mask
from tunalab.settings.schema import MaskingConfig

N, T = 4000, 16


def drawn(config: MaskingConfig, generate: bool = True, source: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    uniform, scores = torch.rand((N, 2), generator=generator), torch.rand((N, T), generator=generator)
    return choose_mask(uniform, scores, torch.full((N,), generate), torch.full((N,), source), config)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_a_fixed_ratio_masks_exactly_that_many(ratio: float) -> None:
    mask = drawn(MaskingConfig(ratio=ratio, law="fixed", probability=1.0))
    assert (mask.sum(1) == round(ratio * T)).all()
    # Every place is masked equally often.
    share = mask.float().mean(0)
    assert ((share - round(ratio * T) / T).abs() < 4 * (0.25 / N) ** 0.5).all()


def test_a_uniform_ratio_reaches_from_nothing_to_its_end() -> None:
    counts = drawn(MaskingConfig(ratio=0.5, law="uniform", probability=1.0)).sum(1)
    assert counts.min() == 0 and counts.max() == 8
    share = counts.bincount(minlength=9).float() / N
    # round(U(0, 8)): the ends get half of what the others get.
    assert ((share[1:8] - 1 / 8).abs() < 0.025).all() and ((share[[0, 8]] - 1 / 16).abs() < 0.02).all()


def test_the_count_is_that_of_the_drawn_ratio() -> None:
    ratios = torch.linspace(0, 0.99, 12)
    uniform = torch.stack([torch.zeros(12), ratios], dim=1)
    mask = choose_mask(uniform, torch.rand(12, T), torch.arange(12) >= 0, torch.arange(12) < 0, MaskingConfig(0.75))
    assert mask.sum(1).tolist() == [round(0.75 * ratio * T) for ratio in ratios.tolist()]


def test_the_lowest_scores_are_masked() -> None:
    scores = torch.rand((50, T), generator=torch.Generator().manual_seed(0))
    generate = torch.ones(50, dtype=torch.bool)
    mask = choose_mask(torch.zeros(50, 2), scores, generate, ~generate, MaskingConfig(ratio=0.25, law="fixed"))
    assert torch.equal(mask, scores <= scores.sort(dim=1).values[:, 3:4])


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_the_share_of_masked_images(probability: float) -> None:
    mask = drawn(MaskingConfig(ratio=0.5, law="fixed", probability=probability))
    assert abs(mask.any(1).float().mean().item() - probability) < 0.03


@pytest.mark.parametrize(("understanding", "generation"), [(True, False), (False, True), (False, False), (True, True)])
def test_masking_applies_where_it_is_switched_on(understanding: bool, generation: bool) -> None:
    config = MaskingConfig(ratio=0.5, law="fixed", probability=1.0, understanding=understanding, generation=generation)
    assert bool(drawn(config, generate=False).any()) == understanding
    assert bool(drawn(config, generate=True).any()) == generation
    assert not drawn(config, generate=False, source=True).any()


def test_the_token_takes_the_masked_places_alone_and_learns() -> None:
    token = MaskToken(8)
    h = torch.randn((2, T, 8), requires_grad=True)
    mask = torch.rand((2, T)) < 0.5
    out = token(h, mask)
    assert torch.equal(out[~mask], h[~mask]) and torch.equal(out[mask], token.token_D.expand(int(mask.sum()), 8))
    out.sum().backward()
    assert token.token_D.grad is not None and h.grad is not None
    assert (token.token_D.grad == mask.sum()).all()
    assert (h.grad[mask] == 0).all() and (h.grad[~mask] == 1).all()


def test_the_token_starts_at_the_size_of_a_normalised_vector_over_its_width() -> None:
    assert MaskToken(4096).token_D.norm().item() == pytest.approx(1, abs=0.1)
