"""What rows hold: assumed lengths against documents counted one by one, samples against the stream."""

import itertools
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from tests.conftest import small_config

from tunalab.data.packing import PackedBatch
from tunalab.data.sequence import SYSTEM
from tunalab.data.stream import open_stream
from tunalab.data.tokenizer import Tokenizer
from tunalab.model.flops import Work
from tunalab.planning.workload import (
    ASSUMED,
    CHAT,
    CHAT_LINE,
    CHAT_TURN,
    IMAGE_FRAME,
    assumed,
    average,
    kind_of,
    kinds_of,
    needs_no_files,
    row_share,
    sampled,
    shape_of,
    visual_tokens,
    workload,
)
from tunalab.settings.schema import (
    DataConfig,
    FineVisionConfig,
    ManifestConfig,
    OmniEditConfig,
    StageConfig,
    TextConfig,
    WebDatasetConfig,
)

DATA = DataConfig(
    image_size=64,
    buckets=["64x64", "32x64"],
    manifests={"m": ManifestConfig(), "g": ManifestConfig(kind="text_to_image")},
    webdataset={"c": WebDatasetConfig(), "g": WebDatasetConfig(kind="text_to_image")},
    finevision={"f": FineVisionConfig()},
    omniedit={"o": OmniEditConfig()},
    text={"t": TextConfig()},
)
KIND_OF = {
    "scenes/edit": "edit",
    "copy/webdataset/c": "edit",
    "easy_vqa/vqa": "vqa",
    "manifest/m": "caption",
    "manifest/g": "text_to_image",
    "webdataset/c": "caption",
    "webdataset/g": "text_to_image",
    "finevision/f": "vqa",
    "omniedit/o": "edit",
    "text/t": "text",
}


@pytest.mark.parametrize(("source", "kind"), list(KIND_OF.items()))
def test_a_source_makes_documents_of_a_kind(source: str, kind: str) -> None:
    assert kind_of(source, DATA) == kind


def test_kinds_of_a_run_and_whether_it_needs_files() -> None:
    config = small_config()
    config.data = DATA
    config.stages = {"a": StageConfig(mix={"text/t": 1.0, "webdataset/g": 0.0}), "b": StageConfig(mix={"scenes/caption": 1.0})}
    assert kinds_of(config) == ["caption", "text"], "a source of no weight is not read"
    assert not needs_no_files(config)
    assert needs_no_files(small_config())


def counted(source: str) -> list[Work]:
    """Every document of a source there can be: its images in every combination of sizes, all equally likely."""
    shape = ASSUMED[kind_of(source, DATA)]
    works = []
    for sizes in itertools.product([((64, 64), 64), ((32, 64), 32)], repeat=shape.images):
        visual = [tokens for _, tokens in sizes]
        length = shape.text + sum(IMAGE_FRAME + tokens for tokens in visual)
        generated = visual[shape.looked_at :]
        images: dict[tuple[int, int], float] = {}
        for size, _ in sizes:
            images[size] = images.get(size, 0) + 1
        made = len(generated) > 0
        pairs = length * (length + 1) / 2 + sum((tokens + 1) * tokens / 2 for tokens in visual)
        works.append(
            Work(
                tokens=length,
                labels=shape.labels,
                generating_tokens=length * made,
                images=images,
                generated_images=len(generated),
                generated_visual=sum(generated),
                pairs=pairs,
                generating_pairs=made * pairs,
            )
        )
    return works


@pytest.mark.parametrize(
    "mix", [{"text/t": 2.0}, {"omniedit/o": 3.0}, {"webdataset/c": 0.3, "webdataset/g": 0.7, "omniedit/o": 1.0}]
)
def test_assumed_work_is_the_mean_of_documents_counted_one_by_one(mix: dict[str, float]) -> None:
    works, weights = [], []
    for source, weight in mix.items():
        documents = counted(source)
        works += documents
        weights += [weight / len(documents)] * len(documents)
    expected, found = average(works, weights), assumed(mix, DATA, 8).per_token
    for item in fields(Work):
        assert getattr(found, item.name) == pytest.approx(getattr(expected, item.name), rel=1e-12), item.name
    assert found.tokens == 1


def test_visual_tokens_are_those_of_the_buckets() -> None:
    assert visual_tokens(DATA, 8) == [32, 64]
    assert visual_tokens(replace(DATA, buckets=[]), 8) == [64]


def test_shares_of_a_row_full_of_one_kind() -> None:
    edit = row_share("edit", DATA, 8)
    assert edit["flow head"] == 1 and edit["labels"] == 0
    assert edit["front-end"] == 2 * 48 / (ASSUMED["edit"].text + 2 * (IMAGE_FRAME + 48))
    assert edit["predictions"] == edit["front-end"] / 2
    text = row_share("text", DATA, 8)
    assert text["front-end"] == text["flow head"] == text["predictions"] == 0 and text["labels"] == pytest.approx(1, abs=0.01)


def test_turns_of_a_chat_are_counted_with_the_tokenizer_they_are_for(tmp_path: Path) -> None:
    """The numbers are those of Qwen2.5's vocabulary, in which every word of its system turn but its name (two) is a token."""
    mix = {"webdataset/c": 1.0}
    plain = assumed(mix, DATA, 8).per_token
    in_turns = [assumed(mix, DATA, 8, chat).per_token for chat in ("none", "qwen", "qwen_all")]
    assert in_turns[0] == plain and in_turns[1] == in_turns[2] and in_turns[1].labels < plain.labels
    for kind, shape in ASSUMED.items():
        added = [shape_of(kind, chat).text - shape.text for chat in ("none", "qwen", "qwen_all")]
        once = CHAT + CHAT_LINE * shape.looked_at
        assert added[0] == 0 and added[1] == (0 if shape.generated or kind == "text" else added[2])
        assert added[2] == (0 if kind == "text" else pytest.approx(once + CHAT_TURN * 2.7, abs=1) if kind == "vqa" else once)
    words = len(re.findall(r"\w+|[^\w\s]", SYSTEM)) + 1
    role = 3  # what begins it, its name, a line
    assert role + words + 2 + 2 * role + 2 - 1 == CHAT, "bos is counted already"
    assert 2 * role + 3 == CHAT_TURN


def test_a_sample_is_of_the_stages_own_stream(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = small_config()
    config.stages = {
        "other": StageConfig(mix={"scenes/text": 1.0}),
        "asked": StageConfig(mix={"scenes/text_to_image": 1.0, "scenes/edit": 0.5}),
    }
    found = sampled(config, "asked", tokenizer, 8)
    stream = open_stream(replace(config, stages={"asked": config.stages["asked"]}), tokenizer, 8, tmp_path / "rejects.jsonl")
    batches: list[PackedBatch] = [batch for step in itertools.islice(stream, 4) for batch in step.batches]
    tokens = sum(batch.tokens for batch in batches)
    assert found.fill == tokens / sum(batch.ids_BL.numel() for batch in batches) > 0.9
    assert found.per_token.images == {(32, 32): pytest.approx(sum(len(batch.generate_N) for batch in batches) / tokens)}
    assert found.per_token.generating_tokens == 1 and "own data" in found.source
    assert workload(config, "asked", tokenizer, 8) == found
    assert workload(config, "asked", None, 8) == assumed(config.stages["asked"].mix, config.data, 8)


def test_assumptions_leave_room_for_what_frames_a_text(tokenizer: Tokenizer) -> None:
    for kind, shape in ASSUMED.items():
        assert shape.text >= shape.labels and (shape.labels == 0) == (kind in ("text_to_image", "edit"))
