"""The tokenizer of a pretrained decoder: as its library reads it, with image tokens added where that is allowed."""

from pathlib import Path

import pytest
from tests.checkpoints import save_qwen_tokenizer, truncate
from transformers import Qwen2Config

from tunalab.data.pretrained import locate
from tunalab.data.tokenizer import QWEN25_SPECIALS, pretrained_tokenizer, train_tokenizer
from tunalab.errors import UserError

SETTING = "decoder.tokenizer"
QWEN_NAMES = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


def refusal(given: str, add: bool = True) -> str:
    with pytest.raises(UserError) as raised:
        pretrained_tokenizer(given, SETTING, add)
    assert "\n" not in str(raised.value) and SETTING in str(raised.value)
    return str(raised.value)


def test_the_special_tokens_of_qwen_are_found_where_they_are(tmp_path: Path) -> None:
    library = save_qwen_tokenizer(tmp_path, QWEN_NAMES)
    ours = pretrained_tokenizer(str(tmp_path), SETTING, add=False)
    assert ours.vocabulary == len(library), "nothing was added"
    assert [ours.bos, ours.eos, ours.boi, ours.eoi, ours.image_pad] == library.convert_tokens_to_ids(list(QWEN_NAMES))
    assert ours.pad == library.convert_tokens_to_ids("<|endoftext|>")
    for text in ("a red ring", "It's   42\n\nred,re", "réd 日本"):
        assert ours.encode(text) == library.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == text


def test_image_tokens_that_lack_are_added_behind_the_last_id_unless_that_is_forbidden(tmp_path: Path) -> None:
    library = save_qwen_tokenizer(tmp_path, QWEN_NAMES[:2])
    ours = pretrained_tokenizer(str(tmp_path), SETTING)
    assert ours.vocabulary == len(library) + 3
    assert sorted([ours.boi, ours.eoi, ours.image_pad]) == list(range(len(library), len(library) + 3))
    assert ours.boi not in ours.encode("<|vision_start|>"), "text that spells a special token is text"
    with pytest.raises(UserError, match=r"lacks special tokens: boi <\|vision_start\|>"):
        pretrained_tokenizer(str(tmp_path), SETTING, add=False)


def test_a_folder_of_ours_is_loaded_as_it_is(tmp_path: Path) -> None:
    save_qwen_tokenizer(tmp_path / "qwen")
    grown = pretrained_tokenizer(str(tmp_path / "qwen"), SETTING)
    (tmp_path / "ours").mkdir()
    grown.save(tmp_path / "ours")
    loaded = pretrained_tokenizer(str(tmp_path / "ours"), SETTING)
    assert loaded.specials == QWEN25_SPECIALS and loaded.vocabulary == grown.vocabulary and loaded.boi == grown.boi
    # Of ours none is added: without its image tokens it is not what was saved.
    save_qwen_tokenizer(tmp_path / "ours")
    with pytest.raises(UserError, match="lacks special tokens"):
        pretrained_tokenizer(str(tmp_path / "ours"), SETTING)


def test_words_are_cut_as_the_file_says_whatever_the_model_beside_it(tmp_path: Path) -> None:
    Qwen2Config().save_pretrained(tmp_path)
    tokenizer = train_tokenizer(["the word CAB 27"] * 9, vocabulary=300)
    tokenizer.backend.save_pretrained(str(tmp_path))
    assert pretrained_tokenizer(str(tmp_path), SETTING).encode("CAB27") == tokenizer.encode("CAB27")


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    assert "neither a folder nor OWNER/NAME" in refusal(str(tmp_path / "nothing"))
    assert "no folder here and not in the local cache" in refusal("Qwen/Qwen2.5-1.5B-Instruct")
    assert "no tokenizer in that folder" in refusal(str(tmp_path))
    save_qwen_tokenizer(tmp_path)
    truncate(tmp_path / "tokenizer.json")
    assert "cannot be read" in refusal(str(tmp_path))


def test_names_on_the_hub_may_have_a_subfolder(tmp_path: Path) -> None:
    source = locate("Wan-AI/Wan2.2-TI2V-5B-Diffusers/vae", "frontend.vae")
    assert (source.name, source.subfolder, source.folder) == ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", "vae", None)
    assert locate(str(tmp_path), "x").folder == tmp_path
    for given in ("./missing/folder", "/missing/folder", "~/folder", "one", "a/b/", "a b/c"):
        with pytest.raises(UserError, match="neither a folder nor OWNER/NAME"):
            locate(given, "x")
