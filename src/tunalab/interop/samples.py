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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from tunalab.data.buckets import Buckets, Size
from tunalab.data.documents import Reject
from tunalab.data.images import decode_image, read_image
from tunalab.data.shards.files import find_files
from tunalab.data.shards.table import IMAGE, Column, TableReader, is_text
from tunalab.errors import UserError
from tunalab.files import listed, write_atomically
from tunalab.frontends.loading import read_json
from tunalab.inference.images import check_replaceable, check_size, input_buckets, read_settings, save_image
from tunalab.inference.requests import GenerationRequest, ImageFile, Source, image_bar, made_images
from tunalab.interop.geneval import folder_of, metadata_of, read_prompts, sample_of
from tunalab.interop.outcomes import OwnSize, checked_name, path_of, read_bytes, read_lines, text_of
from tunalab.trained.model import Model


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
    """One file of a benchmark: ``name`` below the folder, the images of ``text``, one per seed, in a square.

    ``picture``: what ``text`` edits. ``beside`` writes what else the benchmark needs into the folder, and raises UserError where
    something else is in its place.
    """

    name: str
    text: str
    seeds: tuple[int, ...]
    picture: Picture | None = None
    beside: Callable[[Path], None] | None = None


def make_items(model: Model, items: Sequence[Item], request: GenerationRequest, folder: Path, batch_tokens: int = 16384) -> int:
    """Make the files that are not there yet; returns how many were there. Seeds are the items' own; edits take the size that their
    picture gets.

    Raises UserError, before anything is made: a file is in the place of another, a picture cannot be read, tokens do not cut a
    size exactly. Later: a file cannot be written, the device has too little memory.
    """
    config, network = model.config, model.model
    sampling, size, buckets = request.sampling(config), request.output_size(config), input_buckets(config.data, request.size)

    def file_of(item: Item) -> ImageFile:
        source = None if item.picture is None else Source(item.picture.name, item.picture.read(buckets))
        of_file = size if source is None else source.size
        return ImageFile(folder / item.name, item.text, item.seeds, of_file, sampling, model.precision, model.identity, source)

    missing: list[tuple[Size, Item]] = []
    for item in items:  # pictures are read twice: all of a benchmark would fill the memory
        one = file_of(item)
        check_size(network.frontend.space, one.size)
        if not one.is_there():
            missing.append((one.size, item))
    for item in items:
        if item.beside is not None:
            item.beside(folder)
    missing.sort(key=itemgetter(0))  # images of one size share their batches
    with image_bar(sum(len(item.seeds) for _, item in missing), sampling) as bar:
        for first in range(0, len(missing), AT_ONCE):
            files = [file_of(item) for _, item in missing[first : first + AT_ONCE]]
            for one, pixels_HWC in made_images(network, model.tokenizer, config.objective, files, batch_tokens, bar.update):
                save_image(one.path, pixels_HWC, one.settings)
    return len(items) - len(missing)


KEYS = ("key", "task_type", "instruction", "instruction_language")
_TEXT = Column(is_text, "string")
_ALL_GROUPS = 10_000  # of the text columns: small


class SourcePicture(Picture):
    """A picture that is also kept beside what is made of it."""

    def keep(self, name: str, folder: Path) -> None:
        """As a PNG in its own size. Raises UserError where something else is in its place."""
        source = Source(self.name, self.read(OwnSize()))
        if not check_replaceable(folder / name, {"source": source.about}):
            save_image(folder / name, source.pixels_HWC, {"source": source.about})


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
        beside = partial(keep_text, f"{folder}/metadata.jsonl", metadata_of(prompt))
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
        kind, language, key = (
            checked_name(where, text_of(where, plain, name)) for name in ("task_type", "instruction_language", "key")
        )
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
    """All files of a benchmark. Raises UserError: its data is missing or not of its form, or has one file twice."""
    items = LAYOUTS[benchmark](data, seeds, images)
    names: set[str] = set()
    for item in items:
        if item.name in names:
            raise UserError(f"{data}: two samples would be {item.name}")
        names.add(item.name)
    return items


def _one(seeds: Sequence[int]) -> tuple[int, ...]:
    if len(seeds) != 1:
        raise UserError(f"--n={len(seeds)}: this benchmark takes one image an edit")
    return tuple(seeds)


def keep_text(name: str, text: str, folder: Path) -> None:
    path = folder / name
    if not path.exists():
        try:
            write_atomically(path, text)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
    elif read_bytes(path, "GenEval's metadata") != text.encode():
        raise UserError(f"{path} is there and of another prompt: choose another folder, or remove it")
