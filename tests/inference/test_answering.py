import numpy as np
import pytest
import torch

from tunalab.bench.reference import reference_answer, reference_likelihood
from tunalab.data.documents import Document, Image, Text
from tunalab.data.sequence import to_sequence
from tunalab.frontends.registry import FRONTENDS
from tunalab.inference.prompts import (
    answer,
    answer_prompts,
    answers_and_likelihoods,
    batches,
    edit_prompt,
    image_prompt,
    question_prompt,
)

MAX_TOKENS = 6


def _images(count: int, size: int = 32) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


@pytest.fixture()
def questions() -> list[tuple[np.ndarray | None, str]]:
    texts = ["what word is this?", "how many rings?", "what colour is the ring?", "is the cross red?", "describe it", "A"]
    requests: list[tuple[np.ndarray | None, str]] = [(image, texts[n % 6]) for n, image in enumerate(_images(14))]
    requests += [(None, "the ring is"), (None, "3 rings and"), requests[3]]
    wide = np.concatenate(_images(2, 16), axis=1)
    return [*requests, (_images(1, 16)[0], texts[0]), (wide, texts[0]), (requests[0][0], texts[1])]


@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_batched_cached_answers_are_those_of_full_forward_passes(name, tiny_model, tokenizer, questions):
    model = tiny_model(name)
    # eos is made likely, so that rows leave the batch at different steps.
    prompts = [question_prompt(tokenizer, model.frontend.space, *question) for question in questions]
    expected = [reference_answer(model, prompt, MAX_TOKENS) for prompt in prompts]
    eos = expected[0][2]
    expected = [ids[: ids.index(eos)] if eos in ids else ids for ids in expected]
    assert len({len(ids) for ids in expected}) > 1 and len({tuple(ids) for ids in expected}) > 3
    assert answer_prompts(model, prompts, MAX_TOKENS, eos) == expected
    assert answer_prompts(model, prompts, MAX_TOKENS, eos, batch_tokens=70) == expected
    assert [answer_prompts(model, [prompt], MAX_TOKENS, eos)[0] for prompt in prompts] == expected


@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_likelihoods_of_options_are_those_of_full_forward_passes(name, tiny_model, tokenizer, questions):
    model = tiny_model(name)
    prompts = [question_prompt(tokenizer, model.frontend.space, *question) for question in questions]
    words = ["red", "blue", "rings and crosses", "ring", "top left red", "7"]
    options = [[tokenizer.encode(word) for word in words[: number % 5]] for number in range(len(prompts))]
    eos = tokenizer.eos
    expected = [[reference_likelihood(model, prompt, ids) for ids in those] for prompt, those in zip(prompts, options, strict=True)]
    for batch_tokens in (4096, 70):
        answers, found = answers_and_likelihoods(model, prompts, options, MAX_TOKENS, eos, batch_tokens)
        assert answers == answer_prompts(model, prompts, MAX_TOKENS, eos)
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert max(len(ids) for those in options for ids in those) > 1 and min(value for row in expected for value in row) < -0.1


def test_in_turns_too_answers_are_those_of_full_forward_passes(tiny_model, chat_tokenizer, questions):
    model = tiny_model("patch_embed")
    prompts = [question_prompt(chat_tokenizer, model.frontend.space, *question) for question in questions]
    expected = [reference_answer(model, prompt, MAX_TOKENS) for prompt in prompts]
    eos = expected[0][2]
    expected = [ids[: ids.index(eos)] if eos in ids else ids for ids in expected]
    assert answer_prompts(model, prompts, MAX_TOKENS, eos) == expected
    assert [answer_prompts(model, [prompt], MAX_TOKENS, eos)[0] for prompt in prompts] == expected
    plain = question_prompt(chat_tokenizer.with_chat("none"), model.frontend.space, *questions[0])
    assert len(prompts[0].ids_L) > len(plain.ids_L) and prompts[0].ids_L.tolist().count(chat_tokenizer.eos) == 2


def test_answers_are_decoded_text_and_do_not_change(tiny_model, tokenizer, questions):
    model = tiny_model("patch_embed")
    first = answer(model, tokenizer, questions, MAX_TOKENS)
    assert first == answer(model, tokenizer, questions, MAX_TOKENS)
    ids = reference_answer(model, question_prompt(tokenizer, model.frontend.space, *questions[0]), MAX_TOKENS)
    assert first[0] == tokenizer.decode(ids[: ids.index(tokenizer.eos)] if tokenizer.eos in ids else ids)
    assert answer(model, tokenizer, [], MAX_TOKENS) == []


def test_the_image_is_seen(tiny_model, tokenizer):
    model = tiny_model("patch_embed")
    requests = [(image, "what colour is the ring?") for image in _images(20)]
    assert len(set(answer(model, tokenizer, requests, MAX_TOKENS))) > 1


@pytest.mark.parametrize("chat", [None, "none", "qwen", "qwen_all"])
def test_prompts_are_the_beginnings_of_training_documents(chat, tiny_model, tokenizer, chat_tokenizer):
    tokenizer = tokenizer if chat is None else chat_tokenizer.with_chat(chat)
    space = tiny_model("patch_embed").frontend.space
    one, two = _images(2)
    question = Document("vqa", (Image(one), Text("how many rings?"), Text("3", target=True)))
    plain = tokenizer.chat == "none"  # a text that goes on, or one that answers
    text = Document("text", (Text("3 rings and", target=True),) if plain else (Text("3 rings and"), Text("more", target=True)))
    picture = Document("text_to_image", (Text("a red ring"), Image(one, generate=True)))
    edit = Document("edit", (Image(one), Text("remove the red ring"), Image(two, generate=True)))
    for prompt, document in (
        (question_prompt(tokenizer, space, one, "how many rings?"), question),
        (question_prompt(tokenizer, space, None, "3 rings and"), text),
        (image_prompt(tokenizer, space, "a red ring"), picture),
        (edit_prompt(tokenizer, space, one, "remove the red ring"), edit),
    ):
        sequence = to_sequence(document, tokenizer, 8)
        assert prompt.ids_L.tolist() == sequence.ids_L[: len(prompt.ids_L)].tolist()
        behind = len(prompt.ids_L)  # where the answer begins
        first = np.flatnonzero(sequence.target_L)[0] if sequence.target_L.any() else sequence.spans[-1].offset
        assert plain and document is text or behind == first
        for ours, theirs in zip(prompt.spans, sequence.spans[: len(prompt.spans)], strict=True):
            assert (ours.offset, ours.length) == (theirs.offset, theirs.length) and ours.pixels_HWC is theirs.pixels_HWC
    unconditional = to_sequence(picture, tokenizer, 8, drop_prompt=True)
    nothing = image_prompt(tokenizer, space, "").ids_L.tolist()
    assert nothing == unconditional.ids_L[: len(nothing)].tolist() and len(nothing) == unconditional.spans[0].offset


def test_batches_hold_every_prompt_once_within_their_bound():
    lengths = [30, 5, 30, 12, 5, 99]
    found = list(batches(lengths, 40))
    assert sorted(number for batch in found for number in batch) == list(range(6))
    assert all(sum(lengths[number] for number in batch) <= 40 or len(batch) == 1 for batch in found)


def test_evaluation_leaves_no_gradient(tiny_model, tokenizer, questions):
    model = tiny_model("patch_embed")
    answer(model, tokenizer, questions, 2)
    assert all(parameter.grad is None for parameter in model.parameters()) and torch.is_grad_enabled()
