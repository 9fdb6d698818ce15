"""Lanes dealt out again: nothing is read twice, and the run goes on where it was."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tunalab.data.scenes import ScenesCorpus, SceneSettings
from tunalab.data.stream import SHARED, Step, TrainingStream, deal_lanes
from tunalab.data.tokenizer import Tokenizer
from tunalab.settings.schema import DataConfig, StageConfig

STAGES = {
    "first": StageConfig(tokens=6000, mix={"scenes/vqa": 1.0}),
    "second": StageConfig(tokens=90000, mix={"scenes/vqa": 1.0, "scenes/text": 1.0}),
}


def stream(tokenizer: Tokenizer, folder: Path, rank: int, world_size: int, resume: Any = None) -> TrainingStream:
    return TrainingStream(
        DataConfig(rows=1, row_tokens=256, lookahead=12),
        STAGES,
        lambda name: ScenesCorpus(name.removeprefix("scenes/"), "train", SceneSettings(32, (1.0, 0.0, 0.0), 3, 0, "grid")),  # type: ignore[arg-type]
        tokenizer,
        8,
        0,
        folder / "rejects.jsonl",
        rank=rank,
        world_size=world_size,
        resume=resume,
    )


class Reader:
    """Reads a stream and keeps what was trained on: (source, index), in order."""

    def __init__(self, opened: TrainingStream) -> None:
        self.stream = opened
        self.picked: list[tuple[str, int]] = []
        self.last: Step | None = None

    def read(self, steps: int) -> None:
        place = self.stream._place
        observed: dict[int, tuple[str, int]] = {}

        def noting(pick: Any) -> Any:
            observed[pick.position] = (pick.source, pick.index)
            return place(pick)

        self.stream._place = noting  # type: ignore[method-assign]
        for step in islice(self.stream, steps):
            self.last = step
        assert self.last is not None
        waiting = {pick[0] for pick in self.last.lane_state["waiting"]}
        self.picked = [document for position, document in observed.items() if position not in waiting]


@pytest.mark.parametrize(("before", "now"), [(2, 1), (2, 3), (3, 2)])
def test_no_document_is_read_twice_and_the_waiting_ones_are_read(
    before: int, now: int, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    old = [Reader(stream(tokenizer, tmp_path, rank, before)) for rank in range(before)]
    for rank, reader in enumerate(old):
        reader.read(8 + 3 * rank)  # lanes that are far apart
    states = [{0: reader.last.lane_state} for reader in old if reader.last is not None]
    dealt = deal_lanes(states, now, 0, [stage.tokens for stage in STAGES.values()])
    new = [Reader(stream(tokenizer, tmp_path, rank, now, dealt[rank])) for rank in range(now)]
    for reader in new:
        reader.read(6)
    trained = [document for reader in [*old, *new] for document in reader.picked]
    assert len(trained) == len(set(trained)) > 50
    waiting = {(pick[1], pick[2]) for state in states for pick in state[0]["waiting"]}
    still = {(pick[1], pick[2]) for reader in new if reader.last is not None for pick in reader.last.lane_state["waiting"]}
    assert waiting <= set(trained) | still and len(waiting & set(trained)) > len(waiting) / 2


def test_place_in_the_stages_is_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    old = [Reader(stream(tokenizer, tmp_path, rank, 2)) for rank in (0, 1)]
    for reader in old:
        reader.read(20)  # about 5000 tokens of each: in the second stage
    states = [{0: reader.last.lane_state} for reader in old if reader.last is not None]
    total = sum(state[0]["tokens"] for state in states)
    (alone,) = deal_lanes(states, 1, 0, [stage.tokens for stage in STAGES.values()])
    assert alone[0]["tokens"] == total and alone[0]["stage_start"] == (1, 6000)
    assert alone[0]["stage_step"] == max(state[0]["stage_step"] for state in states)
    step = next(iter(stream(tokenizer, tmp_path, 0, 1, alone)))
    assert step.stage == "second"
    assert step.stage_progress == pytest.approx((total - 6000) / 90000)
    assert alone[0]["rejects"]["seen"] == {
        name: sum(state[0]["rejects"]["seen"].get(name, 0) for state in states) for name in alone[0]["rejects"]["seen"]
    }


def test_a_state_that_the_rule_does_not_know_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    reader = Reader(stream(tokenizer, tmp_path, 0, 1))
    reader.read(2)
    assert reader.last is not None
    with pytest.raises(ValueError, match="novelty"):
        deal_lanes([{0: {**reader.last.lane_state, "novelty": 1}}], 2, 0, [6000, 90000])


def test_where_the_lanes_of_a_rank_were_together_is_no_novelty(tokenizer: Tokenizer, tmp_path: Path) -> None:
    reader = Reader(stream(tokenizer, tmp_path, 0, 1))
    reader.read(2)
    assert reader.last is not None
    state = reader.last.lane_state
    assert deal_lanes([{0: {**state, SHARED: [0, 0, 2]}}], 2, 0, [6000, 90000]) == deal_lanes([{0: state}], 2, 0, [6000, 90000])


def test_nothing_read_yet_is_a_fresh_start() -> None:
    assert deal_lanes([{}, {}], 3, 2, [1]) == [{}, {}, {}]
