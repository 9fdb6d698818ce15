import pytest

from tunalab.errors import UserError
from tunalab.settings.layers import read_value
from tunalab.settings.values import resolved
from tunalab.sweeps.grid import check_settings, expand, load_sweep, setting


def test_expansion_is_seed_major_with_readable_names(sweep_file, tmp_path):
    cells = expand(load_sweep(sweep_file), runs=tmp_path)
    assert [cell.name for cell in cells] == [
        *("tuna-ratio0-seed0", "tuna2-ratio0-seed0", "tuna-ratio0.25-seed0", "tuna2-ratio0.25-seed0"),
        *("tuna-ratio0-seed1", "tuna2-ratio0-seed1", "tuna-ratio0.25-seed1", "tuna2-ratio0.25-seed1"),
    ]
    cell = cells[3]
    assert (cell.variant, cell.seed, cell.experiment, cell.sweep) == ("tuna2", 0, "scenes", "mask_ratio")
    assert cell.factors == {"objective.masking.ratio": 0.25}
    assert cell.overrides == ["budget.tokens=1000", "objective.masking.ratio=0.25"]
    assert cell.run_dir == tmp_path / "mask_ratio" / "tuna2-ratio0.25-seed0"


def test_a_variant_may_have_some_of_the_seeds(sweep_file):
    sweep_file.write_text(sweep_file.read_text() + "seeds_of: {tuna: [1]}\n")
    cells = expand(load_sweep(sweep_file))
    assert [(cell.variant, cell.seed) for cell in cells if not cell.factors["objective.masking.ratio"]] == [
        ("tuna2", 0),
        ("tuna", 1),
        ("tuna2", 1),
    ]
    assert len(expand(load_sweep(sweep_file), "tuna_r")) == 4  # not named: all of them


def test_a_variant_may_have_settings_of_its_own(sweep_file):
    sweep_file.write_text(
        sweep_file.read_text() + "overrides_of: {tuna: {optimizer.lr_factor: 0.5}, tuna2: {optimizer.lr_factor: 1}}\n"
    )
    for cell in expand(load_sweep(sweep_file)):
        assert f"optimizer.lr_factor={0.5 if cell.variant == 'tuna' else 1}" in cell.overrides
    with pytest.raises(UserError, match="sets it for tuna2 under 'overrides_of'"):
        check_settings(load_sweep(sweep_file), ["optimizer.lr_factor=2"])
    sweep_file.write_text(sweep_file.read_text().replace("optimizer.lr_factor: 1}", "budget.tokens: 1}"))
    with pytest.raises(UserError, match="'budget.tokens' is already set by overrides and overrides_of: a setting has one place"):
        load_sweep(sweep_file)


def test_one_variant_also_one_the_sweep_does_not_list(sweep_file):
    sweep = load_sweep(sweep_file)
    assert {cell.variant for cell in expand(sweep, "tuna2")} == {"tuna2"} and len(expand(sweep, "tuna2")) == 4
    assert expand(sweep, "tuna_r")[0].name == "tuna_r-ratio0-seed0"
    with pytest.raises(UserError, match="unknown variant 'tuna3', choices: bottleneck, tuna, tuna2, tuna_r"):
        expand(sweep, "tuna3")


def test_a_sweep_without_factors_and_one_with_two_that_share_a_word(sweep_file):
    text = sweep_file.read_text()
    sweep_file.write_text(text.replace("factors: {objective.masking.ratio: [0.0, 0.25]}\n", ""))
    assert [cell.name for cell in expand(load_sweep(sweep_file), "tuna")] == ["tuna-seed0", "tuna-seed1"]
    sweep_file.write_text(text.replace("ratio: [0.0, 0.25]}", "ratio: [0.5], data.ratio: [1e-3, a b]}"))
    names = [cell.name for cell in expand(load_sweep(sweep_file), "tuna")]
    assert names[:2] == [
        "tuna-objective.masking.ratio0.5-data.ratio0.001-seed0",
        "tuna-objective.masking.ratio0.5-data.ratioa_b-seed0",
    ]


def test_arms_are_crossed_with_variants_unless_they_name_theirs(sweep_file):
    text = sweep_file.read_text().replace("factors: {objective.masking.ratio: [0.0, 0.25]}", "ARMS")
    sweep_file.write_text(
        text.replace("ARMS", "arms: {none: {}, late: {objective.masking.start: 0.9}, frozen: {variant: tuna, a.b: x}}")
    )
    cells = [cell for cell in expand(load_sweep(sweep_file)) if cell.seed == 0]
    assert [cell.name for cell in cells] == [
        "tuna-none-seed0",
        "tuna2-none-seed0",
        "tuna-late-seed0",
        "tuna2-late-seed0",
        "frozen-seed0",
    ]
    assert cells[3].overrides == ["budget.tokens=1000", "objective.masking.start=0.9"]
    assert (cells[4].variant, cells[4].overrides) == ("tuna", ["budget.tokens=1000", "a.b=x"])
    sweep_file.write_text(
        text.replace("ARMS", "arms: {a: {variant: tuna_r}, b: {variant: tuna, x: 1}}").replace("variants: [tuna, tuna2]\n", "")
    )
    assert [cell.name for cell in expand(load_sweep(sweep_file))] == ["a-seed0", "b-seed0", "a-seed1", "b-seed1"]
    sweep_file.write_text(text.replace("ARMS", "arms: {a: {variant: tuna_r}}"))
    with pytest.raises(UserError, match=r"key 'arms.a.variant' has unknown value 'tuna_r', choices: tuna, tuna2"):
        load_sweep(sweep_file)
    sweep_file.write_text(text.replace("ARMS", "arms: {a: {budget.tokens: 1}}"))
    with pytest.raises(UserError, match="'budget.tokens' is already set by overrides and arms"):
        load_sweep(sweep_file)


@pytest.mark.parametrize("name", ["../../../x", "/x", "a/b", "a\\\\b", "a\\nb"])
def test_an_arm_whose_name_is_a_path_is_refused(sweep_file, name):
    """It is part of the names of run directories and of published records."""
    text = sweep_file.read_text().replace("factors: {objective.masking.ratio: [0.0, 0.25]}", f'arms: {{"{name}": {{}}}}')
    sweep_file.write_text(text)
    with pytest.raises(UserError, match="the name of the arm .* cannot be part of a folder's name"):
        load_sweep(sweep_file)


def test_a_variant_that_no_arm_is_of_leaves_nothing_and_is_told(sweep_file):
    text = sweep_file.read_text().replace("factors: {objective.masking.ratio: [0.0, 0.25]}", "arms: {a: {variant: tuna2}}")
    sweep_file.write_text(text)
    assert [cell.name for cell in expand(load_sweep(sweep_file), "tuna2")] == ["a-seed0", "a-seed1"]
    for variant in ("tuna", "tuna_r"):  # one that the sweep lists, for no arm, and one that it does not
        with pytest.raises(UserError, match=f"sweep mask_ratio has no run of variant '{variant}', choices: tuna2$"):
            expand(load_sweep(sweep_file), variant)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("figure: mask_ratio", "figures: mask_ratio", "unknown key 'figures', choices: experiment, variants"),
        ("figure: mask_ratio", "figure: pie", "key 'figure' has unknown value 'pie', choices: figure6, curves, mask_ratio"),
        ("figure: mask_ratio", "figure: [curves, pie]", "key 'figure' has unknown value 'pie'"),
        ("figure: mask_ratio", "figure: [curves, curves]", "key 'figure' holds 'curves' twice"),
        ("figure: mask_ratio", "figure: {a: 1}", "key 'figure' must be a list"),
        ("experiment: scenes", "experiment: scene", "key 'experiment' has unknown value 'scene', choices: scenes"),
        ("experiment: scenes\n", "", "key 'experiment' is missing"),
        ("[tuna, tuna2]", "[tuna, tuna9]", "key 'variants' has unknown value 'tuna9', choices: tuna, tuna2, tuna_r"),
        ("[tuna, tuna2]", "[]", "key 'variants' must be a list with at least one value"),
        ("[tuna, tuna2]", "[tuna, tuna]", "key 'variants' holds 'tuna' twice"),
        ("seeds: [0, 1]", "seeds: [0, x]", "key 'seeds' must hold integers from 0, got 'x'"),
        ("seeds: [0, 1]", "seeds: 3", "key 'seeds' must be a list"),
        ("seeds: [0, 1]\n", "", "key 'seeds' must be a list"),
        (
            "seeds: [0, 1]",
            "seeds: [0, 1]\nseeds_of: {tuna: [0, 7]}",
            r"'seeds_of.tuna' must hold some of .*, got \[0, 7\]",
        ),
        ("seeds: [0, 1]", "seeds: [0, 1]\nseeds_of: {tuna: [[0]]}", r"'seeds_of.tuna' must hold some of .*, got \[\[0\]\]"),
        ("seeds: [0, 1]", "seeds: [0, 1]\nseeds_of: {tuna3: [0]}", "'seeds_of' has unknown value 'tuna3', choices: tuna, tuna2"),
        (
            "seeds: [0, 1]",
            "seeds: [0, 1]\noverrides_of: {tuna3: {a: 0}}",
            "'overrides_of' has unknown value 'tuna3', choices: tuna",
        ),
        ("[0.0, 0.25]", "[]", "key 'factors.objective.masking.ratio' must be a list with at least one"),
        ("[0.0, 0.25]", "[{a: 1}]", "must hold plain values"),
        ("factors: {", "factors: [", "not valid YAML"),
        ("factors: {objective.masking.ratio: [0.0, 0.25]}", "factors: [1]", "key 'factors' must be a mapping"),
        (
            "budget.tokens: 1000",
            "objective.masking.ratio: 1",
            "'objective.masking.ratio' is already set by factors and overrides",
        ),
        ("budget.tokens: 1000", "seed: 1", "'seed' is already set by seeds"),
        ("figure: mask_ratio", "seeds: [4]", "not valid YAML: .*duplicate key"),
    ],
)
def test_mistakes_name_the_file_the_key_and_the_choices(sweep_file, old, new, message):
    assert old in sweep_file.read_text()
    sweep_file.write_text(sweep_file.read_text().replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        load_sweep(sweep_file)
    assert "mask_ratio.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_sweep_lists_those_there_are(sweep_file):
    with pytest.raises(UserError, match="choices: mask_ratio"):
        load_sweep(sweep_file.with_name("none.yaml"))


@pytest.mark.parametrize("value", [0.25, 1e-7, 3, True, None, "plain", "1", "true", "a: b", "[a", "1e-7", "", [1, 2.5], "null"])
def test_settings_read_back_as_what_they_were(value):
    assert resolved(read_value(setting(value))) == value


def test_records_are_relative_to_the_root(sweep_file, tmp_path):
    sweep_file.write_text(sweep_file.read_text() + "records: results/mask_ratio\n")
    assert load_sweep(sweep_file).records == tmp_path / "results/mask_ratio"


def test_figures_are_none_one_or_several(sweep_file):
    text = sweep_file.read_text()
    for written, figures in (
        ("", ()),
        ("figure: curves\n", ("curves",)),
        ("figure: [mask_ratio, curves]\n", ("mask_ratio", "curves")),
    ):
        sweep_file.write_text(text.replace("figure: mask_ratio\n", written))
        assert load_sweep(sweep_file).figures == figures


def test_an_arm_of_several_variants_is_one_line(sweep_file):
    kept = [line for line in sweep_file.read_text().splitlines() if not line.startswith(("variants:", "factors:"))]
    sweep_file.write_text("\n".join([*kept, "arms: {a: {variant: [tuna2]}}", ""]))
    with pytest.raises(UserError, match="unknown value"):
        load_sweep(sweep_file)


def test_numbers_that_differ_late_have_names_that_differ(sweep_file):
    sweep_file.write_text(sweep_file.read_text().replace("[0.0, 0.25]", "[0.12345671, 0.12345672]"))
    assert len({cell.name for cell in expand(load_sweep(sweep_file))}) == len(expand(load_sweep(sweep_file)))
