"""The whole model on packed rows, with images of one size and of several: packed = one by one, nothing leaks, images are whole."""

from collections.abc import Callable

import pytest
import torch
from samples import TOKENS, decoder_output, documents, no_masks, of_images, pack, place, plain_draws, random_batch, spans
from tests.conftest import small_config
from tests.tolerances import assert_gradients_close, assert_sums_close, model_terms
from torch import Tensor

from tunalab.data.packing import PackedBatch
from tunalab.data.tokenizer import Tokenizer
from tunalab.frontends.registry import FRONTENDS
from tunalab.model.decoder import sincos_positions
from tunalab.model.objective import Draws, SumCount, losses, to_space
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import ObjectiveConfig

Models = Callable[..., UnifiedModel]
NAMES = sorted(FRONTENDS)
KINDS = "cvgetbgvec"
OBJECTIVE = ObjectiveConfig()


SIZES = {"one size": ((32, 32),), "several sizes": ((32, 32), (24, 40), (40, 24), (16, 48), (24, 40))}


@pytest.fixture(params=SIZES)
def batch(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> PackedBatch:
    return random_batch(KINDS, 2, tokenizer, sizes=SIZES[request.param])


@pytest.fixture
def one_size(tokenizer: Tokenizer) -> PackedBatch:
    return random_batch(KINDS, 2, tokenizer)


def gradients(model: UnifiedModel) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def total(parts: dict[str, SumCount]) -> Tensor:
    return parts["text"].sum + 0.1 * parts["flow"].sum


def outputs(model: UnifiedModel, batch: PackedBatch, draws: Draws) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the prediction of every generating image."""
    out = model(batch, draws.noise_nChw, draws.t_N, draws.mask_nT)
    return out.logits_KV, [image for group in out.prediction_mChw for image in group]


def each_image(x_nChw: list[Tensor], changed: int, value: Tensor) -> list[Tensor]:
    """``x_nChw`` with ``value`` added to one image."""
    counts, first = [], 0
    for x in x_nChw:
        x = x.clone()
        if first <= changed < first + len(x):
            x[changed - first] += value
        counts.append(x)
        first += len(x)
    return counts


def corner(x_nChw: list[Tensor], image: int, place: int) -> Tensor:
    """1 at the first (0) or last (-1) cell of an image's first channel."""
    value = torch.zeros_like([one for x in x_nChw for one in x][image])
    value[0, place, place] = 1
    return value


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("layout", ["patch", "raster"])
@pytest.mark.parametrize("name", NAMES)
def test_packed_equals_one_by_one(name: str, layout: str, sizes: str, tiny_model: Models, tokenizer: Tokenizer) -> None:
    """Logits, predictions, losses and gradients, with masks and noise."""
    model = tiny_model(name)
    model.target_layout = layout
    placed = place(documents(KINDS, sizes=SIZES[sizes]), tokenizer)
    packed = pack(placed, 2, tokenizer)
    assert len(packed.groups) == len(set(SIZES[sizes]))
    draws = plain_draws(model, packed, masked=0.3)
    logits, predictions = outputs(model, packed, draws)
    parts = losses(model, packed, draws, OBJECTIVE)
    total(parts).backward()
    expected = gradients(model)
    # Documents stand in a batch in the order of rows; images are known by their keys.
    in_order = [p for row in range(2) for p in placed[row::2]]
    number = {key: n for n, key in enumerate(packed.key_N.tolist())}
    predicted = dict(zip(packed.key_N[packed.generate_N].tolist(), predictions, strict=True))
    alone_logits, alone_predictions, sums = [], {}, {"text": 0.0, "flow": 0.0}
    counts = {"text": 0, "flow": 0}
    for one in in_order:
        alone = pack([one], 1, tokenizer)
        own = of_images(draws, [number[key] for key in alone.key_N.tolist()], packed, alone)
        out = outputs(model, alone, own)
        alone_logits.append(out[0])
        alone_predictions |= dict(zip(alone.key_N[alone.generate_N].tolist(), out[1], strict=True))
        own_parts = losses(model, alone, own, OBJECTIVE)
        total(own_parts).backward()
        for key, part in own_parts.items():
            sums[key] += part.sum.item()
            counts[key] += part.count
    terms = model_terms(small_config(), packed.ids_BL.shape[1])
    assert_sums_close(torch.cat(alone_logits), logits, terms)
    assert alone_predictions.keys() == predicted.keys()
    for key, prediction in predicted.items():
        assert_sums_close(alone_predictions[key], prediction, terms)
    for key, part in parts.items():
        assert counts[key] == part.count
        assert_sums_close(torch.tensor(sums[key]), part.sum.detach(), terms + tokenizer.vocabulary + part.count)
    every = packed.ids_BL.numel() + tokenizer.vocabulary
    assert_gradients_close(gradients(model), expected, 3 * terms + every)


@pytest.mark.parametrize("name", NAMES)
def test_backends_agree_on_the_whole_model(name: str, tiny_model: Models, batch: PackedBatch) -> None:
    model = tiny_model(name)
    draws = plain_draws(model, batch, masked=0.3)
    results = []
    for backend in ("dense", "document"):
        model.attention = backend
        logits, predictions = outputs(model, batch, draws)
        sum((image.square().mean() for image in predictions), logits.square().mean()).backward()
        results.append((logits, predictions, gradients(model)))
    terms = model_terms(small_config(), batch.ids_BL.shape[1])
    for a, b in zip([results[0][0], *results[0][1]], [results[1][0], *results[1][1]], strict=True):
        assert_sums_close(a, b, terms)
    assert_gradients_close(results[1][2], results[0][2], 3 * terms + batch.ids_BL.numel())


def text_columns(batch: PackedBatch, d: int) -> list[int]:
    """Flat indices of a document's text."""
    first, n = int(batch.start_D[d]), int(batch.length_D[d])
    span = batch.span_BL.flatten()
    return [at for at in range(first, first + n) if span[at] < 0]


@torch.no_grad()
@pytest.mark.parametrize("backend", ["dense", "document"])
def test_a_later_token_changes_nothing_earlier_and_no_other_document(backend: str, tiny_model: Models, batch: PackedBatch) -> None:
    model = tiny_model("patch_embed")
    model.attention = backend
    before = decoder_output(model, batch).flatten(0, 1)
    document = batch.document_BL.flatten()
    for d in range(len(batch.start_D)):
        columns = text_columns(batch, d)
        for at in {columns[0], columns[len(columns) // 2], columns[-1]}:
            ids = batch.ids_BL.flatten().clone()
            ids[at] = (ids[at] + 7) % 300
            changed = PackedBatch(**{**vars(batch), "ids_BL": ids.view_as(batch.ids_BL)})
            moved = (decoder_output(model, changed).flatten(0, 1) - before).abs().amax(1) > 0
            affected = (document == d) & (torch.arange(len(document)) >= at)
            assert not moved[~affected].any(), f"document {d}: a change at {at} reached {moved.nonzero().flatten().tolist()}"
            assert moved[at] and moved[affected].float().mean() > 0.9


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_pixel_changes_its_whole_span_and_what_follows(name: str, tiny_model: Models, batch: PackedBatch) -> None:
    """Also from the last corner of the image: a span is bidirectional, time token included. Earlier text never changes."""
    model = tiny_model(name)
    x = to_space(model, batch)
    before = decoder_output(model, batch, x).flatten(0, 1)
    document = batch.document_BL.flatten()
    for image in range(len(batch.generate_N)):
        changed = each_image(x, image, 0.5 * corner(x, image, -1))
        moved = (decoder_output(model, batch, changed).flatten(0, 1) - before).abs().amax(1) > 0
        span = spans(batch)[image]
        assert moved[span].all(), "every token of the span, the time token too"
        affected = (document == document[span[0]]) & (torch.arange(len(document)) >= span[0])
        assert not moved[~affected].any()
        assert moved[affected].all(), "and all that follows"


@torch.no_grad()
def test_the_time_of_an_image_reaches_its_span_only(tiny_model: Models, batch: PackedBatch) -> None:
    model = tiny_model("patch_embed")
    N = len(batch.generate_N)
    before = decoder_output(model, batch, t_N=torch.ones(N)).flatten(0, 1)
    for image in range(N):
        t = torch.ones(N)
        t[image] = 0.2
        moved = (decoder_output(model, batch, t_N=t).flatten(0, 1) - before).abs().amax(1) > 0
        span = spans(batch)[image]
        assert moved[span].all() and not moved[: span[0]].any()
        assert not moved[batch.document_BL.flatten() != batch.document_BL.flatten()[span[0]]].any()


@torch.no_grad()
def test_padding_is_attended_by_nothing(tiny_model: Models, batch: PackedBatch) -> None:
    for backend in ("dense", "document"):
        model = tiny_model("patch_embed")
        model.attention = backend
        real = batch.document_BL >= 0
        assert not real.all()
        before = decoder_output(model, batch)[real]
        changed = PackedBatch(**{**vars(batch), "ids_BL": torch.where(real, batch.ids_BL, 9)})
        assert torch.equal(decoder_output(model, changed)[real], before)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["dense", "document"])
def test_predictions_see_their_own_document_up_to_their_span(backend: str, tiny_model: Models, batch: PackedBatch) -> None:
    """The flow head keeps the decoder's rule: the prompt and the source matter, the text behind and other documents do not."""
    model = tiny_model("patch_embed")
    model.attention = backend
    draws = plain_draws(model, batch)
    _, before = outputs(model, batch, draws)
    generating = batch.generate_N.nonzero().flatten().tolist()
    document = batch.document_BL.flatten()
    for d in range(len(batch.start_D)):
        columns = text_columns(batch, d)
        for at in {columns[0], columns[len(columns) // 2], columns[-2], columns[-1]}:
            ids = batch.ids_BL.flatten().clone()
            ids[at] = (ids[at] + 7) % 300
            changed = PackedBatch(**{**vars(batch), "ids_BL": ids.view_as(batch.ids_BL)})
            _, after = outputs(model, changed, draws)
            for m, image in enumerate(generating):
                first = int(spans(batch)[image][0])
                reaches = int(document[first]) == d and at < first
                assert torch.equal(after[m], before[m]) != reaches
    # One cell of a picture's noise moves its whole prediction and no other one; a source moves the edit behind it.
    for image in range(len(batch.generate_N)):
        noise = each_image(draws.noise_nChw, image, corner(draws.noise_nChw, image, 0))
        _, after = outputs(model, batch, Draws(draws.t_N, draws.mask_nT, noise))
        own = spans(batch)[image][0]
        for m, other in enumerate(generating):
            slot = spans(batch)[other][0]
            same = document[slot] == document[own] and slot >= own
            assert bool((after[m] != before[m]).flatten(1).any(1).all()) == bool(same)


@torch.no_grad()
def test_logits_are_those_of_the_labelled_tokens(tiny_model: Models, batch: PackedBatch) -> None:
    model = tiny_model("patch_embed")
    x, t = to_space(model, batch), torch.ones(len(batch.generate_N))
    everywhere = model.decoder.lm_head(decoder_output(model, batch, x)).flatten(0, 1)
    logits_KV = model(batch, x, t, no_masks(batch)).logits_KV
    assert_sums_close(logits_KV, everywhere[batch.logit_K], model_terms(small_config(), batch.ids_BL.shape[1]))


@torch.no_grad()
def test_masked_tokens_are_not_seen(tiny_model: Models, batch: PackedBatch) -> None:
    """What a masked patch shows changes no logit and no prediction; an unmasked one does. Positions stay visible."""
    model = tiny_model("patch_embed")
    draws = plain_draws(model, batch)
    for mask in draws.mask_nT:
        mask[:, 1] = True
    before = outputs(model, batch, draws)
    for column, observed in ((8, False), (16, True)):  # of the first row of patches: token 1, token 2
        noise = [x.clone() for x in draws.noise_nChw]
        for x in noise:
            x[:, :, :8, column : column + 8] += 1
        after = outputs(model, batch, Draws(draws.t_N, draws.mask_nT, noise))
        assert torch.equal(after[0], before[0]) != observed
        assert all(torch.equal(a, b) != observed for a, b in zip(after[1], before[1], strict=True))


@torch.no_grad()
def test_positions_of_masked_tokens_stay_visible(tiny_model: Models, one_size: PackedBatch) -> None:
    model = tiny_model("patch_embed")
    (x,) = to_space(model, one_size)
    all_masked = model.visual(x, torch.ones((len(x), TOKENS), dtype=torch.bool))
    assert not torch.equal(all_masked[0, 0], all_masked[0, 1]), "sincos2d"
    model.image_positions = "none"
    all_masked = model.visual(x, torch.ones((len(x), TOKENS), dtype=torch.bool))
    assert torch.equal(all_masked, model.mask_token.token_D.expand_as(all_masked))


def test_positions_tell_rows_from_columns() -> None:
    table = sincos_positions(3, 5, 32, torch.device("cpu")).view(3, 5, 32)
    flat = table.view(15, 32)
    distances = torch.cdist(flat, flat) + 9 * torch.eye(15)
    assert distances.min() > 0.5
    assert torch.equal(table[0, :, :16], table[0, :1, :16].expand(5, 16)), "the first half is the row alone"
    assert torch.equal(table[:, 0, 16:], table[:1, 0, 16:].expand(3, 16)), "the second half is the column alone"
    assert sincos_positions(2, 2, 10, torch.device("cpu")).shape == (4, 10), "a width that is no multiple of 4"


def test_slots_and_tokens_must_match_in_number(tiny_model: Models, one_size: PackedBatch) -> None:
    model, batch = tiny_model("patch_embed"), one_size
    N = len(batch.generate_N)
    larger = torch.zeros((N, 3, 40, 40))
    with pytest.raises(ValueError, match="slots"):
        model(batch, [larger], torch.ones(N), [torch.zeros((N, 25), dtype=torch.bool)])
    with pytest.raises(ValueError, match="slots"):
        model(batch, [larger[:-1, :, :32, :32]], torch.ones(N), [torch.zeros((N - 1, TOKENS), dtype=torch.bool)])
    with pytest.raises(ValueError, match="zip"):
        model(batch, [], torch.ones(N), no_masks(batch))


def test_scatter_touches_its_slots_alone(tiny_model: Models, batch: PackedBatch) -> None:
    model = tiny_model("patch_embed")
    h = torch.zeros((*batch.ids_BL.shape, 4))
    slots = [group.span_n_1T for group in batch.groups]
    visual = [torch.randn((len(group), group.tokens, 4)) + 10 for group in batch.groups]
    time = batch.by_group(-torch.arange(1.0, len(batch.generate_N) + 1)[:, None].expand(-1, 4))
    out = model.scatter(h, slots, visual, time)
    assert (out[batch.span_BL < 0] == 0).all() and (h == 0).all()
    for span, tokens, times in zip(slots, visual, time, strict=True):
        flat = out.flatten(0, 1)[span]
        assert torch.equal(flat[:, 0], times) and torch.equal(flat[:, 1:], tokens)
    assert torch.equal(model.scatter(h, [], [], []), h), "a batch of text alone"
