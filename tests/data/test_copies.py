"""Copies show the first image of a document and generate the same; a source of copies is one in every other way too."""

import numpy as np
import pytest

from tunalab.data.documents import CopyCorpus, Image, Unfit
from tunalab.data.sequence import to_sequence
from tunalab.data.sources import build_source, check_sources
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.contract import TargetSpace
from tunalab.inference.prompts import edit_prompt
from tunalab.settings.schema import DataConfig, RunConfig, StageConfig

DATA = DataConfig(image_size=32, levels=[0.6, 0.3, 0.1], questions_per_image=2)


@pytest.mark.parametrize("name", ["scenes/caption", "scenes/edit", "easy_vqa/vqa"])
def test_a_copy_is_of_the_first_image(name: str) -> None:
    corpus, copied = build_source(name, DATA, 1), build_source(f"copy/{name}", DATA, 1)
    assert copied.name == f"copy/{name}" and copied.length == corpus.length
    first = next(segment for segment in corpus.document(3).segments if isinstance(segment, Image))
    document = copied.document(3)
    source, target = document.segments
    assert isinstance(source, Image) and isinstance(target, Image) and document.kind == "edit"
    assert (source.generate, target.generate) == (False, True)
    assert np.array_equal(source.pixels_HWC, first.pixels_HWC) and np.array_equal(target.pixels_HWC, first.pixels_HWC)


def test_training_shows_what_a_reconstruction_is_asked_with(tokenizer: Tokenizer) -> None:
    document = build_source("copy/scenes/caption", DATA, 1).document(0)
    trained = to_sequence(document, tokenizer, token_pixels=8)
    shown, generated = trained.spans
    requests = edit_prompt(tokenizer, TargetSpace(channels=3, stride=1, patch=8), shown.pixels_HWC, "")
    assert np.array_equal(trained.ids_L[: generated.offset], requests.ids_L) and not trained.target_L.any()


def test_what_has_no_image_is_rejected_and_what_is_unknown_is_named() -> None:
    with pytest.raises(Unfit, match="scenes/text: document 0 has no image to copy"):
        build_source("copy/scenes/text", DATA, 1).document(0)
    with pytest.raises(UserError, match=r"unknown source 'scenes/copy'; choices: scenes/caption, .* or copy/NAME"):
        build_source("scenes/copy", DATA, 1)
    config = RunConfig(stages={"only": StageConfig(mix={"copy/scenes/caption": 1.0})})
    check_sources(config)
    config.stages["only"].mix = {"copy/scenes/none": 1.0}
    with pytest.raises(UserError, match="unknown source 'copy/scenes/none'; choices: .* or copy/NAME"):
        check_sources(config)


def test_files_that_change_are_noticed_through_the_copy() -> None:
    corpus = build_source("scenes/caption", DATA, 1)
    corpus.fingerprint = "abc"  # type: ignore[attr-defined]
    assert CopyCorpus(corpus).fingerprint == "abc"
