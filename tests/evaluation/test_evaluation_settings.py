"""Settings of an evaluation: every part has some, every mistake is one line that says what there is."""

from dataclasses import fields

import pytest

from tunalab.errors import UserError
from tunalab.evaluation.parts import DIVIDED, PARTS, EvaluationSettings, describe, find_parts, load_part, load_settings
from tunalab.settings.declaration import settings_of


def test_every_part_has_its_settings_and_says_what_it_measures() -> None:
    assert [entry.name for entry in fields(EvaluationSettings)] == list(PARTS)
    text = describe(load_settings([]))
    for name in PARTS:
        assert callable(getattr(load_part(name), "pieces" if name in DIVIDED else "measure"))
        (line,) = [line for line in text.splitlines() if line.startswith((f"{name}: ", f"{name} (on request): "))]
        assert len(line) > len(name) + 20
    assert all(f"    {key}=" in text for key in settings_of(EvaluationSettings))
    assert set(find_parts(None)) <= set(PARTS) and "understanding" in find_parts(None)


def test_settings_are_laid_over_the_defaults() -> None:
    chosen = load_settings(["understanding.groups=7", "understanding.levels=[1,3]", "understanding.splits=[composition]"])
    understanding, plain = chosen.understanding, load_settings([]).understanding
    assert (understanding.groups, understanding.levels, understanding.splits) == (7, [1, 3], ["composition"])
    assert plain.levels == [1, 2, 3] and understanding.benchmarks == plain.benchmarks


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("understanding", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("understanding.group=3", "unknown key 'understanding.group', did you mean groups. .choices: benchmarks, easy_vqa"),
        ("understood.groups=3", "unknown key 'understood', did you mean understanding. .choices: attention, div"),
        ("understanding.groups=many", "many"),
        ("understanding.groups=-1", r"understanding.groups=-1 is out of range \(from 0\)"),
        ("understanding.levels=[1,4]", r"understanding.levels=4 is out of range \(from 1 to 3\)"),
        ("understanding.levels=[]", r"understanding.levels=\[\] leaves nothing \(choices: from 1 to 3\)"),
        ("understanding.splits=[train]", r"understanding.splits=train is not known \(choices: test, composition\)"),
        ("understanding.benchmarks=[gqa]", "understanding.benchmarks=gqa is not known .*relations"),
        ("understanding.levels=[1", "understanding.levels=.* cannot be read"),
        ("understanding.levels=[1,[2]]", "is nested: it takes single values"),
        ("understanding.groups=${count}", "Interpolation key 'count' not found"),
        ("understanding.groups=", "understanding.groups= is not a whole number"),
        ("understanding=3", "understanding=3"),
    ],
)
def test_mistakes_are_named_in_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_settings([override])
    assert "\n" not in str(caught.value) and override.split("=")[0] in str(caught.value)
