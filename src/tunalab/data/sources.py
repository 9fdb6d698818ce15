"""The registry that turns the source names of a mix into corpora."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    ManifestConfig,
    OmniEditConfig,
    RunConfig,
    ShardsConfig,
    TextConfig,
    WebDatasetConfig,
)


@dataclass(frozen=True)
class SourceSettings:
    """What sources need to know; the fields are those of the run's settings.

    What is drawn is a square of ``image_size``; images of files go to ``buckets`` (None: that square too).
    ``levels`` are the shares of the scenes' difficulty levels; ``manifests`` gives each key of ``manifest/<key>`` its
    file, the others each key of ``<family>/<key>`` theirs.
    """

    image_size: int
    seed: int
    levels: tuple[float, float, float]
    questions_per_image: int
    buckets: Buckets | None = None
    manifests: Mapping[str, ManifestConfig] = field(default_factory=dict)
    webdataset: Mapping[str, WebDatasetConfig] = field(default_factory=dict)
    finevision: Mapping[str, FineVisionConfig] = field(default_factory=dict)
    omniedit: Mapping[str, OmniEditConfig] = field(default_factory=dict)
    text: Mapping[str, TextConfig] = field(default_factory=dict)

    @classmethod
    def of(cls, data: DataConfig, seed: int) -> "SourceSettings":
        """Those of a run."""
        one, two, three = data.levels
        return cls(
            image_size=data.image_size,
            seed=seed,
            levels=(one, two, three),
            questions_per_image=data.questions_per_image,
            buckets=Buckets.of(data),
            manifests=data.manifests,
            webdataset=data.webdataset,
            finevision=data.finevision,
            omniedit=data.omniedit,
            text=data.text,
        )

    @property
    def file_sizes(self) -> Buckets:
        """What images of files are brought to."""
        return self.buckets or Buckets.square(self.image_size)

    @property
    def shards(self) -> dict[str, ShardsConfig]:
        """Every source of shards by its name in a mix."""
        families = {"webdataset": self.webdataset, "finevision": self.finevision, "omniedit": self.omniedit, "text": self.text}
        return {f"{family}/{key}": config for family, known in families.items() for key, config in known.items()}


def source_names(settings: SourceSettings) -> list[str]:
    """Every name that :func:`build_source` knows under these settings; behind ``copy/`` each is a source of copies."""
    manifests = (f"manifest/{key}" for key in settings.manifests)
    return [*(f"scenes/{kind}" for kind in KINDS), "easy_vqa/vqa", *manifests, *settings.shards]


def check_sources(config: RunConfig) -> None:
    """Raises UserError for a mix that names an unknown source: before anything is trained for it."""
    known = source_names(SourceSettings.of(config.data, config.seed))
    for stage_name, stage in config.stages.items():
        for name in stage.mix:
            if name.removeprefix(PREFIX) not in known:
                raise UserError(f"stages.{stage_name}.mix: unknown source {name!r}; choices: {_choices(known)}")


def open_sources(config: RunConfig) -> None:
    """Open every source that the mixes draw from, so that missing files, damaged shards and missing columns are found early.

    Raises:
        UserError: a source cannot be opened, or none of the documents tried can be read.
    """
    settings = SourceSettings.of(config.data, config.seed)
    for name in sorted({name for stage in config.stages.values() for name, weight in stage.mix.items() if weight > 0}):
        probe(build_source(name, settings))


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


def build_source(name: str, settings: SourceSettings) -> Corpus:
    """The training corpus called ``name``; ``corpus.name`` is that name.

    Raises:
        UserError: no such source, or its files are missing.
    """
    if name.startswith(PREFIX):
        return CopyCorpus(build_source(name.removeprefix(PREFIX), settings))
    if name not in source_names(settings):
        raise UserError(f"unknown source {name!r}; choices: {_choices(source_names(settings))}")
    family, _, which = name.partition("/")
    if family == "easy_vqa":
        return EasyVqaCorpus(settings.image_size, settings.questions_per_image)
    if family == "manifest":
        manifest = settings.manifests[which]
        if not manifest.path:
            raise UserError(f"{name}: data.manifests.{which}.path is not set")
        return ManifestCorpus(
            manifest.path,
            manifest.root or None,
            image_size=settings.file_sizes,
            kind=manifest.kind,
            caption_prompt=DESCRIBE,  # as the scenes ask, so that one question means one thing in a mix
            name=name,
        )
    if name in settings.shards:
        return _open_shards(name, settings.shards[name], settings)
    scenes = SceneSettings(
        image_size=settings.image_size,
        levels=settings.levels,
        questions_per_image=settings.questions_per_image,
        seed=settings.seed,
    )
    kind = next(kind for kind in KINDS if kind == which)
    return ScenesCorpus(kind, "train", scenes)


def _choices(names: list[str]) -> str:
    return f"{', '.join(names)}, or {PREFIX}NAME of one with images"


def _open_shards(name: str, config: ShardsConfig, settings: SourceSettings) -> Corpus:
    if not config.urls:
        raise UserError(f"{name}: data.{name.replace('/', '.', 1)}.urls is not set")
    if is_incomplete(config.urls):
        key = f"data.{name.replace('/', '.', 1)}.urls"
        raise UserError(f"{key}: these settings were saved without credentials: give {key}=[...] again, with them")
    decode = partial(decode_image, image_size=settings.file_sizes)
    if isinstance(config, WebDatasetConfig):
        return open_webdataset(name, config, decode, DESCRIBE, settings.seed)
    if isinstance(config, FineVisionConfig):
        return open_finevision(name, config, decode, settings.seed)
    if isinstance(config, OmniEditConfig):
        return open_omniedit(name, config, decode, settings.seed)
    assert isinstance(config, TextConfig)
    return open_text(name, config, settings.seed)
