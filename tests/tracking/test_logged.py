import pytest

from tunalab.records.record import Point
from tunalab.tracking.sync import planned_tokens, point_metrics, run_tags


def config(budget=1000, points=4, first=0.1):
    return {"evaluation": {"points": points, "first": first}, "stages": {"a": {"tokens": budget - 100}, "b": {"tokens": 100}}}


@pytest.mark.parametrize(
    ("tokens", "planned"),
    [
        ([103, 220, 466, 1003], [100, 215, 464, 1000]),  # a step late each time
        ([103, 220, 466, 998], [100, 215, 464, 1000]),  # training ended just short of the budget
        ([300, 1200], [215, 1000]),  # a step passed two counts
        ([103, 220, 466, 1003, 1010], [100, 215, 464, 1000, 1010]),
    ],
)
def test_runs_of_all_seeds_share_the_planned_counts(tokens, planned):
    assert planned_tokens(tokens, config()) == planned


def test_accuracy_stands_at_the_tokens_consumed_and_at_those_planned(record):
    one = record(seed=1)
    logged = [(tokens, metrics) for _, tokens, metrics in point_metrics(one.points, one.config)]
    assert [tokens for tokens, _ in logged[::2]] == [point.tokens for point in one.points]
    point, (_, exact), (_, planned) = one.points[0], *logged[:2]
    assert exact["benchmark/ocr"] == planned["accuracy/ocr"] == point.benchmarks["ocr"].accuracy
    assert exact["cost/seconds"] == point.seconds and exact["heldout/text"] == 1.5 and exact["one_step_psnr/t0.3"] == 14.2
    assert isinstance(point, Point) and set(planned) == {f"accuracy/{name}" for name in point.benchmarks}


def test_an_arm_is_a_run_without_its_seed(record):
    one = record()
    environment = {"commit": "abc", "dirty": True, "python": "3.11", "packages": {"torch": "2.15.0", "none": None}}
    for name, arm in (("tuna2-seed0", "tuna2"), ("tuna2-ratio0.25-seed1", "tuna2-ratio0.25"), ("tuna-seed0+ab12", "tuna")):
        tags = run_tags(name, one.config, "f00", environment, one.look)
        assert (
            tags["arm"] == arm
            and tags["variant"] == "tuna2"
            and tags["front_end"] == "Tuna-2"
            and tags["mask_ratio"] == 0.25
            and tags["config_hash"] == "f00"
        )
    assert tags["front_end"] == "Tuna-2" and tags["front_end.encoder"] == "none"
    assert tags["mlflow.source.git.commit"] == "abc" and tags["code.modified"] is True and tags["package.torch"] == "2.15.0"
    assert "package.none" not in tags and "accelerator" not in tags
