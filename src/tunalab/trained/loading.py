"""A trained model, ready for use, from the directory of a run or from an exported folder: :func:`load`."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.inference.orders import find_device
from tunalab.records.record import CONFIG_FILE
from tunalab.settings.schema import RunConfig, config_hash, read_config
from tunalab.trained.folder import TOKENIZER, check_tokenizer, read_about, read_weights
from tunalab.trained.model import Model
from tunalab.trained.parts import ExportedParts, RunParts, assemble, stored_once
from tunalab.training.checkpoints import MANIFEST, CheckpointStore
from tunalab.training.state import learnt_weights, refuse_foreign


def load(path: str | Path, device: str | torch.device | None = None, raw: bool = False) -> Model:
    """The trained model at ``path``, ready to be used: of a run directory its newest undamaged checkpoint, or an exported folder.

    ``device``: cpu, cuda or cuda:N; without one a GPU if there is any. ``raw``: the weights that training goes on with, not their
    averages. Computes in the precision of its training: bfloat16 products on a GPU, float32 on a CPU, unless its configuration
    says otherwise.

    Raises UserError, one line: no model there, no undamaged checkpoint, a file is missing or was altered, weights do not fit the
    configuration, no such device; and for ``raw`` of an export of averaged weights.
    """
    path = Path(path)
    if device is None or isinstance(device, str):
        device = find_device(device, "device=")
    if not is_export(path):
        return load_run(path, device, raw)
    if raw and (held := read_about(path).origin["weights"]) != "raw":
        raise UserError(f"{path} holds {held} weights alone: raw ones have the run's directory, and exports made with --raw")
    return load_exported(path, device)


def model_config(path: Path) -> RunConfig:
    """The configuration of an exported folder or a run directory, without its weights. Raises UserError as :func:`load`."""
    is_export(path)
    return read_config(path / CONFIG_FILE)


def is_export(path: Path) -> bool:
    """Whether ``path`` is an exported folder rather than a run directory. Raises UserError when it is neither."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder (a model is a run directory or an exported folder)")
    if not (path / MANIFEST).is_file() and not (path / CONFIG_FILE).is_file():
        raise UserError(
            f"{path} is neither an exported folder ({MANIFEST} is missing) nor a run directory ({CONFIG_FILE} is missing)"
        )
    return (path / MANIFEST).is_file()


def load_weights(path: Path) -> tuple[RunConfig, dict[str, Tensor], list[str]]:
    """Of an exported folder or a run directory: configuration, learnt weights by our names (a tied table once), and the names
    of those that started from scratch where the checkpoint lacked them. Raises UserError as :func:`load`.
    """
    if is_export(path):
        about = read_about(path)
        return model_config(path), read_weights(path), about.initialised
    config = model_config(path)
    return config, stored_once(config, learnt_weights(newest_checkpoint(path, config)).weights), []


def load_exported(folder: Path, device: str | torch.device = "cpu") -> Model:
    """The model that `tunalab export` or `tunalab convert` wrote. Nothing outside the folder is read.

    Raises UserError, one line: no such folder, a file is missing or was altered, weights do not fit the configuration (both
    sides listed), the tokenizer is missing or lacks image tokens.
    """
    about = read_about(folder)
    config = read_config(folder / CONFIG_FILE)
    if not (folder / TOKENIZER).is_dir():
        raise UserError(f"{folder} holds no tokenizer: convert the checkpoint again with decoder.tokenizer=FOLDER")
    tokenizer = Tokenizer.load(folder / TOKENIZER).with_chat(config.decoder.chat)
    check_tokenizer(tokenizer, about.vocabulary, str(folder))
    parts = ExportedParts(folder, about)
    model = assemble(config, parts, about.vocabulary, read_weights(folder), str(folder))
    return Model(model.to(device), tokenizer, config, about.origin, parts)


def load_run(run_dir: Path, device: str | torch.device = "cpu", raw: bool = False) -> Model:
    """The model of a run at its newest undamaged checkpoint: the averaged weights, or with ``raw`` those that go on training.

    Raises UserError, one line: no run there, no undamaged checkpoint, a component is missing, weights do not fit.
    """
    if not (run_dir / CONFIG_FILE).is_file():
        raise UserError(f"{run_dir} is not a run directory ({CONFIG_FILE} is missing)")
    config = read_config(run_dir / CONFIG_FILE)
    newest = newest_checkpoint(run_dir, config)
    parts = RunParts(ComponentSettings.seeded(config.components_seed))
    tokenizer = parts.tokenizer_for(config.decoder)
    learnt = learnt_weights(newest, raw)
    model = assemble(config, parts, tokenizer.vocabulary, learnt.weights, str(newest))
    origin = {
        "run": run_dir.resolve().name,
        "config_hash": config_hash(config),
        "weights": "raw" if raw else "averaged",
        "steps": learnt.steps,
        "tokens": learnt.tokens,
    }
    return Model(model.to(device), tokenizer, config, origin, parts)


def newest_checkpoint(run_dir: Path, config: RunConfig) -> Path:
    """The newest undamaged checkpoint of a run; damaged ones are named.

    Raises UserError when there is none, or it is of a run with other settings.
    """
    store = CheckpointStore(run_dir / "checkpoints")
    newest = store.newest_valid(warn=lambda line: print(f"warning: {line}", file=sys.stderr, flush=True))
    if newest is None:
        state = "every checkpoint in it is damaged" if store.steps() else "it holds no checkpoint"
        raise UserError(f"run {run_dir} cannot be loaded: {state}")
    refuse_foreign(newest, config)
    return newest


def export_run(run_dir: Path, folder: Path, raw: bool = False) -> None:
    """Write the model of a run into ``folder``, as :meth:`Model.save_pretrained`. Raises UserError as :func:`load_run` too."""
    load_run(run_dir, raw=raw).save_pretrained(folder)
