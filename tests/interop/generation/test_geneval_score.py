"""GenEval's scores of a folder: tags weigh the same, damaged images are failures, what is missing is one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tunalab.errors import UserError
from tunalab.interop.geneval import Detection, folder_of, metadata_of, read_prompts, score_geneval
from tunalab.interop.outcomes import Outcomes

LINES = [
    *({"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": f"dog {n}"} for n in range(3)),
    {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a red dog"},
]


class Brightness:
    """Sees a dog in every image that is not black."""

    name = "brightness"
    things = frozenset({"dog"})
    calls = 0

    def detect(self, pixels_HWC: np.ndarray) -> list[Detection]:
        self.calls += 1
        return [Detection("dog", 1.0, (0, 0, 4, 4))] if pixels_HWC.any() else []


class Red:
    name = "always red"

    def colours(self, pixels_HWC, seen):
        return ["red"] * len(seen)


@pytest.fixture
def prompts(tmp_path: Path):
    (tmp_path / "meta.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return read_prompts(tmp_path / "meta.jsonl")


@pytest.fixture
def folder(tmp_path: Path, prompts) -> Path:
    """Two images a prompt: of the dogs 2, 1 and 0 are right, of the red dog both."""
    for number, (prompt, bright) in enumerate(zip(prompts, (2, 1, 0, 2), strict=True)):
        place = tmp_path / "images" / folder_of(number)
        (place / "samples").mkdir(parents=True)
        (place / "metadata.jsonl").write_text(metadata_of(prompt))
        for sample in range(2):
            Image.new("RGB", (4, 4), "white" if sample < bright else "black").save(place / f"samples/{sample:04d}.png")
    return tmp_path / "images"


def test_tags_weigh_the_same_and_done_work_is_kept(folder: Path, prompts, tmp_path: Path):
    detector = Brightness()
    measures = score_geneval(folder, prompts, detector, Red(), Outcomes(tmp_path / "kept.jsonl", "a"))
    by_metric = {measure.metric: measure for measure in measures}
    assert list(by_metric) == ["overall", "single_object", "colors"] and {measure.benchmark for measure in measures} == {"GenEval"}
    assert by_metric["single_object"].items == [1.0, 0.5, 0.0] and by_metric["single_object"].value == 0.5
    overall = by_metric["overall"]
    assert overall.value == 0.75 and overall.n == 4 and np.mean(overall.items) == pytest.approx(0.75)
    assert overall.low is not None and overall.high is not None and overall.low < 0.75 < overall.high
    assert "brightness, colours always red; 2 images a prompt" in overall.note
    assert detector.calls == 5, "equal images of one prompt are looked at once"
    again = score_geneval(folder, prompts, detector, Red(), Outcomes(tmp_path / "kept.jsonl", "a"))
    assert again == measures and detector.calls == 5
    score_geneval(folder, prompts, detector, Red(), Outcomes(tmp_path / "kept.jsonl", "another detector"))
    assert detector.calls == 10


def test_damaged_images_are_failures_not_zeros(folder: Path, prompts, tmp_path: Path):
    (folder / "00000/samples/0001.png").write_bytes(b"\x89PNG damaged")
    for sample in range(2):
        (folder / f"00002/samples/{sample:04d}.png").write_bytes(b"")
    outcomes = Outcomes(tmp_path / "kept.jsonl", "a")
    measures = {measure.metric: measure for measure in score_geneval(folder, prompts, Brightness(), Red(), outcomes)}
    single = measures["single_object"]
    assert (single.value, single.n, single.failures, single.items) == (0.75, 2, 3, []), "not to be paired item by item"
    assert measures["overall"].failures == 3 and measures["overall"].value == 0.875 and len(outcomes.unreadable) == 3
    assert "failures are images" in single.note
    for sample in range(2):
        (folder / f"00003/samples/{sample:04d}.png").write_bytes(b"")
    with pytest.raises(UserError, match="GenEval colors: none of 2 images can be read"):
        score_geneval(folder, prompts, Brightness(), Red(), outcomes)


def test_what_is_missing_is_one_line_before_anything_is_detected(folder: Path, prompts, tmp_path: Path):
    def told(words: str, classifier=Red(), names: frozenset[str] = Brightness.things) -> None:  # noqa: B008
        detector = Brightness()
        detector.things = names
        with pytest.raises(UserError, match=words) as caught:
            score_geneval(folder, prompts, detector, classifier, Outcomes(tmp_path / "kept.jsonl", "a"))
        assert not detector.calls and "\n" not in str(caught.value)

    told("brightness does not know dog", names=frozenset({"cat"}))
    told("has questions about colours: name a CLIP", classifier=None)
    (folder / "00003/samples/0001.png").unlink()
    told("00003/samples holds 1 images .*, 2 are needed")
    (folder / "00003/metadata.jsonl").write_text(json.dumps(LINES[0]))
    told("00003/metadata.jsonl is of another prompt than line 4")
    (folder / "00003/metadata.jsonl").unlink()
    told("00003/metadata.jsonl is missing: .* each of 4 prompts")


def test_outcomes_of_something_else_are_not_written_over(tmp_path: Path):
    path = tmp_path / "notes.jsonl"
    path.write_text("my notes\n")
    with pytest.raises(UserError, match="notes.jsonl is there and holds no outcomes"):
        Outcomes(path, "a")
    path.write_text('{"key": "k", "image": "x.png", "outcome": {"right": true}}\n{"key": "l", "im')
    Outcomes(path, "a")
    assert path.read_text().endswith("}}\n"), "a line cut off by an interruption goes"
