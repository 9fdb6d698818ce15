"""Tensors by name from a checkpoint on disk, whoever wrote it: `.pt`, `.safetensors`, or a folder of shards with their index.

Nothing is executed (``weights_only``), and nothing is guessed: what is not whole, or holds more than tensors, is refused.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunalab.data.pretrained import LOAD_ERRORS
from tunalab.errors import UserError, one_line
from tunalab.files import below, listed
from tunalab.frontends.loading import SHOWN, check_finite, read_json, read_safetensors

WRAPPERS = ("state_dict", "model")  # keys under which a `.pt` may hold its tensors
PREFIXES = ("module.", "model.", "tuna_model.")  # what data-parallel and trainer classes put before every name
PICKLED = (".pt", ".pth", ".bin", ".ckpt")
INDEX = ".safetensors.index.json"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint at ``path``: a file, an index of shards, or a folder that holds one of these.

    Raises UserError, one line: nothing there or several candidates, unreadable file, shards that are missing or incomplete,
    entries that are no tensors, values that are no numbers.
    """
    tensors = _read(_choose(path))
    check_finite(tensors, f"checkpoint {path}")
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    if path.name.endswith(INDEX):
        return read_shards(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path, "checkpoint")
    if path.suffix in PICKLED:
        return _read_pickled(path)
    raise UserError(f"{path} is no checkpoint (known endings: .safetensors, {INDEX}, {', '.join(PICKLED)})")


def _choose(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"no checkpoint {path}")
    if path.is_file():
        return path
    files = [file for file in listed(path) if file.is_file()]
    indices = [file for file in files if file.name.endswith(INDEX)]
    whole = [file for file in files if file.suffix in (".safetensors", *PICKLED)]
    found = indices or whole
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:SHOWN]) or "none"
        raise UserError(f"{path} holds {len(found)} checkpoints ({names}): name the file")
    return found[0]


def read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors that an index names, out of its shards. Raises UserError when a shard or a tensor of it is missing."""
    places = read_json(index, f"checkpoint {index.parent}").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"checkpoint {index.parent}: {index.name} is damaged (no weight_map)")
    files = sorted(set(places.values()))
    if strange := [file for file in files if below(index.parent, file) is None]:
        raise UserError(f"checkpoint {index.parent}: {index.name} names {strange[0]!r}, which leads out of the folder")
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise UserError(
            f"checkpoint {index.parent} is incomplete: {len(missing)} of {len(files)} files missing: {shorten(missing)}"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_safetensors(index.parent / file, f"checkpoint {index.parent}")
    absent = sorted(places.keys() - tensors.keys())
    if absent:
        raise UserError(f"checkpoint {index.parent} is incomplete: {len(absent)} tensors missing: {shorten(absent)}")
    return {name: tensors[name] for name in places}


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        # The library's own message tells how to load it all the same, which is no good advice.
        raise UserError(f"checkpoint {path} is damaged, or holds more than tensors and plain values: it is not loaded") from error
    except LOAD_ERRORS as error:
        raise UserError(f"checkpoint {path} cannot be read: {one_line(error)}") from error
    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(f"checkpoint {path} holds no tensors by name, but a {type(loaded).__name__}")
    others = sorted(str(name) for name, value in loaded.items() if not isinstance(value, Tensor))
    if others:
        raise UserError(f"checkpoint {path} holds {len(others)} entries that are no tensors: {shorten(others)}")
    return dict(loaded)


def without_prefix(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The names without a wrapper's prefix, where every one of them has it."""
    plain = dict(tensors)
    for prefix in PREFIXES:
        if plain and all(name.startswith(prefix) for name in plain):
            plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    return plain


def shorten(names: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = f", ... ({len(names) - SHOWN} more)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
