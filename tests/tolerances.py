"""How far two ways of computing the same may be apart: from the length of the sums and the data type, never from what was seen."""

import torch
from torch import Tensor


def tolerance(terms: int, like: Tensor) -> dict[str, float]:
    """``rtol`` and ``atol`` of `assert_close` for sums of ``terms`` numbers that are added in another order.

    A sum of n numbers is off by at most n eps times the sum of their sizes, and each of the two that are compared may be. That sum
    of sizes is taken as the largest number in ``like``: where numbers cancel it is larger, but roundings cancel as well. Of sums
    one after the other add the lengths; what else is computed, elementwise, adds a term an operation.
    """
    relative = 2 * terms * torch.finfo(like.dtype).eps
    return {"rtol": relative, "atol": relative * like.detach().abs().max().item() if like.numel() else 0.0}


def assert_sums_close(found: Tensor, expected: Tensor, terms: int, msg: str | None = None) -> None:
    """`assert_close` with that tolerance, which has to be small enough to tell something."""
    close = tolerance(terms, expected)
    assert close["rtol"] < 0.01, "a sum as long as that needs float64"
    torch.testing.assert_close(found, expected, msg=msg, **close)
