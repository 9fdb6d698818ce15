"""Shards of every family in the training stream: two ranks of two data processes, without overlap, resumed exactly."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from shard_files import FINEVISION, OMNIEDIT, SIDE, cell, encoded, pair, write_bytes, write_parquet, write_tar

from tunalab.data.mixing import Mixer
from tunalab.data.sources import build_source, open_sources
from tunalab.data.stream import Step, StepLoader, open_stream
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.settings.schema import (
    DataConfig,
    FineVisionConfig,
    OmniEditConfig,
    RunConfig,
    StageConfig,
    TextConfig,
    WebDatasetConfig,
)

RANKS, WORKERS = 2, 2
LANES = RANKS * WORKERS
TOKEN_PIXELS = SIDE // 2
MIX = {
    "webdataset/pairs": 3.0,
    "webdataset/images": 2.0,
    "finevision/talk": 2.0,
    "omniedit/edits": 1.0,
    "text/lines": 1.0,
    "text/rows": 1.0,
}


@pytest.fixture
def config(tmp_path: Path, memory: str) -> RunConfig:
    """Sixty documents a source, here and behind an URL; every text tells its document."""
    for shard in range(6):
        numbers = range(10 * shard, 10 * shard + 10)
        write_tar(f"{memory}/{shard}.tar", [pair(number) for number in numbers])
        talk = [{"images": [cell(n)], "texts": [{"user": "which?", "assistant": f"talk {n}"}]} for n in numbers]
        write_parquet(f"{tmp_path}/talk-{shard}.parquet", FINEVISION, talk)
        edits = [
            {"src_img": cell(n), "edited_img": cell(n + 1), "edited_prompt_list": [f"edit {n}", f"edit {n} so"]} for n in numbers
        ]
        write_parquet(f"{memory}/edits/{shard}.parquet", OMNIEDIT, edits)
        lines = [json.dumps({"text": f"line {n}"}) for n in numbers]
        write_bytes(f"{tmp_path}/lines/{shard}.jsonl", "\n".join(lines).encode())
        write_parquet(
            f"{tmp_path}/rows/{shard}.parquet", pa.schema([("text", pa.string())]), [{"text": f"row {n}"} for n in numbers]
        )
    data = DataConfig(
        image_size=SIDE,
        row_tokens=64,
        rows=2,
        lookahead=6,
        workers=WORKERS,
        caption_drop=0.0,
        webdataset={
            "pairs": WebDatasetConfig(urls=[f"{memory}/*.tar"], window=2, streams=LANES),
            "images": WebDatasetConfig(urls=[f"{memory}/{{0..5}}.tar"], kind="text_to_image", window=0),
        },
        finevision={"talk": FineVisionConfig(urls=[f"{tmp_path}/talk-*.parquet"], window=3, streams=LANES)},
        omniedit={"edits": OmniEditConfig(urls=[f"{memory}/edits/*.parquet"], window=2)},
        text={
            "lines": TextConfig(urls=[f"file://{tmp_path}/lines/*.jsonl"], window=2),
            "rows": TextConfig(urls=[f"{tmp_path}/rows/*.parquet"], window=0),
        },
    )
    return RunConfig(
        data=data, stages={"first": StageConfig(tokens=3000, mix=MIX), "second": StageConfig(tokens=800, mix={"text/rows": 1.0})}
    )


def read(config: RunConfig, tokenizer: Tokenizer, folder: Path, rank: int, **where: object) -> Iterator[Step]:
    stream = open_stream(config, tokenizer, TOKEN_PIXELS, folder / f"rejects-{rank}.jsonl", rank=rank, world_size=RANKS, **where)
    return iter(StepLoader(stream, WORKERS))


def texts(step: Step, tokenizer: Tokenizer) -> list[str]:
    """Every document of a step, decoded; image slots vanish."""
    documents = []
    for batch in step.batches:
        ids = batch.ids_BL.flatten()
        for start, length in zip(batch.start_D.tolist(), batch.length_D.tolist(), strict=True):
            documents.append(tokenizer.decode(ids[start : start + length].tolist()))
    return documents


def equal(a: Step, b: Step) -> bool:
    tensors = [[(batch.ids_BL, batch.document_BL, batch.key_N) for batch in step.batches] for step in (a, b)]
    pixels = [[group.pixels_nHWC for batch in step.batches for group in batch.groups] for step in (a, b)]
    return (
        (a.stage, a.stage_step, a.lane, a.lane_state) == (b.stage, b.stage_step, b.lane, b.lane_state)
        and all(torch.equal(x, y) for left, right in zip(*tensors, strict=True) for x, y in zip(left, right, strict=True))
        and all(torch.equal(x, y) for x, y in zip(*pixels, strict=True))
    )


@pytest.mark.slow
def test_two_ranks_of_two_data_processes_resume_exactly(config: RunConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for rank in range(RANKS):
        steps = list(read(config, tokenizer, tmp_path, rank))
        assert len(steps) > 10 and {step.stage for step in steps} == {"first", "second"}
        for done in (3, 8) if rank else (len(steps) - 4,):
            lanes = {step.lane: json.loads(json.dumps(step.lane_state)) for step in steps[:done]}
            rest = list(read(config, tokenizer, tmp_path, rank, resume=lanes, next_lane=(steps[done - 1].lane + 1) % WORKERS))
            assert len(rest) == len(steps) - done and all(map(equal, rest, steps[done:])), f"rank {rank} after step {done}"


def test_files_that_were_added_to_a_stopped_run_are_noticed(
    config: RunConfig, tokenizer: Tokenizer, tmp_path: Path, memory: str
) -> None:
    step = next(iter(open_stream(config, tokenizer, TOKEN_PIXELS, tmp_path / "rejects.jsonl")))
    write_parquet(f"{memory}/edits/6.parquet", OMNIEDIT, [{"src_img": cell(0), "edited_img": cell(1), "edited_prompt_list": ["a"]}])
    resumed = open_stream(config, tokenizer, TOKEN_PIXELS, tmp_path / "rejects.jsonl", resume={0: step.lane_state})
    with pytest.raises(UserError, match="omniedit/edits: its files are not those this run began with"):
        next(iter(resumed))


@pytest.mark.parametrize("name", sorted(MIX))
def test_an_epoch_is_shared_by_all_lanes_without_overlap(config: RunConfig, name: str) -> None:
    """What every lane's mixer asks of every kind of source: each epoch exactly once, over ranks and data processes."""
    corpus = build_source(name, config.data, config.seed)
    mixers = [Mixer({name: corpus.length}, config.seed, lane, LANES) for lane in range(LANES)]
    for _ in range(2):
        picks = [mixer.next({name: 1.0}).index for _ in range(60 // LANES) for mixer in mixers]
        printed = [
            [s.text for s in corpus.document(index).segments if hasattr(s, "text") and any(c.isdigit() for c in s.text)]
            for index in picks
        ]
        numbers = [int(text.split()[1]) for (text,) in printed]
        assert sorted(numbers) == list(range(60)) and numbers != sorted(numbers)


def test_no_document_of_an_epoch_reaches_two_lanes_of_the_stream(config: RunConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The same through the whole stream, stopped before the first epoch ends."""
    for name, tokens in (("text/lines", 250), ("finevision/talk", 500)):
        small = replace(config, stages={"only": StageConfig(tokens=tokens, mix={name: 1.0})})
        observed = [
            text for rank in range(RANKS) for step in read(small, tokenizer, tmp_path, rank) for text in texts(step, tokenizer)
        ]
        assert len(observed) >= 16 and len(set(observed)) == len(observed)


def test_sources_are_blended_by_weight(config: RunConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config.stages = {"only": StageConfig(tokens=6000, mix=MIX)}
    kinds: Counter[str] = Counter()
    for step in open_stream(config, tokenizer, TOKEN_PIXELS, tmp_path / "rejects.jsonl"):
        for text in texts(step, tokenizer):
            kinds[next(word for word in ("caption", "talk", "edit", "line", "row") if word in text)] += 1
    total, weights = sum(kinds.values()), {"caption": 5.0, "talk": 2.0, "edit": 1.0, "line": 1.0, "row": 1.0}
    assert total > 250
    for word, weight in weights.items():
        assert abs(kinds[word] / total - weight / 10) < 0.06, kinds


def test_broken_samples_are_counted_with_their_place(config: RunConfig, tokenizer: Tokenizer, tmp_path: Path, memory: str) -> None:
    long = {"__key__": "long", "png": encoded(1, size=(1, 5000)), "txt": "long"}
    write_tar(f"{memory}/0.tar", [long, *(pair(number) for number in range(9))])
    config.stages = {"only": StageConfig(tokens=4000, mix=MIX)}
    config.data.reject_share = 0.2
    list(read(config, tokenizer, tmp_path, 0))
    lines = [json.loads(line) for line in (tmp_path / "rejects-0.jsonl").read_text().splitlines()]
    assert {line["corpus"] for line in lines} <= {"webdataset/pairs", "webdataset/images"} and lines
    assert all("bucket/0.tar sample 1: long.png: 1x5000 is longer than 32 times its short side" in line["reason"] for line in lines)


def test_too_many_broken_samples_stop_the_run_with_one_line(
    config: RunConfig, tokenizer: Tokenizer, tmp_path: Path, memory: str
) -> None:
    for shard in range(6):
        write_tar(
            f"{memory}/{shard}.tar",
            [pair(number) if number % 10 else {"__key__": "x", "png": b"", "txt": "x"} for number in range(10)],
        )
    config.stages = {"only": StageConfig(tokens=100_000, mix={"webdataset/pairs": 1.0})}
    open_sources(config)
    with pytest.raises(
        UserError, match=r"webdataset/pairs: \d+ of \d+ documents rejected .* last reason: .*sample 1: x.png: unreadable"
    ) as caught:
        list(read(config, tokenizer, tmp_path, 0))
    assert "\n" not in str(caught.value)
