"""What must hold before a run begins.

Settings that are wrong in themselves are refused when they are read (settings/loading.py). Here they meet what they name: sources,
the front-end's geometry, the benchmarks; and the data itself. Every refusal is one line (UserError) that names the key and what
it may be.
"""

from functools import lru_cache

import torch

from tunalab.data.buckets import check_buckets
from tunalab.data.documents import PREFIX
from tunalab.data.easy_vqa import check_installed
from tunalab.data.scenes.questions import check_groups
from tunalab.data.scenes.sampling import check_image_size
from tunalab.data.sources import check_sources, open_sources
from tunalab.errors import UserError, first_line
from tunalab.evaluation.along import held_out_of
from tunalab.evaluation.benchmarks import along, check_benchmarks, one_of
from tunalab.frontends.components.store import Components
from tunalab.frontends.contract import TargetSpace
from tunalab.frontends.registry import build_frontend
from tunalab.model.unified import build_model
from tunalab.settings.loading import sources_of
from tunalab.settings.schema import FrontEndConfig, RunConfig
from tunalab.training.optimisation import learnt_parameters, matched_groups

FRAME, IMAGE_FRAME = 2, 3  # bos eos of a document; boi time eoi of an image


def check_run(config: RunConfig) -> None:
    """Raises UserError for settings that a run would fail on later. No file is read but what describes a pretrained part."""
    check_sources(config)
    check_benchmarks(config)
    drawn = sources_of(config.stages)
    evaluation = config.evaluation
    if evaluation.groups or any(name.removeprefix(PREFIX).startswith(("scenes/", "questions/", "drawings/")) for name in drawn):
        check_image_size(config.data.image_size)
    if evaluation.groups:
        check_groups(evaluation.groups, evaluation.levels)
    settings = tuple(sorted(vars(config.frontend).items()))
    space = fitting_space(settings, config.decoder.width, config.data.image_size, config.components_seed)
    check_buckets(config.data, space.token_pixels)
    two = any(name in ("scenes/edit", "drawings/edit") or name.startswith(PREFIX) for name in drawn)
    _check_row(config, space, images=2 if two else 1)
    if config.optimizer.groups:
        with torch.device("meta"):
            components = Components(config.components_seed)
            model = build_model(config, components, vocabulary=1)
        matched_groups(learnt_parameters(model), config.optimizer.groups)


def open_data(config: RunConfig) -> None:
    """Open what a run reads on this machine: its sources, easy-VQA and benchmarks from outside. Raises UserError as these do."""
    open_sources(config)
    for name in {*config.evaluation.losses.values()}:
        held_out_of(name, config.evaluation.loss_documents, config.data)
    if config.evaluation.easy_vqa:
        check_installed()
    for key in along(config):
        one_of(key, config)


def _check_row(config: RunConfig, space: TargetSpace, images: int) -> None:
    rows, columns = space.grid(config.data.image_size, config.data.image_size)
    needed = FRAME + images * (IMAGE_FRAME + rows * columns)
    if needed > config.data.row_tokens:
        raise UserError(
            f"data.row_tokens={config.data.row_tokens} is too short for a document of {images} image(s) of "
            f"{rows * columns} tokens (data.image_size={config.data.image_size}): from {needed}"
        )


@lru_cache(maxsize=64)
def fitting_space(settings: tuple[tuple[str, object], ...], width: int, image_size: int, components_seed: int) -> TargetSpace:
    """The target space of the front-end with these settings, after an image has gone through it on the meta device.

    Raises UserError: an unknown name, an encoder or VAE that there is not, or parts that do not fit each other or the image.
    """
    config = FrontEndConfig(**dict(settings))  # type: ignore[arg-type]
    with torch.device("meta"), torch.no_grad():
        frontend = build_frontend(config, width, image_size, Components(components_seed))
        try:
            x_BChw = frontend.to_space(torch.empty(1, 3, image_size, image_size))
            frontend.embed(x_BChw)
            frontend.from_space(x_BChw)
        except (RuntimeError, ValueError) as error:
            chosen = ", ".join(f"frontend.{key}={value}" for key, value in settings if key in ("vae", "encoder", "patch") and value)
            raise UserError(
                f"frontend.name={config.name}: its parts do not fit each other ({chosen}): {first_line(error)}"
            ) from error
    return frontend.space
