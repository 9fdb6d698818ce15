"""What the published benchmarks ask for, and the files in which their own scripts look for it.

    geneval   00000/metadata.jsonl, 00000/samples/0000.png, 0001.png, ...   a folder a prompt, numbered from 0
    dpg       <item_id>.png                                                 four samples in a 2x2 grid
    imgedit   <key>.png
    gedit     fullset/<task_type>/<language>/<key>.png, <key>_SRCIMG.png    the edited image, and the one it was made from

https://github.com/djghosh13/geneval, https://github.com/TencentQQGYLab/ELLA (dpg_bench), https://github.com/PKU-YuanGroup/ImgEdit,
https://github.com/stepfun-ai/Step1X-Edit (GEdit-Bench). Their files are the user's to bring.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tunalab.data.image_files import read_image
from tunalab.errors import UserError
from tunalab.evaluation.published_generation.gedit import read_gedit
from tunalab.evaluation.published_generation.geneval import folder_of, metadata_of, read_prompts, sample_of
from tunalab.evaluation.published_generation.lines import checked_name, name_of, path_of, read_bytes, text_of
from tunalab.evaluation.published_generation.making import Item, Picture
from tunalab.files import listed, write_atomically
from tunalab.frontends.loading import read_json

CELLS = 4  # of DPG-Bench's grid


def geneval(data: Path, seeds: Sequence[int], images: Path | None) -> list[Item]:
    """``data``: GenEval's evaluation_metadata.jsonl."""
    items = []
    for number, prompt in enumerate(read_prompts(data)):
        folder = folder_of(number)
        beside = partial(_keep_text, f"{folder}/metadata.jsonl", metadata_of(prompt))
        for place, seed in enumerate(seeds):
            name = f"{folder}/samples/{sample_of(place)}"
            items.append(Item(name, prompt.text, (seed,), beside=None if place else beside))
    return items


def dpg(data: Path, seeds: Sequence[int], images: Path | None) -> list[Item]:
    """``data``: DPG-Bench's folder of prompts, ``<item_id>.txt``. One seed makes plain images, which its script takes too."""
    if len(seeds) not in (1, CELLS):
        raise UserError(f"--n={len(seeds)}: an image of DPG-Bench is a grid of {CELLS} samples, or one sample")
    files = listed(data, "*.txt") if data.is_dir() else []
    if not files:
        raise UserError(f"DPG-Bench's prompts: {data} is no folder of <item_id>.txt files")
    items = []
    for file in files:
        try:
            text = read_bytes(file, "DPG-Bench's prompts").decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not text in UTF-8 (byte {error.start})") from error
        if not text:
            raise UserError(f"{file} is empty: a prompt is needed")
        items.append(Item(f"{file.stem}.png", text, tuple(seeds)))
    return items


def imgedit(data: Path, seeds: Sequence[int], images: Path | None) -> list[Item]:
    """``data``: ImgEdit's JSON, key -> prompt, id (path of the image below ``images``), edit_type."""
    root = data.parent if images is None else images
    items = []
    for key, plain in read_json(data, "ImgEdit's edits").items():
        where = f"{data} edit {key}"
        if not isinstance(plain, dict):
            raise UserError(f"{where}: an edit must be an object")
        text_of(where, plain, "edit_type")
        text, name = text_of(where, plain, "prompt"), text_of(where, plain, "id")
        picture = Picture(name, partial(read_image, path_of(where, plain, "id", root)))
        items.append(Item(f"{checked_name(where, key)}.png", text, _one(seeds), picture))
    if not items:
        raise UserError(f"ImgEdit's edits: {data} is empty")
    return items


def gedit(data: Path, seeds: Sequence[int], images: Path | None) -> list[Item]:
    """``data``: GEdit-Bench's Parquet, a file or a folder of them, or JSON lines with the images as paths below ``images``."""
    items = []
    for where, plain, picture in read_gedit(data, images):
        kind, language, key = (name_of(where, plain, name) for name in ("task_type", "instruction_language", "key"))
        stem = f"fullset/{kind}/{language}/{key}"
        beside = partial(picture.keep, f"{stem}_SRCIMG.png")
        items.append(Item(f"{stem}.png", text_of(where, plain, "instruction"), _one(seeds), picture, beside))
    return items


LAYOUTS: dict[str, Callable[[Path, Sequence[int], Path | None], list[Item]]] = {
    "geneval": geneval,
    "dpg": dpg,
    "imgedit": imgedit,
    "gedit": gedit,
}
SAMPLES = {"geneval": 4, "dpg": CELLS, "imgedit": 1, "gedit": 1}  # of a prompt, as the benchmarks have it


def read_layout(benchmark: str, data: Path, seeds: Sequence[int], images: Path | None) -> list[Item]:
    """All files of a benchmark. Raises UserError: its data is missing or not of its form, or asks for one file twice."""
    items = LAYOUTS[benchmark](data, seeds, images)
    seen: set[str] = set()
    for item in items:
        if item.name in seen:
            raise UserError(f"{data}: two samples would be {item.name}")
        seen.add(item.name)
    return items


def _one(seeds: Sequence[int]) -> tuple[int, ...]:
    if len(seeds) != 1:
        raise UserError(f"--n={len(seeds)}: this benchmark takes one image an edit")
    return tuple(seeds)


def _keep_text(name: str, text: str, folder: Path) -> None:
    path = folder / name
    if not path.exists():
        try:
            write_atomically(path, text)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
    elif read_bytes(path, "GenEval's metadata") != text.encode():
        raise UserError(f"{path} is there and of another prompt: choose another folder, or remove it")
