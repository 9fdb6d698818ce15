import base64
import json
import zlib

from tunalab.tracking import dashboard as views_module
from tunalab.tracking.client import connect
from tunalab.tracking.dashboard import ACCURACIES, HARDER, TAG, differing_params, set_up_views, view_state
from tunalab.tracking.tracker import Tracker

BY = {"figure6": "variant, decoder.layers", "ratios": "arm", "old": "variant"}


def test_two_configurations_of_one_arm_are_two_lines():
    """As few parameters as set them apart: neither the seed, nor what changes no result, nor what goes with the arm."""
    old = {"decoder.layers": "5", "stages.sft.lr": "0.1", "stages.pretrain.lr": "0.1", "threads": "1", "data.unfit_share": "0"}
    arms = ["tuna", "tuna2", "tuna", "tuna2"]
    differ = ("seed", "threads", "data.unfit_share")  # the last one changes no result though its group does
    plain = [old | {"variant": arm} | dict.fromkeys(differ, seed) for arm, seed in zip(arms, "0011", strict=True)]
    assert differing_params(arms, plain) == []
    edited = [*plain[:3], plain[3] | {"stages.sft.lr": "0.2", "stages.pretrain.lr": "0.2", "new.setting": "1"}]
    assert differing_params(arms, edited) == ["stages.pretrain.lr"]
    assert differing_params(arms, [*edited[:1], edited[1] | {"decoder.layers": "6"}, edited[2], {}]) == []
    state = view_state("tags.sweep = 'figure6'", "arm", [], ["stages.pretrain.lr"])
    assert state["groupBy"]["groupByKeys"][1:] == [{"mode": "param", "groupByData": "stages.pretrain.lr"}]


def test_charts_of_accuracy_in_sections_by_level():
    state = view_state("tags.sweep = 'figure6'", "variant", ["accuracy/count", "accuracy/count_3", "accuracy/easy_vqa"])
    charts = [(chart["metricKey"], chart["metricSectionId"]) for chart in state["compareRunCharts"]]
    assert charts == [("accuracy/count", ACCURACIES), ("accuracy/easy_vqa", ACCURACIES), ("accuracy/count_3", HARDER)]
    assert [section["name"] for section in state["compareRunSections"]] == [ACCURACIES, HARDER]
    assert state["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "variant"}]


def test_every_sweep_has_its_view_the_newest_first(store, monkeypatch):
    monkeypatch.setattr(views_module, "PAGE_RUNS", 3)  # so that there are several pages
    runs = (("figure6", 0, 100.0), ("figure6", 1, 300.0), ("ratios", 0, 200.0), ("ratios", 1, 200.0), ("old", 0, 50.0))
    for sweep, seed, start in runs:
        for variant in ("tuna", "tuna2"):
            tags = {"sweep": sweep, "variant": variant, "arm": f"{variant}{'-lr1' * (sweep == 'ratios' and seed)}", "seed": seed}
            if sweep == "old":  # of a version before arms
                del tags["arm"]
            tracker = Tracker(store, "views", f"{variant}-seed{seed}", tags, start_time=start)
            tracker.log_params({"seed": seed, "decoder": {"layers": 5 + (sweep == "figure6" and seed)}})  # an edited sweep
            tracker.log_metrics({"accuracy/count": 0.5, "benchmark/count": 0.5}, 1000)
            tracker.finish()
    views = [view for view in set_up_views(store) if view.name.startswith(tuple(BY))]
    assert [view.name for view in views] == [f"{name}: accuracy against tokens, by {by}" for name, by in BY.items()]
    experiment = connect(store).get_experiment_by_name("views")
    assert views[0].url.startswith(f"#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=tunalab-figure6")
    value = json.loads(experiment.tags[f"{TAG}tunalab-figure6"])
    state = json.loads(zlib.decompress(base64.b64decode(value["state"].removeprefix("deflate;"))))
    assert value["name"] == views[0].name and state["groupBy"]["groupByKeys"][0]["groupByData"] == "arm"
    assert state["searchFilter"] == "tags.sweep = 'figure6' and tags.variant LIKE '%'"
    assert [chart["metricKey"] for chart in state["compareRunCharts"]] == ["accuracy/count"]


def test_a_run_trained_again_after_its_directory_was_deleted_has_a_line_of_its_own(store):
    for seed, start in ((0, 100.0), (1, 150.0), (0, 200.0)):
        tags = {"sweep": "twice", "variant": "tuna2", "arm": "tuna2", "seed": seed}
        tracker = Tracker(store, "repeats", f"tuna2-seed{seed}", tags, start_time=start)
        tracker.log_params({"seed": seed, "decoder": {"layers": 5}})
        tracker.log_metrics({"accuracy/count": 0.5}, 1000)
        tracker.finish()
        (view,) = [view for view in set_up_views(store) if view.name.startswith("twice")]
        assert view.name.endswith(", by variant, repeat" if start == 200.0 else ", by variant")
    client = connect(store)
    experiment = client.get_experiment_by_name("repeats")
    runs = sorted(client.search_runs([experiment.experiment_id]), key=lambda run: run.info.start_time)
    assert [run.data.tags["repeat"] for run in runs] == ["1", "1", "2"]
    value = json.loads(client.get_experiment(experiment.experiment_id).tags[f"{TAG}tunalab-twice"])
    state = json.loads(zlib.decompress(base64.b64decode(value["state"].removeprefix("deflate;"))))
    assert [key["groupByData"] for key in state["groupBy"]["groupByKeys"]] == ["arm", "repeat"]
    assert "tags.`repeat`" in state["selectedColumns"]
