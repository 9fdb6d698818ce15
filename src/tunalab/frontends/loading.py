"""Reading weights that must be whole and must fit; what libraries print while they load comes back as values."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tunalab.data.pretrained import Source, reading
from tunalab.errors import UserError, first_line, one_line


@contextmanager
def quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        logging.set_verbosity(before)


SHOWN = 6


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object. Raises UserError, naming ``what`` and the file, when it is missing or broken."""
    if not path.is_file():
        raise UserError(f"{what}: {path} is missing")
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{what}: {path} is damaged ({first_line(error)})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{what}: {path} is damaged (not a JSON object)")
    return loaded


def load_strictly(module: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Copy ``weights`` into ``module``. Nothing is copied unless every name and shape agrees (:func:`check_fit`)."""
    check_fit(module.state_dict(), weights, what)
    module.load_state_dict(weights)


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], what: str) -> None:
    """Every name and shape of ``weights`` is that of ``own``.

    Raises UserError listing both sides: a part left at its random start would train on without a sign.
    """
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if own[name].shape != weights[name].shape
    ]
    refuse_misfit(what, missing, unexpected, shapes)


def refuse_misfit(what: str, missing: Sequence[str], unexpected: Sequence[str], shapes: Sequence[str]) -> None:
    """Raises UserError, listing both sides, unless all three are empty."""
    if missing or unexpected or shapes:
        sides = [
            f"{len(names)} {title}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
            for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if names
        ]
        raise UserError(f"{what}: weights do not fit; {'; '.join(sides)}")


def check_report(
    report: Mapping[str, Any], what: str, ignored: tuple[str, ...] = (), reasons: Mapping[str, str] | None = None
) -> None:
    """The same for what ``from_pretrained`` of transformers and diffusers reports. ``ignored``: beginnings of names that a
    checkpoint may hold besides; ``reasons``: why a name is needed, where that is a setting of the checkpoint.
    Raises UserError as above.
    """
    why = reasons or {}
    refuse_misfit(
        what,
        [f"{name} ({why[name]})" if name in why else name for name in sorted(report["missing_keys"])],
        sorted(name for name in report["unexpected_keys"] if not name.startswith(ignored)),
        sorted(f"{name} {tuple(given)} for {tuple(own)}" for name, given, own in report["mismatched_keys"]),
    )


def check_finite(weights: Mapping[str, Tensor], what: str) -> None:
    """Raises UserError, naming the tensor, when a weight is not a number: what an altered file often shows as."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{what}: '{name}' holds values that are not finite: the file is damaged")


def refuse_quantized(config: Any, what: str) -> None:
    """Raises UserError for a checkpoint of transformers whose numbers are codes of a quantisation, not weights to train."""
    quantized = getattr(config, "quantization_config", None)
    if quantized:
        method = dict(quantized).get("quant_method", "unknown")
        raise UserError(f"{what}: config.json says quantization_config.quant_method={method}, but only plain weights are read")


def read_transformers(
    library: Any,
    source: Source,
    config: Any,
    ignored: tuple[str, ...] = (),
    reasons: Mapping[str, str] | None = None,
    **more: Any,
) -> Any:
    """A model of the class ``library`` of transformers, in float32, with every weight from the checkpoint.

    ``ignored``, ``reasons``: as for :func:`check_report`; ``more``: for ``from_pretrained``.
    Raises UserError, one line: missing or damaged files, weights that do not fit (both sides listed).
    """
    with reading(source), quiet_transformers():
        model, report = library.from_pretrained(
            source.name,
            subfolder=source.subfolder,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused right below
            **more,
        )
    check_report(report, source.what, ignored, reasons)
    check_finite(model.state_dict(), source.what)
    return model


def read_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    """Every tensor of a file. Raises UserError when it is missing or damaged."""
    with _safetensors(path, what):
        return load_file(path)


@contextmanager
def _safetensors(path: Path, what: str) -> Iterator[None]:
    if not path.is_file():
        raise UserError(f"{what}: {path} is missing")
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{what}: {path} is damaged ({one_line(error)})") from error


WHOLE = slice(None)


class Weight(Protocol):
    """A tensor on the CPU that need not be in memory: called, it gives ``rows`` of its first dimension, by default all of them."""

    @property
    def shape(self) -> torch.Size: ...

    def __call__(self, rows: slice = WHOLE) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Held:
    """One that is in memory. ``what``: what it belongs to, for messages."""

    tensor: Tensor
    name: str
    what: str

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    def __call__(self, rows: slice = WHOLE) -> Tensor:
        return _finite(self.tensor[rows] if self.tensor.ndim else self.tensor, self.name, self.what)


@dataclass(frozen=True, eq=False)
class Stored:
    """One of a safetensors file, which is opened for every reading: pages that were read count as memory until it is closed.

    Called, raises UserError: the file is damaged, or holds values there that are not finite.
    """

    shape: torch.Size
    path: Path
    name: str
    what: str

    def __call__(self, rows: slice = WHOLE) -> Tensor:
        with _safetensors(self.path, self.what), safe_open(self.path, "pt") as file:
            tensor = file.get_slice(self.name)[rows] if self.shape else file.get_tensor(self.name)
        return _finite(tensor, self.name, self.what)


def _finite(tensor: Tensor, name: str, what: str) -> Tensor:
    check_finite({name: tensor}, what)
    return tensor


def stored_weights(path: Path, what: str) -> dict[str, Weight]:
    """Every tensor of a file, none of them read. Raises UserError when it is missing or damaged."""
    with _safetensors(path, what), safe_open(path, "pt") as file:
        return {name: Stored(torch.Size(file.get_slice(name).get_shape()), path, name, what) for name in file.keys()}  # noqa: SIM118


def read_all(weights: Mapping[str, Weight]) -> dict[str, Tensor]:
    """The tensors themselves, in memory."""
    return {name: weight() for name, weight in weights.items()}
