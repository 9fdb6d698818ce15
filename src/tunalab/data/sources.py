"""The registry that turns the source names of a mix into corpora, and corpora from outside."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from tunalab.data.assembling import check_text
from tunalab.data.buckets import Buckets
from tunalab.data.documents import (
    IMAGES_PER_DOCUMENT,
    KINDS,
    PREFIX,
    CopyCorpus,
    Corpus,
    Document,
    Image,
    Kind,
    Reject,
    Text,
    Unfit,
    fingerprint_of,
)
from tunalab.data.drawings import DrawingsCorpus
from tunalab.data.easy_vqa import EasyVqaCorpus
from tunalab.data.images import decode_image, fit_image
from tunalab.data.manifest import ManifestCorpus
from tunalab.data.scenes import ScenesCorpus, SceneSettings
from tunalab.data.scenes.questions import QuestionCorpus, question_kind
from tunalab.data.scenes.sentences import DESCRIBE
from tunalab.data.sequence import is_answer
from tunalab.data.shards.schemas import open_finevision, open_omniedit, open_text, open_webdataset
from tunalab.errors import UserError
from tunalab.plugins import Group, build, find, source_of
from tunalab.redaction import is_incomplete
from tunalab.settings.loading import sources_of
from tunalab.settings.schema import (
    DataConfig,
    FineVisionConfig,
    OmniEditConfig,
    RunConfig,
    ShardsConfig,
    TextConfig,
    WebDatasetConfig,
)


def source_names(data: DataConfig) -> list[str]:
    """Every name that :func:`build_source` knows under these settings; behind ``copy/`` each is a source of copies."""
    families: dict[str, dict[str, Any]] = {"manifest": data.manifests, "corpus": data.corpora, "questions": data.questions}
    named = (f"{family}/{key}" for family, members in families.items() for key in members)
    drawn = [f"{family}/{kind}" for family in (("scenes", "drawings") if data.drawings else ("scenes",)) for kind in KINDS]
    return [*drawn, "easy_vqa/vqa", *named, *shard_sources(data)]


def shard_sources(data: DataConfig) -> dict[str, ShardsConfig]:
    """Every source of shards by its name in a mix."""
    families: dict[str, Mapping[str, ShardsConfig]] = {
        "webdataset": data.webdataset,
        "finevision": data.finevision,
        "omniedit": data.omniedit,
        "text": data.text,
    }
    return {f"{family}/{key}": config for family, members in families.items() for key, config in members.items()}


def check_sources(config: RunConfig) -> None:
    """Raises UserError for a mix that names an unknown source: before anything is trained for it."""
    names = source_names(config.data)
    for stage_name, stage in config.stages.items():
        for name in stage.mix:
            if name.removeprefix(PREFIX) not in names:
                raise UserError(f"stages.{stage_name}.mix: unknown source {name!r}; choices: {_choices(names)}")
    mixed = sources_of(config.stages)
    for key, name in config.evaluation.losses.items():
        if not re.fullmatch(r"\w[\w -]*", key, re.ASCII):
            raise UserError(f"evaluation.losses.{key}: the loss is called so: letters, digits, blanks, _ and - are allowed")
        if own := [f"{family}/{key}" for family in ("scenes", "drawings") if f"{family}/{key}" in mixed]:
            raise UserError(f"evaluation.losses.{key}: the loss of {own[0]}, which the run trains on, is called so: another name")
        if name not in names:
            raise UserError(f"evaluation.losses.{key}: unknown source {name!r}; choices: {_choices(names)}")
        if trained := [stage for stage, of in config.stages.items() if of.mix.get(name, 0) > 0]:
            raise UserError(f"evaluation.losses.{key}={name}: stage {trained[0]} trains on it: held-out documents are others")
    for key in config.data.corpora:
        corpus_class(key, config.data)
    for key in config.data.questions:
        question_kind(key, config.data)


def open_sources(config: RunConfig) -> None:
    """Open every source that the mixes draw from, so that missing files, damaged shards and missing columns are found early.

    Raises:
        UserError: a source cannot be opened, or none of the documents tried can be read.
    """
    mixed = sources_of(config.stages)
    for name in sorted(mixed | {*config.evaluation.losses.values()}):
        probe(build_source(name, config.data, config.seed))


def probe(corpus: Corpus, count: int = 8) -> None:
    """Raises UserError if none of ``count`` documents can be read: a wrong setting rather than broken data."""
    reason = ""
    for number in range(count):
        index = 997 * number  # apart from each other: one damaged row group is no wrong setting
        try:
            corpus.document(index if corpus.length is None else index % corpus.length)
        except Unfit:  # it can be read; how many fit is for the run to say, which asks more than a few
            return
        except Reject as reject:
            reason = reason or str(reject)
        else:
            return
    raise UserError(f"{corpus.name}: none of {count} documents tried can be read; the first: {reason}")


def build_source(name: str, data: DataConfig, seed: int, buckets: Buckets | None = None) -> Corpus:
    """The training corpus called ``name``; ``corpus.name`` is that name. ``seed``: of the run.

    What is drawn is a square of ``data.image_size``; images of files go to ``data.buckets``, or to that square too. ``buckets``:
    these in another object, which may look at what is asked of it (inspection.py).

    Raises:
        UserError: no such source, or its files are missing.
    """
    if name.startswith(PREFIX):
        return CopyCorpus(build_source(name.removeprefix(PREFIX), data, seed, buckets))
    if name not in source_names(data):
        raise UserError(f"unknown source {name!r}; choices: {_choices(source_names(data))}")
    buckets = buckets or Buckets.of(data)
    family, _, which = name.partition("/")
    if family == "easy_vqa":
        return EasyVqaCorpus(data.image_size, data.questions_per_image)
    if family == "manifest":
        manifest = data.manifests[which]
        if not manifest.path:
            raise UserError(f"{name}: data.manifests.{which}.path is not set")
        return ManifestCorpus(
            manifest.path,
            manifest.root or None,
            image_size=buckets,
            kind=manifest.kind,
            caption_prompt=DESCRIBE,  # as the scenes ask, so that one question means one thing in a mix
            name=name,
        )
    if name in shard_sources(data):
        return _open_shards(name, shard_sources(data)[name], buckets, seed)
    if family == "corpus":
        return OutsideCorpus(name, which, data, seed, buckets)
    one, two, three = data.levels
    scenes = SceneSettings(data.image_size, (one, two, three), data.questions_per_image, seed, data.placement)
    if family == "questions":
        return QuestionCorpus(name, question_kind(which, data), "train", scenes)
    kind = next(kind for kind in KINDS if kind == which)
    return DrawingsCorpus(kind, "train", scenes, data.drawings) if family == "drawings" else ScenesCorpus(kind, "train", scenes)


CORPORA = Group(
    "tunalab.corpora",
    f"a corpus: a class with document and kind ({', '.join(KINDS)})",
    lambda found: callable(getattr(found, "document", None)) and getattr(found, "kind", None) in KINDS,
)


def corpus_class(key: str, data: DataConfig) -> Any:
    """The class of ``corpus/<key>``. Raises UserError, one line: it cannot be found, or is no corpus."""
    return find(f"data.corpora.{key}.name", data.corpora[key].name, CORPORA)


class OutsideCorpus:
    """Documents of a corpus from outside, checked, with their images brought to sizes of the run.

    Raises UserError: it cannot be found or made, or a document is none.
    """

    def __init__(self, name: str, key: str, data: DataConfig, seed: int, buckets: Buckets | None = None) -> None:
        found, setting = corpus_class(key, data), f"data.corpora.{key}"
        self.name = name
        self.source = source_of(found)
        arguments = data.corpora[key].arguments
        self._corpus = build(f"{setting}.arguments", found, arguments, image_size=data.image_size, seed=seed)
        self._buckets = buckets or Buckets.of(data)
        self.fingerprint = fingerprint_of(self._corpus)
        length = getattr(self._corpus, "length", 0)
        if length is not None and (isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 1):
            raise UserError(f"{name}: its length is {length!r} (choices: a whole number from 1; None, without end)")
        self.length: int | None = None if length is None else int(length)

    def document(self, index: int) -> Document:
        document = self._corpus.document(index)
        segments = getattr(document, "segments", ())
        if not isinstance(document, Document) or document.kind not in KINDS or not segments:
            raise UserError(f"{self.name}: document({index}) is {str(document)[:60]!r}, not a Document with a kind and segments")
        fitted = tuple(self._fitted(segment, index) for segment in segments)
        if not any(map(is_answer, fitted)):
            raise UserError(
                f"{self.name}: document({index}) has nothing to learn: no text with target=True, no image with generate=True"
            )
        if (images := sum(isinstance(segment, Image) for segment in fitted)) > IMAGES_PER_DOCUMENT:
            raise Unfit(f"{images} images, a document takes at most {IMAGES_PER_DOCUMENT}")
        return Document(document.kind, fitted)

    def _fitted(self, segment: Any, index: int) -> Text | Image:
        where = f"{self.name}: document({index})"
        if isinstance(segment, Text):
            try:
                check_text(segment.text, "text")
            except Reject as reject:
                raise UserError(f"{where}: {reject}") from reject
            return segment
        pixels = check_pixels(getattr(segment, "pixels_HWC", None), where)
        if pixels.shape[:2] not in self._buckets.sizes:
            pixels = fit_image(PillowImage.fromarray(pixels), where, self._buckets)
        return Image(pixels, segment.generate)


def check_pixels(pixels: Any, where: str) -> np.ndarray:
    """Raises UserError, naming ``where``, for what is no image (H, W, 3) uint8."""
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        found = f"{pixels.shape} {pixels.dtype}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise UserError(f"{where}: an image must be an array (height, width, 3) of uint8, not {found}")
    return pixels


def kind_of(source: str, data: DataConfig) -> Kind:
    """What documents a source of a mix makes; a manifest, which may mix kinds, is taken for what its captions become."""
    if source.startswith(PREFIX):
        return "edit"
    family, _, key = source.partition("/")
    if family == "corpus":
        kind: Kind = corpus_class(key, data).kind
        return kind
    if family in ("webdataset", "manifest"):
        members: Mapping[str, Any] = data.webdataset if family == "webdataset" else data.manifests
        return "text_to_image" if members[key].kind == "text_to_image" else "caption"
    fixed: dict[str, Kind] = {"finevision": "vqa", "omniedit": "edit", "text": "text", "questions": "vqa"}
    return fixed[family] if family in fixed else next(kind for kind in KINDS if kind == key)


def _choices(names: list[str]) -> str:
    art = "" if any(name.startswith("drawings/") for name in names) else ", drawings/KIND where data.drawings names a folder of art"
    return f"{', '.join(names)}, or {PREFIX}NAME of one with images{art}"


def _open_shards(name: str, config: ShardsConfig, buckets: Buckets, seed: int) -> Corpus:
    if not config.urls:
        raise UserError(f"{name}: data.{name.replace('/', '.', 1)}.urls is not set")
    if is_incomplete(config.urls):
        key = f"data.{name.replace('/', '.', 1)}.urls"
        raise UserError(f"{key}: these settings were saved without credentials: give {key}=[...] again, with them")
    decode = partial(decode_image, image_size=buckets)
    if isinstance(config, WebDatasetConfig):
        return open_webdataset(name, config, decode, DESCRIBE, seed)
    if isinstance(config, FineVisionConfig):
        return open_finevision(name, config, decode, seed)
    if isinstance(config, OmniEditConfig):
        return open_omniedit(name, config, decode, seed)
    assert isinstance(config, TextConfig)
    return open_text(name, config, seed)
