"""Questions: a reader of the scene graph answers all of them, answers are balanced, levels get harder."""

import sys
from collections import Counter, defaultdict
from itertools import groupby
from pathlib import Path
from random import Random

import pytest

from tunalab.data.scenes import BENCHMARKS, SCENE_KINDS, benchmark, scene
from tunalab.data.scenes.corpus import turns
from tunalab.data.scenes.graph import JITTER
from tunalab.data.scenes.sentences import DESCRIBE, further_questions
from tunalab.data.scenes.vocabulary import LEVELS, SLOTS
from tunalab.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))
from solver import solve  # a sibling file: tests are no package


@pytest.mark.parametrize("kind", SCENE_KINDS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_reader_of_the_graph_answers_everything(kind, level):
    for split in ("train", "composition"):
        for index in range(60):
            drawn = scene(split, 3, index, kind, level)
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
