"""Pairs of tar shards as captions and as images to generate; every sample that is no pair."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from shard_files import colour, decode, encoded, pair, refusal, shown, write_bytes, write_tar

from tunalab.data.documents import Reject
from tunalab.data.shards.corpus import ShardedCorpus
from tunalab.data.shards.schemas import open_webdataset
from tunalab.errors import UserError
from tunalab.settings.schema import WebDatasetConfig


def corpus(url: str, **settings: Any) -> ShardedCorpus:
    config = WebDatasetConfig(urls=[url], **{"window": 0, **settings})
    return open_webdataset("webdataset/a", config, decode, "say", seed=0)


def of(tmp_path: Path, *samples: dict[str, Any], **settings: Any) -> ShardedCorpus:
    keyed = [{"__key__": f"{number:03d}", **sample} for number, sample in enumerate(samples)]
    return corpus(write_tar(f"{tmp_path}/a.tar", keyed), **settings)


def test_documents_are_what_was_written(tmp_path: Path) -> None:
    for shard in range(3):
        write_tar(f"{tmp_path}/{shard}.tar", [pair(4 * shard + number) for number in range(4)])
    captions = corpus(f"{tmp_path}/*.tar")
    assert captions.length == 12
    expected = [["caption", (colour(n), False), ("say", False), (f"caption {n}", True)] for n in range(12)]
    assert [shown(captions.document(index)) for index in range(12)] == expected
    assert shown(captions.document(12 + 5)) == expected[5], "later epochs"
    images = corpus(f"{tmp_path}/*.tar", kind="text_to_image")
    assert shown(images.document(7)) == ["text_to_image", ("caption 7", False), (colour(7), True)]


def test_with_a_window_an_epoch_has_every_document(tmp_path: Path) -> None:
    for shard in range(3):
        write_tar(f"{tmp_path}/{shard}.tar", [pair(4 * shard + number) for number in range(4)])
    shuffled = corpus(f"{tmp_path}/*.tar", window=2)
    assert shuffled.length is None and shuffled.rows == 12
    epochs = [[shown(shuffled.document(12 * epoch + at))[-1][0] for at in range(12)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"caption {n}" for n in range(12)) and epochs[0] != epochs[1]


@pytest.mark.parametrize(("ending", "format"), [("jpg", "JPEG"), ("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_formats(tmp_path: Path, ending: str, format: str) -> None:
    document = of(tmp_path, {ending: encoded(200, format), "txt": "grey"}).document(0)
    (pixel, _), (caption, _) = shown(document)[1], shown(document)[3]
    assert caption == "grey" and np.abs(np.subtract(pixel, colour(200))).max() <= 3


def test_captions_in_other_members(tmp_path: Path) -> None:
    sample = {"png": encoded(1), "txt": "a", "en.txt": " b ", "json": {"caption": "c", "long": "d"}}
    for settings, expected in (({}, "a"), ({"caption": "en.txt"}, "b"), ({"caption": "json"}, "c")):
        assert shown(of(tmp_path, sample, **settings).document(0))[-1] == (expected, True)
    assert shown(of(tmp_path, sample, caption="json", caption_key="long").document(0))[-1] == ("d", True)


def test_endings_in_any_case_and_captions_with_a_mark(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in (("1.PNG", encoded(1)), ("1.TXT", b"\xef\xbb\xbfa\r\n"), ("1.JSON", b'\xef\xbb\xbf{"caption": "b"}')):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    for caption, expected in (("txt", "a"), ("TXT", "a"), ("json", "b"), ("Json", "b")):
        document = corpus(write_bytes(f"{tmp_path}/A.TAR", buffer.getvalue()), caption=caption).document(0)
        assert shown(document) == ["caption", (colour(1), False), ("say", False), (expected, True)]


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["1.jpg", "2.jpg", "1.txt", "2.txt"], "no member .txt; members: jpg"),  # sorted by ending
        (["1.txt", "2.txt", "1.jpg", "2.jpg"], "0 images: one of jpg, jpeg, png, webp is needed; members: txt"),
        (["a.v1.jpg", "a.v1.txt"], "0 images: one of jpg, jpeg, png, webp is needed; members: v1.jpg, v1.txt"),
        (["a.1.jpg", "a.1.txt", "a.2.jpg", "a.2.txt"], "members: 1.jpg, 1.txt, 2.jpg, 2.txt"),
        (["1.txt", "1.jpg", "1.txt"], "1: two members .txt"),
    ],
)
def test_names_that_break_the_rule_are_rejects_that_name_it(tmp_path: Path, names: list[str], what: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    captions = corpus(write_bytes(f"{tmp_path}/a.tar", buffer.getvalue()))
    message = refusal(lambda: captions.document(0), Reject)
    assert what in message and "members that follow each other and share a name up to its first dot" in message


def tall() -> bytes:
    buffer = io.BytesIO()
    PillowImage.new("RGB", (1, 5000)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE = encoded(1)
BROKEN: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"txt": "a"}, {}, "000: 0 images: one of jpg, jpeg, png, webp is needed; members: txt"),
    ({"txt": "a", "png": IMAGE, "webp": IMAGE}, {}, "2 images"),
    ({"png": IMAGE}, {}, "no member .txt; members: png"),
    ({"png": IMAGE, "txt": b"\xff"}, {}, ".txt is not UTF-8: byte 0"),
    ({"png": IMAGE, "txt": " "}, {}, "empty caption"),
    ({"png": IMAGE, "txt": "<image> a"}, {}, "<image> in a caption"),
    ({"png": IMAGE, "json": b"{"}, {"caption": "json"}, "not JSON"),
    ({"png": IMAGE, "json": b"[]"}, {"caption": "json"}, "must be an object"),
    ({"png": IMAGE, "json": {"text": "a"}}, {"caption": "json"}, "no key 'caption' in .json; keys: text"),
    ({"png": IMAGE, "json": {"caption": None}}, {"caption": "json"}, "caption must be a string, not NoneType"),
    ({"png": b"", "txt": "a"}, {}, "000.png: unreadable image: not one of PNG"),
    ({"png": IMAGE[:60], "txt": "a"}, {}, "000.png: unreadable image"),
    ({"jpg": tall(), "txt": "a"}, {}, "000.jpg: 1x5000 is longer than 32 times its short side"),
]


@pytest.mark.parametrize(("sample", "settings", "reason"), BROKEN, ids=range(len(BROKEN)))
def test_broken_samples_are_rejects(tmp_path: Path, sample: dict[str, Any], settings: dict[str, Any], reason: str) -> None:
    good = {"png": IMAGE, "txt": "a", "json": json.dumps({"caption": "a"}).encode()}
    of_three = of(tmp_path, sample, good, **settings)
    message = refusal(lambda: of_three.document(0), Reject)
    assert message.startswith(f"{tmp_path}/a.tar sample 1: ") and reason.removeprefix("000: ") in message
    assert of_three.document(1).kind == "caption", "its neighbour is not touched"


def test_shards_without_samples(tmp_path: Path) -> None:
    url = write_tar(f"{tmp_path}/a.tar", [])
    assert refusal(lambda: corpus(url), UserError) == f"webdataset/a: there is nothing in its files: {url}"
