"""A CUDA device that is none: tensors that claim to be there, computed on the CPU, and never mixed with tensors that do not.

So a test without a GPU runs whole steps, evaluations and samplers as they run on one, and a tensor that is made on the wrong
device is an error, as it would be there. What kernels compute, and how fast, it cannot tell.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from tunalab.model import attention

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
aten = torch.ops.aten
# May mix devices: copies, and indices on the CPU into what is on a GPU.
MIXING = {aten._to_copy.default, aten.copy_.default, aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Claimed(Tensor):
    """``held``: the CPU tensor that it is. Python is told another device than torch's own code, which would look for a driver."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Claimed":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.shape, **layout)  # type: ignore[attr-defined]
        made.held = held
        return made

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def cpu(self, *_: Any) -> Tensor:
        return aten._to_copy.default(self, device=CPU)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        return self.cpu() if device == CPU else super().to(*args, **kwargs)

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Claimed({self.held})"


class PretendCuda(TorchDispatchMode):
    """Sees what is made on the device from nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    claimed = any(isinstance(tensor, Claimed) for tensor in tensors)
    strangers = [tuple(t.shape) for t in tensors if not isinstance(t, Claimed) and t.dim()]
    if claimed and strangers and func not in MIXING:
        raise AssertionError(f"{func}: tensors of shape {strangers} are on the CPU, others on the GPU")
    device = kwargs.get("device")
    # Methods of a tensor pass on what torch takes for its device; only a copy changes it.
    there = claimed if device is None or (claimed and func is not aten._to_copy.default) else torch.device(device).type == "cuda"
    inner_args, inner_kwargs = tree_map(lambda leaf: leaf.held if isinstance(leaf, Claimed) else leaf, (args, kwargs))
    if device is not None:
        inner_kwargs["device"] = CPU
    out = func(*inner_args, **inner_kwargs)
    if not there:
        return out
    out = tree_map(lambda leaf: Claimed(leaf) if isinstance(leaf, Tensor) else leaf, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


@contextmanager
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Inside, CUDA tensors can be made. FlexAttention's kernel is replaced by what it computes."""
    generator, tensor = torch.Generator, torch.tensor

    def make(data: Any, device: Any = None, **kwargs: Any) -> Tensor:  # where the mode sees it
        return tensor(data, **kwargs).to(device or CPU)

    with monkeypatch.context() as patch, PretendCuda():
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch, "Generator", lambda device=None: generator())
        patch.setattr(torch, "tensor", make)
        patch.setattr(attention, "compiled_flex", lambda: plain_flex)
        yield CUDA


def plain_flex(q: Tensor, k: Tensor, v: Tensor, block_mask: Any, enable_gqa: bool) -> Tensor:
    """By its definition: every pair of the mask's rule, none skipped by blocks."""
    B, L = q.shape[0], q.shape[2]
    b, at = torch.arange(B, device=q.device), torch.arange(L, device=q.device)
    allowed_BLL = block_mask.mask_mod(b[:, None, None], at.new_zeros(()), at[None, :, None], at[None, None, :])
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed_BLL[:, None], enable_gqa=enable_gqa)


def claim(model: torch.nn.Module) -> None:
    """Move parameters and buffers, in place."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                moved = torch.nn.Parameter(Claimed(parameter.detach()), requires_grad=parameter.requires_grad)
                module._parameters[name] = moved
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = Claimed(buffer)
