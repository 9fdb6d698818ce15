"""Small files of kinds that people have (cases/), each read as a source of a run reads it."""

from pathlib import Path

import numpy as np
import pytest

from tunalab.data.documents import Corpus, Image, Reject, Text
from tunalab.data.images import read_image
from tunalab.data.sources import build_source, probe
from tunalab.errors import UserError
from tunalab.settings.schema import DataConfig, ManifestConfig, TextConfig, WebDatasetConfig

CASES = Path(__file__).parent / "cases"
# Colours of a.png, and of the others as they are shown: left to right, top to bottom.
CORNERS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 220, 30))
QUESTION = "What colour is the top left corner?"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNALAB_CACHE", str(tmp_path / "cache"))


def source(family: str, name: str, **more: object) -> Corpus:
    url = str(CASES / name)
    data = DataConfig(
        manifests={"a": ManifestConfig(path=url)},
        webdataset={"a": WebDatasetConfig(urls=[url], window=0)},
        text={"a": TextConfig(urls=[url], window=0, **more)},
    )
    return build_source(f"{family}/a", data, 0)


def texts(corpus: Corpus) -> list[str]:
    """The last text of every document."""
    assert corpus.length is not None
    segments = [corpus.document(index).segments for index in range(corpus.length)]
    return [[s.text for s in some if isinstance(s, Text)][-1] for some in segments]


def corners(pixels_HWC: np.ndarray) -> np.ndarray:
    return pixels_HWC[[2, 2, -3, -3], [2, -3, 2, -3]].astype(int)


@pytest.mark.parametrize(
    "name",
    ["a.png", "exif_garbage.png", "orientation6_artist_as_rational.jpg", "longitude_ref_as_rational.jpg", "latitude_as_ascii.jpg"],
)
def test_the_upright_picture(name: str) -> None:
    assert np.abs(corners(read_image(CASES / name, 32)) - CORNERS).max() < 12


def test_images_in_a_list() -> None:
    corpus = source("manifest", "images_key.jsonl")
    image, requests, answered = corpus.document(0).segments
    assert isinstance(image, Image) and (corners(image.pixels_HWC) == CORNERS).all()
    assert (requests, answered) == (Text(QUESTION), Text("Red.", target=True)) and corpus.length == 3


def test_a_video_is_rejected_by_name() -> None:
    corpus = source("manifest", "video_key.jsonl")
    with pytest.raises(Reject, match="key 'video' names what is not read"):
        corpus.document(0)
    with pytest.raises(UserError, match="none of 8 documents tried can be read; the first: key 'video'"):
        probe(corpus)


@pytest.mark.parametrize("name", ["images_key.jsonl", "video_key.jsonl"])
def test_conversations_without_their_pictures_are_no_texts(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} line 1: key '(images|video)' names what is not read"):
        probe(source("text", name, column="conversations"))


@pytest.mark.parametrize("name", ["blank_lines.jsonl", "UPPER.JSONL"])
def test_twenty_lines(name: str) -> None:
    assert texts(source("text", name)) == [f"text {number}" for number in range(20)]


@pytest.mark.parametrize("longest", [0, 200])
def test_answers_that_are_code(longest: int) -> None:
    found = texts(source("text", "indented_answers.jsonl", max_characters=longest))
    assert found[0] == "    def f():\n        return 1" and found[1].startswith("word word")


def test_captions_with_a_mark() -> None:
    assert texts(source("webdataset", "bom.tar")) == [f"caption {number}" for number in range(12)]


def test_two_tars_end_to_end() -> None:
    expected = [f"caption {number}" for number in (*range(12), *range(100, 112))]
    assert texts(source("webdataset", "cat.tar")) == expected
