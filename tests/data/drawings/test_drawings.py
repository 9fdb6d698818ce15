"""Documents and questions of drawings: scenes' own with other pictures, nothing held out in training, no answer in a wording."""

import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tunalab.data.changes import changes, look_at
from tunalab.data.documents import KINDS as DOCUMENTS
from tunalab.data.documents import Document, Image
from tunalab.data.drawings import PARTS, DrawingsCorpus, benchmark, caption_source, load_art, split_of
from tunalab.data.drawings.art import FILE, KINDS, Art, Named
from tunalab.data.drawings.cast import Cast
from tunalab.data.scenes import BENCHMARKS, SCENE_KINDS, Scene, ScenesCorpus, SceneSettings, draw_edit, scene
from tunalab.data.scenes.sampling import stream
from tunalab.data.scenes.vocabulary import COLOURS, SHAPES, UNITS
from tunalab.data.sources import build_source, check_sources, source_names
from tunalab.errors import UserError
from tunalab.evaluation.along import held_out
from tunalab.evaluation.benchmarks import benchmarks
from tunalab.evaluation.measure import chance_of
from tunalab.library import load_config
from tunalab.settings.schema import DataConfig, RunConfig, StageConfig
from tunalab.training.preflight import check_run, open_data
from tunalab.verification.chance import Question as Worded
from tunalab.verification.chance import by_template, by_words, share

HELD = (255, 0, 255)  # of what is held out, in conftest.py
SETTINGS = SceneSettings(64, (0.5, 0.3, 0.2), 4, 0, "grid")


def images(document: Document) -> list[np.ndarray]:
    return [segment.pixels_HWC for segment in document.segments if isinstance(segment, Image)]


def texts(document: Document) -> list[str]:
    return [segment.text for segment in document.segments if not isinstance(segment, Image)]


def shows_held(image_HWC: np.ndarray) -> bool:
    """Magenta, which neither a card nor a background is."""
    return bool((np.abs(image_HWC.astype(int) - HELD).max(-1) < 20).any())


def cast_of(art: Art, *key: object, part: str = "seen") -> Cast:
    return Cast.drawn(art, stream(*key), part)


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_documents_are_those_of_the_scenes_with_other_pictures(art_folder: Path, kind: str) -> None:
    ours, scenes = DrawingsCorpus(kind, "train", SETTINGS, str(art_folder)), ScenesCorpus(kind, "train", SETTINGS)
    assert ours.name == f"drawings/{kind}" and ours.length is None
    for index in range(60):
        one, same, plain = ours.document(index), ours.document(index), scenes.document(index)
        assert one.kind == plain.kind == kind and [type(s) for s in one.segments] == [type(s) for s in plain.segments]
        assert texts(one) == texts(same) and all((a == b).all() for a, b in zip(images(one), images(same), strict=True))
        assert all(a.shape == (64, 64, 3) and a.dtype == np.uint8 and (a != b).any() for a, b in zip(images(one), images(plain)))
        words = set(re.findall("[a-z]+", " ".join(texts(one)))) - {"square", "shapes"}
        assert not words & {*SHAPES, "shape"}, texts(one)


@pytest.mark.parametrize("kind", [kind for kind in DOCUMENTS if kind != "text"])
def test_training_shows_nothing_that_is_held_out(art: Art, art_folder: Path, kind: str) -> None:
    corpus = DrawingsCorpus(kind, "train", SETTINGS, str(art_folder))
    held = {thing.name for thing in art.things if thing.held} | {"strange", "fat"}
    for index in range(150):
        document = corpus.document(index)
        assert not any(map(shows_held, images(document)))
        assert not any(name in text for name in held for text in texts(document))
        assert not art.fonts[corpus.look(index).font].held
    pictures, captions = caption_source(art)("components", 0, 100, 64)
    assert not any(map(shows_held, pictures)) and not any(name in text for name in held for text in captions)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", BENCHMARKS)
def test_a_part_shows_what_it_is_named_after(art: Art, kind: str, part: str) -> None:
    asked = benchmark(art, kind, 1, part, 64, 0, 40)
    again = benchmark(art, kind, 1, part, 64, 0, 30)
    for one, same in zip(asked[: len(again)], again, strict=True):
        assert (one.prompt, one.answer, one.options) == (same.prompt, same.answer, same.options)
        assert (one.image_HWC == same.image_HWC).all(), "a smaller number is the beginning of a larger one"
    assert [shows_held(one.image_HWC) for one in asked] == [kind != "ocr" and part != "seen"] * len(asked)
    assert all(one.answer in one.options and len(set(one.options)) == len(one.options) > 1 for one in asked)
    assert all(art.fonts[cast_of(art, n, part=part).font].held == (part == "styles") for n in range(20))
    if kind == "ocr":  # its new things are words: no training document of any kind holds one
        trained = {item.text for n in range(3000) for item in scene("train", 0, n, "ocr", 1).items}
        assert not trained & {one.answer for one in asked} or part != "concepts"


def test_layouts_of_questions_are_never_trained_on(art: Art) -> None:
    assert {split_of(kind, part) for kind in BENCHMARKS for part in PARTS} == {"test", "composition"}
    trained = {scene("train", 0, n, "count", 1).content for n in range(2000)}
    assert len(trained) > 1000 and not trained & {scene("test", 0, n, "count", 1).content for n in range(500)}


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_level_1_captions_determine_the_image(art: Art, kind: str) -> None:
    known: dict[str, np.ndarray] = {}
    casts = [cast_of(art, "caption", number) for number in range(12)]
    for index in range(40):
        drawn = scene("train", 0, index, kind, 1)
        for cast in casts:
            image = cast.image(drawn, 32)
            assert (known.setdefault(cast.caption(drawn), image) == image).all()
    assert 40 <= len(known) < 40 * len(casts), "casts differ in what is shown, or in what is not"


def test_captions_name_things_places_style_and_letters(art: Art) -> None:
    for index in range(200):
        for kind in ("objects", "ocr", "charts"):
            drawn, cast = scene("train", 1, index, kind), cast_of(art, index)
            caption = cast.caption(drawn)
            names = [art.things[cast.things[KINDS.index(one)]].name for one in KINDS]
            if kind == "charts":
                assert caption.startswith(f"{art.styles[cast.style].name}, thin, {cast.colour} bars on ")
                assert len(re.findall("|".join(names), caption)) == len(drawn.items)
            elif kind == "objects":
                assert caption.startswith(f"{art.styles[cast.style].name}, on ") and all(i.slot in caption for i in drawn.items)
                assert len(re.findall("|".join(names), caption)) == len(drawn.items)
            else:
                assert f"{art.fonts[cast.font].name}, on " in caption and drawn.answer in caption


@pytest.mark.parametrize("level", (1, 2))
def test_an_edit_changes_what_it_names_and_nothing_else(art: Art, level: int) -> None:
    side = 64
    for index in range(100):
        source, instruction, target = draw_edit(stream("edit", index), "train", level)
        cast = cast_of(art, index)
        before, after = cast.image(source, side), cast.image(target, side)
        touched = np.zeros((side, side), dtype=bool)
        for item in set(source.items) ^ set(target.items):
            left, top, right, bottom = (round(side * edge) for edge in item.box)
            touched[top:bottom, left:right] = True
        changed = (before != after).any(-1)
        assert changed.any() and not (changed & ~touched).any(), instruction
        (first, *_) = set(source.items) ^ set(target.items)
        thing = art.things[cast.things[SHAPES.index(first.shape)]].name
        assert thing in cast.told(instruction) and not set(SHAPES) & set(cast.told(instruction).split())


def test_cards_do_not_lie_on_each_other_at_levels_1_and_2_and_text_stays_in_the_image(art: Art) -> None:
    for level in (1, 2):
        for kind in SCENE_KINDS:
            for index in range(60):
                items = [item for item in scene("train", 2, index, kind, level).items if item.shape != "bar"]
                for one, other in ((a, b) for n, a in enumerate(items) for b in items[:n]):
                    assert abs(one.x - other.x) >= one.rx + other.rx or abs(one.y - other.y) >= one.ry + other.ry
    for side in (64, 96, 128):
        word = scene("train", 0, 5, "ocr", 1)
        (item,) = word.items
        letters = (cast_of(art, 0).image(word, side) != cast_of(art, 0).image(Scene(**vars(word) | {"items": ()}), side)).any(-1)
        rows, columns = np.flatnonzero(letters.any(1)), np.flatnonzero(letters.any(0))
        left, top, right, bottom = (edge * side for edge in item.box)
        assert top - 3 <= rows[0] and rows[-1] <= bottom + 3 and left - 3 <= columns[0] and columns[-1] <= right + 3
        assert len(rows) > 0.8 * (bottom - top) or len(columns) > 0.8 * (right - left), "as large as its box allows"


def test_a_bar_ends_at_its_value(art: Art) -> None:
    """Read off the picture: the heights of bars of one picture are in proportion to their values."""
    for index in range(30):
        drawn, cast = scene("train", 3, index, "charts", 1), cast_of(art, index)
        with_bars, without = (cast.image(one, 128) for one in (drawn, Scene(**vars(drawn) | {"items": ()})))
        found = {}
        for item in drawn.items:
            x = round((9 + item.x * 55 / UNITS) / UNITS * 128)
            rows = np.flatnonzero((with_bars[:96, x] != without[:96, x]).any(-1))
            found[2 * item.ry // 8] = (96 - rows[0]) / 11
        assert all(abs(value - seen) < 0.15 for value, seen in found.items()), found


def worded(art: Art, kind: str, split: str, index: int, seed: int, level: int) -> list[Worded]:
    drawn, cast = scene(split, seed, index, kind, level), cast_of(art, split, index)
    views = [drawn] if drawn.twin is None else [drawn, drawn.twin]
    return [Worded(cast.said(v.prompt, kind), cast.said(v.answer, kind), v.template, v.options) for v in views]


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_no_answer_can_be_guessed_from_its_question(art: Art, kind: str) -> None:
    """The best constant and the best guess from the words of a question, learnt from training, reach what is stated as chance."""
    level, number = (2 if kind == "count" else 1), 1500
    learned = [worded(art, kind, "train", n, 11, level) for n in range(3000)]
    asked = [worded(art, kind, "test", n, 12, level) for n in range(number)]
    chance = chance_of(kind if level == 1 else f"{kind}@{level}", 200)
    assert chance is not None
    constant = Counter(one.answer for group in learned for one in group).most_common(1)[0][0]
    for guess in (by_template(learned), by_words(learned), lambda one: constant):
        assert share(guess, asked) < chance + 4 * math.sqrt(chance * (1 - chance) / number) + 1e-9
    assert len({one.answer for group in asked for one in group}) > 1
    plain = {answer for n in range(300) for one in [scene("test", 12, n, kind, level)] for answer in [one.answer]}
    said = {cast_of(art, 0).said(answer, kind) for answer in plain}
    assert len(said) == len(plain), "two answers are never said alike"


def test_the_benchmark_states_the_chance_of_its_options(art_folder: Path) -> None:
    config = load_config("drawings", "tuna2", [f"data.drawings={art_folder}"])
    check_run(config)
    open_data(config)
    made = {one.name: one for one in benchmarks(config)}
    assert set(made) == {f"{kind}_{part}" for kind in BENCHMARKS for part in PARTS}
    for name, one in made.items():
        groups = {question.group for question in one.questions}
        assert len(groups) == config.evaluation.benchmarks[name].limit
        if not name.startswith("ocr"):
            even = np.mean([np.prod([1 / len(q.options) for q in one.questions if q.group == group]) for group in groups])
            assert one.chance >= even - 0.05
        assert 0 < one.chance < 0.5


def test_held_out_losses_are_of_drawings_where_a_run_trains_on_them_alone(art_folder: Path) -> None:
    config = load_config("drawings", "tuna2", [f"data.drawings={art_folder}"])
    ours = DrawingsCorpus(
        "vqa", "test", SceneSettings(64, (0.6, 0.4, 0.0), config.data.questions_per_image, 0, "grid"), str(art_folder)
    )
    assert texts(held_out("vqa", 3, config)[2]) == texts(ours.document(2))


def test_sources_are_there_where_the_folder_is_named(art_folder: Path, tmp_path: Path) -> None:
    data = DataConfig(image_size=64, drawings=str(art_folder))
    assert {f"drawings/{kind}" for kind in DOCUMENTS} <= set(source_names(data))
    assert build_source("copy/drawings/caption", data, 0).document(0).kind == "edit"
    mix = RunConfig(revision=2, variant="", stages={"a": StageConfig(mix={"drawings/vqa": 1.0})})
    with pytest.raises(UserError, match="unknown source 'drawings/vqa'.*where data.drawings names a folder of art"):
        check_sources(mix)
    with pytest.raises(UserError, match=r"there is no art.npz: make it with `tunalab drawings --to"):
        build_source("drawings/vqa", DataConfig(drawings=str(tmp_path)), 0)
    whole = (art_folder / FILE).read_bytes()
    for number, damage in enumerate((whole[:-300], b"", b"PK", whole[: len(whole) // 2])):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / FILE).write_bytes(damage)
        with pytest.raises(UserError, match="cannot be read") as caught:
            load_art(str(folder))
        assert "\n" not in str(caught.value)


def test_art_that_changed_while_a_run_was_stopped_is_noticed(art_folder: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((art_folder / FILE).read_bytes())
    sources = {"drawings/vqa": build_source("drawings/vqa", DataConfig(drawings=str(tmp_path)), 0)}
    before = look_at(sources)
    assert changes(before, look_at(sources)) == []
    with (tmp_path / FILE).open("ab") as file:
        file.write(b"x")
    assert "drawings/vqa" in changes(before, look_at(sources))[0]


def test_mistakes_are_named(art: Art, art_folder: Path) -> None:
    from tunalab.evaluation.drawings import Drawings

    for wrong in ({"kind": "colour"}, {"part": "all"}, {"level": 4}):
        with pytest.raises(UserError, match="choices: "):
            Drawings(**{"image_size": 64, "folder": str(art_folder), "kind": "count", **wrong})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="choices: seen, concepts, styles"):
        cast_of(art, 0, part="unseen")
    with pytest.raises(UserError, match="drawings: unknown document kind"):
        DrawingsCorpus("video", "train", SETTINGS, str(art_folder))  # type: ignore[arg-type]


def test_every_answer_word_differs_and_options_of_reading_are_near(art: Art) -> None:
    cast = cast_of(art, 0)
    assert len({cast.said(shape) for shape in SHAPES}) == len(SHAPES)
    assert len({cast.said(colour, "charts") for colour in COLOURS}) == len(COLOURS)
    drawn = scene("train", 0, 7, "ocr", 2)
    options = cast.choices(drawn)
    assert len(options) == 8 and all(
        sum(a != b for a, b in zip(one, drawn.answer, strict=True)) == (one != drawn.answer) for one in options
    )
    assert all(a < b for a, b in pairwise(options)), "their order tells nothing"
    assert Named("a", True).kind == ""
