import numpy as np
import pytest
import torch
from tests.pretend import claim, pretended_cuda
from torch import Tensor

from tunalab.bench import reference as reference
from tunalab.bench.reference import reference_answer
from tunalab.data.sequence import ImageSpan
from tunalab.errors import UserError
from tunalab.frontends.registry import FRONTENDS
from tunalab.inference.attention import (
    RecordedAttention,
    averaged,
    cut_prompt,
    image_columns,
    last_rows,
    min_max,
    softmax_weights,
    tokens_through,
)
from tunalab.inference.prompts import question_prompt
from tunalab.model.attention import CachedAttention, Layout, may_attend

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # of float64


def word_prompt(tokenizer, space, image, question, word):
    return cut_prompt(tokenizer, space, image, question, tokens_through(tokenizer, question, word))


class EagerAttention:
    """Softmax over whole masked rows, by the formula, with the weights kept: (B, H, L, L) of every layer."""

    kept: list[Tensor] = []

    def __init__(self, layout: Layout) -> None:
        self.mask_B1LL = may_attend(layout.document_BL, layout.span_BL)[:, None]
        type(self).kept = []

    def attend(self, layer: int, q_BHLd: Tensor, k_BGLd: Tensor, v_BGLd: Tensor, scale: float) -> Tensor:
        times = q_BHLd.shape[1] // k_BGLd.shape[1]
        k, v = k_BGLd.repeat_interleave(times, dim=1), v_BGLd.repeat_interleave(times, dim=1)
        scores = (scale * q_BHLd @ k.transpose(2, 3)).masked_fill(~self.mask_B1LL, float("-inf"))
        self.kept.append(scores.softmax(dim=-1))
        return (self.kept[-1] @ v).transpose(1, 2)


@pytest.mark.usefixtures("all_float64")
@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_weights_are_those_of_a_dense_pass_over_the_whole_question(name, tiny_model, tokenizer, monkeypatch):
    model = tiny_model(name).double()
    space = model.frontend.space
    images = list(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))
    images.append(np.concatenate([images[0][:16, :16], images[1][:16, :16]], axis=1))
    requests = [
        (images[0], "what colour is the ring?", "ring"),
        (images[1], "where is the red ring from the blue cross?", "cross"),
        (images[2], "what shape is red?", "red"),
        (images[0], "what colour is the cross?", "cross"),
        (images[3], "is the ring red or blue?", "is"),
    ]
    prompts = [word_prompt(tokenizer, space, *one) for one in requests]
    found = dict(last_rows(model, prompts))
    assert sorted(found) == list(range(5))
    monkeypatch.setattr(reference, "DenseAttention", EagerAttention)
    for number, (image, question, word) in enumerate(requests):
        whole = question_prompt(tokenizer, space, image, question)
        reference_answer(model, whole, 1)
        row = len(prompts[number].ids_L) - 1
        assert tokenizer.decode([whole.ids_L[row]]) == word
        expected_YHL = torch.cat(EagerAttention.kept)[:, :, row].detach().numpy()
        assert not expected_YHL[..., row + 1 :].any(), "what follows the word is not seen"
        np.testing.assert_allclose(found[number], expected_YHL[..., : row + 1], **CLOSE)
    alone = dict(last_rows(model, prompts, batch_tokens=1))
    for number, weights in found.items():
        np.testing.assert_allclose(alone[number], weights, **CLOSE)


@pytest.mark.usefixtures("all_float64")
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_weights_give_the_layers_output(heads, kv_heads):
    """Two groups of rows of different lengths; heads share keys."""
    options = {"generator": torch.Generator().manual_seed(0), "dtype": torch.float64}
    sizes, lengths, d = [2, 1], [5, 9], 8
    cache = CachedAttention(sizes)
    cache.cache = {
        0: [tuple(torch.randn(2, B, kv_heads, L, d, **options)) for B, L in zip(sizes, lengths, strict=True)]  # type: ignore[misc]
    }
    recorded = RecordedAttention(cache)
    q, k, v = (torch.randn(3, n, 1, d, **options) for n in (heads, kv_heads, kv_heads))
    out_B1Hd = recorded.attend(0, q, k, v, 0.3)
    first = 0
    for group, size in enumerate(sizes):
        weights_BHS, values_BGSd = recorded.weights[0][group], cache.cache[0][group][1]
        assert weights_BHS.shape == (size, heads, lengths[group] + 1)
        torch.testing.assert_close(weights_BHS.sum(-1), torch.ones(size, heads).double())
        rebuilt = torch.einsum("bhs,bhsd->bhd", weights_BHS, values_BGSd.repeat_interleave(heads // kv_heads, dim=1))
        torch.testing.assert_close(rebuilt, out_B1Hd[first : first + size, 0], **CLOSE)
        first += size


def test_known_weights():
    """Keys at right angles: a query along one of them attends there; one at right angles to all attends everywhere alike."""
    k_BGSd = torch.eye(5)[None, None, :4]
    q_BH1d = torch.stack([100 * torch.eye(5)[2], torch.eye(5)[4]])[None, :, None]
    expected = torch.tensor([[[0.0, 0.0, 1.0, 0.0], [0.25] * 4]])
    torch.testing.assert_close(softmax_weights(q_BH1d, k_BGSd, 1.0), expected)
    half = softmax_weights(q_BH1d.bfloat16(), k_BGSd.bfloat16(), 1.0)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected)


def test_the_time_token_is_no_column_of_the_image():
    weights_YHS = np.arange(9.0)[None, None]  # bos boi time 1 2 3 4 eoi word
    span = ImageSpan(2, 5, np.zeros((16, 16, 3), dtype=np.uint8), generate=False)
    assert image_columns(weights_YHS, span).tolist() == [[[3, 4, 5, 6]]]


def test_a_cut_prompt_ends_with_its_last_token(tiny_model, tokenizer):
    space = tiny_model("patch_embed").frontend.space
    image, question = np.zeros((32, 32, 3), dtype=np.uint8), "what colour is the ring?"
    whole = question_prompt(tokenizer, space, image, question)
    ids = tokenizer.encode(question)
    assert cut_prompt(tokenizer, space, image, question, len(ids)).ids_L.tolist() == whole.ids_L.tolist()
    assert tokenizer.decode([cut_prompt(tokenizer, space, image, question, 1).ids_L[-1]]) == "what"
    assert tokenizer.decode([word_prompt(tokenizer, space, image, question, "ring").ids_L[-1]]) == "ring"


def test_a_word_is_found_within_turns(tiny_model, chat_tokenizer):
    space, question = tiny_model("patch_embed").frontend.space, "what colour is the ring?"
    prompt = word_prompt(chat_tokenizer, space, np.zeros((32, 32, 3), dtype=np.uint8), question, "ring")
    read = chat_tokenizer.encode(question)[: tokens_through(chat_tokenizer, question, "ring")]
    assert prompt.ids_L[-len(read) :].tolist() == read
    assert chat_tokenizer.decode(prompt.ids_L[: -len(read)].tolist()).endswith("user\n \n"), "a turn, its image, a line"


@pytest.mark.parametrize(
    ("question", "word", "read"),
    [
        ("what colour is the ring?", "what", "what"),
        ("what colour is the ring?", "ring", "what colour is the ring"),
        ("what colour is the ring?", " ring ", "what colour is the ring"),
        ("where is the ring from the ring?", "ring", "where is the ring"),  # the first of two
        ("how many rings, and is a ring red?", "ring", "how many rings, and is a ring"),  # as a word before as a part of one
        ("is the cross red?", "re", "is the cross red"),  # the token that contains it
        ("what colour is the zyzzyva?", "zyzzyva", "what colour is the zyzzyva"),  # several tokens: the last of them
        ("is this WORD red?", "WORD", "is this WORD"),
        ("is the café red?", "café", "is the café"),
        ("where is the ring?", "?", "where is the ring?"),
    ],
)
def test_tokens_read_with_the_word(question, word, read, tokenizer):
    count = tokens_through(tokenizer, question, word)
    ids = tokenizer.encode(question)
    assert tokenizer.decode(ids[:count]) == read
    assert not tokenizer.decode(ids[: count - 1]).startswith(read)


def test_words_of_several_tokens_are_in_the_test_above(tokenizer):
    assert all(len(tokenizer.encode(word)) > 2 for word in ("zyzzyva", "WORD", "café"))


@pytest.mark.parametrize("word", ["dog", "", "  ", "Ring", "."])
def test_a_word_that_is_not_there_names_the_tokens(word, tokenizer):
    with pytest.raises(
        UserError, match=r"the word '.*' does not occur in the question \(its tokens: what \| colour \| is \| the \| ring \| \?\)"
    ):
        tokens_through(tokenizer, "what colour is the ring?", word)


def test_averages_over_layers_and_heads():
    image_YHT = np.zeros((2, 3, 4))
    image_YHT[1, 2, 3] = 0.6
    image_YHT[1, 0, 1] = 0.3
    np.testing.assert_allclose(averaged(image_YHT), [0, 0.05, 0, 0.1])
    np.testing.assert_allclose(averaged(image_YHT, 1), [0, 0.1, 0, 0.2])
    np.testing.assert_allclose(averaged(image_YHT, 1, 2), [0, 0, 0, 0.6])
    np.testing.assert_allclose(averaged(image_YHT, 0), 0)


@pytest.mark.parametrize(
    ("layer", "head", "message"),
    [
        (2, None, r"layer 2 is not there \(choices: 0 to 1\)"),
        (-1, None, r"layer -1 is not there"),
        (0, 3, r"head 3 is not there \(choices: 0 to 2\)"),
        (None, 0, r"head 0 of which layer\? .*layers: 0 to 1"),
    ],
)
def test_layers_and_heads_that_are_not_there(layer, head, message):
    with pytest.raises(UserError, match=message):
        averaged(np.zeros((2, 3, 4)), layer, head)


def test_maps_reach_from_0_to_1():
    np.testing.assert_allclose(min_max(np.array([0.2, 0.6, 0.3])), [0, 1, 0.25])
    assert min_max(np.full(4, 0.7)).tolist() == [0, 0, 0, 0]


@pytest.mark.usefixtures("all_float64")
def test_weights_on_a_device_that_is_not_the_cpu(tiny_model, tokenizer, monkeypatch):
    model = tiny_model("patch_embed").double()
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    prompts = [word_prompt(tokenizer, model.frontend.space, image, "what colour is the ring?", "ring") for image in images]
    expected = dict(last_rows(model, prompts))
    with pretended_cuda(monkeypatch):
        claim(model)
        found = dict(last_rows(model, prompts))
    for number, weights in expected.items():
        np.testing.assert_allclose(found[number], weights, **CLOSE)
