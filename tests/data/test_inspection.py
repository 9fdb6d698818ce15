"""What is shown of a run's data before it trains: the same documents as the stream reads, and every number of a known corpus."""

import json
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from tunalab.analysis.data_page import tables, to_html, to_plain, to_text
from tunalab.data.documents import Document, Image, Question, Text
from tunalab.data.inspection import DataReport, QuestionPictures, Source, inspect, pieces, shares, sort_of
from tunalab.data.manifest import ManifestCorpus
from tunalab.data.sequence import to_sequence
from tunalab.data.stream import open_stream
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.settings.loading import from_plain
from tunalab.settings.loading import to_plain as plain_settings
from tunalab.settings.schema import REVISION, DataConfig, ManifestConfig, RunConfig, StageConfig, TextConfig

PATCH = 8
TALK = [{"from": "human", "value": "<image>\nhow many?"}, {"from": "gpt", "value": "two"}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of noise, p0.png to p9.png, of 40x40 pixels; paths of the tests are relative to them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(10):
        coarse = PillowImage.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
        coarse.resize((40, 40), PillowImage.Resampling.BICUBIC).save(f"p{number}.png")
    return tmp_path


def write(name: str, lines: Sequence[object]) -> Path:
    path = Path(name)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


def captions(count: int = 10) -> list[dict[str, Any]]:
    return [{"image": f"p{number}.png", "caption": f"picture {number}" + " again" * number} for number in range(count)]


def run(kind: str = "caption", **data: Any) -> RunConfig:
    """A run that reads a.jsonl alone."""
    manifests = {"a": ManifestConfig(path="a.jsonl", kind=kind)}
    settings = DataConfig(manifests=manifests, **{"image_size": 16, "row_tokens": 64, "rows": 1, **data})
    blank = RunConfig(revision=REVISION, variant="v", data=settings, stages={"only": StageConfig(mix={"manifest/a": 1.0})})
    return from_plain(plain_settings(blank))


def look(tokenizer: Tokenizer, config: RunConfig, **more: Any) -> DataReport:
    return inspect(config, tokenizer, PATCH, **more)


def test_the_documents_are_those_that_a_run_reads_first(folder: Path, tokenizer: Tokenizer) -> None:
    """Index by index and with the same prompts left empty: the stream, one document waiting, packs their lengths in this order."""
    write("a.jsonl", captions())
    config = run("text_to_image", caption_drop=0.5, lookahead=1)
    (source,) = look(tokenizer, config).sources
    stream = open_stream(config, tokenizer, PATCH, folder / "rejects.jsonl")
    read = [length for step in islice(stream, 12) for batch in step.batches for length in batch.length_D.tolist()]
    assert source.lengths == read[:10] and len(set(source.lengths)) > 3 and source.kinds == {"text_to_image": 10}


def test_every_document_is_counted_and_every_reject_has_its_line(folder: Path, tokenizer: Tokenizer) -> None:
    whole = Path("p0.png").read_bytes()
    Path("cut.png").write_bytes(whole[: len(whole) // 2])
    lines = [
        {"image": "p0.png", "caption": "one"},
        "",
        {"image": "p1.png", "conversations": TALK},
        {"image": "none.png", "caption": "two"},
        {"image": "p2.png", "conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": ""}]},
        {"image": "nowhere.png", "caption": "three"},
        "   ",
        "{not json",
        {"image": "cut.png", "caption": "four"},
        {"image": "p3.png", "caption": "word " * 200},
    ]
    write("a.jsonl", lines)
    report = look(tokenizer, run(reject_share=0.7))
    (source,) = report.sources
    assert (source.has, source.read, source.broken, source.unfit, source.too_long) == (8, 8, 5, 1, 1)
    assert source.kinds == {"caption": 1, "vqa": 1} and len(source.lengths) == 2 and source.longest > 200
    assert report.problems == []
    missing, *others = source.left_out  # the most frequent reason first
    assert missing.reason == "no such image file" and missing.count == 2 and missing.broken
    assert missing.first == [("a.jsonl:4", "none.png: no such image file"), ("a.jsonl:6", "nowhere.png: no such image file")]
    places = {group.reason.split(":")[0]: (group.first[0][0], group.broken) for group in others}
    assert places == {
        "empty answer": ("a.jsonl:5", True),
        "not JSON": ("a.jsonl:8", True),
        "unreadable image": ("a.jsonl:9", True),
        "document of N tokens is longer than a row of N": ("a.jsonl:10", False),
    }
    text = to_text(report)
    assert "a.jsonl:4: none.png: no such image file; also a.jsonl:6" in text and "A run can train" in text


@pytest.mark.parametrize("data", [{"reject_share": 0.5}, {"reject_share": 0.4, "workers": 3}])
def test_what_stops_a_run_is_a_problem(folder: Path, tokenizer: Tokenizer, data: dict[str, Any]) -> None:
    """A lane of several never sees the whole of a small corpus, and does not judge it."""
    lines = captions(4) + [{"image": "none.png", "caption": "x"}] * 6
    write("a.jsonl", lines)
    problems = look(tokenizer, run(**data)).problems
    if data.get("workers"):
        assert problems == []
    else:
        (problem,) = problems
        assert (
            "manifest/a: 6 of 10 documents rejected (60.0%, limit data.reject_share=50.0%)" in problem and "listed" not in problem
        )


def test_no_usable_document_is_a_problem_at_any_limit(folder: Path, tokenizer: Tokenizer) -> None:
    write("a.jsonl", [{"image": "p0.png", "caption": "word " * 200}] * 9)
    for limit in (3, 100):
        (problem,) = look(tokenizer, run(unfit_share=1.0), limit=limit).problems
        assert problem.startswith(
            f"manifest/a: none of {min(limit, 9)} documents can be used (0 broken, {min(limit, 9)} do not fit)"
        )


def test_a_limit_reads_so_many_documents(folder: Path, tokenizer: Tokenizer) -> None:
    write("a.jsonl", captions())
    (source,) = look(tokenizer, run(), limit=4).sources
    assert (source.has, source.read, len(source.lengths)) == (10, 4, 4)


def test_pictures_fall_into_buckets_by_their_stored_size(folder: Path, tokenizer: Tokenizer) -> None:
    """A large JPEG is decoded at a fraction of its size, and counts with its own."""
    sizes = {"a.png": (40, 40), "b.png": (60, 30), "wide.png": (200, 20), "small.png": (4, 4), "large.jpg": (1600, 800)}
    for name, size in sizes.items():
        PillowImage.new("RGB", size, (200, 10, 90)).save(name)
    write("a.jsonl", [{"image": name, "caption": "one"} for name in sizes])
    (source,) = look(tokenizer, run(buckets=["16x16", "8x24"], unfit_share=1.0)).sources
    assert sorted(source.sizes) == sorted((height, width) for width, height in sizes.values())
    assert source.buckets == {(16, 16): 1, (8, 24): 2} and (source.cropped, source.enlarged, source.unfit) == (1, 1, 2)
    assert {group.first[0][0] for group in source.left_out} == {"a.jsonl:3", "a.jsonl:4"}


def test_a_mix_counts_documents_and_the_long_ones_have_the_tokens() -> None:
    sources = [Source("short", 100, read=10, lengths=[10] * 8), Source("long", None, read=10, lengths=[30] * 10)]
    stage = StageConfig(tokens=6000, mix={"long": 1.0, "short": 3.0, "other": 0.0})
    short, long = shares(stage, sources)
    assert (short.documents, short.tokens, short.documents_read) == (0.75, 0.5, 300)
    assert short.passes == pytest.approx(300 / 80)  # of 100 documents 8 in 10 are usable
    assert (long.documents, long.tokens, long.documents_read, long.passes) == (0.25, 0.5, 100, None)
    assert shares(StageConfig(tokens=0, mix={}), sources) == []


def test_a_sequence_is_shown_as_the_model_gets_it(tokenizer: Tokenizer) -> None:
    """Also a text that spells a special token, which is none."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    segments = (Text("between"), Image(pixels), Text("and"), Image(pixels, generate=True), Text("so <|eos|>", target=True))
    sequence = to_sequence(Document("vqa", segments), tokenizer, PATCH)
    found = [(piece.kind, piece.text, piece.predicted) for piece in pieces(sequence, tokenizer)]
    image = "image 16x24: 1 + 6 tokens"
    assert found == [
        ("mark", "<|bos|>", False),
        ("text", "between", False),
        ("mark", "<|boi|>", False),
        ("image", image, False),
        ("mark", "<|eoi|>", False),
        ("text", "and", False),
        ("mark", "<|boi|>", False),
        ("image", image, True),
        ("mark", "<|eoi|>", False),
        ("text", "so <|eos|>", True),
        ("mark", "<|eos|>", True),
    ]


def test_copies_of_a_benchmark_are_found(folder: Path, tokenizer: Tokenizer) -> None:
    write("a.jsonl", captions(8))
    PillowImage.open("p3.png").save("same pixels.bmp")
    PillowImage.open("p4.png").resize((80, 80), PillowImage.Resampling.BICUBIC).save("saved again.jpg", quality=85)
    names = ["same pixels.bmp", "p9.png", "saved again.jpg", "gone.png", "p9.png"]
    write("q.jsonl", [{"image": name, "caption": "q"} for name in names])
    questions = ManifestCorpus("q.jsonl", image_size=16, name="q.jsonl")
    with PillowImage.open("p5.png") as picture:
        shrunk = np.asarray(picture.resize((16, 16), PillowImage.Resampling.BILINEAR))
    asked = QuestionPictures("asked", [Question(shrunk, "what?", "that", 0)])
    report = look(tokenizer, run(), held_out=[questions, asked])
    found, other = report.held_out
    assert (found.read, found.unread, found.pictures, found.same, found.alike) == (5, 1, 3, 1, 1)
    assert "q.jsonl:4: gone.png: no such image file" in found.reason
    assert [(pair.held_out, pair.training) for pair in found.pairs] == [("q.jsonl:1", "a.jsonl:4"), ("q.jsonl:3", "a.jsonl:5")]
    assert found.pairs[0].distance == 0 < found.pairs[1].distance
    assert all(pair.pictures[0].shape == pair.pictures[1].shape == (16, 16, 3) for pair in found.pairs)
    assert (other.same, [pair.training for pair in other.pairs]) == (1, ["a.jsonl:6"])


def test_a_benchmark_without_pictures_is_refused(folder: Path, tokenizer: Tokenizer) -> None:
    write("a.jsonl", captions(2))
    write("q.jsonl", [{"image": "gone.png", "caption": "q"}])
    with pytest.raises(UserError, match=r"q\.jsonl: none of 1 items has a picture that can be read; the first: q\.jsonl:1: gone"):
        look(tokenizer, run(), held_out=[ManifestCorpus("q.jsonl", image_size=16, name="q.jsonl")])


def test_digests_follow_the_content_alone(folder: Path, tokenizer: Tokenizer) -> None:
    write("a.jsonl", captions(3))
    (before,) = look(tokenizer, run()).sources
    assert {part: count for part, (count, _) in before.files.items()} == {"files": 1, "images": 3}
    PillowImage.new("RGB", (40, 40)).save("p1.png")
    (after,) = look(tokenizer, run()).sources
    assert after.version == before.version and after.files["files"] == before.files["files"]
    assert after.files["images"] != before.files["images"]


def test_a_page_holds_all_and_shows_data_as_text(folder: Path, tokenizer: Tokenizer) -> None:
    marks = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    write("a.jsonl", [{"image": "p0.png", "caption": marks}, {"image": "p1.png", "conversations": TALK}, '{"caption": "x"}'])
    asked = QuestionPictures("asked", [Question(np.zeros((16, 16, 3), np.uint8), "what?", "that", 0)])
    report = look(tokenizer, run(row_tokens=300), held_out=[asked])
    page = to_html(report)
    assert marks not in page and "&lt;script&gt;" in page and page.count("data:image/png;base64,") == 2
    assert not re.search(r"(src|href)=\"(?!data:image/png|#)", page), "everything is inside the file"
    assert "<strong>A run would stop:</strong> manifest/a: 1 of 3" in page
    for table in tables(report):
        assert f">{table.title}</h2>" in page and all(len(row) == len(table.head) for row in table.rows)
    json.dumps(to_plain(report))


@pytest.mark.parametrize(
    ("reason", "sort"),
    [
        ("dir/a b.png: no such image file", "no such image file"),
        ("x.tar: y/1.jpg: unreadable image: cut at 17", "unreadable image: cut at N"),
        ("https://host/x.tar, sample 3: empty caption", "empty caption"),
        ("empty answer", "empty answer"),
        ("turn 3 must be an object, not str", "turn N must be an object, not str"),
    ],
)
def test_reasons_of_one_sort_are_counted_together(reason: str, sort: str) -> None:
    assert sort_of(reason) == sort


def test_shards_that_order_themselves_and_copies_are_read_once(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a source counts as endless in a stream; here it ends with its rows."""
    monkeypatch.setenv("TUNALAB_CACHE", str(folder / "cache"))
    write("a.jsonl", captions(4))
    write("texts.jsonl", [{"text": f"text {number}"} for number in range(6)] + ["{broken"])
    config = run(text={"t": TextConfig(urls=["texts.jsonl"])}, reject_share=0.5)
    config.stages["only"].mix = {"text/t": 1.0, "copy/manifest/a": 1.0}
    copies, texts = look(tokenizer, config).sources
    assert (copies.name, copies.has, copies.read, copies.kinds) == ("copy/manifest/a", 4, 4, {"edit": 4})
    assert copies.examples[0].place.startswith("a.jsonl:") and copies.files["images"][0] == 4
    assert (texts.has, texts.read, texts.broken, texts.kinds, texts.sizes) == (7, 7, 1, {"text": 6}, [])
    assert "texts.jsonl" in texts.left_out[0].first[0][1]
