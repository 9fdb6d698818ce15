"""A model without its numbers: how each tensor would have been made is noted, and it is made when it is asked for, one at a time.

Processes that share a model out must not hold a whole one to start with. While a :class:`Deferred` records, tensors are made on the
meta device, and what is done to them is noted. Random numbers are drawn all the same, into memory that is given back at once: what
is drawn later is then the same as without it. The state of the generator before each draw is kept, so that a tensor can be made
again, alone, with the very numbers it would have had. What a module does with its tensors must not depend on their values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

OVERWRITTEN = {torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default, torch.ops.aten.zero_.default}
OVERWRITTEN |= {torch.ops.aten.fill_.Scalar}


@dataclass(frozen=True)
class _View:
    """How a tensor lies in its storage."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def of(self, storage: Tensor) -> Tensor:
        return storage.as_strided(self.size, self.stride, self.offset)


class _Own(_View):
    """A tensor in the storage that a step changes."""


@dataclass(frozen=True, eq=False)
class _Step:
    """One operation. ``state``: of the generator before it, where it draws."""

    func: Any
    args: Any
    kwargs: Any
    state: Tensor | None

    def run(self, storage: Tensor | None) -> Tensor:
        if self.state is not None:
            torch.set_rng_state(self.state)
        given = tree_map_only(Later, lambda later: later(), (self.args, self.kwargs))
        if storage is not None:
            given = tree_map_only(_Own, lambda view: view.of(storage), given)
        out: Tensor = self.func(*given[0], **given[1])
        return out if storage is None else storage


@dataclass(frozen=True, eq=False)
class Later:
    """A tensor that does not exist yet: the steps that make its storage, and its place in there."""

    steps: tuple[_Step, ...]
    view: _View

    @property
    def shape(self) -> torch.Size:
        return self.view.size

    def __call__(self, rows: slice = slice(None)) -> Tensor:
        """It, or ``rows`` of its first dimension, on the CPU. Whole in memory until the last reference to it goes."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            storage = None
            for step in self.steps:
                storage = step.run(storage)
        assert storage is not None
        tensor = self.view.of(storage)
        return tensor[rows] if tensor.ndim else tensor


class Deferred(TorchDispatchMode):
    """``least``: tensors of fewer numbers are made as always."""

    least = 2**16
    active: ClassVar["Deferred | None"] = None

    def __init__(self) -> None:
        super().__init__()
        self.draws = True
        self._steps: dict[int, tuple[_Step, ...]] = {}  # by storage
        self._alive: list[Tensor] = []  # a freed storage's identity would be given to another

    @contextmanager
    def recording(self) -> Iterator[None]:
        before, Deferred.active = Deferred.active, self
        try:
            with self:
                yield
        finally:
            Deferred.active = before

    def later(self, tensor: Tensor) -> Later:
        """What a tensor on the meta device that was made while recording stands for."""
        return Later(self._steps[_storage(tensor)], _view(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.is_meta for tensor in tensors):
            return self._on_meta(func, args, kwargs)
        if tensors or not any(argument.name == "device" for argument in func._schema.arguments):
            return func(*args, **kwargs)
        out = func(*args, **{**kwargs, "device": "meta"})
        if out.numel() < self.least:
            return func(*args, **kwargs)
        self._made(out, _Step(func, args, {**kwargs, "device": "cpu"}, self._draw(func, args, kwargs)))
        return out

    def _on_meta(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        changed = _storage(args[0]) if func._schema.is_mutable else None
        given, named = tree_map_only(Tensor, lambda tensor: self._noted(tensor, changed), (args, kwargs))
        if named.get("device") is not None:
            named["device"] = torch.device("cpu")
        state = self._draw(func, args, kwargs)
        out = func(*args, **({**kwargs, "device": "meta"} if "device" in kwargs else kwargs))
        if changed is not None:
            whole = func in OVERWRITTEN and args[0].numel() * args[0].itemsize == args[0].untyped_storage().nbytes()
            steps = self._steps[changed]
            self._steps[changed] = (*(steps[:1] if whole else steps), _Step(func, given, named, state))
        elif isinstance(out, Tensor) and _storage(out) not in self._steps:
            self._made(out, _Step(func, given, named, state))
        return out

    def _made(self, out: Tensor, step: _Step) -> None:
        self._alive.append(out)
        self._steps[_storage(out)] = (step,)

    def _noted(self, tensor: Tensor, changed: int | None) -> Any:
        if not tensor.is_meta:
            return tensor
        view = _view(tensor)
        return _Own(view.size, view.stride, view.offset) if _storage(tensor) == changed else self.later(tensor)

    def _draw(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
        """Draw what ``func`` draws, for nothing. The state of the generator before; None where nothing is drawn."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return None
        state = torch.get_rng_state()
        if self.draws:
            func(*tree_map_only(Tensor, _scratch, args), **tree_map_only(Tensor, _scratch, kwargs))
        return state


@contextmanager
def read_later(really: bool = True) -> Iterator[None]:
    """Around what makes weights that are ``really`` read from a file: random numbers drawn inside shift none that are drawn
    after it, and a :class:`Deferred` does not draw them at all.
    """
    recorder = Deferred.active if really else None
    with torch.random.fork_rng(devices=[], enabled=really):
        if recorder is not None:
            recorder.draws = False
        try:
            yield
        finally:
            if recorder is not None:
                recorder.draws = True


def _scratch(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype) if tensor.is_meta else tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _view(tensor: Tensor) -> _View:
    return _View(tensor.shape, tensor.stride(), int(tensor.storage_offset()))
