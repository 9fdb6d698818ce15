import torch
from torch import nn

from tunalab.training.optimisation import Ema


def test_average_in_closed_form() -> None:
    p = nn.Parameter(torch.zeros(3))
    ema = Ema({"p": p}, decay=0.5)
    expected = torch.zeros(3)
    for step in range(20):
        p.data = torch.full((3,), float(step))
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * p.data
    assert torch.allclose(ema.shadow["p"], expected)


def test_applied_swaps_and_gives_back_the_same_bits() -> None:
    p = nn.Parameter(torch.randn(4))
    ema = Ema({"p": p}, decay=0.9)
    p.data = torch.randn(4)
    ema.update()
    raw, averaged = p.data.clone(), ema.shadow["p"].clone()
    with ema.applied():
        assert torch.equal(p.data, averaged) and not torch.equal(p.data, raw)
    assert torch.equal(p.data, raw) and torch.equal(ema.shadow["p"], averaged)
