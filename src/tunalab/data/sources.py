"""The registry that turns the source names of a mix into corpora."""

from collections.abc import Mapping
from functools import partial

from tunalab.data.buckets import Buckets
from tunalab.data.documents import KINDS, PREFIX, CopyCorpus, Corpus, Reject, Unfit
from tunalab.data.easy_vqa import EasyVqaCorpus
from tunalab.data.images import decode_image
from tunalab.data.manifest import ManifestCorpus
from tunalab.data.scenes import ScenesCorpus, SceneSettings
from tunalab.data.scenes.sentences import DESCRIBE
from tunalab.data.shards.schemas import open_finevision, open_omniedit, open_text, open_webdataset
from tunalab.errors import UserError
from tunalab.redaction import is_incomplete
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
    manifests = (f"manifest/{key}" for key in data.manifests)
    return [*(f"scenes/{kind}" for kind in KINDS), "easy_vqa/vqa", *manifests, *_shards(data)]


def _shards(data: DataConfig) -> dict[str, ShardsConfig]:
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
    known = source_names(config.data)
    for stage_name, stage in config.stages.items():
        for name in stage.mix:
            if name.removeprefix(PREFIX) not in known:
                raise UserError(f"stages.{stage_name}.mix: unknown source {name!r}; choices: {_choices(known)}")


def open_sources(config: RunConfig) -> None:
    """Open every source that the mixes draw from, so that missing files, damaged shards and missing columns are found early.

    Raises:
        UserError: a source cannot be opened, or none of the documents tried can be read.
    """
    for name in sorted({name for stage in config.stages.values() for name, weight in stage.mix.items() if weight > 0}):
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


def build_source(name: str, data: DataConfig, seed: int) -> Corpus:
    """The training corpus called ``name``; ``corpus.name`` is that name. ``seed``: of the run.

    What is drawn is a square of ``data.image_size``; images of files go to ``data.buckets``, or to that square too.

    Raises:
        UserError: no such source, or its files are missing.
    """
    if name.startswith(PREFIX):
        return CopyCorpus(build_source(name.removeprefix(PREFIX), data, seed))
    if name not in source_names(data):
        raise UserError(f"unknown source {name!r}; choices: {_choices(source_names(data))}")
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
            image_size=Buckets.of(data),
            kind=manifest.kind,
            caption_prompt=DESCRIBE,  # as the scenes ask, so that one question means one thing in a mix
            name=name,
        )
    if name in _shards(data):
        return _open_shards(name, _shards(data)[name], data, seed)
    kind = next(kind for kind in KINDS if kind == which)
    one, two, three = data.levels
    return ScenesCorpus(kind, "train", SceneSettings(data.image_size, (one, two, three), data.questions_per_image, seed))


def _choices(names: list[str]) -> str:
    return f"{', '.join(names)}, or {PREFIX}NAME of one with images"


def _open_shards(name: str, config: ShardsConfig, data: DataConfig, seed: int) -> Corpus:
    if not config.urls:
        raise UserError(f"{name}: data.{name.replace('/', '.', 1)}.urls is not set")
    if is_incomplete(config.urls):
        key = f"data.{name.replace('/', '.', 1)}.urls"
        raise UserError(f"{key}: these settings were saved without credentials: give {key}=[...] again, with them")
    decode = partial(decode_image, image_size=Buckets.of(data))
    if isinstance(config, WebDatasetConfig):
        return open_webdataset(name, config, decode, DESCRIBE, seed)
    if isinstance(config, FineVisionConfig):
        return open_finevision(name, config, decode, seed)
    if isinstance(config, OmniEditConfig):
        return open_omniedit(name, config, decode, seed)
    assert isinstance(config, TextConfig)
    return open_text(name, config, seed)
