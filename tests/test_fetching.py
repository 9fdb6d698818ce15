"""`tunalab fetch`: from a small Hub into a folder, and from the folder without any Hub."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from huggingface_hub import HfFileSystem, constants
from PIL import Image

import tunalab
from tests.checkpoints import save_qwen, save_qwen_tokenizer, save_siglip
from tests.data.shards.shard_files import FINEVISION
from tests.hub import Hub, serving
from tunalab import fetching
from tunalab.cli import main
from tunalab.data import pretrained
from tunalab.data.changes import changes, look_at
from tunalab.data.shards.fetched import _snapshot
from tunalab.data.shards.files import find_files
from tunalab.data.sources import build_source
from tunalab.errors import UserError
from tunalab.files import lock
from tunalab.frontends.components.store import Components
from tunalab.library import fetch

ROOT = Path(__file__).parents[1]
# The readers' settings of the shipped experiment, over the same layouts and columns: only sizes differ.
EXPERIMENT = """# Question:  what a node without network can train
base: smoke
decoder: {pretrained: someone/qwen, vocabulary: 0, width: 32, layers: 2, heads: 4, kv_heads: 2, mlp: 48, rope_theta: 1.0e6,
  tie_embeddings: false}
data:
  row_tokens: 512
  webdataset:
    images: {urls: ["hf://datasets/someone/images/data_512/*.tar"], kind: text_to_image, caption: json, caption_key: prompt}
  finevision:
    questions: {urls: ["hf://datasets/someone/vision/{charts,landscapes}/*.parquet"]}
  text:
    web: {urls: ["hf://datasets/someone/web/sample/00{0,1}_00000.parquet"]}
stages:
  connector: {tokens: 0}
  pretrain: {tokens: 2_000, mix: {webdataset/images: 0.5, finevision/questions: 0.3, text/web: 0.2, scenes/caption: 0,
    scenes/vqa: 0, easy_vqa/vqa: 0, scenes/text_to_image: 0, scenes/edit: 0, scenes/text: 0}}
  sft: {tokens: 0}
evaluation: {points: 1, groups: 0, easy_vqa: 0, loss_documents: 0, psnr_images: 0, sample_prompts: 0}
"""


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), number, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def tar(first: int) -> bytes:
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer) as writer:
        for number in range(first, first + 4):
            writer.write({"__key__": f"{number:08d}", "jpg": picture(number), "json": {"prompt": f"picture {number}"}})
    return buffer.getvalue()


def parquet(rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    return buffer.getvalue()


def question(number: int) -> dict[str, Any]:
    images = [{"bytes": picture(number), "path": None}]
    return {"images": images, "texts": [{"user": "What is it?", "assistant": f"red {number}"}], "source": "charts"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("made")
    save_qwen(folder / "qwen", vocab_size=300, tie_word_embeddings=False)
    save_qwen_tokenizer(folder / "qwen", named=("<|vision_start|>", "<|vision_end|>", "<|image_pad|>"))
    save_siglip(folder / "siglip")
    qwen = {**files_of(folder / "qwen"), "README.md": b"of no use", "pytorch_model.bin": b"the same weights once more"}
    return {
        ("model", "someone/qwen"): qwen,
        ("model", "someone/siglip"): files_of(folder / "siglip"),
        ("dataset", "someone/images"): {f"data_512/data_{number:06d}.tar": tar(10 * number) for number in range(3)},
        ("dataset", "someone/vision"): {
            f"{subset}/train-{number}.parquet": parquet([question(number + len(subset))] * 4, FINEVISION)
            for subset in ("charts", "landscapes")
            for number in range(2)
        },
        ("dataset", "someone/web"): {
            f"sample/00{number}_00000.parquet": parquet([{"text": f"words of page {number}", "id": "x"}] * 4) for number in range(2)
        },
        ("dataset", "vikhyatk/CountBenchQA"): {"data/test.parquet": parquet([{"question": "how many?"}]), ".gitattributes": b"*"},
    }


@pytest.fixture
def hub(contents: dict[tuple[str, str], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as hub:
        hub.files = {key: dict(files) for key, files in contents.items()}
        reach(hub.url, monkeypatch)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "experiments").mkdir()
        (tmp_path / "experiments" / "node.yaml").write_text(EXPERIMENT, encoding="utf-8")
        yield hub


def reach(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT does, which the client reads when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(pretrained, "ANSWER_SECONDS", 10.0)
    HfFileSystem.clear_instance_cache()


def go_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the variables that are printed do."""
    reach("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _snapshot.cache_clear()


def test_what_was_fetched_is_read_without_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "node", "tuna2", "--to", "there"]) == 0
    folder = tmp_path / "there"
    printed = capsys.readouterr().out
    assert f"without network: export HF_HUB_CACHE={folder / 'hub'} HF_HUB_OFFLINE=1" in printed and "not fetched" not in printed
    assert "README.md" not in hub.sent and "pytorch_model.bin" not in hub.sent, "no second copy of the weights"
    online = tunalab.load_config("node", "tuna2")
    fingerprints = {name: build_source(name, online.data, 0).fingerprint for name in used(online)}
    sent = dict(hub.sent)
    go_offline(folder, monkeypatch)
    config = tunalab.load_config("node", "tuna2")
    assert Components().tokenizer_for(config.decoder).vocabulary > 256
    for name in used(config):
        corpus = build_source(name, config.data, 0)
        assert corpus.fingerprint == fingerprints[name], "the same source as with a network"
        assert len(corpus.document(3).segments) >= 1
    assert hub.sent == sent


def used(config: Any) -> list[str]:
    return [name for name, share in config.stages["pretrain"].mix.items() if share > 0]


OTHER_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


def shards_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many archives of pictures a reader finds."""
    go_offline(folder, monkeypatch)
    return len(find_files([*tunalab.load_config("node", "tuna2").data.webdataset["images"].urls], "images"))


def test_a_commit_that_is_pushed_meanwhile_takes_no_file_away(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bring, brought = fetching._bring, []

    def pushed(part: Any, *more: Any) -> None:
        bring(part, *more)
        brought.append(part.name)
        if brought.count("someone/images") == 1:
            hub.commit = OTHER_COMMIT

    monkeypatch.setattr(fetching, "_bring", pushed)
    fetch("node", ["tuna2"], tmp_path / "there")
    assert hub.commit == OTHER_COMMIT and shards_offline(tmp_path / "there", monkeypatch) == 3


def test_what_an_earlier_call_brought_is_there_after_a_smaller_one(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the new commit: a shard that changed is fetched again, one that is gone is gone."""
    fetch("node", ["tuna2"], tmp_path / "there")
    hub.commit, sent = OTHER_COMMIT, dict(hub.sent)
    del hub.files["dataset", "someone/images"]["data_512/data_000002.tar"]
    hub.files["dataset", "someone/images"]["data_512/data_000001.tar"] = tar(90)
    fetch("node", ["tuna2"], tmp_path / "there", limit=1)
    assert {path for path in hub.sent if hub.sent[path] != sent[path]} == {"data_512/data_000001.tar"}
    assert shards_offline(tmp_path / "there", monkeypatch) == 2


def test_a_run_goes_on_where_there_is_no_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files are the same data, whoever tells what is in them."""
    fetch("node", ["tuna2"], tmp_path / "there")
    config = tunalab.load_config("node", "tuna2")
    online = look_at({name: build_source(name, config.data, 0) for name in used(config)})
    go_offline(tmp_path / "there", monkeypatch)
    offline = look_at({name: build_source(name, config.data, 0) for name in used(config)}, like=online)
    assert changes(online, offline) == []
    assert "stamp:sha256=" in str(online.sources) and "stamp:blob_id=" not in str(online.sources)
    shard = next((tmp_path / "there/hub").rglob("data_000001.tar"))
    other = shard.resolve().with_name("0" * 64)
    other.write_bytes(shard.read_bytes())
    shard.unlink()
    shard.symlink_to(other)
    now = look_at({name: build_source(name, config.data, 0) for name in used(config)}, like=online)
    assert "data_000001.tar has another content of the same size" in "".join(changes(online, now))


def test_what_losses_are_of_comes_too(hub: Hub, tmp_path: Path) -> None:
    hub.files["dataset", "someone/held"] = {"held.parquet": hub.files["dataset", "someone/web"]["sample/000_00000.parquet"]}
    settings = ["evaluation.losses={mine: text/held}", "data.text.held={urls: ['hf://datasets/someone/held/held.parquet']}"]
    fetch("node", ["tuna2"], tmp_path / "there", settings)
    assert "held.parquet" in hub.sent


def test_one_call_at_a_time_writes_a_folder(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with (tmp_path / "there" / ".fetching").open("w") as held:
        lock(held)
        with pytest.raises(UserError, match="another `tunalab fetch` is writing there"):
            fetch("node", ["tuna2"], tmp_path / "there")


@pytest.mark.slow
def test_the_experiment_trains_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    done = fetch("node", ["tuna2"], tmp_path / "there")
    away = {**os.environ, **done.variables, "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "tunalab", "train", "--experiment", "node", "--variant", "tuna2", *done.settings]
    run = subprocess.run(command, env=away, capture_output=True, text=True, encoding="utf-8", timeout=250)
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "runs/node/tuna2-seed0/record.json").read_text(encoding="utf-8"))["run"]["finished"]


def test_the_first_shards_alone(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each address and each glob in it; where files are named, a run is told which are there."""
    done = fetch("node", ["tuna2"], tmp_path / "there", limit=1)
    assert {path for path in hub.sent if path.endswith((".tar", "parquet"))} == {
        "data_512/data_000000.tar",
        "charts/train-0.parquet",
        "landscapes/train-0.parquet",
        "sample/000_00000.parquet",
    }
    assert done.settings == ['data.text.web.urls=["hf://datasets/someone/web/sample/000_00000.parquet"]']
    go_offline(tmp_path / "there", monkeypatch)
    for name in used(config := tunalab.load_config("node", "tuna2", done.settings)):
        assert build_source(name, config.data, 0).document(0)
    with pytest.raises(UserError, match="no such file: hf://datasets/someone/web/sample/001_00000.parquet"):
        build_source("text/web", tunalab.load_config("node", "tuna2").data, 0)


def test_what_is_there_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    first = fetch("node", ["tuna2"], tmp_path / "there", limit=1)
    sent = dict(hub.sent)
    again = fetch("node", ["tuna2"], tmp_path / "there", limit=1)
    assert hub.sent == sent and again.files == first.files and again.size == first.size
    more = fetch("node", ["tuna2"], tmp_path / "there")
    assert more.files > first.files and all(hub.sent[path] == size for path, size in sent.items())


def test_a_file_whose_download_was_cut_off_is_completed(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = len(hub.files["model", "someone/qwen"]["model.safetensors"])
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 250)
    hub.cut["model.safetensors"] = 1000
    fetch("node", ["tuna2"], tmp_path / "there", limit=1)
    assert hub.sent["model.safetensors"] == whole, "the second request began where the first had ended"


@pytest.mark.parametrize("path", ["model.safetensors", "config.json", "data_512/data_000001.tar"])
def test_a_file_that_is_not_what_the_hub_states_is_removed_and_fetched_again(hub: Hub, tmp_path: Path, path: str) -> None:
    hub.broken.add(path)
    with pytest.raises(
        UserError, match=f"{path} is .*, the Hub says .*: it is removed, the same command fetches it again"
    ) as error:
        fetch("node", ["tuna2"], tmp_path / "there")
    assert "\n" not in str(error.value)
    hub.broken.clear()
    fetch("node", ["tuna2"], tmp_path / "there")
    (found,) = (tmp_path / "there" / "hub").rglob(path)
    assert found.read_bytes() == next(files[path] for files in hub.files.values() if path in files)


def test_a_file_that_was_damaged_since_is_found_by_its_size(hub: Hub, tmp_path: Path) -> None:
    fetch("node", ["tuna2"], tmp_path / "there", limit=1)
    (weights,) = (tmp_path / "there" / "hub").rglob("model.safetensors")
    with weights.resolve().open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(UserError, match="model.safetensors is of 100 bytes"):
        fetch("node", ["tuna2"], tmp_path / "there", limit=1)
    fetch("node", ["tuna2"], tmp_path / "there", limit=1)
    digest = hashlib.sha256(next((tmp_path / "there" / "hub").rglob("model.safetensors")).read_bytes()).hexdigest()
    assert digest == hashlib.sha256(hub.files["model", "someone/qwen"]["model.safetensors"]).hexdigest()


def test_encoder_and_tokenizer_by_name_benchmarks_as_folders(hub: Hub, tmp_path: Path) -> None:
    settings = ["frontend.encoder=transformers:someone/siglip", "frontend.patch=8"]
    done = fetch("node", ["tuna_r"], tmp_path / "there", settings, limit=1, benchmarks=["countbench"])
    assert list((tmp_path / "there" / "hub").glob("models--someone--siglip/snapshots/*/model.safetensors"))
    assert (tmp_path / "there" / "benchmarks" / "countbench" / "data" / "test.parquet").is_file()
    assert done.left == []


def test_benchmarks_along_the_run_come_too(hub: Hub, tmp_path: Path) -> None:
    along = "evaluation.benchmarks={Counting: {task: countbench, path: data}, GenEval: {task: geneval, path: prompts.jsonl}}"
    done = fetch("node", ["tuna2"], tmp_path / "there", [along], limit=1)
    assert (tmp_path / "there" / "benchmarks" / "countbench" / "data" / "test.parquet").is_file()
    assert f"evaluation.benchmarks.Counting.path={tmp_path / 'there' / 'benchmarks'}" in done.settings
    assert done.left == ["evaluation.benchmarks.GenEval: prompts.jsonl is of this machine: take it along"]


def test_what_is_of_this_machine_is_named(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_qwen(tmp_path / "own", vocab_size=300)
    urls = 'data.webdataset.images.urls=["mine/*.tar"]'
    assert main(["fetch", "node", "tuna2", f"decoder.pretrained={tmp_path / 'own'}", urls, "--to", "there"]) == 1
    printed = capsys.readouterr().out
    assert f"not fetched: decoder.pretrained={tmp_path / 'own'} is a folder of this machine" in printed
    assert "not fetched: webdataset/images: mine/*.tar is not on the Hub" in printed


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "is to be fetched, not nothing"),
        (["nodes"], "experiments/nodes.yaml"),
        (["node", "tuna9"], "variants/tuna9.yaml"),
        (["node", "tuna2", "--limit", "0"], "--limit 0 is out of range (from 1)"),
        (["node", "tuna2", "--benchmarks", "gpa"], "--benchmarks gpa is not known (choices: all, gqa"),
        (["node", "tuna2", "decoder.pretrained=someone/else"], "the Hub does not give someone/else"),
        (
            ["node", "tuna2", 'data.text.web.urls=["hf://datasets/someone/web/*.tar"]'],
            "no files match hf://datasets/someone/web/*.tar",
        ),
        (["node", "tuna2", "decoder.pretrained=someone/images"], "the Hub does not give someone/images"),
    ],
)
def test_mistakes_are_one_line(hub: Hub, words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", *words, "--to", "there"]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


def test_without_a_hub_it_is_one_line(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reach("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(UserError, match=r"^the Hub cannot be reached \(http://127.0.0.1:9\)$"):
        fetch("node", ["tuna2"], tmp_path / "there")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="^HF_HUB_OFFLINE is set: fetching needs the Hub$"):
        fetch("node", ["tuna2"], tmp_path / "there")


def test_a_folder_without_room_or_leave_is_one_line(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="--to .*file.* cannot be written: "):
        fetch("node", ["tuna2"], tmp_path / "file" / "below")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"GB are to be fetched, 0.0 GB are free \(--limit takes fewer shards\)"):
        fetch("node", ["tuna2"], tmp_path / "there")
    assert not any(path.endswith(".tar") for path in hub.sent)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage)
    fetch("node", ["tuna2"], tmp_path / "there")
    (tmp_path / "there/fetched.jsonl").unlink()  # nothing is known to be right, and all is there: it takes no room
    (tmp_path / "there/hub/left.incomplete").write_bytes(bytes(10))
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    sent = dict(hub.sent)
    fetch("node", ["tuna2"], tmp_path / "there")
    assert hub.sent == sent and not [*(tmp_path / "there/hub").rglob("*.incomplete")]


def test_offline_without_having_fetched_is_one_line(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_offline(tmp_path / "nothing", monkeypatch)
    with pytest.raises(UserError, match="is not in the local cache, and HF_HUB_OFFLINE is set: `tunalab fetch`"):
        build_source("webdataset/images", tunalab.load_config("node", "tuna2").data, 0)
