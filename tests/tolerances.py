"""How far two ways of computing the same may be apart: from the length of the sums and the data type, never from what was seen."""

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

from tunalab.settings.schema import RunConfig


def relative(terms: int, dtype: torch.dtype = torch.float32) -> float:
    """That part of a sum of ``terms`` numbers which two orders of adding may differ by.

    n roundings of at most eps / 2 each add up to n eps / 2 at worst; as some go up and some go down, to more than
    8 sqrt(n) eps / 2 with a probability below 2 exp(-32) (Higham and Mary 2019, theorem 2.4). Twice that, for both sums.
    """
    return min(2 * terms, 8 * sqrt(terms)) * torch.finfo(dtype).eps


def tolerance(terms: int, like: Tensor) -> dict[str, float]:
    """``rtol`` and ``atol`` of `assert_close` for sums of ``terms`` numbers that are added in another order.

    A sum is off by that part (:func:`relative`) of the sum of its numbers' sizes, which is taken as the
    largest number in ``like``: where numbers cancel it is larger, but roundings cancel as well. Of sums
    one after the other add the lengths; what else is computed, elementwise, adds a term an operation.
    """
    rtol = relative(terms, like.dtype)
    return {"rtol": rtol, "atol": rtol * like.detach().abs().max().item() if like.numel() else 0.0}


def assert_sums_close(found: Tensor, expected: Tensor, terms: int, msg: str | None = None) -> None:
    """`assert_close` with that tolerance, which has to be small enough to tell something."""
    close = tolerance(terms, expected)
    assert close["rtol"] < 0.01, "a sum as long as that needs float64"
    torch.testing.assert_close(found, expected, msg=msg, **close)


def block_terms(width: int, mlp: int, length: int) -> int:
    """The sums one after the other in a block: two norms, four projections, scores, softmax, values, and an MLP there and back."""
    return 7 * width + 2 * length + mlp


def model_terms(config: RunConfig, length: int) -> int:
    """The sums one after the other in a forward pass over sequences of ``length``; the encoder of tests has three layers."""
    width, blocks = config.decoder.width, config.decoder.layers + config.head.blocks + 3
    return blocks * block_terms(width, max(config.decoder.mlp, config.head.mlp, 4 * width), length) + width


def assert_gradients_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], terms: int) -> None:
    """Gradients by name. Of a parameter whose gradient is small because parts of it cancel, a hundredth of the largest counts."""
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        close = tolerance(terms, gradient)
        close["atol"] = max(close["atol"], close["rtol"] * largest / 100)
        assert close["rtol"] < 0.01, "a sum as long as that needs float64"
        torch.testing.assert_close(found[name], gradient, msg=lambda text, name=name: f"{name}: {text}", **close)
