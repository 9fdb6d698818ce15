"""What the published benchmarks ask for, and the files in which their own scripts look for it.

    geneval   00000/metadata.jsonl, 00000/samples/0000.png, 0001.png, ...   a folder a prompt, numbered from 0
    dpg       <item_id>.png                                                 four samples in a 2x2 grid
    imgedit   <key>.png
    gedit     fullset/<task_type>/<language>/<key>.png, <key>_SRCIMG.png    the edited image, and the one it was made from

https://github.com/djghosh13/geneval, https://github.com/TencentQQGYLab/ELLA (dpg_bench),
https://github.com/PKU-YuanGroup/ImgEdit, https://github.com/stepfun-ai/Step1X-Edit (GEdit-Bench).
Their files are the user's to bring.

Shapes: H W C image pixels and channels.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tunalab.data.buckets import Buckets, Size
from tunalab.data.documents import Reject
from tunalab.data.images import decode_image, read_image
from tunalab.data.shards.files import find_files
from tunalab.data.shards.table import IMAGE, Column, TableReader, is_text
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.files import listed, write_atomically
from tunalab.frontends.loading import read_json
from tunalab.inference.orders import Manner, Source, Wanted, check_size, image_bar, make_wanted, read_settings, save_image
from tunalab.interop.geneval import folder_of, metadata_of, read_prompts, sample_of
from tunalab.interop.outcomes import OwnSize, checked_name, name_of, path_of, read_bytes, read_lines, text_of
from tunalab.model.unified import UnifiedModel
from tunalab.settings.schema import ObjectiveConfig

# Making the images that a benchmark asks for. What is there is kept, so that it can go on.
#
# Shapes: H W C image pixels and channels.


def makers(folder: Path) -> list[dict[str, Any]]:
    """Every model (trained.model.Model.identity) that images below the folder name, once; damaged images name none."""
    found: list[dict[str, Any]] = []
    for path in listed(folder, "**/*.png"):
        try:
            settings = read_settings(path) or {}
        except UserError:
            continue
        model = settings.get("model")
        if isinstance(model, dict) and model not in found:
            found.append(model)
    return found


def origin(model: dict[str, Any]) -> dict[str, Any]:
    """As a run's record names the state of its model."""
    return {"run": model["name"], **{key: model[key] for key in ("config_hash", "weights", "steps", "tokens")}}


AT_ONCE = 64  # files whose source images are held in memory


@dataclass(frozen=True, eq=False)
class Picture:
    """An image to be edited. ``decode``: its pixels (H, W, 3) uint8 in one of the sizes given; raises Reject."""

    name: str
    decode: Callable[[Buckets], np.ndarray]

    def read(self, buckets: Buckets) -> np.ndarray:
        """Raises UserError where the image cannot be used."""
        try:
            return self.decode(buckets)
        except Reject as reject:
            raise UserError(str(reject)) from reject


@dataclass(frozen=True, eq=False)
class Item:
    """One file of a benchmark: ``name`` below the folder, the images of ``text``, one a seed, in a square.

    ``picture``: what ``text`` edits. ``beside`` writes what the benchmark wants beside the file, into the folder given, and raises
    UserError where something else is in its place.
    """

    name: str
    text: str
    seeds: tuple[int, ...]
    picture: Picture | None = None
    beside: Callable[[Path], None] | None = None


def make_items(
    model: UnifiedModel,
    tokenizer: Tokenizer,
    objective: ObjectiveConfig,
    manner: Manner,
    buckets: Buckets,
    items: Sequence[Item],
    folder: Path,
    **bounds: int,
) -> int:
    """Make what is not there yet; how many files were there. ``manner.size``: of images that are not edits; those take the size
    that their picture gets in ``buckets``. ``bounds``: ``batch_tokens`` of :func:`make_wanted`.

    Raises UserError, before anything is made: a file is in the place of another, a picture cannot be read, tokens do not cut a
    size exactly. Later: a file cannot be written, the device has too little memory.
    """

    def wanted(item: Item) -> Wanted:
        path = folder / item.name
        if item.picture is None:
            return manner.wanted(path, item.text, item.seeds)
        source = Source(item.picture.name, item.picture.read(buckets))
        return replace(manner, size=source.size).wanted(path, item.text, item.seeds, source)

    missing: dict[Size, list[Item]] = {}
    for item in items:  # pictures are read twice: all of a benchmark would fill the memory
        one = wanted(item)
        size = manner.size if one.source is None else one.source.size
        check_size(model.frontend.space, size)
        if not one.is_there():
            missing.setdefault(size, []).append(item)
    for item in items:
        if item.beside is not None:
            item.beside(folder)
    count = sum(map(len, missing.values()))
    with image_bar(sum(len(item.seeds) for group in missing.values() for item in group), manner.sampling) as bar:
        for size, group in missing.items():
            for first in range(0, len(group), AT_ONCE):
                part = [wanted(item) for item in group[first : first + AT_ONCE]]
                make_wanted(model, tokenizer, objective, replace(manner, size=size), part, progress=bar.update, **bounds)
    return len(items) - count


KEYS = ("key", "task_type", "instruction", "instruction_language")
_TEXT = Column(is_text, "string")
_ALL_GROUPS = 10_000  # of the text columns: small


class SourcePicture(Picture):
    """A picture that is also kept beside what is made of it."""

    def keep(self, name: str, folder: Path) -> None:
        """As a PNG in its own size. Raises UserError where something else is in its place."""
        pixels_HWC = self.read(OwnSize())
        about = {"name": self.name, "sha256": hashlib.sha256(pixels_HWC.tobytes()).hexdigest()}
        path = folder / name
        if not Wanted(path, "", (), {"source": about}).is_there():
            save_image(path, pixels_HWC, {"source": about})


def read_gedit(data: Path, images: Path | None) -> Iterator[tuple[str, Mapping[str, Any], SourcePicture]]:
    """The words that name a row, the row, and its picture.

    Raises UserError: there is no such file, it is damaged, lacks a column or is empty.
    """
    if data.suffix in (".jsonl", ".json"):
        yield from _of_lines(data, data.parent if images is None else images)
        return
    found = listed(data, "**/*.parquet") if data.is_dir() else [data]
    if not found or not found[0].is_file():
        raise UserError(f"GEdit-Bench's edits: {data} is neither a Parquet file, nor a folder of them, nor JSON lines (.jsonl)")
    files = find_files([str(path) for path in found], "GEdit-Bench")
    texts = TableReader("GEdit-Bench", files, dict.fromkeys(KEYS, _TEXT), kept=_ALL_GROUPS)
    pictures = TableReader("GEdit-Bench", files, {"input_image": IMAGE}, kept=1)
    count = int(texts.starts[-1])
    if not count:
        raise UserError(f"GEdit-Bench's edits: {data} is empty")
    for row in range(count):
        try:
            plain = texts.read(row)
        except Reject as reject:
            raise UserError(f"{texts.where(row)}: {reject}") from reject
        yield texts.where(row), plain, SourcePicture(str(plain["key"]), partial(_decode_cell, pictures, row))


def _of_lines(data: Path, root: Path) -> Iterator[tuple[str, Mapping[str, Any], SourcePicture]]:
    for where, plain in read_lines(data, "GEdit-Bench's edits"):
        name = text_of(where, plain, "input_image")
        yield where, plain, SourcePicture(name, partial(read_image, path_of(where, plain, "input_image", root)))


def _decode_cell(reader: TableReader, row: int, buckets: Buckets) -> np.ndarray:
    cell = reader.read(row)["input_image"]
    if cell is None or cell["bytes"] is None:
        raise Reject(f"{reader.where(row)}: input_image has no bytes in the table")
    return decode_image(cell["bytes"], reader.where(row), buckets)


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
