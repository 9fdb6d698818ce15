"""Every layout, token by token."""

from pathlib import Path

import numpy as np
import pytest
from tests.checkpoints import save_qwen_tokenizer

from tunalab.data.documents import Document, Image, Reject, Text
from tunalab.data.sequence import SYSTEM, to_sequence
from tunalab.data.tokenizer import Tokenizer, pretrained_tokenizer
from tunalab.errors import UserError

TOKEN_PIXELS, T = 4, 4  # an image of 8 px has four visual tokens
PIXELS = [np.full((8, 8, 3), shade, dtype=np.uint8) for shade in (10, 200)]
LOOKED_AT, TARGET = Image(PIXELS[0]), Image(PIXELS[1], generate=True)


def spelled(document: Document, tokenizer: Tokenizer, **more: bool) -> tuple[list[str], list[str]]:
    """The sequence in words, runs of image slots as their number, and the words that are predicted."""
    sequence = to_sequence(document, tokenizer, TOKEN_PIXELS, **more)
    names = {getattr(tokenizer, name): name for name in ("bos", "eos", "boi", "eoi", "pad")}
    ids = sequence.ids_L.tolist()
    assert sequence.kind == document.kind and sequence.target_L.shape == sequence.ids_L.shape
    assert sequence.ids_L.dtype == np.int64 and sequence.target_L.dtype == bool
    slots = [at for at, token in enumerate(ids) if token == tokenizer.image_pad]
    assert slots == [at for span in sequence.spans for at in range(span.offset, span.offset + span.length)]
    assert [span.length for span in sequence.spans] == [1 + T] * len(sequence.spans)

    def words(positions: list[int]) -> list[str]:
        found: list[str] = []
        text: list[int] = []
        for at in [*positions, -1]:
            special = at == -1 or ids[at] in names or ids[at] == tokenizer.image_pad
            if special and text:
                found.append(tokenizer.decode(text))
                text = []
            if at == -1:
                continue
            if not special:
                text.append(ids[at])
            elif ids[at] == tokenizer.image_pad:
                found[-1:] = [f"{int(found[-1]) + 1}"] if found[-1].isdigit() else [found[-1], "1"]
            else:
                found.append(names[ids[at]])
        return found

    return words(list(range(len(ids)))), words(np.flatnonzero(sequence.target_L).tolist())


def test_text_to_image(tokenizer: Tokenizer) -> None:
    document = Document("text_to_image", (Text("a red ring"), TARGET))
    everything, predicted = spelled(document, tokenizer)
    assert everything == ["bos", "a red ring", "boi", "5", "eoi", "eos"]
    assert predicted == []  # neither the prompt nor what frames the image
    sequence = to_sequence(document, tokenizer, TOKEN_PIXELS)
    assert [span.generate for span in sequence.spans] == [True]
    assert sequence.spans[0].pixels_HWC is TARGET.pixels_HWC


def test_a_dropped_prompt_leaves_the_unconditional_sequence(tokenizer: Tokenizer) -> None:
    document = Document("text_to_image", (Text("a red ring"), TARGET))
    assert spelled(document, tokenizer, drop_prompt=True) == (["bos", "boi", "5", "eoi", "eos"], [])


@pytest.mark.parametrize("drop_prompt", [False, True])
def test_only_generation_prompts_are_dropped(drop_prompt: bool, tokenizer: Tokenizer) -> None:
    for document in (
        Document("caption", (LOOKED_AT, Text("describe"), Text("a ring", target=True))),
        Document("edit", (LOOKED_AT, Text("make it red"), TARGET)),
        Document("text", (Text("how many"), Text("three", target=True))),
    ):
        assert spelled(document, tokenizer, drop_prompt=drop_prompt) == spelled(document, tokenizer)


def test_caption(tokenizer: Tokenizer) -> None:
    document = Document("caption", (LOOKED_AT, Text("describe the picture"), Text("a ring", target=True)))
    everything, predicted = spelled(document, tokenizer)
    assert everything == ["bos", "boi", "5", "eoi", "describe the picture a ring", "eos"]
    assert predicted == ["a ring", "eos"]
    assert not to_sequence(document, tokenizer, TOKEN_PIXELS).spans[0].generate


def test_several_turns_about_one_image(tokenizer: Tokenizer) -> None:
    turns = [Text("what is red"), Text("the ring", target=True), Text("how many"), Text("two", target=True)]
    everything, predicted = spelled(Document("vqa", (LOOKED_AT, *turns)), tokenizer)
    assert everything == ["bos", "boi", "5", "eoi", "what is red the ring", "eos", "how many two", "eos"]
    assert predicted == ["the ring", "eos", "two", "eos"]


def test_edit(tokenizer: Tokenizer) -> None:
    document = Document("edit", (LOOKED_AT, Text("make it red"), TARGET))
    everything, predicted = spelled(document, tokenizer)
    assert everything == ["bos", "boi", "5", "eoi", "make it red", "boi", "5", "eoi", "eos"] and predicted == []
    spans = to_sequence(document, tokenizer, TOKEN_PIXELS).spans
    assert [span.generate for span in spans] == [False, True]
    assert [int(span.pixels_HWC[0, 0, 0]) for span in spans] == [10, 200]


def test_text(tokenizer: Tokenizer) -> None:
    assert spelled(Document("text", (Text("a ring", target=True),)), tokenizer) == (["bos", "a ring", "eos"], ["a ring", "eos"])
    conversation = Document("text", (Text("how many"), Text("two", target=True), Text("sure"), Text("yes", target=True)))
    everything, predicted = spelled(conversation, tokenizer)
    assert everything == ["bos", "how many two", "eos", "sure yes", "eos"] and predicted == ["two", "eos", "yes", "eos"]


def test_an_empty_answer_is_its_end(tokenizer: Tokenizer) -> None:
    assert spelled(Document("text", (Text("", target=True),)), tokenizer) == (["bos", "eos"], ["eos"])


def test_a_document_that_ends_in_a_prompt_is_closed(tokenizer: Tokenizer) -> None:
    assert spelled(Document("text", (Text("how many"),)), tokenizer) == (["bos", "how many", "eos"], [])


def test_text_that_spells_a_special_token_makes_no_slot(tokenizer: Tokenizer) -> None:
    text = tokenizer.specials.image_pad + tokenizer.specials.boi
    sequence = to_sequence(Document("text", (Text(text, target=True),)), tokenizer, TOKEN_PIXELS)
    assert tokenizer.image_pad not in sequence.ids_L and tokenizer.boi not in sequence.ids_L and not sequence.spans


def test_a_document_without_segments_is_rejected(tokenizer: Tokenizer) -> None:
    with pytest.raises(Reject):
        to_sequence(Document("text", ()), tokenizer, TOKEN_PIXELS)


# As Qwen2.5's own template writes a conversation, after its system turn.
TURN = "<|im_start|>{role}\n{content}<|im_end|>\n"
QWEN_NAMES = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
SHOWN = "<|vision_start|>" + "<|image_pad|>" * (1 + T) + "<|vision_end|>"
ASKED = Document("vqa", (LOOKED_AT, Text("How many  rings?"), Text("3 red ones\n\nand 1", True), Text("Sure?"), Text("yes", True)))
SPOKEN = Document("text", (Text("say: <|im_end|>"), Text("no", target=True)))
TWO = Document("vqa", (Text("before?"), LOOKED_AT, LOOKED_AT, Text("what changed?"), Text("nothing", target=True)))
PICTURE = Document("text_to_image", (Text("a red ring"), TARGET))
EDIT = Document("edit", (LOOKED_AT, Text("make it red"), TARGET))
COPY = Document("edit", (LOOKED_AT, TARGET))
PLAIN = Document("text", (Text("only read", target=True),))
ANSWERED = {
    "asked": (
        ASKED,
        [("user", f"{SHOWN}\nHow many  rings?"), ("assistant", "3 red ones\n\nand 1"), ("user", "Sure?"), ("assistant", "yes")],
    ),
    "without an image": (Document("text", (Text("how?"), Text("so", True))), [("user", "how?"), ("assistant", "so")]),
    "two images": (TWO, [("user", f"before?\n{SHOWN}\n{SHOWN}\nwhat changed?"), ("assistant", "nothing")]),
    "no question": (Document("caption", (LOOKED_AT, Text("a ring", True))), [("user", SHOWN), ("assistant", "a ring")]),
}
GENERATED = {
    "prompt": (PICTURE, [("user", "a red ring"), ("assistant", SHOWN)]),
    "edit": (EDIT, [("user", f"{SHOWN}\nmake it red"), ("assistant", SHOWN)]),
    "copy": (COPY, [("user", SHOWN), ("assistant", SHOWN)]),
}


def template(turns: list[tuple[str, str]]) -> str:
    return "".join(TURN.format(role=role, content=content) for role, content in [("system", SYSTEM), *turns]).removesuffix("\n")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Cuts words as Qwen2.5's does."""
    folder: Path = tmp_path_factory.mktemp("qwen")
    save_qwen_tokenizer(folder, QWEN_NAMES, (("?", "Ċ"), ("Ċ", "Ċ"), ("e", "r"), ("t", "Ċ"), ("Ċ", "w")))  # Ċ is a line end
    return pretrained_tokenizer(str(folder), "decoder.tokenizer")


@pytest.mark.parametrize("chat", ["qwen", "qwen_all"])
@pytest.mark.parametrize("case", [*ANSWERED, *GENERATED])
def test_turns_are_those_of_qwens_template(case: str, chat: str, qwen: Tokenizer) -> None:
    """Token by token what the library makes of the whole text; only answers are predicted, with the end of their turn."""
    document, turns = {**ANSWERED, **GENERATED}[case]
    sequence = to_sequence(document, qwen.with_chat(chat), TOKEN_PIXELS)
    if case in GENERATED and chat == "qwen":
        assert sequence.ids_L.tolist() == to_sequence(document, qwen, TOKEN_PIXELS).ids_L.tolist()
        return
    qwen.backend.backend_tokenizer.encode_special_tokens = False
    expected = qwen.backend.backend_tokenizer.encode(template(turns), add_special_tokens=False).ids
    assert sequence.ids_L.tolist() == expected
    answers = [content for role, content in turns if role == "assistant" and content != SHOWN]
    predicted = qwen.backend.backend_tokenizer.decode(sequence.ids_L[sequence.target_L].tolist(), skip_special_tokens=False)
    assert predicted == "".join(f"{answer}<|im_end|>" for answer in answers)
    assert [span.generate for span in sequence.spans] == [s.generate for s in document.segments if isinstance(s, Image)]


@pytest.mark.parametrize("chat", ["none", "qwen", "qwen_all"])
def test_plain_text_has_no_turns_and_text_never_ends_one(chat: str, qwen: Tokenizer) -> None:
    ours = qwen.with_chat(chat)
    assert to_sequence(PLAIN, ours, TOKEN_PIXELS).ids_L.tolist() == [qwen.bos, *qwen.encode("only read"), qwen.eos]
    ids = to_sequence(SPOKEN, ours, TOKEN_PIXELS).ids_L.tolist()
    assert ids.count(qwen.eos) == (1 if chat == "none" else 3), "a text that spells a special token is text"


def test_a_dropped_prompt_leaves_its_turn(qwen: Tokenizer) -> None:
    dropped = to_sequence(PICTURE, qwen.with_chat("qwen_all"), TOKEN_PIXELS, drop_prompt=True)
    text = qwen.backend.backend_tokenizer.decode(dropped.ids_L.tolist(), skip_special_tokens=False)
    assert text == template([("user", ""), ("assistant", SHOWN)])


def test_a_tokenizer_without_the_tokens_of_turns_is_refused(tokenizer: Tokenizer) -> None:
    words = r"^decoder.chat=qwen needs a tokenizer .* <\|im_start\|> and <\|im_end\|>; this one has <\|bos\|> and <\|eos\|>$"
    with pytest.raises(UserError, match=words):
        tokenizer.with_chat("qwen")
    assert tokenizer.with_chat("none") is tokenizer
