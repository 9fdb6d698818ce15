"""The paper's experiment as it is shipped, with parts of the same classes made small, draws the paper's panels along the curve."""

import json
from pathlib import Path

import pytest
from tests.checkpoints import save_qwen, save_qwen_tokenizer
from tests.data.shards.shard_files import FINEVISION, OMNIEDIT, cell, encoded, write_parquet, write_tar
from tests.interop.lmms.test_lmms_published import cache, no_network

from tunalab.cli import main
from tunalab.records.record import read_record
from tunalab.settings.layers import run_files
from tunalab.settings.loading import load_config
from tunalab.training import run

pytestmark = pytest.mark.lmms
__all__ = ["cache", "no_network"]
TASKS = ["ocrbench", "mmvp", "vstar_bench", "countbench"]
PANELS = ["OCRBench", "MMVP", "V star", "CountBench", "GenEval"]
SMALL = [
    "decoder={pretrained: data/qwen, vocabulary: 0, width: 32, layers: 2, heads: 4, kv_heads: 2, mlp: 48, tie_embeddings: false}",
    "head={blocks: 1, heads: 2, kv_heads: 1, head_dim: 16, mlp: 48}",
    "data.row_tokens=1024",
    "data.step_tokens=1024",
    "data.workers=0",
    "data.buckets=[32x32]",
    "data.image_size=32",
    "data.max_upscale=99",
    "data.webdataset.pairs_caption.streams=1",
    "data.webdataset.pairs_text_to_image.streams=1",
    "data.finevision.all.streams=1",
    "data.omniedit.all.streams=1",
    "data.text.nemotron.streams=1",
    "stages.connector.tokens=2000",
    "stages.pretrain.tokens=3000",
    "stages.sft.tokens=2000",
    "sampling.steps=2",
    "evaluation.points=2",
    "evaluation.benchmarks.GenEval.steps=1",
    "precision=fp32",
    "activation_checkpointing=false",
    "distribution.strategy=auto",
    "tracking.enabled=false",
]


def stock_layouts(copy) -> None:
    """Data and benchmarks where the experiment looks for them."""
    for task in TASKS:
        copy(task)
    Path("data/benchmarks").mkdir()
    for task in TASKS:
        Path(f"data/{task}").rename(f"data/benchmarks/{task}")
    Path("data/benchmarks/geneval").mkdir()
    tags = ("single_object", "two_object", "counting", "position")
    lines = [
        {"tag": tag, "prompt": f"{number} of {tag}", "include": [{"class": "dog", "count": 1}]} for number, tag in enumerate(tags)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    Path("data/benchmarks/geneval/evaluation_metadata.jsonl").write_text(text, encoding="utf-8")
    for folder in ("pairs", "finevision", "omniedit", "nemotron"):
        Path("data", folder).mkdir()
    pairs = [{"__key__": f"{number:04}", "jpg": encoded(number, "JPEG"), "txt": f"colour {number}"} for number in range(20)]
    write_tar("data/pairs/0.tar", pairs)
    asked = [
        {"images": [cell(number)], "texts": [{"user": "What?", "assistant": f"{number}"}], "source": "a"} for number in range(12)
    ]
    write_parquet("data/finevision/0.parquet", FINEVISION, asked)
    edits = [
        {"src_img": cell(number), "edited_img": cell(number + 1), "edited_prompt_list": [f"make it {number}"]}
        for number in range(12)
    ]
    write_parquet("data/omniedit/0.parquet", OMNIEDIT, edits)
    import pyarrow as pa

    texts = [{"text": f"words of page {number}"} for number in range(12)]
    write_parquet("data/nemotron/0.parquet", pa.schema([("text", pa.string())]), texts)
    save_qwen(Path("data/qwen"), vocab_size=300, tie_word_embeddings=False)
    save_qwen_tokenizer(
        Path("data/qwen"), named=("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
    )


def test_the_four_panels(copy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stock_layouts(copy)
    for variant in ("tuna2", "bottleneck"):
        assert run.train(load_config(*run_files("paper_1_5b", variant), SMALL), Path("runs") / f"{variant}-seed0") == 0
        record = read_record(Path("runs") / f"{variant}-seed0" / "record.json")
        assert len(record.points) == 2
        assert all([*point.benchmarks] == PANELS[:-1] for point in record.points), "nothing of scenes; images wait for a scorer"
        Path("records").mkdir(exist_ok=True)
    # The scorer of images comes afterwards: the folder of the smallest detector that there can be.
    from tests.interop.generation.conftest import small_mask2former

    detector = small_mask2former(tmp_path / "detector")
    scorer = f"evaluation.benchmarks.GenEval.scorer={detector}"
    runs = sorted(map(str, Path("runs").iterdir()))
    assert main(["evaluate", *runs, scorer, "--points", "all", "--benchmarks", "GenEval"]) == 0
    for folder in runs:
        record = read_record(Path(folder) / "record.json")
        assert all([*point.benchmarks] == PANELS for point in record.points)
        Path("records", f"{Path(folder).name}.json").write_text(Path(folder, "record.json").read_text())
    capsys.readouterr()
    panels = ["OCRBench", "MMVP", "V star", "GenEval"]
    assert main(["figure", "figure6", "--records", "records", "--out", "drawn", "--panels", *panels]) == 0
    assert Path("drawn/figure6.png").stat().st_size > 10_000
    assert main(["table", "--records", "records", "--panels", *panels]) == 0
