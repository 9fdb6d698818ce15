"""Manifests: the four forms, every kind of broken line, and an index that does not hold the file."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from reading import read

from tunalab.data import manifest
from tunalab.data.changes import look_at
from tunalab.data.documents import Document, Image, Reject, Text
from tunalab.data.manifest import ManifestCorpus
from tunalab.data.rejects import RejectLog
from tunalab.errors import UserError

RED, BLUE = (255, 0, 0), (0, 0, 255)
TALK = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "red"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name, colour in {"red": RED, "blue": BLUE}.items():
        PillowImage.new("RGB", (40, 30), colour).save(tmp_path / "images" / f"{name}.png")
    whole = (tmp_path / "images" / "red.png").read_bytes()
    (tmp_path / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def write(folder: Path, *lines: object) -> Path:
    """A manifest: strings and bytes as they are, anything else as JSON."""
    path = folder / "data.jsonl"
    texts = [line if isinstance(line, (str, bytes)) else json.dumps(line) for line in lines]
    path.write_bytes(b"".join((text.encode() if isinstance(text, str) else text) + b"\n" for text in texts))
    return path


def shown(document: Document) -> list[object]:
    """Segments as plain values: the text with its flag, or the image's first pixel with its flag."""
    assert all(s.pixels_HWC.shape == (16, 16, 3) for s in document.segments if isinstance(s, Image))
    return [
        (s.text, s.target) if isinstance(s, Text) else (tuple(s.pixels_HWC[0, 0].tolist()), s.generate) for s in document.segments
    ]


def test_caption(folder: Path) -> None:
    path = write(folder, {"image": "images/red.png", "caption": " a red sheet "})
    document = ManifestCorpus(path, image_size=16).document(0)
    assert document.kind == "caption" and shown(document) == [(RED, False), ("a red sheet", True)]
    document = ManifestCorpus(path, image_size=16, caption_prompt="say").document(0)
    assert shown(document) == [(RED, False), ("say", False), ("a red sheet", True)]


def test_text_to_image(folder: Path) -> None:
    path = write(folder, {"image": "images/red.png", "caption": "a red sheet"})
    document = ManifestCorpus(path, image_size=16, kind="text_to_image", caption_prompt="say").document(0)
    assert document.kind == "text_to_image" and shown(document) == [("a red sheet", False), (RED, True)]


def test_conversation_about_an_image(folder: Path) -> None:
    more = [{"from": "human", "value": "sure?"}, {"from": "gpt", "value": "yes"}]
    document = ManifestCorpus(
        write(folder, {"image": "images/red.png", "conversations": TALK + more, "id": 3}), image_size=16
    ).document(0)
    assert document.kind == "vqa"
    assert shown(document) == [(RED, False), ("what is it?", False), ("red", True), ("sure?", False), ("yes", True)]


def test_the_image_alone_is_the_question(folder: Path) -> None:
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "red"}]
    document = ManifestCorpus(write(folder, {"image": "images/red.png", "conversations": talk}), image_size=16)
    assert shown(document.document(0)) == [(RED, False), ("red", True)]


def test_edit(folder: Path) -> None:
    line = {"raw_image": "images/red.png", "out_image": "images/blue.png", "instruction": "<image>\nmake it blue"}
    document = ManifestCorpus(write(folder, line), image_size=16).document(0)
    assert document.kind == "edit"
    assert shown(document) == [(RED, False), ("make it blue", False), (BLUE, True)]


@pytest.mark.parametrize("extra", [{}, {"image": None}])
def test_text(folder: Path, extra: dict) -> None:
    talk = [{"from": "user", "value": "1 + 1?"}, {"from": "assistant", "value": "2"}]
    document = ManifestCorpus(write(folder, {"conversations": talk, **extra}), image_size=16).document(0)
    assert document.kind == "text" and shown(document) == [("1 + 1?", False), ("2", True)]


BROKEN = {
    "{": "not JSON",
    '{"image": "images/red.png", "caption": "a"} x': "not JSON",
    "[" * 100_000: "not JSON",
    '{"caption": ' + "9" * 10_000 + "}": "not JSON",
    b'{"image": "images/red.png", "caption": "\xff"}': "not UTF-8: byte 40",
    "[1, 2]": "must be an object, not list (a JSON array? Lines of JSON have an object each: `jq -c",
    '{"image": "images/red.png", "caption": "a"},': "(a JSON array?",
    '{"images": "images/red.png", "caption": "a"}': "images must be a list, not str",
    '{"images": [3], "caption": "a"}': "image 1 must be a string, not int",
    '{"images": ["images/red.png", "images/blue.png"], "caption": "a"}': "2 images and one caption",
    '{"images": ["images/red.png"], "image": "images/red.png", "caption": "a"}': "image and images: one of them",
    '{"images": [], "caption": "a"}': "keys caption are none",
    "null": "must be an object, not NoneType",
    "{}": "keys (none) are none of the four forms",
    '{"image": "images/red.png"}': "keys image are none",
    '{"image": "images/red.png", "captoin": "a"}': "keys image (unknown: captoin) are none",
    '{"caption": "a"}': "keys caption are none",
    '{"image": null, "caption": "a"}': "keys caption are none",
    '{"image": "images/red.png", "caption": "a", "conversations": [{}]}': "keys caption, conversations, image are none",
    '{"raw_image": "images/red.png", "instruction": "a"}': "keys instruction, raw_image are none",
    '{"image": "images/red.png", "caption": 3}': "caption must be a string, not int",
    '{"image": "images/red.png", "caption": ["a"]}': "caption must be a string, not list",
    '{"image": [3], "caption": "a"}': "image 1 must be a string, not int",
    '{"image": "images/red.png", "caption": "a", "caption": "b"}': "key 'caption' stands twice, with different values",
    '{"image": "images/red.png", "caption": " "}': "empty caption",
    '{"image": "images/red.png", "caption": "<image> a"}': "<image> in a caption",
    '{"image": "images/red.png", "caption": "\\ud800"}': "half a surrogate pair",
    '{"image": "", "caption": "a"}': "empty image",
    '{"image": "images/none.png", "caption": "a"}': "no such image file",
    '{"image": "images", "caption": "a"}': "no such image file",
    '{"image": "images/cut.png", "caption": "a"}': "unreadable image",
    '{"image": "data.jsonl", "caption": "a"}': "not one of PNG",
    '{"image": "images/red.png", "conversations": "a"}': "must be a list",
    '{"image": "images/red.png", "conversations": [{"from": "human", "value": "<image> <image>"}, '
    '{"from": "gpt", "value": "b"}]}': "2 times <image>",
    '{"conversations": [{"from": "human", "value": "<image> a"}, {"from": "gpt", "value": "b"}]}': "without an image",
    '{"raw_image": "images/red.png", "out_image": "images/cut.png", "instruction": "a"}': "unreadable image",
    '{"raw_image": "images/cut.png", "out_image": "images/red.png", "instruction": "a"}': "unreadable image",
    '{"raw_image": "images/red.png", "out_image": "images/red.png", "instruction": ""}': "empty instruction",
    '{"raw_image": "images/red.png", "out_image": "images/red.png", "instruction": "<image>"}': "empty instruction",
    '{"raw_image": "images/red.png", "out_image": "images/red.png", "instruction": "<image><image>a"}': "2 times",
}


@pytest.mark.parametrize(("line", "reason"), BROKEN.items(), ids=range(len(BROKEN)))
def test_broken_line(folder: Path, line: str | bytes, reason: str) -> None:
    good = {"image": "images/red.png", "caption": "a"}
    corpus = ManifestCorpus(write(folder, good, line, good), image_size=16)
    assert corpus.length == 3
    with pytest.raises(Reject) as caught:
        corpus.document(1)
    assert reason in str(caught.value)
    assert shown(corpus.document(0)) == shown(corpus.document(2))  # its neighbours are not touched


def test_broken_lines_end_in_the_log(folder: Path) -> None:
    good = {"image": "images/red.png", "caption": "a"}
    corpus = ManifestCorpus(write(folder, good, *BROKEN, good), image_size=16, name="manifest/mine")
    log = RejectLog(folder / "rejects.jsonl", limit=1.0)
    documents = [read(corpus, index, log) for index in range(corpus.length)]
    assert [document is not None for document in documents] == [True, *[False] * len(BROKEN), True]
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(1, len(BROKEN) + 1))
    assert all(reason[:20] in line["reason"] for line, reason in zip(lines, BROKEN.values(), strict=True))

    strict = RejectLog(folder / "strict.jsonl", limit=0.01)
    with pytest.raises(UserError, match="manifest/mine: "):
        for index in range(corpus.length):
            read(corpus, index, strict)


def test_too_long_a_line_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, {"image": "images/red.png", "caption": "a" * 1000}, {"image": "images/red.png", "caption": "a"})
    monkeypatch.setattr(manifest, "MAX_LINE_BYTES", 500)
    corpus = ManifestCorpus(path, image_size=16)
    with pytest.raises(Reject, match="line of more than"):
        corpus.document(0)
    assert corpus.document(1).kind == "caption"


def texts(corpus: ManifestCorpus) -> list[str]:
    return [corpus.document(i).segments[-1].text for i in range(corpus.length)]  # type: ignore[union-attr]


def talk_line(answer: str) -> str:
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}]
    return json.dumps({"conversations": talk}, ensure_ascii=False)


@pytest.mark.parametrize("end", ["", "\n", "\n\n \n", "\r\n"])
@pytest.mark.parametrize("separator", ["\n", "\r\n"])
@pytest.mark.parametrize("scan", [1, 7, 64 * 2**20])
def test_line_ends(folder: Path, monkeypatch: pytest.MonkeyPatch, end: str, separator: str, scan: int) -> None:
    monkeypatch.setattr(manifest, "_SCAN_BYTES", scan)
    answers = ["a", "ünï\u2028code", "c" * 50]
    path = folder / "data.jsonl"
    path.write_bytes(("\ufeff" + separator.join(map(talk_line, answers)) + end).encode())
    assert texts(ManifestCorpus(path, image_size=16)) == answers


def test_documents_are_a_function_of_the_index_and_wrap(folder: Path) -> None:
    corpus = ManifestCorpus(write(folder, *map(talk_line, "abcde")), image_size=16)
    assert corpus.length == 5
    order = [3, 0, 13, 4, 3, 5]
    got = [corpus.document(index).segments[-1].text for index in order]  # type: ignore[union-attr]
    assert got == ["d", "a", "d", "e", "d", "a"]


def test_index_is_eight_bytes_a_line_and_travels_to_workers(folder: Path) -> None:
    corpus = ManifestCorpus(write(folder, *(talk_line("x" * 1000) for _ in range(500))), image_size=16)
    assert corpus._starts.dtype == np.int64 and corpus._starts.nbytes == 8 * 501
    data = pickle.dumps(corpus)
    assert len(data) < 10_000
    assert texts(pickle.loads(data)) == texts(corpus)


def test_root(folder: Path) -> None:
    path = write(folder, {"image": "red.png", "caption": "a"})
    with pytest.raises(Reject, match="no such image file"):
        ManifestCorpus(path, image_size=16).document(0)
    assert ManifestCorpus(path, folder / "images", image_size=16).document(0).kind == "caption"
    absolute = write(folder, {"image": str(folder / "images" / "red.png"), "caption": "a"})
    assert ManifestCorpus(absolute, image_size=16).document(0).kind == "caption"


def test_names(folder: Path) -> None:
    path = write(folder, talk_line("a"))
    assert ManifestCorpus(path, image_size=16).name == "manifest/data"
    assert ManifestCorpus(path, image_size=16, name="manifest/mine").name == "manifest/mine"


def test_user_errors(folder: Path) -> None:
    path = write(folder, talk_line("a"))
    empty = folder / "empty.jsonl"
    empty.write_text("\n \n")
    for call, part in {
        lambda: ManifestCorpus(folder / "none.jsonl", image_size=16): "no such manifest file",
        lambda: ManifestCorpus(folder, image_size=16): "no such manifest file",
        lambda: ManifestCorpus(path, folder / "none", image_size=16): "no such folder of images",
        lambda: ManifestCorpus(path, image_size=16, kind="edit"): "choices: caption, text_to_image",
        lambda: ManifestCorpus(empty, image_size=16): "has no lines",
    }.items():
        with pytest.raises(UserError, match=part) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        *(
            "image_1",
            "image2",
            "img_path_0",
            "image_list",
            "screenshot",
            "video",
            "audio",
            "Image",
            "IMAGE",
            "Images",
            "img",
            "imgs",
            "picture",
            "Photos",
            "VIDEO",
            "videos",
            "audios",
            "Audio",
        ),
        *("image_path", "imagePath", "image-file", "img_url", "images_base64", "video_path", "audio_file", "source_image"),
    ],
)
@pytest.mark.parametrize("value", ["a.png", ["a.png"], {"path": "a.png"}])
def test_what_would_be_left_out_is_rejected_by_name(folder: Path, key: str, value: object) -> None:
    talk = [{"from": "human", "value": "what is it?"}, {"from": "gpt", "value": "red"}]
    with pytest.raises(Reject) as caught:
        ManifestCorpus(write(folder, {key: value, "conversations": talk}), image_size=16).document(0)
    assert f"key {key!r} names what is not read" in str(caught.value) and "read: image, images" in str(caught.value)


@pytest.mark.parametrize("key", ["video", "audio_path", "Image", "imgs", "second_image", "image_2", "image_list"])
def test_what_would_be_left_out_beside_an_image_is_rejected_by_name(folder: Path, key: str) -> None:
    line = {"image": "images/red.png", "caption": "a", key: "b.mp4"}
    with pytest.raises(Reject, match=f"key '{key}'"):
        ManifestCorpus(write(folder, line), image_size=16).document(0)


@pytest.mark.parametrize(
    "more",
    [
        {"video": None, "audio": "", "videos": [], "Image": {}},
        {"image_id": "7", "image_size": [40, 30], "num_images": 1, "has_image": True, "image_width": 40},
        {"image_url": "https://example.org/a.png", "image_path": "a.png", "original_image_name": "a"},
        {"videography": "by hand", "imagery": "bright", "photographer": "someone"},
    ],
)
def test_keys_that_name_no_media_are_ignored(folder: Path, more: dict) -> None:
    document = ManifestCorpus(write(folder, {"image": "images/red.png", "caption": "a", **more}), image_size=16).document(0)
    assert shown(document) == [(RED, False), ("a", True)]


def test_images_in_a_list(folder: Path) -> None:
    both, talk = ["images/red.png", "images/blue.png"], [{"from": "human", "value": "sure?"}, {"from": "gpt", "value": "yes"}]
    between = [{"from": "human", "value": "is <image> as <image> or not?"}, {"from": "gpt", "value": "no"}]
    lines = [
        {"images": both[:1], "conversations": TALK},
        {"images": both, "conversations": talk},
        {"image": both, "conversations": between},  # as multi-image sets of LLaVA have them
        {"images": [], "conversations": talk},
        {"image": both[1:], "caption": "blue"},
        {"images": both[:1], "image": None, "conversations": talk, "video": None},
    ]
    corpus = ManifestCorpus(write(folder, *lines), image_size=16)
    sure = [("sure?", False), ("yes", True)]
    middle = [("is", False), (RED, False), ("as", False), (BLUE, False), ("or not?", False), ("no", True)]
    assert [shown(corpus.document(number)) for number in range(6)] == [
        [(RED, False), ("what is it?", False), ("red", True)],
        [(RED, False), (BLUE, False), *sure],
        middle,
        sure,
        [(BLUE, False), ("blue", True)],
        [(RED, False), *sure],
    ]
    assert [corpus.document(number).kind for number in range(6)] == ["vqa", "vqa", "vqa", "text", "caption", "vqa"]
    for images, words in ((both[:1], "2 times <image>, one image"), (both * 2, "2 times <image>, 4 images")):
        with pytest.raises(Reject, match=words):
            ManifestCorpus(write(folder, {"images": images, "conversations": between}), image_size=16).document(0)


def test_the_image_of_an_instruction_stays_where_it_stands(folder: Path) -> None:
    line = {"raw_image": "images/red.png", "out_image": "images/blue.png", "instruction": "turn <image> blue"}
    document = ManifestCorpus(write(folder, line), image_size=16).document(0)
    assert shown(document) == [("turn", False), (RED, False), ("blue", False), (BLUE, True)]


@pytest.mark.parametrize("blank", ["", " ", "\t", "\r", "\f\v", "  \r"])
def test_blank_lines_are_nothing(folder: Path, blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, between and behind the others, after a byte order mark, and where a scan ends within them."""
    captions = [json.dumps({"image": "images/red.png", "caption": f"{number}"}) for number in range(5)]
    text = [blank, blank, captions[0], captions[1], blank, captions[2], blank, blank, blank, captions[3], captions[4], blank]
    for mark in (b"", b"\xef\xbb\xbf"):
        for last in (text, text[:-1], [*text, ""]):
            (folder / "data.jsonl").write_bytes(mark + "\n".join(last).encode())
            for scan in (3, 5, 64, 2**20):
                monkeypatch.setattr(manifest, "_SCAN_BYTES", scan)
                corpus = ManifestCorpus(folder / "data.jsonl", image_size=16)
                assert [shown(corpus.document(number))[-1][0] for number in range(corpus.length)] == list("01234")


def test_a_file_of_blank_lines_has_none(folder: Path) -> None:
    for text in (b"\n \n", b"\xef\xbb\xbf\n\n", b"\xef\xbb\xbf"):
        (folder / "data.jsonl").write_bytes(text)
        with pytest.raises(UserError, match="has no lines"):
            ManifestCorpus(folder / "data.jsonl", image_size=16)


def test_a_key_that_stands_twice_with_one_value_is_one_key(folder: Path) -> None:
    line = '{"id": 1, "image": "images/red.png", "id": 1, "caption": "a"}'
    assert shown(ManifestCorpus(write(folder, line), image_size=16).document(0)) == [(RED, False), ("a", True)]


@pytest.mark.parametrize("name", [" red.png", "red.png ", "red.png\n", "re\nd.png", "re  d::[1].png"])
def test_odd_names_of_images(folder: Path, name: str) -> None:
    (folder / "images" / name).write_bytes((folder / "images" / "blue.png").read_bytes())
    corpus = ManifestCorpus(write(folder, {"image": f"images/{name}", "caption": "a"}), image_size=16)
    assert shown(corpus.document(0)) == [(BLUE, False), ("a", True)]
    ((place, (_, content)),) = look_at({"manifest/a": corpus}).sources["manifest/a"]["images"].items()
    assert place.endswith(name) and not content.endswith("unreadable")


def test_blanks_around_a_name_are_none_where_no_file_is_called_so(folder: Path) -> None:
    corpus = ManifestCorpus(write(folder, {"image": " images/red.png\n", "caption": "a"}), image_size=16)
    assert shown(corpus.document(0)) == [(RED, False), ("a", True)]


def test_what_is_no_file_is_neither_read_nor_looked_at(folder: Path) -> None:
    """A pipe would be waited for, a device has no end."""
    os.mkfifo(folder / "images" / "pipe.png")
    names = ["images/pipe.png", "/dev/zero", "images"]
    corpus = ManifestCorpus(write(folder, *({"image": name, "caption": "a"} for name in names)), image_size=16)
    for number in range(len(names)):
        with pytest.raises(Reject, match="no such image file"):
            corpus.document(number)
    assert look_at({"manifest/a": corpus}).sources["manifest/a"]["images"] == {}
