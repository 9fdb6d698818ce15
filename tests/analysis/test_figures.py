from collections import Counter

import numpy as np
import pytest
from PIL import Image
from tests.curves import run_of
from tests.synthetic import synthetic_records

from tunalab.analysis import curves as grid
from tunalab.analysis import curves as lines_of
from tunalab.analysis import figure6 as panels_of
from tunalab.analysis.curves import AXES, align_tokens, curves, lines
from tunalab.analysis.figure6 import figure6, learned
from tunalab.analysis.figures import draw, mask_ratio
from tunalab.analysis.learning import band, learning_curves
from tunalab.analysis.statistics import pooled
from tunalab.errors import UserError
from tunalab.records.labels import Legend


def figure_of(records, axis=AXES["tokens"]):
    return figure6(learned(lines(records), [axis]), axis)


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_figure6_has_a_panel_a_benchmark_and_a_line_a_variant(records):
    made = records(seeds=3)
    axes = panels(figure_of(made))
    assert len(axes) == 7 and {"count (CountBench)", "search (V*)", "relations (GQA)"} <= set(axes)
    table, shown = pooled(align_tokens(curves(made))), lines(made)
    for title, panel in axes.items():
        benchmark = title.split()[0]
        assert panel.get_xscale() == "log"
        drawn = {line.get_label(): line for line in panel.lines if not line.get_label().startswith("_")}
        assert list(drawn) == ["Tuna", "Tuna-R", "Tuna-2"]
        rows = table[(table.benchmark == benchmark) & (table.variant == "tuna2")].sort_values("tokens")
        assert np.allclose(drawn["Tuna-2"].get_xdata(), rows["tokens"])
        assert np.allclose(drawn["Tuna-2"].get_ydata(), rows["accuracy"])
        found = band(learning_curves(shown, benchmark)[2], AXES["tokens"])
        shade = panel.collections[2].get_paths()[0].vertices
        assert shade[:, 1].min() == pytest.approx(found.low_G.min()) and shade[:, 1].max() == pytest.approx(found.high_G.max())
        assert np.allclose(found.low_G, rows["low"]) and np.allclose(found.high_G, rows["high"])  # figure and table say the same
        dots = [line for line in panel.lines if line.get_marker() == "."]
        assert [len(line.get_xdata()) for line in dots] == [18, 18, 18]  # three seeds, six points
        assert len({line.get_linestyle() + str(line._dash_pattern) for line in drawn.values()}) == 3  # one shows through another
        (level,) = [line for line in panel.lines if line.is_dashed() and line.get_label() not in drawn]
        assert np.allclose(level.get_ydata(), rows["chance"].iloc[0])


def test_one_shared_legend_with_constant_colours(records):
    (legend,) = figure_of(records()).legends
    assert [text.get_text() for text in legend.get_texts()] == ["Tuna", "Tuna-R", "Tuna-2", "chance"]
    every = Legend(synthetic_records(variants=("yours", "mine", "tuna2", "tuna_r", "tuna"), kinds=1))
    assert every.colours()["tuna2"] == legend_of("tuna2").colours()["tuna2"]
    assert every.ordered(every.looks) == ["tuna", "tuna_r", "tuna2", "mine", "yours"]
    assert len(set(every.colours().values())) == 5


def legend_of(*variants):
    return Legend(synthetic_records(variants=variants, kinds=1))


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_one_variant_has_a_line_a_mask_ratio(records):
    made = records(variants=("tuna2",), ratios=(0.5, 0.0), seeds=2)
    figure = figure_of(made)
    assert labels(figure) == ["Tuna-2, mask ratio 0", "Tuna-2, mask ratio 0.5", "chance"]
    table = pooled(align_tokens(curves(made)))
    rows = table[(table.benchmark == "count") & (table.setting == "mask ratio 0.5")].sort_values("tokens")
    drawn = {line.get_label(): line for line in panels(figure)["count (CountBench)"].lines}
    assert np.allclose(drawn["Tuna-2, mask ratio 0.5"].get_ydata(), rows["accuracy"])


def test_a_sweep_of_any_setting_has_a_line_a_value(record):
    rates = ("0.001", "0.01", "2e-4")
    made = [record(seed=seed, kinds=1, settings=[f"stages.pretrain.lr={rate}"]) for rate in rates for seed in (0, 1)]
    assert labels(figure_of(made)) == ["Tuna-2, lr 0.0002", "Tuna-2, lr 0.001", "Tuna-2, lr 0.01", "chance"]
    both = [record(kinds=1, settings=[f"stages.{stage}.lr={rate}"]) for stage in ("sft", "pretrain") for rate in ("0.1", "0.2")]
    assert labels(figure_of(both))[-2] == "Tuna-2, stages.pretrain.lr 0.2, stages.sft.lr 0.0005"


def test_several_variants_at_several_settings_are_a_file_each(tmp_path, records):
    several = records(ratios=(0.0, 0.5), seeds=1, kinds=1)
    paths = draw("curves", several, tmp_path, "make sweep")
    assert [path.name for path in paths] == ["curves-tuna.png", "curves-tuna_r.png", "curves-tuna2.png"]
    assert all(path.is_file() for path in paths)
    assert [path.name for path in draw("mask_ratio", several, tmp_path, "")] == ["mask_ratio.png"]


def test_a_setting_that_goes_with_the_variant_is_said_and_needs_one_picture(tmp_path, record):
    made = [record(name, kinds=1, settings=[f"optimizer.ema={ema}"]) for name, ema in (("tuna", 0.9), ("tuna2", 0.99))]
    assert labels(figure_of(made)) == ["Tuna, ema 0.9", "Tuna-2, ema 0.99", "chance"]
    assert [path.name for path in draw("figure6", made, tmp_path, "")] == ["figure6.png", "figure6.html"]


def test_the_x_axis_is_a_choice(tmp_path, records):
    made = records(seeds=1, kinds=1)
    assert [path.name for path in draw("curves", made, tmp_path, "", x="flops")] == ["curves-flops.png"]
    (panel,) = figure_of(made, AXES["flops"]).axes
    drawn = next(line for line in panel.lines if line.get_label() == "Tuna-2")
    assert np.allclose(drawn.get_xdata(), [point.flops for point in made[2].points]) and panel.get_xlabel() == "training FLOPs"
    (clock,) = figure_of(made, AXES["wall_clock"]).axes
    texts = [clock.xaxis.get_major_formatter()(place, 0) for place in clock.xaxis.get_majorticklocs()]
    assert texts and set(texts) <= {"10 s", "30 s", "1 min", "3 min", "10 min"}
    with pytest.raises(UserError, match="unknown x axis"):
        draw("figure6", made, tmp_path, "", x="steps")
    with pytest.raises(UserError, match="mask_ratio has its own x axis"):
        draw("mask_ratio", made, tmp_path, "", x="flops")


def test_a_clear_crossing_is_marked():
    def made(variant, shares):
        order = np.random.default_rng(0).permutation(400)
        of = {at: order < 400 * share for at, share in zip((1000, 2000, 4000, 8000), shares, strict=True)}
        return [run_of(variant, seed, of) for seed in (0, 1, 2)]

    first = made("tuna", (0.6, 0.6, 0.6, 0.6))
    (panel,) = figure_of([*first, *made("tuna2", (0.2, 0.4, 0.8, 0.9))]).axes
    (mark,) = [line for line in panel.lines if line.get_marker() == "D"]
    assert mark.get_xdata()[0] == pytest.approx(2000 * 2**0.5)
    assert mark.get_markerfacecolor() == legend_of("tuna2").colours()["tuna2"]
    (panel,) = figure_of([*first, *made("tuna2", (0.59, 0.6, 0.6, 0.61))]).axes
    assert not [line for line in panel.lines if line.get_marker() == "D"]  # they touch, but neither lead is one


def test_two_seeds_have_dots_and_no_shade(records):
    """Their intervals would fill every panel."""
    for seeds, shaded in ((1, True), (2, False), (3, True)):
        for panel in panels(figure_of(records(seeds=seeds))).values():
            assert bool(panel.collections) == shaded


def test_mask_ratio_shows_the_last_common_point(records):
    made = records(ratios=(0.0, 0.25, 0.5), seeds=2)
    table = align_tokens(curves(made))
    last = pooled(table[table.tokens == table.tokens.max()])
    axes = panels(mask_ratio(made))
    assert len(axes) == 7
    panel = axes["ocr (OCRBench)"]
    drawn = [container[0].get_ydata() for container in panel.containers]
    for variant, ys in zip(("tuna", "tuna_r", "tuna2"), drawn, strict=True):
        rows = last[(last.benchmark == "ocr") & (last.variant == variant)].sort_values("setting")
        assert np.allclose(ys, rows["accuracy"])
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["0", "0.25", "0.5"]


def test_mask_ratio_of_two_learning_rates_has_a_line_each(record):
    made = [
        record(mask_ratio=ratio, kinds=3, settings=[f"stages.sft.lr={rate}"]) for ratio in (0.0, 0.5) for rate in ("0.1", "0.2")
    ]
    figure = mask_ratio(made)
    assert labels(figure) == ["Tuna-2, lr 0.1", "Tuna-2, lr 0.2", "chance"]
    assert all(len(container[0].get_xdata()) == 2 for container in panels(figure)["ocr (OCRBench)"].containers)


def test_one_mask_ratio_is_no_curve(record):
    with pytest.raises(UserError, match=r"needs records of at least two mask ratios, these have 0.5 alone"):
        mask_ratio([record(mask_ratio=0.5, seed=seed, kinds=1) for seed in (0, 1)])


def test_draw_writes_a_picture_that_names_its_command_and_repeats_exactly(tmp_path, record):
    made = [record("tuna", kinds=2), record("tuna2", kinds=2)]
    path, html = draw("figure6", made, tmp_path / "a", "make figure6")
    with Image.open(path) as image:
        assert image.info["Description"] == "made by: make figure6" and image.width > 900
        assert np.asarray(image.convert("L")).std() > 5
    again, same = draw("figure6", made, tmp_path / "b", "make figure6")
    assert again.read_bytes() == path.read_bytes() and same.read_bytes() == html.read_bytes()
    with pytest.raises(UserError, match="choices: figure6, curves, mask_ratio"):
        draw("figure7", made, tmp_path, "")


def test_nothing_evaluated_is_an_error(record):
    empty = record()
    empty.points.clear()
    with pytest.raises(UserError, match="no evaluated benchmark"):
        figure_of([empty])


def test_each_score_is_resampled_once_for_picture_and_page(tmp_path, records, monkeypatch):
    """A thousand runs in seconds: nothing that takes long is done again for the page, an axis or a pair."""
    counts = Counter()

    def counted(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: (counts.update([name]), real(*given))[1])

    counted(panels_of, "learning_curves")
    counted(panels_of, "band")
    counted(grid, "_grid")
    counted(lines_of, "differing_settings")
    draw("figure6", records(seeds=3, kinds=4), tmp_path, "")
    lines, kinds, axes = 3, 4, len(AXES)
    assert counts == {"learning_curves": kinds, "band": lines * kinds * axes, "_grid": 2 * lines * axes, "differing_settings": 1}
