"""The registry that turns the source names of a mix into corpora."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tunalab.config import DataConfig, ManifestConfig, RunConfig
from tunalab.data.documents import KINDS, Corpus
from tunalab.data.easy_vqa import EasyVqaCorpus
from tunalab.data.manifest import ManifestCorpus
from tunalab.data.scenes import ScenesCorpus, SceneSettings
from tunalab.data.scenes.captions import DESCRIBE
from tunalab.errors import UserError


@dataclass(frozen=True)
class SourceSettings:
    """What sources need to know; the fields are those of the run's settings.

    ``levels`` are the shares of the scenes' difficulty levels; ``manifests`` gives each key of ``manifest/<key>`` its
    file.
    """

    image_size: int
    seed: int
    levels: tuple[float, float, float]
    questions_per_image: int
    manifests: Mapping[str, ManifestConfig] = field(default_factory=dict)

    @classmethod
    def of(cls, data: DataConfig, seed: int) -> "SourceSettings":
        """Those of a run."""
        one, two, three = data.levels
        return cls(data.image_size, seed, (one, two, three), data.questions_per_image, data.manifests)


def source_names(settings: SourceSettings) -> list[str]:
    """Every name that :func:`build_source` knows under these settings."""
    return [*(f"scenes/{kind}" for kind in KINDS), "easy_vqa/vqa", *(f"manifest/{key}" for key in settings.manifests)]


def check_sources(config: RunConfig) -> None:
    """Raises UserError for a mix that names an unknown source: before anything is trained for it."""
    known = source_names(SourceSettings.of(config.data, config.seed))
    for stage_name, stage in config.stages.items():
        for name in stage.mix:
            if name not in known:
                raise UserError(f"stages.{stage_name}.mix: unknown source {name!r}; choices: {', '.join(known)}")


def build_source(name: str, settings: SourceSettings) -> Corpus:
    """The training corpus called ``name``; ``corpus.name`` is that name.

    Raises:
        UserError: no such source, or its files are missing.
    """
    if name not in source_names(settings):
        raise UserError(f"unknown source {name!r}; choices: {', '.join(source_names(settings))}")
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
            image_size=settings.image_size,
            kind=manifest.kind,
            caption_prompt=DESCRIBE,  # as the scenes ask, so that one question means one thing in a mix
            name=name,
        )
    scenes = SceneSettings(
        image_size=settings.image_size,
        levels=settings.levels,
        questions_per_image=settings.questions_per_image,
        seed=settings.seed,
    )
    kind = next(kind for kind in KINDS if kind == which)
    return ScenesCorpus(kind, "train", scenes)
