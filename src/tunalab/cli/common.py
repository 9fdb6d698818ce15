"""What families of commands share: registering a command, its settings, and the configuration they resolve to."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.errors import UserError

if TYPE_CHECKING:
    from tunalab.config import RunConfig, TrackingConfig

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

RUNS = Path("runs")
LOCK_HELD = "TUNALAB_RUN_LOCK_HELD"  # set by the sweep driver, whose lock on the run directory its cells inherit


def add_command(commands: "Commands", run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    """A sub-command named after the function that carries it out, underscores as dashes."""
    sub = commands.add_parser(run.__name__.replace("_", "-"), help=text, description=text)
    sub.set_defaults(run=run)
    return sub


def add_settings(parser: argparse.ArgumentParser) -> None:
    # A default, or argparse counts them among what is missing.
    parser.add_argument("settings", nargs="*", default=[], metavar="key=value", help="settings over experiment and variant")


def run_config(experiment: str, variant: str, settings: list[str]) -> "RunConfig":
    """The resolved configuration of a run that can begin, as far as that is known without reading its data.

    Raises:
        UserError: a file, a key or a value is wrong.
    """
    from tunalab.config import load_config

    check_named(settings)
    config = load_config(*config_files(experiment, variant), settings)
    from tunalab.training.preflight import check_run  # here: it takes seconds, and a mistyped setting should be told at once

    check_run(config)
    return config


def check_named(settings: list[str]) -> None:
    """Raises UserError: a setting would give a run the name of another experiment or variant."""
    for setting in settings:
        if setting.split("=")[0] in ("experiment", "variant"):
            raise UserError(f"setting '{setting}' would only relabel the run: use --{setting.split('=')[0]} NAME")


def config_files(experiment: str, variant: str) -> tuple[Path, Path]:
    """The files of an experiment and a variant. Raises UserError: there is no such file, or it is something else."""
    from tunalab.layers import read_yaml

    files = yaml_path("experiments", experiment), yaml_path("variants", variant)
    for path in files:
        if {"experiment", "variant"} & read_yaml(path).keys():
            raise UserError(f"{path} is the saved configuration of a run: replay it with `tunalab train --config {path}`")
    return files


def yaml_path(folder: str, name: str) -> Path:
    """A name is a file of the folder; anything with an ending is taken as it is."""
    return Path(name) if name.endswith(".yaml") else Path(folder) / f"{name}.yaml"


def check_out(path: Path, folder: bool = False) -> None:
    """Whether ``--out`` can be a file, or a ``folder``, to be made if it is missing: told before anything is computed.

    Raises:
        UserError: it is the other kind of thing, lies below a file, or may not be written.
    """
    if path.exists() and path.is_dir() != folder:
        raise UserError(f"--out {path} is a {'file' if folder else 'folder'}: a {'folder' if folder else 'file'} is to be written")
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not (nearest.is_dir() or nearest == path):
        raise UserError(f"--out {path} cannot be written: {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"--out {path} cannot be written: {nearest} is not writable")


def tracking_uri(tracking: "TrackingConfig") -> str:
    from tunalab.results.mlflow.client import full_uri

    return full_uri(tracking.uri)


def build_components(seeds: set[int]) -> None:
    """Build what of each seed's components is not built yet."""
    from tunalab.frontends.components.build import build_components as build
    from tunalab.frontends.components.settings import ComponentSettings

    for seed in sorted(seeds):
        build(ComponentSettings.seeded(seed))
