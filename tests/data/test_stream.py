"""The training stream: order, budgets, exact resuming (with data processes too), rejects."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunalab.data.documents import Document, Image, Kind, Reject, Text, Unfit
from tunalab.data.packing import PackedBatch
from tunalab.data.stream import COUNTS, SHARED, Step, StepLoader, TrainingStream
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.settings.schema import DataConfig, StageConfig

TOKEN_PIXELS, T = 4, 4  # an image of 8 px has four visual tokens
WORDS = ["a", "red", "ring", "left", "of", "the", "blue", "cross", "how", "many", "stars"]


class Words:
    """Documents of a few words, some with an image; ``broken`` says which of them cannot be read."""

    def __init__(self, name: str, length: int | None = None, broken: Any = lambda index: False) -> None:
        self.name = name
        self.length = length
        self.broken = broken
        self.kind: Kind = "text_to_image" if name == "pictures" else "text"

    def document(self, index: int) -> Document:
        if self.broken(index):
            raise Reject(f"number {index} is broken")
        rng = np.random.default_rng([len(self.name), index if self.length is None else index % self.length])
        text = " ".join(rng.choice(WORDS, int(rng.integers(1, 12))))
        if self.kind == "text":
            return Document("text", (Text(text, target=True),))
        return Document(self.kind, (Text(text), Image(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), generate=True)))


def sources(**broken: Any) -> dict[str, Words]:
    lengths = {"words": None, "book": 30, "pictures": None}
    return {name: Words(name, length, broken.get(name, lambda index: False)) for name, length in lengths.items()}


STAGES = {
    "first": StageConfig(tokens=600, mix={"words": 1.0, "pictures": 1.0}),
    "second": StageConfig(tokens=900, mix={"words": 1.0, "book": 2.0}),
    "third": StageConfig(tokens=400, mix={"pictures": 1.0}),
}
DATA = DataConfig(row_tokens=64, rows=2, accumulate=1, lookahead=6, caption_drop=0.5)


@pytest.fixture
def make(tokenizer: Tokenizer, tmp_path: Path) -> Any:
    def build(corpora: dict[str, Words] | None = None, data: DataConfig = DATA, **more: Any) -> TrainingStream:
        known = corpora or sources()
        arguments = {"stages": STAGES, "seed": 0, "token_pixels": TOKEN_PIXELS, "reject_path": tmp_path / "rejects.jsonl", **more}
        return TrainingStream(data, open_source=lambda name: known[name], tokenizer=tokenizer, **arguments)

    return build


def same(a: Step, b: Step) -> bool:
    """Every tensor and number of two steps, and the state behind them."""
    for batch, other in zip(a.batches, b.batches, strict=True):
        for item in dataclasses.fields(PackedBatch):
            x, y = getattr(batch, item.name), getattr(other, item.name)
            if item.name == "groups":
                if [group.size for group in x] != [group.size for group in y]:
                    return False
                x, y = (
                    torch.cat([image.flatten() for group in groups for image in group.pixels_nHWC]) if groups else 0
                    for groups in (x, y)
                )
            if not (torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y):
                return False
    names = ("stage", "stage_step", "stage_progress", "lane", "lane_state")
    return all(getattr(a, name) == getattr(b, name) for name in names)


def all_same(a: list[Step], b: list[Step]) -> bool:
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def test_no_front_end_enters() -> None:
    """The order is equal for every variant because nothing of a variant is given to the stream but the size of its tokens."""
    expected = "config stages open_source tokenizer token_pixels seed reject_path rank world_size resume next_lane accept_changed"
    assert list(inspect.signature(TrainingStream).parameters) == expected.split()


def test_the_stream_is_a_function_of_the_seed(make: Any) -> None:
    steps = list(make())
    assert all_same(steps, list(make())) and not all_same(steps, list(make(seed=1)))
    stream = make()
    assert all_same(list(stream), list(stream)), "iterating again starts again"


def test_stages_follow_each_other_within_their_budgets(make: Any) -> None:
    steps = list(make())
    assert list(dict.fromkeys(step.stage for step in steps)) == list(STAGES)
    largest = max(step.tokens for step in steps)
    total = sum(stage.tokens for stage in STAGES.values())
    assert total <= sum(step.tokens for step in steps) < total + largest
    end = 0
    for name, stage in STAGES.items():
        end += stage.tokens
        own = [step for step in steps if step.stage == name]
        assert [step.stage_step for step in own] == list(range(len(own)))
        assert own[0].stage_progress < largest / stage.tokens and own[-1].stage_progress < 1
        assert [s.stage_progress for s in own] == sorted({s.stage_progress for s in own})
        # A stage ends with the step that reaches its budget; its surplus counts for the next one.
        consumed = sum(step.tokens for step in steps[: steps.index(own[-1]) + 1])
        assert end <= consumed < end + largest


def test_a_stage_smaller_than_the_surplus_before_it_is_skipped(make: Any) -> None:
    mix = {"words": 1.0}
    stages = {name: StageConfig(tokens=tokens, mix=mix) for name, tokens in (("a", 150), ("b", 1), ("c", 300))}
    steps = list(make(stages=stages))
    assert [step.stage for step in steps[:2]] == ["a", "a"] and "b" not in {step.stage for step in steps[2:]}
    assert all(0 <= step.stage_progress < 1 for step in steps)


def test_accumulation_reads_the_same_rows(make: Any) -> None:
    split = next(iter(make(data=dataclasses.replace(DATA, rows=1, accumulate=4))))
    whole = next(iter(make(data=dataclasses.replace(DATA, rows=4))))
    assert len(split.batches) == 4
    assert torch.equal(torch.cat([batch.ids_BL for batch in split.batches]), whole.batches[0].ids_BL)
    assert split.tokens == whole.tokens and split.images == whole.images
    assert torch.cat([batch.key_N for batch in split.batches]).tolist() == whole.batches[0].key_N.tolist()


def test_prompts_are_dropped_at_the_set_share(make: Any, tokenizer: Tokenizer) -> None:
    stages = {"only": StageConfig(tokens=12_000, mix={"pictures": 1.0})}
    for share in (0.0, 0.3, 1.0):
        steps = list(make(data=dataclasses.replace(DATA, caption_drop=share), stages=stages))
        lengths = torch.cat([batch.length_D for step in steps for batch in step.batches])
        dropped = (lengths == T + 5).float().mean().item()  # bos boi time patches eoi eos
        assert abs(dropped - share) < 0.08


def test_resuming_after_any_step_is_exact(make: Any) -> None:
    steps = list(make())
    assert len(steps) > 12
    for done in range(1, len(steps) + 1):
        # A checkpoint is plain data: it survives being written down.
        state = json.loads(json.dumps(steps[done - 1].lane_state))
        rest = list(make(resume={0: state}))
        assert all_same(rest, steps[done:]), f"after step {done}"


def test_ranks_and_lanes_read_different_documents(make: Any) -> None:
    streams = [make(rank=rank, world_size=2) for rank in (0, 1)]
    keys = [{key for step in stream for batch in step.batches for key in batch.key_N.tolist()} for stream in streams]
    assert all(keys) and not keys[0] & keys[1]


def read(make: Any, workers: int, **more: Any) -> list[Step]:
    data = dataclasses.replace(DATA, workers=workers)
    return list(StepLoader(make(data=data, **more), workers))


@pytest.mark.slow
def test_data_processes_share_the_budget_and_resume_exactly(make: Any) -> None:
    """Two lanes, killed after any step; the loader had read further ahead than training had come."""
    steps = read(make, 2)
    assert [step.lane for step in steps[:6]] == [0, 1, 0, 1, 0, 1]
    total = sum(stage.tokens for stage in STAGES.values())
    assert total <= sum(step.tokens for step in steps) < total + 2 * max(step.tokens for step in steps)
    keys = [key for step in steps for batch in step.batches for key in batch.key_N.tolist()]
    assert len(set(keys)) == len(keys)
    first = [step for step in steps if step.stage == "first"]
    assert [step.stage_step for step in first] == list(range(len(first))), "steps of a stage are counted over all lanes"
    for done in (1, 2, 7, len(steps) - 1):
        lanes = {step.lane: step.lane_state for step in steps[:done]}
        rest = read(make, 2, resume=lanes, next_lane=(steps[done - 1].lane + 1) % 2)
        assert all_same(rest, steps[done:]), f"after step {done}"


@pytest.mark.parametrize("workers", [0, 2, 3, 5])
def test_the_number_of_data_processes_adds_no_steps(make: Any, workers: int) -> None:
    """Budget and stages end by the tokens of all lanes together, at the step that reaches them, as with one lane."""
    steps = read(make, workers)
    before = list(np.cumsum([0, *(step.tokens for step in steps)]))
    ends = np.cumsum([stage.tokens for stage in STAGES.values()])
    assert before[-2] < ends[-1] <= before[-1]
    for step, tokens in zip(steps, before[:-1], strict=True):
        number = int(np.searchsorted(ends, tokens, side="right"))
        began = ends[number - 1] if number else 0
        assert step.stage == list(STAGES)[number]
        assert step.stage_progress == (tokens - began) / list(STAGES.values())[number].tokens
    for name in STAGES:
        own = [step.stage_step for step in steps if step.stage == name]
        assert own == list(range(len(own))) and own
    full = DATA.row_tokens * DATA.rows
    assert ends[-1] / full <= len(steps) <= ends[-1] / (0.9 * full) + 1


def test_lanes_of_an_earlier_checkpoint_go_on_by_their_tokens(make: Any) -> None:
    """It does not say where they were together: the stage is that of their tokens, its steps are those of the lanes."""
    steps = read(make, 2)
    done = next(number for number, step in enumerate(steps) if step.stage == "second") + 4
    lanes = {step.lane: {name: value for name, value in step.lane_state.items() if name != SHARED} for step in steps[:done]}
    rest = read(make, 2, resume=lanes, next_lane=(steps[done - 1].lane + 1) % 2)
    assert [(step.stage, step.stage_progress) for step in rest] == [(step.stage, step.stage_progress) for step in steps[done:]]
    assert abs(rest[0].stage_step - steps[done].stage_step) <= 2


def test_a_stage_smaller_than_the_number_of_data_processes_is_read(make: Any) -> None:
    for tokens in (1, 3, 5):
        assert len(read(make, 4, stages={"only": StageConfig(tokens=tokens, mix={"words": 1.0})})) == 1


def test_one_process_reads_what_none_reads(make: Any) -> None:
    assert all_same(read(make, 1), read(make, 0))


def test_rejects_are_counted_written_and_skipped(make: Any, tmp_path: Path) -> None:
    corpora = sources(words=lambda index: index % 10 == 3)
    stream = make(corpora, data=dataclasses.replace(DATA, reject_share=0.5))
    steps = list(stream)
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert lines and all(line["corpus"] == "words" and line["index"] % 10 == 3 for line in lines)
    assert all(f"number {line['index']} is broken" in line["reason"] for line in lines)
    assert stream.rejects.rejected == len(lines)
    read_from_words = stream.rejects.state_dict()["seen"]["words"]
    assert abs(len(lines) - read_from_words / 10) <= 1
    # Resuming goes over some of them again, and neither counts nor order change.
    again = make(corpora, data=dataclasses.replace(DATA, reject_share=0.5), resume={0: steps[4].lane_state})
    assert all_same(list(again), steps[5:]) and again.rejects.state_dict() == stream.rejects.state_dict()
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == len(lines)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_rejects_stop_the_run_with_one_line(make: Any, workers: int) -> None:
    stages = {"only": StageConfig(tokens=100_000, mix={"words": 1.0})}
    data = dataclasses.replace(DATA, workers=workers)
    stream = make(sources(words=lambda index: index % 20 == 3), data=data, stages=stages)
    steps = []
    with pytest.raises(UserError) as caught:
        for step in StepLoader(stream, workers):
            steps.append(step)
    assert steps, "a few broken documents among the first hundred decide nothing yet"
    message = str(caught.value)
    assert message.startswith("words: ") and "rejects.jsonl" in message and "\n" not in message


def test_a_wholly_broken_source_stops_even_at_the_largest_share(make: Any) -> None:
    stages = {"only": StageConfig(tokens=1000, mix={"words": 1.0})}
    stream = make(sources(words=lambda index: True), data=dataclasses.replace(DATA, reject_share=1 - 1e-9), stages=stages)
    with pytest.raises(UserError, match="words"):
        list(stream)


def test_documents_longer_than_a_row_are_rejected(make: Any, tmp_path: Path) -> None:
    corpora = sources()
    short = corpora["words"].document
    corpora["words"].document = lambda index: (  # type: ignore[method-assign]
        Document("text", (Text("A" * 100, target=True),)) if index % 10 == 0 else short(index)
    )
    stream = make(corpora, data=dataclasses.replace(DATA, reject_share=0.0))
    steps = list(stream)
    assert all(int(batch.length_D.max()) <= 64 for step in steps for batch in step.batches)
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert lines and all("longer than a row of 64" in line["reason"] and line["fits"] is False for line in lines)
    assert (stream.rejects.rejected, stream.rejects.unfit) == (0, len(lines))


def leave_out(corpora: dict[str, Words], name: str, out: Any, error: type[Reject] = Unfit) -> None:
    """Of a source the documents that ``out`` names are left out."""
    document = corpora[name].document

    def some(index: int) -> Document:
        if out(index):
            raise error(f"number {index} is left out")
        return document(index)

    corpora[name].document = some  # type: ignore[method-assign]


def achieved(steps: list[Step], kind: str = "documents") -> dict[str, int]:
    at = COUNTS.index(kind)
    return {name: sum(step.read[name][at] for step in steps) for name in steps[0].read}


@pytest.mark.parametrize("error", [Unfit, Reject])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_mix_is_what_was_requested_whatever_is_left_out(make: Any, error: type[Reject], workers: int) -> None:
    stages = {"only": StageConfig(tokens=8000, mix={"words": 1.0, "novel": 1.0})}
    data = dataclasses.replace(DATA, workers=workers, unfit_share=1.0, reject_share=0.95)
    for few in (False, True):
        corpora = sources() | {"novel": Words("novel")}
        if few:
            leave_out(corpora, "words", lambda index: index % 9, error)
        steps = list(StepLoader(make(corpora, data=data, stages=stages), workers))
        documents, tokens = achieved(steps), achieved(steps, "tokens")
        assert sum(tokens.values()) == sum(step.tokens for step in steps)
        # Three deviations of a draw; lengths, which scatter by half their mean, widen it a little in tokens.
        allowed = 3 * 0.5 / sum(documents.values()) ** 0.5
        assert documents["words"] / sum(documents.values()) == pytest.approx(0.5, abs=allowed)
        assert tokens["words"] / sum(tokens.values()) == pytest.approx(0.5, abs=1.5 * allowed)
        lost = achieved(steps, "unfit" if error is Unfit else "broken")
        assert lost["novel"] == 0 and (lost["words"] > 0.85 * achieved(steps, "asked")["words"]) == few


def test_other_sources_read_the_same_documents_whatever_one_leaves_out(make: Any) -> None:
    """Places of the stream keep their source, so that noise and masks of the others stay what they are."""
    mix = {"words": 1.0, "pictures": 1.0}
    picked = []
    for few in (False, True):
        corpora = sources()
        if few:
            leave_out(corpora, "words", lambda index: index % 3 == 1)
        stream = make(corpora, stages={"only": StageConfig(tokens=4000, mix=mix)})
        place, seen = stream._place, {}
        stream._place = lambda pick, place=place, seen=seen: seen.setdefault(pick.position, pick) and place(pick)
        list(stream)
        picked.append(seen)
    common = sorted(picked[0].keys() & picked[1].keys())
    assert len(common) > 150 and [picked[0][at].source for at in common] == [picked[1][at].source for at in common]
    of_pictures = [at for at in common if picked[0][at].source == "pictures"]
    assert [picked[0][at] for at in of_pictures] == [picked[1][at] for at in of_pictures]


def test_resuming_is_exact_where_documents_are_left_out(make: Any) -> None:
    def with_gaps() -> dict[str, Words]:
        corpora = sources()
        leave_out(corpora, "words", lambda index: index % 3)
        leave_out(corpora, "book", lambda index: index % 30 in (4, 5, 6))
        return corpora

    data = dataclasses.replace(DATA, unfit_share=0.9)
    steps = list(make(with_gaps(), data=data))
    for done in (1, 4, 9, len(steps) - 1):
        rest = list(make(with_gaps(), data=data, resume={0: json.loads(json.dumps(steps[done - 1].lane_state))}))
        assert all_same(rest, steps[done:])
        assert [step.read for step in rest] == [step.read for step in steps[done:]]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_that_do_not_fit_stop_the_run_with_one_line(make: Any, workers: int) -> None:
    corpora = sources()
    leave_out(corpora, "words", lambda index: index % 5)
    stages = {"only": StageConfig(tokens=100_000, mix={"words": 1.0})}
    stream = make(corpora, data=dataclasses.replace(DATA, workers=workers), stages=stages)
    expected = r"^words: \d+ of \d+ documents do not fit and are left out \(\d\d\.\d%, limit data.unfit_share=50.0%\), listed in "
    with pytest.raises(UserError, match=expected + r".*rejects.jsonl; last reason: number \d+ is left out$") as caught:
        list(StepLoader(stream, workers))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_of_which_nothing_fits_stops_with_one_line(make: Any, workers: int) -> None:
    corpora = sources()

    def unfit(index: int) -> Document:
        raise Unfit(f"number {index} is too small")

    corpora["words"].document = unfit  # type: ignore[method-assign]
    stages = {"only": StageConfig(tokens=1000, mix={"words": 1.0})}
    stream = make(corpora, data=dataclasses.replace(DATA, workers=workers), stages=stages)
    with pytest.raises(UserError, match=r"words: none of 1000 documents .*0 broken, 1000 do not fit.*too small$") as caught:
        list(StepLoader(stream, workers))
    assert "\n" not in str(caught.value)


def test_data_that_changed_under_a_stopped_run_are_named(make: Any) -> None:
    steps = list(make())
    corpora = sources(words=lambda index: True, pictures=lambda index: True, book=lambda index: True)
    state = next(step.lane_state for step in steps if step.lane_state["waiting"])
    with pytest.raises(UserError, match="sound before"):
        list(make(corpora, resume={0: state}))


def test_a_stage_of_no_tokens_is_left_out(make: Any) -> None:
    none, second, third = StageConfig(tokens=0, mix={"words": 1.0}), STAGES["second"], STAGES["third"]
    plain = list(make(stages={"b": second, "d": third}))
    steps = list(make(stages={"a": none, "b": second, "c": none, "d": third, "e": none}))
    assert [(step.stage, step.stage_step, step.stage_progress) for step in steps] == [
        (step.stage, step.stage_step, step.stage_progress) for step in plain
    ]
    for step, other in zip(steps, plain, strict=True):
        assert all(torch.equal(x.ids_BL, y.ids_BL) for x, y in zip(step.batches, other.batches, strict=True))
