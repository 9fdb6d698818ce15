"""Documents, captions and edits of the scenes corpus."""

from dataclasses import MISSING, fields

import numpy as np
import pytest

from tunalab.data.documents import KINDS, Image, Text
from tunalab.data.scenes import (
    EDITS,
    EXAMPLE_LEVELS,
    SCENE_KINDS,
    ScenesCorpus,
    SceneSettings,
    caption,
    caption_examples,
    draw_edit,
    render,
    scene,
    text_sample,
)
from tunalab.data.scenes.graph import belongs
from tunalab.data.scenes.sampling import stream
from tunalab.data.scenes.vocabulary import SPLITS
from tunalab.errors import UserError

LAYOUT = {
    "caption": "image text answer",
    "text_to_image": "text generated",
    "edit": "image text generated",
    "text": "answer",
}


def scene_settings(**changes):
    return SceneSettings(
        **{"image_size": 32, "levels": EXAMPLE_LEVELS, "questions_per_image": 3, "seed": 0, "placement": "grid", **changes}
    )


def name(segment):
    if isinstance(segment, Image):
        return "generated" if segment.generate else "image"
    return "answer" if segment.target else "text"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_documents_have_their_layout_and_repeat_themselves(kind, split):
    settings = scene_settings(image_size=48, levels=(1, 1, 1))
    corpus, again = ScenesCorpus(kind, split, settings), ScenesCorpus(kind, split, settings)
    assert corpus.name == f"scenes/{kind}" and corpus.length is None
    for index in range(40):
        document, same = corpus.document(index), again.document(index)
        assert document.kind == kind
        names = [name(segment) for segment in document.segments]
        if kind == "vqa":
            assert names[0] == "image" and 2 <= len(names[1:]) // 2 <= 3
            assert names[1:] == ["text", "answer"] * (len(names[1:]) // 2)
            prompts = [segment.text for segment in document.segments[1::2]]
            assert len(set(prompts)) == len(prompts)
        else:
            assert " ".join(names) == LAYOUT[kind]
        for one, two in zip(document.segments, same.segments, strict=True):
            if isinstance(one, Text):
                assert one == two and one.text
            else:
                assert one.pixels_HWC.shape == (48, 48, 3) and (one.pixels_HWC == two.pixels_HWC).all()


def test_settings_reach_the_documents():
    def lengths(**settings):
        corpus = ScenesCorpus("vqa", "train", scene_settings(**settings))
        return [len(corpus.document(index).segments) for index in range(60)]

    assert max(lengths(questions_per_image=1)) == 3 and max(lengths(questions_per_image=5)) == 11
    texts = [
        [ScenesCorpus("caption", "train", scene_settings(seed=seed)).document(i).segments[2] for i in range(20)] for seed in (0, 1)
    ]
    assert texts[0] != texts[1]
    easy = ScenesCorpus("caption", "train", scene_settings(levels=(1, 0, 0)))
    hard = ScenesCorpus("caption", "train", scene_settings(levels=(0, 0, 1)))
    words = [sum(len(c.document(i).segments[2].text.split()) for i in range(100)) for c in (easy, hard)]
    assert words[0] < words[1]


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_level_1_captions_determine_the_image(kind):
    images = {}
    for index in range(3000):
        drawn = scene("train", 0, index, kind, 1)
        assert images.setdefault(caption(drawn), drawn.content) == drawn.content
    same = [scene("train", 0, 3, kind, 1), scene("train", 0, 3, kind, 1)]
    assert (render(same[0], 32) == render(same[1], 32)).all()


def test_captions_are_compact():
    lengths = [len(caption(scene("train", 0, index)).split()) for index in range(1000)]
    assert np.mean(lengths) < 15 and max(lengths) <= 32


@pytest.mark.parametrize("level", (1, 2, 3))
def test_edits_change_what_they_name_and_nothing_else(level):
    observed = set()
    for index in range(150):
        source, instruction, target = draw_edit(stream("edit", index), "train", level)
        assert belongs(source, "train") and belongs(target, "train")
        gone, come = set(source.items) - set(target.items), set(target.items) - set(source.items)
        words = instruction.split()
        (old,), (new,) = [tuple(items) or (None,) for items in (gone, come)]
        if words[0] == "remove":
            assert old and not new and old.colour in words and old.shape in words
            observed.add("remove")
        elif words[0] == "add":
            assert new and not old and new.colour in words and new.shape in words and instruction.endswith(new.slot)
            observed.add("add")
        else:
            assert old.shape == new.shape and old.colour in words
            changed = {f for f in ("colour", "size", "slot") if getattr(old, f) != getattr(new, f)}
            assert len(changed) == 1
            field = changed.pop()
            assert instruction.endswith(getattr(new, field))
            observed.add({"colour": "recolour", "size": "resize", "slot": "move"}[field])
        assert (render(source, 32) != render(target, 32)).any()
    assert observed == set(EDITS)


def test_caption_examples_cover_every_scene_kind():
    images_NHWC, captions = caption_examples("components", 0, 64, 32)
    assert images_NHWC.shape == (64, 32, 32, 3) and images_NHWC.dtype == np.uint8 and len(captions) == 64
    assert all(any(word in text for text in captions) for word in ("bars", "word", "gap", "large", "a1"))
    again, _ = caption_examples("components", 0, 64, 32)
    assert (images_NHWC == again).all()


def test_text_sample_covers_what_documents_say():
    def words(text):
        return {word.strip(".,:?") for word in text.split() if not word.strip(",").isupper()}

    expected = set().union(*map(words, text_sample(0, 2000)))
    for kind in KINDS:
        corpus = ScenesCorpus(kind, "train", scene_settings(levels=(1, 1, 1)))
        for index in range(150):
            for segment in corpus.document(index).segments:
                if isinstance(segment, Text):
                    assert words(segment.text) <= expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 40},
        {"image_size": 0},
        {"levels": (0.0, 0.0, 0.0)},
        {"levels": (1.0, -1.0, 0.0)},
        {"levels": (1.0, float("nan"), 0.0)},
        {"levels": (1.0, 1.0)},
        {"questions_per_image": 0},
        {"questions_per_image": 9},
        {"seed": -1},
    ],
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        scene_settings(**wrong)


def test_defaults_stand_with_the_runs_settings_alone():
    assert all(item.default is item.default_factory is MISSING for item in fields(SceneSettings))


def test_wrong_kind_or_split_is_named():
    with pytest.raises(UserError, match="text_to_image"):
        ScenesCorpus("images", "train", scene_settings())
    with pytest.raises(UserError, match="composition"):
        ScenesCorpus("vqa", "val", scene_settings())
    with pytest.raises(UserError, match="composition"):
        caption_examples("val", 0, 1, 32)
