"""Accelerators by name: peak rate of dense bfloat16 products and memory, as their makers' data sheets state them."""

from dataclasses import dataclass

from tunalab.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """``flops``: multiplications and additions a second, dense bfloat16; ``memory``: bytes, None when not known."""

    name: str
    flops: float
    memory: int | None


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40", 312e12, 40 * GIB),
        Gpu("a100", 312e12, 80 * GIB),
        Gpu("h100", 989e12, 80 * GIB),
        Gpu("h200", 989e12, 141 * 10**9),
        Gpu("b200", 2250e12, 180 * 10**9),
        Gpu("l40s", 362e12, 48 * GIB),
        Gpu("rtx4090", 165e12, 24 * GIB),
    )
}


DEFAULT = "h100"


def find_gpu(name: str | None, flops: float | None) -> Gpu:
    """By name, and with ``flops`` in the place of its rate; with a rate alone its memory is not known.

    Raises UserError for an unknown name or a rate that is none.
    """
    if flops is not None and not 0 < flops < float("inf"):
        raise UserError(f"--gpu-flops {flops} is out of range (above 0)")
    if name is None and flops is not None:
        return Gpu("GPU", flops, None)
    name = name or DEFAULT
    if name not in GPUS:
        raise UserError(f"--gpu {name} is not known (choices: {', '.join(GPUS)}; any other by --gpu-flops alone)")
    known = GPUS[name]
    return known if flops is None else Gpu(known.name, flops, known.memory)
