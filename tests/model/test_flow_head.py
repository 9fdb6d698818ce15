"""The flow head at its start, and its modulation."""

import torch
from torch import Tensor

from tunalab.model.attention import DenseAttention, Layout
from tunalab.model.flow_head import FlowHead, rotary_tables, with_text
from tunalab.settings.schema import FlowHeadConfig

WIDTH, L = 32, 12
SPAN = torch.tensor([[-1, -1, 0, 0, 0, 0, 0, -1, 1, 1, 1, -1]])
PATCH = torch.tensor([[-1, -1, -1, 0, 1, 2, 3, -1, -1, 0, 1, -1]])
DOCUMENT = torch.tensor([[0] * 8 + [1] * 4])


def head(token_dim: int = 12, seed: int = 0) -> FlowHead:
    torch.manual_seed(seed)
    made = FlowHead(WIDTH, token_dim, FlowHeadConfig(blocks=2, heads=4, kv_heads=2, head_dim=16, mlp=48))
    made.initialise(0.1)
    return made


def run(made: FlowHead, h_BLD: Tensor, time_ND: Tensor) -> Tensor:
    position = torch.arange(L)[None]
    rotary = rotary_tables(position, SPAN >= 0, PATCH, 2, 16)
    backend = DenseAttention(Layout(DOCUMENT, SPAN, torch.tensor([0, 8]), torch.tensor([8, 4])))
    return made(h_BLD, time_ND, SPAN, rotary, backend)


def test_at_the_start_images_pass_and_every_prediction_is_zero() -> None:
    made = head()
    h, time = torch.randn(1, L, WIDTH), torch.randn(2, WIDTH)
    out = run(made, h, time)
    assert torch.equal(out[SPAN >= 0], h[SPAN >= 0])
    assert not torch.allclose(out[SPAN < 0], h[SPAN < 0]), "text has gate 1"
    assert (made.predict(out[:, 3:7].expand(2, -1, -1), time) == 0).all()


def test_the_start_does_not_depend_on_the_target_space() -> None:
    """Front-ends generate in spaces of different sizes; all else of the head must start equal."""
    small, large = head(4).state_dict(), head(192).state_dict()
    for name, weight in small.items():
        if not name.startswith("output."):
            assert torch.equal(weight, large[name]), name
    torch.manual_seed(0)
    head(4)
    after = torch.rand(3)
    head(192)
    assert torch.equal(torch.rand(3), after), "nor does what is drawn after it"


def test_weights_are_drawn_at_the_given_size_and_gates_at_zero() -> None:
    made = head()
    block = made.blocks[0]
    for linear in (block.q, block.k, block.v, block.o, block.gate, block.up, block.down):
        assert 0.08 < linear.weight.std() < 0.12
    for linear in (block.modulation, made.final_modulation, made.output):
        assert not linear.weight.any() and not linear.bias.any()


def test_text_keeps_shift_and_scale_at_zero_and_gate_at_one() -> None:
    modulation = torch.randn(2, 6, WIDTH)
    text = with_text(modulation)[-1]
    assert torch.equal(with_text(modulation)[:2], modulation)
    assert text[:, 0].tolist() == [0, 0, 1, 0, 0, 1]


def test_each_image_is_modulated_by_its_own_time() -> None:
    made = head()
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    h, time = torch.randn(1, L, WIDTH), torch.randn(2, WIDTH)
    before = run(made, h, time)
    for image in (0, 1):
        changed = time.clone()
        changed[image] += 1
        moved = (run(made, h, changed) - before).abs().amax(-1) > 0
        assert moved[image == SPAN].all(), "all positions of the span, the time token too"
        own = DOCUMENT[image == SPAN][0]
        earlier = (torch.arange(L)[None] < (image == SPAN).nonzero()[0, 1]) | (own != DOCUMENT)
        assert not moved[earlier].any()
        h_NTD = torch.randn(2, 4, WIDTH)
        difference = (made.predict(h_NTD, changed) - made.predict(h_NTD, time)).abs().amax((1, 2))
        assert difference[image] > 0 and difference[1 - image] == 0
