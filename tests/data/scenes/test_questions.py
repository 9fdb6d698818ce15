"""Questions: a reader of the scene graph answers all of them, answers are balanced, levels get harder."""

import sys
from collections import Counter, defaultdict
from itertools import groupby
from pathlib import Path
from random import Random

import pytest

from tunalab.data.scenes import BENCHMARKS, SCENE_KINDS, benchmark, scene
from tunalab.data.scenes.corpus import ScenesCorpus, draw_edit, turns
from tunalab.data.scenes.graph import JITTER, PLACEMENTS, belongs
from tunalab.data.scenes.render import masks
from tunalab.data.scenes.sampling import SceneSettings, draw_scene, stream
from tunalab.data.scenes.sentences import DESCRIBE, further_questions
from tunalab.data.scenes.vocabulary import LEVELS, SLOTS, UNITS
from tunalab.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))
from solver import solve  # a sibling file: tests are no package


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", SCENE_KINDS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_reader_of_the_graph_answers_everything(kind, level, placement):
    for split in ("train", "composition"):
        for index in range(60):
            drawn = draw_scene(stream(split, index), split, kind, level, placement)
            for one in (drawn, drawn.twin or drawn):
                for prompt, answer in [(one.prompt, one.answer), *(turn for fact in further_questions(one) for turn in fact)]:
                    assert solve(one, prompt) == answer, (one, prompt)


@pytest.mark.parametrize("kind", [kind for kind in BENCHMARKS if kind != "ocr"])
@pytest.mark.parametrize("level", LEVELS)
def test_answers_are_balanced(kind, level):
    drawn = [scene("train", 1, index, kind, level) for index in range(2000)]
    by_template = defaultdict(list)
    for one in drawn:
        by_template[one.template].append(one.answer if kind != "pairs" else one.prompt.strip("?").split()[-3:].index(one.answer))
    for template, answers in by_template.items():
        counted = Counter(answers)
        majority = max(counted.values()) / len(answers)
        assert majority < 1 / len(counted) + 0.045, (template, counted)
    if kind != "pairs":
        promised = {one.template: one.options for one in drawn}
        for template, answers in by_template.items():
            # The prompt names one shape in "what is left of the circle?", which is then not the answer.
            named = 1 if template == "what" else 0
            assert len(set(answers)) == promised[template] + named


@pytest.mark.parametrize(("level", "number"), [(1, 6), (2, 26), (3, 26)])
def test_words_use_the_whole_alphabet_about_equally(level, number):
    letters = Counter("".join(scene("train", 1, index, "ocr", level).answer for index in range(2000)))
    assert len(letters) == number and max(letters.values()) < 1.6 * min(letters.values())


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_a_group_is_a_question_of_pairs_two_that_no_wording_tells_apart(kind):
    requests = benchmark(kind, 1, "train", 16, 0, 250)
    groups = [list(group) for _, group in groupby(requests, key=lambda q: q.group)]
    assert [group[0].group for group in groups] == list(range(250)) and {len(g) for g in groups} == {2 if kind == "pairs" else 1}
    if kind == "pairs":
        assert all(g[0].prompt == g[1].prompt and g[0].answer != g[1].answer for g in groups)
        assert all((g[0].image_HWC != g[1].image_HWC).any() for g in groups)


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_levels_get_harder(kind):
    things, offsets, letters = [], [], []
    for level in LEVELS:
        drawn = [scene("train", 0, index, kind, level) for index in range(150)]
        things.append(sum(len(one.items) for one in drawn))
        letters.append(sum(len(item.text) for one in drawn for item in one.items))
        shapes = [item for one in drawn for item in one.items if item.size]
        offsets.append(max((abs(i.x - SLOTS[i.slot][0]) for i in shapes), default=0))
    assert things[0] < things[1] <= things[2] or letters[0] < letters[1] < letters[2]
    if kind not in ("charts", "ocr"):
        assert offsets == [JITTER[level] for level in LEVELS] and offsets[0] == 0


def _patches(one, item_index):
    """Cells of the grid of patches at 32 px in which a thing shows."""
    mask_HW = masks(one, 32)[item_index]
    return len({(y // 8, x // 8) for y, x in zip(*mask_HW.nonzero(), strict=True)})


@pytest.mark.parametrize("kind", ["count", "search", "pattern"])
def test_on_the_grid_a_small_thing_is_in_one_patch_and_placed_freely_in_several(kind):
    shares = {}
    for placement in PLACEMENTS:
        drawn = [draw_scene(stream("patches", index), "train", kind, 1, placement) for index in range(100)]
        counts = [_patches(one, n) for one in drawn for n, item in enumerate(one.items) if item.size == "small"]
        shares[placement] = sum(count > 1 for count in counts) / len(counts)
    assert shares["grid"] == 0 and shares["free"] > 0.6, shares


@pytest.mark.parametrize("kind", SCENE_KINDS)
@pytest.mark.parametrize("level", LEVELS)
def test_things_placed_freely_stay_in_the_image_in_their_split_and_nearest_to_the_slot_that_captions_name(kind, level):
    moved = 0
    for index in range(100):
        one = draw_scene(stream("free", index), "test", kind, level, "free")
        assert belongs(one, "test")
        moved += one.content != draw_scene(stream("free", index), "test", kind, level).content
        for item in one.items:
            left, top, right, bottom = (round(UNITS * edge) for edge in item.box)
            assert min(left, top) >= 0 and max(right, bottom) <= UNITS
            if item.size and item.slot in SLOTS:
                x, y = SLOTS[item.slot]
                assert abs(item.x - x) < 8 and abs(item.y - y) < 8
            assert item.shape != "bar" or bottom == UNITS
    assert moved > 80


def test_an_edit_of_things_placed_freely_leaves_the_others_where_they_are():
    for index in range(40):
        source, instruction, target = draw_edit(stream("edit", index), "train", 1 + index % 3, placement="free")
        assert belongs(source, "train") and belongs(target, "train")
        kept = len(set(source.items) & set(target.items))
        assert kept >= max(len(source.items), len(target.items)) - 1, instruction


def test_documents_and_questions_follow_the_placement_and_the_grid_is_what_it_was():
    grid, free = (
        ScenesCorpus("vqa", "train", SceneSettings(32, (1, 0, 0), 3, 0, placement)).document(5) for placement in PLACEMENTS
    )
    assert (grid.segments[0].pixels_HWC != free.segments[0].pixels_HWC).any()
    on_grid, freely = (benchmark("count", 1, "test", 32, 0, 20, placement=placement) for placement in PLACEMENTS)
    assert any((one.image_HWC != two.image_HWC).any() for one, two in zip(on_grid, freely, strict=True))
    with pytest.raises(UserError, match="choose from grid, free"):
        SceneSettings(32, (1, 0, 0), 3, 0, "off")


def test_benchmark_has_no_image_twice_and_repeats_itself():
    first = benchmark("pattern", 1, "test", 32, 0, 300)
    again = benchmark("pattern", 1, "test", 32, 0, 300)
    assert len({q.image_HWC.tobytes() for q in first}) == 300
    assert [(q.prompt, q.answer, q.image_HWC.tobytes()) for q in first] == [
        (q.prompt, q.answer, q.image_HWC.tobytes()) for q in again
    ]


def test_mistakes_are_named():
    with pytest.raises(UserError, match="relations"):
        benchmark("gqa", 1, "test", 32, 0, 5)
    with pytest.raises(UserError, match="1, 2, 3"):
        benchmark("count", 4, "test", 32, 0, 5)
    with pytest.raises(UserError, match="train"):
        benchmark("count", 1, "validation", 32, 0, 5)
    with pytest.raises(UserError, match="multiples of 16"):
        benchmark("count", 1, "test", 40, 0, 5)
    with pytest.raises(UserError, match="ask for fewer"):
        benchmark("pattern", 1, "test", 32, 0, 4000)
    with pytest.raises(UserError, match="pattern"):
        scene("train", 0, 0, "patterns")
    with pytest.raises(UserError, match="1, 2, 3"):
        scene("train", 0, 0, "pattern", 0)


def test_turns_of_a_document_do_not_give_each_other_away() -> None:
    # Two turns of one fact, or any turn after the caption, could be answered without looking at the image.
    for index in range(300):
        one = scene("train", 0, index)
        requests = turns(Random(index), one, 5)
        prompts = [prompt for prompt, _ in requests]
        assert DESCRIBE not in prompts[:-1] and one.prompt in prompts
        for fact in further_questions(one):
            assert sum(prompt in prompts for prompt, _ in fact) <= 1
