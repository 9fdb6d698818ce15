"""Local copies of the twelve benchmarks: two rows or more each, with the columns of the published data sets."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.conftest import small_config

from tunalab.evaluation.subject import Subject

SPLITS = {"gqa": "testdev", "mmmu_val": "validation", "mmvp": "train"}  # others: test


def picture(number: int, width: int = 40, height: int = 24) -> Image.Image:
    pixels_HWC = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels_HWC)


def rows() -> dict[str, list[dict[str, Any]]]:
    """By task; of every task the second row has another image than the first."""
    gqa = {"isBalanced": True, "groups": {"global": "", "local": ""}, "entailed": "", "equivalent": "", "types": {"detailed": ""}}
    gqa |= {"annotations": {"question": []}, "semanticStr": "", "fullAnswer": "Yes."}
    options = {f"choice_{letter}": f"thing {letter}" for letter in "ABCD"}
    pictures = {f"image_{number}": picture(number) if number < 3 else None for number in range(1, 8)}
    exam = {**pictures, "explanation": "", "img_type": "['Plots']", "topic_difficulty": "Easy", "subfield": "Basics"}
    one, two = picture(1), picture(2, 24, 40)
    return {
        "gqa": [
            {"id": "1", "imageId": "n1", "question": "Is it red?", "answer": "yes", "image": one, **gqa},
            {"id": "2", "imageId": "n2", "question": "What is it?", "answer": "car", "image": two, **gqa},
        ],
        "realworldqa": [
            {"image": one, "image_path": "1.webp", "question": "Which way?\nA. Left\nB. Right\nC. Up", "answer": "A"},
            {"image": two, "image_path": "2.webp", "question": "How many cars?", "answer": "0"},
        ],
        "mmvet": [
            {"question_id": f"v1_{number}", "image": image, "question": "What is x?", "answer": "-1<AND>-5", **about}
            for number, image in enumerate([one, two, one])
            for about in [{"image_source": "web", "capability": "ocr,math"}]
        ],
        "mmmu_val": [
            {"id": "validation_Art_1", "question": "See <image 1>, <image 2>?", "options": "['a', 'b']", "answer": "A", **exam}
            | {"question_type": "multiple-choice"},
            {"id": "validation_Math_2", "question": "Sum of <image 1>?", "options": "[]", "answer": "7", **exam}
            | {"question_type": "open"},
        ],
        "mmvp": [
            {
                "Index": number,
                "Question": "Open?",
                "Options": "(a) Open (b) Closed",
                "Correct Answer": answer,
                "image": picture(number),
            }
            for number, answer in enumerate(["(a)", "(b)", "(b)", "(a)"], start=1)
        ],
        "seedbench_2_plus": [
            {
                "question_id": f"{number}",
                "question": "Which?",
                "answer": "B",
                "image": image,
                "question_image_type": kind,
                **options,
            }
            for number, (image, kind) in enumerate([(one, "chart"), (two, "map"), (one, "web")])
        ],
        "ai2d": [
            {"question": "What is A?", "options": ["leaf", "root", "stem", "seed"], "answer": "1", "image": one},
            {"question": "What is B?", "options": ["leaf", "root", "stem", "seed"], "answer": "0", "image": two},
        ],
        "chartqa": [
            {"type": "human_test", "question": "How much?", "answer": "14", "image": one},
            {"type": "augmented_test", "question": "Which?", "answer": "Asia", "image": two},
        ],
        "ocrbench": [
            {
                "dataset": "IIIT5K",
                "question": "Read.",
                "question_type": "Regular Text Recognition",
                "answer": ["CENTRE"],
                "image": one,
            },
            {"dataset": "HME100k", "question": "Read.", "answer": ["x ^ 2"], "image": two}
            | {"question_type": "Handwritten Mathematical Expression Recognition"},
        ],
        "vstar_bench": [
            {
                "image": one,
                "text": "What colour? (A) red (B) blue",
                "category": "direct_attributes",
                "label": "A",
                "question_id": 0,
            },
            {"image": two, "text": "Left? (A) yes (B) no", "category": "relative_position", "label": "B", "question_id": 1},
        ],
        "countbench": [
            {"image": one, "text": "Five cups.", "question": "How many cups are there?", "number": 5},
            {"image": two, "text": "Two cups.", "question": "How many cups are there?", "number": 2},
        ],
    }


def table(held: list[dict[str, Any]]) -> Any:
    """Rows as a ``Dataset`` whose images are images."""
    from datasets import Dataset
    from datasets import Image as ImageFeature

    made = Dataset.from_list(held)
    for name, value in held[0].items():
        if isinstance(value, Image.Image) or name.startswith("image_") and value is None:
            made = made.cast_column(name, ImageFeature())
    return made


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """``copy(task)`` puts a copy of its data, as it lies on the hub (GQA with its images joined), into a folder and returns it."""

    def make(task: str) -> Path:
        data = tmp_path / "data"
        if task == "visulogic":
            visulogic(data / task)
        else:
            (data / task / "data").mkdir(parents=True)
            table(rows()[task]).to_parquet(data / task / "data" / f"{SPLITS.get(task, 'test')}-00000-of-00001.parquet")
        return data

    return make


def visulogic(folder: Path) -> None:
    folder.mkdir(parents=True)
    lines = []
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number, label in enumerate("AC"):
            stream = io.BytesIO()
            picture(number).save(stream, "PNG")
            archive.writestr(f"images/{number:05}.png", stream.getvalue())
            about = {"question": "Which comes next?", "image_path": f"images/{number:05}.png", "label": label, "tag": "Quantity"}
            lines.append(json.dumps(about | {"id": f"{number:05}"}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def subject(tiny_model: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Subject:
    folder = tmp_path / "part"
    folder.mkdir()
    return Subject(tiny_model("patch_embed"), tokenizer, small_config(), folder, {}, quiet=True)
