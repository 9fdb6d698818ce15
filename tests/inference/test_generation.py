from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.conftest import small_config
from tests.tolerances import assert_sums_close, model_terms

from tunalab.bench.reference import reference_sample
from tunalab.data.documents import Document, Image
from tunalab.data.sequence import to_sequence
from tunalab.errors import UserError
from tunalab.frontends.contract import TargetSpace
from tunalab.frontends.registry import FRONTENDS
from tunalab.inference import generation
from tunalab.inference.generation import noise_of, sample, sample_images
from tunalab.inference.prompts import build_prompt, edit_prompt, edit_sampling, image_prompt, unconditional_prompt
from tunalab.settings.schema import ObjectiveConfig, SamplingConfig

TEXTS = ["a red ring", "on white: large yellow ring top right, blue cross a1", "on black: pink word MT b2", "a blue square", ""]
OBJECTIVE = ObjectiveConfig()
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # of float64


def _shape(model):
    """Of an image of 32 px in the model's target space."""
    space = model.frontend.space
    return space.channels, 32 // space.stride, 32 // space.stride


def _prompts(model, tokenizer, texts=TEXTS):
    space = model.frontend.space
    return [image_prompt(tokenizer, space, text) for text in texts], image_prompt(tokenizer, space, "")


@pytest.mark.usefixtures("all_float64")
@pytest.mark.parametrize("name", sorted(FRONTENDS))
@pytest.mark.parametrize(
    ("method", "guidance", "prediction", "layout"),
    [("heun", 2.0, "x", "patch"), ("euler", 1.0, "v", "patch"), ("heun", 0.0, "v", "patch"), ("euler", 3.5, "x", "raster")],
)
def test_prefix_cache_equals_padded_sequences_run_again(name, method, guidance, prediction, layout, tiny_model, tokenizer):
    model = tiny_model(name).double()
    model.target_layout = layout
    prompts, plain = _prompts(model, tokenizer)
    sampling = SamplingConfig(method=method, steps=4, guidance=guidance)
    objective = ObjectiveConfig(prediction=prediction, noise_scale=1.5)
    noise = noise_of(range(len(prompts)), _shape(model)).double()
    fast = sample(model, prompts, [plain] * len(prompts), noise, sampling, objective)
    slow = reference_sample(model, prompts, [plain] * len(prompts), noise, sampling, objective, padded=96)
    torch.testing.assert_close(fast, slow, **CLOSE)
    assert (fast - objective.noise_scale * noise).abs().max() > 0.1, "the model moved the noise"


def test_batched_equals_single_and_the_seed_decides(tiny_model, tokenizer):
    model = tiny_model("patch_embed")
    prompts, plain = _prompts(model, tokenizer)
    sampling = SamplingConfig(steps=3)
    noise = noise_of([5, 6, 5, 7, 8], (3, 32, 32))
    together = sample(model, prompts, [plain] * 5, noise, sampling, OBJECTIVE)
    for n, prompt in enumerate(prompts):
        alone = sample(model, [prompt], [plain], noise[n : n + 1], sampling, OBJECTIVE)
        evaluations = 2 * sampling.steps  # one after the other
        assert_sums_close(together[n : n + 1], alone, evaluations * model_terms(small_config(), 64))
    images = sample_images(model, prompts, plain, (32, 32), sampling, OBJECTIVE, [5, 6, 5, 7, 8])
    assert images.dtype == np.uint8 and images.shape == (5, 32, 32, 3)
    small = sample_images(model, prompts, plain, (32, 32), sampling, OBJECTIVE, [5, 6, 5, 7, 8], batch_tokens=90)
    assert np.abs(images.astype(int) - small).max() <= 1, "at most a rounding of 1 / 255"
    assert np.array_equal(images, generation.to_pixels(model, together))
    same = sample_images(model, [prompts[0]] * 3, plain, (32, 32), sampling, OBJECTIVE, [5, 6, 5])
    assert np.array_equal(same[0], same[2]) and not np.array_equal(same[0], same[1])


@pytest.mark.usefixtures("all_float64")
@pytest.mark.parametrize("layout", ["patch", "raster"])
@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_images_that_are_not_square(name, layout, tiny_model, tokenizer):
    """Also where they differ in shape from the images of the prompt, and these from each other."""
    model = tiny_model(name).double()
    model.target_layout = layout
    space = model.frontend.space
    rng = np.random.default_rng(0)
    square, wide, high = (rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((32, 32), (24, 48), (40, 16)))
    several = [build_prompt(tokenizer, space, [wide, "and", high, text], before_image=True) for text in ("join", "mix them")]
    prompts = [image_prompt(tokenizer, space, TEXTS[1]), edit_prompt(tokenizer, space, square, "remove the ring"), *several]
    plain = [image_prompt(tokenizer, space, "")] * 4
    sampling = SamplingConfig(steps=2)
    noise = noise_of(range(4), (space.channels, 16 // space.stride, 40 // space.stride)).double()
    fast = sample(model, prompts, plain, noise, sampling, OBJECTIVE)
    slow = reference_sample(model, prompts, plain, noise, sampling, OBJECTIVE, padded=96)
    torch.testing.assert_close(fast, slow, **CLOSE)
    assert (fast - noise).abs().amax((1, 2, 3)).min() > 0.1, "the model moved the noise"
    turned = build_prompt(tokenizer, space, [wide.transpose(1, 0, 2).copy(), "and", high, "join"], before_image=True)
    assert not torch.equal(sample(model, [turned], plain[:1], noise[2:3], sampling, OBJECTIVE)[0], fast[2])


def test_a_size_that_tokens_do_not_cut_is_refused(tiny_model, tokenizer):
    model = tiny_model("patch_embed")
    prompts, plain = _prompts(model, tokenizer, TEXTS[:2])
    sampling = SamplingConfig(steps=2)
    images = sample_images(model, prompts, plain, (16, 40), sampling, OBJECTIVE, [0, 1])
    assert images.shape == (2, 16, 40, 3)
    with pytest.raises(UserError, match="33x32"):
        sample_images(model, prompts, plain, (33, 32), sampling, OBJECTIVE, [0, 1])


def test_only_branches_that_count_are_run(tiny_model, tokenizer, monkeypatch):
    model = tiny_model("patch_embed")
    prompts, plain = _prompts(model, tokenizer)
    rows: list[int] = []
    whole = generation.hidden_states
    monkeypatch.setattr(generation, "hidden_states", lambda d, h, p, b: rows.append(len(h)) or whole(d, h, p, b))
    noise = noise_of(range(5), (3, 32, 32))
    for guidance, expected in ((0.0, 5), (1.0, 5), (2.0, 10)):
        rows.clear()
        sample(model, prompts, [plain] * 5, noise, SamplingConfig("euler", 3, guidance), OBJECTIVE)
        assert rows == [expected] * 3
    rows.clear()
    sample(model, prompts, [plain] * 5, noise, SamplingConfig("heun", 3, 1.0), OBJECTIVE)
    assert len(rows) == 5, "two evaluations an interval, one in the last"


@pytest.mark.usefixtures("all_float64")
def test_guidance_edge_values(tiny_model, tokenizer):
    model = tiny_model("patch_embed").double()
    prompts, plain = _prompts(model, tokenizer)
    noise = noise_of(range(5), (3, 32, 32)).double()
    at = {g: sample(model, prompts, [plain] * 5, noise, SamplingConfig("euler", 1, g), OBJECTIVE) for g in (0.0, 1.0, 3.0)}
    # One Euler step is linear in the prediction, so guidance extrapolates exactly.
    torch.testing.assert_close(at[3.0], at[0.0] + 3 * (at[1.0] - at[0.0]), **CLOSE)
    torch.testing.assert_close(at[0.0][4], at[1.0][4])  # the empty prompt is the unconditional branch
    assert (at[0.0][0] - at[1.0][0]).abs().max() > 1e-3, "the prompt matters"


def test_equal_prompts_are_encoded_once(tiny_model, tokenizer, monkeypatch):
    from tunalab.inference import prompts as prefix

    model = tiny_model("patch_embed")
    prompts, plain = _prompts(model, tokenizer)
    encoded: list[int] = []
    whole = prefix.hidden_states
    monkeypatch.setattr(prefix, "hidden_states", lambda d, h, p, b: encoded.append(len(h)) or whole(d, h, p, b))
    sample(model, [prompts[0]] * 4, [plain] * 4, noise_of(range(4), (3, 32, 32)), SamplingConfig("euler", 2, 2.0), OBJECTIVE)
    assert encoded == [1, 1]


@pytest.mark.usefixtures("all_float64")
@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_editing_reads_the_source_image(name, tiny_model, tokenizer):
    model = tiny_model(name).double()
    space = model.frontend.space
    sources = list(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))
    texts = ["remove the red ring", "make the cross small", "remove the ring"]
    prompts = [edit_prompt(tokenizer, space, source, text) for source, text in zip(sources, texts, strict=True)]
    plain = [build_prompt(tokenizer, space, [source], before_image=True) for source in sources]
    sampling = SamplingConfig(steps=3, guidance=2.0)
    noise = noise_of(range(3), _shape(model)).double()
    fast = sample(model, prompts, plain, noise, sampling, OBJECTIVE)
    slow = reference_sample(model, prompts, plain, noise, sampling, OBJECTIVE, padded=80)
    torch.testing.assert_close(fast, slow, **CLOSE)
    other = [edit_prompt(tokenizer, space, 255 - source, text) for source, text in zip(sources, texts, strict=True)]
    assert (sample(model, other, plain, noise, sampling, OBJECTIVE) - fast).abs().max() > 1e-3


@pytest.mark.usefixtures("all_float64")
@pytest.mark.parametrize("chat", ["none", "qwen_all"])
@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_edits_are_guided_from_the_source_and_the_negative_prompt(name, chat, tiny_model, chat_tokenizer):
    """Cached as uncached, batched as single; by the formula of guidance, from a branch of source and negative prompt."""
    model, tokenizer = tiny_model(name).double(), chat_tokenizer.with_chat(chat)
    space = model.frontend.space
    sources = list(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))
    texts = ["remove the red ring", "make the cross small", "remove the ring"]
    prompts = [edit_prompt(tokenizer, space, source, text) for source, text in zip(sources, texts, strict=True)]
    own = SamplingConfig("euler", 1, 4.0, "a blurred cross", 2.5)
    start = [unconditional_prompt(tokenizer, space, own, source) for source in sources]
    negatives = [edit_prompt(tokenizer, space, source, "a blurred cross") for source in sources]
    assert [one.content for one in start] == [one.content for one in negatives]
    sampling = edit_sampling(own)
    noise = noise_of(range(3), _shape(model)).double()
    fast = sample(model, prompts, start, noise, sampling, OBJECTIVE)
    slow = reference_sample(model, prompts, start, noise, sampling, OBJECTIVE, padded=256)
    torch.testing.assert_close(fast, slow, **CLOSE)
    alone = [sample(model, prompts[n : n + 1], start[n : n + 1], noise[n : n + 1], sampling, OBJECTIVE) for n in range(3)]
    torch.testing.assert_close(torch.cat(alone), fast, **CLOSE)
    unguided = replace(sampling, guidance=1.0)  # one Euler step is linear in the prediction
    requests, led_away = (sample(model, one, one, noise, unguided, OBJECTIVE) for one in (prompts, negatives))
    torch.testing.assert_close(fast, led_away + 2.5 * (requests - led_away), **CLOSE)
    assert (requests - led_away).abs().max() > 1e-3


def test_without_a_guidance_of_their_own_edits_are_guided_as_before(tokenizer):
    space = TargetSpace(3, 1, 8)
    source = np.zeros((32, 32, 3), dtype=np.uint8)
    plain, negative = SamplingConfig(guidance=3.0), SamplingConfig(guidance=3.0, negative_prompt="a ring")
    for image in (None, source):
        empty = unconditional_prompt(tokenizer, space, plain, image)
        assert empty.ids_L.tolist() == [tokenizer.bos, tokenizer.boi] and not empty.spans
        named = unconditional_prompt(tokenizer, space, negative, image)
        assert named.ids_L.tolist() == image_prompt(tokenizer, space, "a ring").ids_L.tolist()
    assert edit_sampling(plain) == plain
    of_edits = replace(negative, edit_guidance=2.0)
    assert edit_sampling(of_edits).guidance == 2.0
    assert unconditional_prompt(tokenizer, space, of_edits).ids_L.tolist() == named.ids_L.tolist(), "images are no edits"
    copied = to_sequence(Document("edit", (Image(source), Image(source, generate=True))), tokenizer, 8)
    without = unconditional_prompt(tokenizer, space, replace(of_edits, negative_prompt=""), source).ids_L
    assert without.tolist() == copied.ids_L[: len(without)].tolist(), "the source alone"


def test_noise_is_a_function_of_the_seed():
    assert torch.equal(noise_of([3, 4, 9], (2, 2))[1], noise_of([4], (2, 2))[0])
    assert not torch.equal(noise_of([3], (2, 2)), noise_of([4], (2, 2)))
