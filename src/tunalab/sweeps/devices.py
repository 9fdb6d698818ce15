"""The GPUs that a sweep may give to its cells."""

import os

GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """What GPU_VARIABLE has to say for a process to see one GPU and no other, for each GPU that is visible here."""
    import torch  # here, not above: slow, and a mistake in the call should be told at once

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(GPU_VARIABLE, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]
