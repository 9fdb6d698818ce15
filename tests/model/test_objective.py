"""What is drawn for a batch, and its losses: edges, sums and counts, and that they train."""

from collections.abc import Callable

import pytest
import torch
from samples import TOKENS, documents, pack, place, plain_draws, random_batch
from tests.tolerances import assert_sums_close

from tunalab.data.packing import ImageGroup, PackedBatch, Placed, collate
from tunalab.data.sequence import TokenSequence
from tunalab.data.tokenizer import Tokenizer
from tunalab.frontends.contract import TargetSpace
from tunalab.frontends.registry import FRONTENDS
from tunalab.model import flow
from tunalab.model.objective import draw, flow_loss, loss_counts, losses, noised, source_images, to_space
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import MaskingConfig, ObjectiveConfig

Models = Callable[..., UnifiedModel]
PIXELS, LATENT = TargetSpace(3, 1, 8), TargetSpace(4, 8, 1)
ONE_CELL = TargetSpace(1, 32, 1)
MIXED = ((32, 32), (24, 40), (40, 24))
NAMES = sorted(FRONTENDS)


def by_key(batch: PackedBatch, values: torch.Tensor | list[torch.Tensor]) -> dict[int, torch.Tensor]:
    each = values if isinstance(values, torch.Tensor) else [image for group in values for image in group]
    return dict(zip(batch.key_N.tolist(), each, strict=True))


def test_draws_are_a_function_of_an_images_place_in_the_stream(tokenizer: Tokenizer) -> None:
    """Independent of how documents were batched, and the times and masks of the target space too."""
    placed = place(documents("cvgetgve", sizes=MIXED), tokenizer)
    objective = ObjectiveConfig()
    whole = pack(placed, 1, tokenizer)
    turned = pack([placed[at] for at in (5, 2, 7, 0, 1, 3, 6, 4)], 3, tokenizer)
    draws = draw(whole, objective, 7, PIXELS, masking=True)
    other = draw(turned, objective, 7, PIXELS, masking=True)
    assert whole.key_N.tolist() != turned.key_N.tolist() and len(whole.groups) == 3
    assert any(mask.any() for mask in draws.mask_nT)
    for a, b in ((draws.t_N, other.t_N), (draws.mask_nT, other.mask_nT), (draws.noise_nChw, other.noise_nChw)):
        theirs = by_key(turned, b)
        assert all(torch.equal(value, theirs[key]) for key, value in by_key(whole, a).items())
    latent = draw(whole, objective, 7, LATENT, masking=True)
    assert torch.equal(latent.t_N, draws.t_N) and all(map(torch.equal, latent.mask_nT, draws.mask_nT))
    seeded = draw(whole, objective, 8, PIXELS, masking=True)
    assert not torch.equal(seeded.t_N, draws.t_N) and not torch.equal(seeded.noise_nChw[0], draws.noise_nChw[0])


def test_what_chooses_x_is_drawn_last_and_by_place_too(tokenizer: Tokenizer) -> None:
    placed = place(documents("cvgetgve", sizes=MIXED), tokenizer)
    whole = pack(placed, 1, tokenizer)
    turned = pack([placed[at] for at in (5, 2, 7, 0, 1, 3, 6, 4)], 3, tokenizer)
    plain = draw(whole, ObjectiveConfig(), 7, LATENT, masking=True)
    draws, other = (draw(batch, ObjectiveConfig(), 7, LATENT, masking=True, posterior=True) for batch in (whole, turned))
    assert plain.posterior_nChw is None and torch.equal(plain.t_N, draws.t_N)
    for before, now in ((plain.mask_nT, draws.mask_nT), (plain.noise_nChw, draws.noise_nChw)):
        assert all(map(torch.equal, before, now)), "earlier runs draw what they drew"
    assert draws.posterior_nChw is not None and other.posterior_nChw is not None
    theirs = by_key(turned, other.posterior_nChw)
    assert all(torch.equal(value, theirs[key]) for key, value in by_key(whole, draws.posterior_nChw).items())
    assert not any(map(torch.equal, draws.posterior_nChw, draws.noise_nChw))
    single = draw(many(tokenizer, True), ObjectiveConfig(), 0, ONE_CELL, masking=False, posterior=True)
    assert single.posterior_nChw is not None
    columns = torch.stack([single.posterior_nChw[0].flatten(), single.noise_nChw[0].flatten(), single.t_N.logit()])
    assert (columns.corrcoef() - torch.eye(3)).abs().max() < 0.1
    assert abs(columns[0].mean()) < 0.1 and abs(columns[0].std() - 1) < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_training_sees_the_draw_of_a_posterior(name: str, tiny_model: Models, tokenizer: Tokenizer) -> None:
    """As target, as source and as what is looked at; a front-end of one x an image refuses noise."""
    model = tiny_model(name)
    batch = random_batch("cvgegt", 1, tokenizer, sizes=MIXED)
    draws = draw(batch, ObjectiveConfig(), 0, model.frontend.space, masking=True, posterior=True)
    if not hasattr(model.frontend, "vae"):
        with pytest.raises(NotImplementedError, match="has one x an image"):
            losses(model, batch, draws, ObjectiveConfig())
        return
    mean, drawn = to_space(model, batch), to_space(model, batch, draws.posterior_nChw)
    assert draws.posterior_nChw is not None
    for x, other, noise in zip(mean, drawn, draws.posterior_nChw, strict=True):
        assert ((other - x) * noise > 0).all(), "the deviation is positive, and as large for any noise"
        torch.testing.assert_close(to_space(model, batch, [torch.zeros_like(n) for n in draws.posterior_nChw])[0], mean[0])
    given = losses(model, batch, draws, ObjectiveConfig(), drawn)
    for key, loss in losses(model, batch, draws, ObjectiveConfig()).items():
        assert torch.equal(loss.sum, given[key].sum)
        assert not torch.equal(loss.sum, losses(model, batch, draws, ObjectiveConfig(), mean)[key].sum)


def test_times_fall_with_the_size_of_an_image_alone(tokenizer: Tokenizer) -> None:
    batch = random_batch("cgegtg", 2, tokenizer, sizes=MIXED)
    plain = draw(batch, ObjectiveConfig(), 0, PIXELS, masking=True)
    shifted = draw(batch, ObjectiveConfig(time_shift=0.05), 0, PIXELS, masking=True)
    tokens_N = torch.cat([torch.full((len(group),), group.tokens) for group in batch.groups])
    fall = torch.where(batch.generate_N, 0.05 * tokens_N, 0)
    generated = batch.generate_N
    torch.testing.assert_close((plain.t_N.logit() - shifted.t_N.logit())[generated], fall[generated])
    assert torch.equal(plain.t_N[~generated], shifted.t_N[~generated])


def test_draws_leave_the_global_generator_alone(tokenizer: Tokenizer) -> None:
    batch = random_batch("ge", 1, tokenizer)
    before = torch.get_rng_state()
    draw(batch, ObjectiveConfig(), 0, PIXELS, masking=True)
    assert torch.equal(torch.get_rng_state(), before)


def many(tokenizer: Tokenizer, generate: bool, n: int = 1500) -> PackedBatch:
    """A batch of which only the keys and kinds of images matter."""
    batch = random_batch("g", 1, tokenizer)
    pixels = torch.zeros((n, 32, 32, 3), dtype=torch.uint8)
    generate_N = torch.full((n,), generate)
    group = ImageGroup(batch.groups[0].span_n_1T.expand(n, -1), pixels)
    parts = {"key_N": torch.arange(n), "generate_N": generate_N, "groups": [group]}
    return PackedBatch(**{**vars(batch), **parts})


def test_draws_follow_their_laws(tokenizer: Tokenizer) -> None:
    objective = ObjectiveConfig(understanding_noise=0.3, masking=MaskingConfig(ratio=0.5, probability=0.4))
    generated = draw(many(tokenizer, True), objective, 0, ONE_CELL, masking=True)
    logit = generated.t_N.logit()
    assert abs(logit.mean() - objective.time_mean) < 0.1 and abs(logit.std() - objective.time_std) < 0.1
    assert abs(generated.noise_nChw[0].mean()) < 0.05 and abs(generated.noise_nChw[0].std() - 1) < 0.05
    assert abs(generated.mask_nT[0].any(1).float().mean() - 0.4 * 7.5 / 8) < 0.06  # a small ratio may round to no token
    # Time, mask and noise are drawn independently of each other.
    columns = torch.stack([logit, generated.mask_nT[0].float().mean(1), generated.noise_nChw[0].mean((1, 2, 3))])
    assert (columns.corrcoef() - torch.eye(3)).abs().max() < 0.1
    looked_at = draw(many(tokenizer, False), objective, 0, ONE_CELL, masking=True)
    assert abs((looked_at.t_N < 1).float().mean() - 0.3) < 0.05
    noisy, masked = looked_at.t_N < 1, looked_at.mask_nT[0].float().mean(1)
    assert torch.stack([noisy.float(), masked]).corrcoef()[0, 1].abs() < 0.1
    assert torch.stack([looked_at.t_N[noisy], masked[noisy]]).corrcoef()[0, 1].abs() < 0.15
    assert 0.9 <= looked_at.t_N.min() < 0.91 and looked_at.t_N.max() == 1
    clean = draw(many(tokenizer, False), ObjectiveConfig(understanding_noise=0), 0, ONE_CELL, masking=False)
    assert (clean.t_N == 1).all() and not clean.mask_nT[0].any()


def test_the_source_of_an_edit_is_clean_and_whole(tokenizer: Tokenizer) -> None:
    """Every other image that is looked at may be masked and noised; a target may always."""
    always = ObjectiveConfig(understanding_noise=1.0, masking=MaskingConfig(ratio=0.5, law="fixed", probability=1.0))
    for rows, sizes in ((1, ((32, 32),)), (3, MIXED)):
        batch = random_batch("ecegve", rows, tokenizer, sizes=sizes)
        draws = draw(batch, always, 0, PIXELS, masking=True)
        source = source_images(batch)
        assert source.sum() == 3 and not (source & batch.generate_N).any()
        masked_N = torch.cat([mask.any(1) for mask in draws.mask_nT])
        assert (draws.t_N[source] == 1).all() and not masked_N[source].any()
        assert (draws.t_N[~source] < 1).all() and masked_N[~source].all()


@pytest.mark.parametrize("prediction", ["x", "v"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_exact_prediction_has_no_flow_loss(prediction: str, scale: float, tokenizer: Tokenizer) -> None:
    objective = ObjectiveConfig(prediction=prediction, noise_scale=scale)
    batch = random_batch("gcgeg", 1, tokenizer, sizes=MIXED)
    draws = draw(batch, objective, 0, PIXELS, masking=True)
    x = [torch.randn(noise.shape, generator=torch.Generator().manual_seed(0)) for noise in draws.noise_nChw]
    g, tokens_N = batch.generate_N, torch.cat([torch.full((len(group),), group.tokens) for group in batch.groups])
    exact = [
        flow.target(image[g_n], noise[g_n], prediction, scale)
        for image, noise, g_n in zip(x, draws.noise_nChw, batch.by_group(g), strict=True)
    ]
    loss = flow_loss(exact, x, batch, draws, objective)
    assert loss.sum.item() == 0 and loss.count == tokens_N[g].sum() == loss_counts(batch)["flow"]
    # Off by one everywhere: the velocity's squared error, token by token.
    weight_N = (1 - draws.t_N).clamp(min=objective.min_one_minus_t) ** -2 if prediction == "x" else torch.ones(len(g))
    off = [image + 1 for image in exact]
    for chosen in (None, torch.arange(len(g)) % 2 == 0):
        loss = flow_loss(off, x, batch, draws, objective, chosen)
        counted = g if chosen is None else g & chosen
        assert loss.count == tokens_N[counted].sum()
        assert loss.sum.item() == pytest.approx(
            (tokens_N * weight_N)[counted].sum().item(), rel=1e-4
        )  # roundings are divided by 1 - t


def test_text_loss_is_the_cross_entropy_of_the_labels(tiny_model: Models, tokenizer: Tokenizer) -> None:
    model = tiny_model("patch_embed")
    batch = random_batch("cvt", 2, tokenizer)
    draws = plain_draws(model, batch)
    x = to_space(model, batch)
    logits = model(batch, noised(batch, x, draws.noise_nChw, draws.t_N, 1.0), draws.t_N, draws.mask_nT).logits_KV
    expected = -logits.log_softmax(-1)[torch.arange(len(batch.label_K)), batch.label_K].sum()
    parts = losses(model, batch, draws, ObjectiveConfig())
    assert_sums_close(parts["text"].sum, expected, logits.shape[0] + logits.shape[1])
    assert parts["text"].count == len(batch.label_K) and parts["flow"].count == 0 and parts["flow"].sum.item() == 0
    given = losses(model, batch, draws, ObjectiveConfig(), x)
    assert torch.equal(given["text"].sum, parts["text"].sum)


def edge(kind: str, tokenizer: Tokenizer) -> PackedBatch:
    if kind == "single token":
        one = Placed(0, TokenSequence("text", torch.tensor([5]).numpy(), torch.tensor([False]).numpy(), ()))
        return collate([[one], place(documents("g"), tokenizer)], 64, tokenizer.pad)
    if kind == "nothing but one token":
        one = Placed(0, TokenSequence("text", torch.tensor([5]).numpy(), torch.tensor([False]).numpy(), ()))
        return collate([[one]], 8, tokenizer.pad)
    kinds = {"no generation": "cvt", "no text target": "geb", "all masked": "cge", "text alone": "tt", "no target at all": "bb"}
    return random_batch(kinds[kind], 1, tokenizer)


EDGES = ["no generation", "no text target", "all masked", "text alone", "no target at all", "single token", "nothing but one token"]


@pytest.mark.parametrize("kind", EDGES)
@pytest.mark.parametrize("name", NAMES)
def test_edges_are_finite_and_empty_sets_count_nothing(kind: str, name: str, tiny_model: Models, tokenizer: Tokenizer) -> None:
    model = tiny_model(name)
    batch = edge(kind, tokenizer)
    draws = plain_draws(model, batch, masked=1.1 if kind == "all masked" else 0.3)
    assert kind != "all masked" or all(mask.all() for mask in draws.mask_nT)
    parts = losses(model, batch, draws, ObjectiveConfig())
    counts = loss_counts(batch)
    assert counts == {key: part.count for key, part in parts.items()}
    assert counts["text"] == len(batch.label_K) and counts["flow"] == TOKENS * int(batch.generate_N.sum())
    for part in parts.values():
        assert torch.isfinite(part.sum) and (part.sum.item() == 0) == (part.count == 0)
    (parts["text"].sum + parts["flow"].sum).backward()
    found = {parameter: p.grad for parameter, p in model.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    if not any(counts.values()):
        assert not any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kinds", ["t", "cv"])
def test_draws_and_shapes_of_batches_that_generate_nothing(name: str, kinds: str, tiny_model: Models, tokenizer: Tokenizer) -> None:
    model = tiny_model(name)
    batch = random_batch(kinds, 1, tokenizer)
    draws = draw(batch, ObjectiveConfig(), 0, model.frontend.space, masking=True)
    assert [x.shape for x in to_space(model, batch)] == [noise.shape for noise in draws.noise_nChw]
    assert torch.isfinite(losses(model, batch, draws, ObjectiveConfig())["text"].sum)


@pytest.mark.parametrize("prediction", ["x", "v"])
@pytest.mark.parametrize("name", NAMES)
def test_steps_lower_both_losses_and_reach_every_trained_part(
    prediction: str, name: str, tiny_model: Models, tokenizer: Tokenizer
) -> None:
    """One batch, its draws fixed; overfitting further is left to the training tests."""
    model = tiny_model(name).train()
    objective = ObjectiveConfig(prediction=prediction)
    batch = random_batch("cvget", 2, tokenizer)
    draws = plain_draws(model, batch, masked=0.3)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=3e-3)
    x = to_space(model, batch)
    history: list[dict[str, float]] = []
    for step in range(8):
        parts = losses(model, batch, draws, objective, x)
        history.append({key: (part.sum / part.count).item() for key, part in parts.items()})
        sum(part.sum / part.count for part in parts.values()).backward()  # type: ignore[union-attr]
        if step == 0:
            assert all(p.grad is not None and p.grad.any() for p in trained.values()), "no trained parameter is left out"
        optimizer.step()
        optimizer.zero_grad()
    assert history[-1]["text"] < history[0]["text"] and history[-1]["flow"] < history[0]["flow"]
