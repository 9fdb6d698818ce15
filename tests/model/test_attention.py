"""The attention rule against plain loops, and every backend against the dense one, forward and backward."""

import numpy as np
import pytest
import torch
from samples import random_batch, random_layout
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.model import attention
from tunalab.model.attention import (
    CachedAttention,
    DenseAttention,
    DocumentAttention,
    FlexAttention,
    Layout,
    allowed_blocks,
    make_backend,
    may_attend,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # in float64 a wrong rule cannot pass for rounding
HEADS = [(4, 4), (4, 2), (6, 1)]


def some_layout(seed: int, rows: int = 3, length: int = 60) -> Layout:
    return random_layout(np.random.default_rng(seed), rows, length)


def qkv(layout: Layout, heads: int, kv_heads: int, seed: int = 0, d: int = 8, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    B, L = layout.document_BL.shape
    shapes = [(B, h, L, d) for h in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def test_the_rule_in_plain_loops() -> None:
    for seed in range(3):
        layout = some_layout(seed, rows=2, length=40)
        allowed = may_attend(layout.document_BL, layout.span_BL)
        document, span = layout.document_BL.tolist(), layout.span_BL.tolist()
        for b in range(2):
            for query in range(40):
                for key in range(40):
                    same_span = span[b][query] == span[b][key] != -1
                    expected = document[b][query] == document[b][key] != -1 and (key <= query or same_span)
                    assert bool(allowed[b, query, key]) == (expected or query == key), (b, query, key)


def test_padding_is_seen_by_nothing_else() -> None:
    layout = some_layout(5)
    padding = layout.document_BL < 0
    assert padding.any()
    allowed = may_attend(layout.document_BL, layout.span_BL)
    seen_BL = (allowed & ~torch.eye(60, dtype=torch.bool)).any(dim=1)
    assert not seen_BL[padding].any()


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("seed", range(4))
def test_document_attention_equals_dense_forward_and_backward(heads: int, kv_heads: int, seed: int) -> None:
    layout = some_layout(seed, rows=1 + seed)
    real = layout.document_BL >= 0
    outputs, gradients = [], []
    for backend in (DenseAttention(layout), DocumentAttention(layout)):
        q, k, v = qkv(layout, heads, kv_heads, seed)
        out = backend.attend(0, q, k, v, 0.3)
        assert out.shape == (*layout.document_BL.shape, heads, 8)
        outputs.append(out[real])
        (out[real] * torch.linspace(-1, 1, 8, dtype=out.dtype)).square().sum().backward()
        gradients.append([x.grad for x in (q, k, v)])
    torch.testing.assert_close(outputs[0], outputs[1], **CLOSE)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_document_attention_equals_dense_on_packed_documents(tokenizer: Tokenizer) -> None:
    for seed, kinds in enumerate(["cvgetb", "ggggg", "t", "vevevctt"]):
        batch = random_batch(kinds, 2 if len(kinds) > 1 else 1, tokenizer, seed)
        layout = Layout(batch.document_BL, batch.span_BL, batch.start_D, batch.length_D)
        real = layout.document_BL >= 0
        q, k, v = qkv(layout, 4, 2)
        dense, document = (make_backend(name, layout).attend(0, q, k, v, 0.3) for name in ("dense", "document"))
        torch.testing.assert_close(dense[real], document[real], **CLOSE)
        assert (document[~real] == 0).all()


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1, 1], [30, 1, 30], [7] * 5, list(range(1, 12))])
def test_groups_of_any_lengths(lengths: list[int]) -> None:
    start = [sum(lengths[:at]) for at in range(len(lengths))]
    document = torch.full((2, sum(lengths) + 2), -1)  # the second row is empty
    for d, (first, n) in enumerate(zip(start, lengths, strict=True)):
        document[0, first : first + n] = d
    layout = Layout(document, torch.full_like(document, -1), torch.tensor(start), torch.tensor(lengths))
    q, k, v = qkv(layout, 2, 1)
    real = document >= 0
    dense, grouped = (backend.attend(0, q, k, v, 1.0) for backend in (DenseAttention(layout), DocumentAttention(layout)))
    torch.testing.assert_close(dense[real], grouped[real], **CLOSE)


def test_what_stands_in_padding_changes_nothing() -> None:
    layout = some_layout(2)
    real = layout.document_BL >= 0
    for backend in (DenseAttention(layout), DocumentAttention(layout)):
        q, k, v = (x.detach() for x in qkv(layout, 4, 2))
        before = backend.attend(0, q, k, v, 0.3)[real]
        for x in (q, k, v):
            x.transpose(1, 2)[~real] = 1e4
        assert torch.equal(backend.attend(0, q, k, v, 0.3)[real], before)


def test_scale_and_head_sharing_are_those_of_the_definition() -> None:
    """One document without image, computed by the formula."""
    document = torch.zeros((1, 9), dtype=torch.int64)
    layout = Layout(document, torch.full_like(document, -1), torch.tensor([0]), torch.tensor([9]))
    q, k, v = qkv(layout, 4, 2)
    for backend in (DenseAttention(layout), DocumentAttention(layout)):
        out = backend.attend(0, q, k, v, 0.7)
        for head in range(4):
            scores = 0.7 * q[0, head] @ k[0, head // 2].T
            weights = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), float("-inf")).softmax(-1)
            torch.testing.assert_close(out[0, :, head], weights @ v[0, head // 2], **CLOSE)


def test_flex_attention_has_the_same_rule() -> None:
    layout = some_layout(3, rows=2, length=128)
    rule = FlexAttention(layout).block_mask.mask_mod
    with pytest.raises(UserError, match="attention=flex needs a CUDA device .choices"):
        make_backend("flex", layout)
    b, query, key = torch.arange(2)[:, None, None], torch.arange(128)[None, :, None], torch.arange(128)[None, None, :]
    assert torch.equal(rule(b, torch.tensor(0), query, key), may_attend(layout.document_BL, layout.span_BL))


@pytest.mark.parametrize("seed", range(4))
def test_blocks_that_flex_attention_visits_are_those_of_the_rule(seed: int) -> None:
    layout = random_layout(np.random.default_rng(seed), 3, 96)
    blocks_Bnknk = may_attend(layout.document_BL, layout.span_BL).view(3, 12, 8, 12, 8)
    partly, wholly = allowed_blocks(layout.document_BL, layout.span_BL, 8)
    assert wholly.any() and torch.equal(wholly, blocks_Bnknk.all(4).all(2))
    assert torch.equal(partly | wholly, blocks_Bnknk.any(4).any(2)) and not (partly & wholly).any()


def test_blocks_hold_every_pair_however_images_are_numbered() -> None:
    layout = random_layout(np.random.default_rng(0), 3, 96)
    order = torch.from_numpy(np.random.default_rng(1).permutation(int(layout.span_BL.max()) + 1))
    span_BL = torch.where(layout.span_BL >= 0, order[layout.span_BL], -1)
    blocks_Bnknk = may_attend(layout.document_BL, span_BL).view(3, 12, 8, 12, 8)
    partly, wholly = allowed_blocks(layout.document_BL, span_BL, 8)
    assert torch.equal(wholly, blocks_Bnknk.all(4).all(2))
    assert not (blocks_Bnknk.any(4).any(2) & ~(partly | wholly)).any()


def test_blocks_are_listed_for_the_kernel_as_by_torch() -> None:
    layout = some_layout(3, rows=2, length=384)
    flex = FlexAttention(layout)
    expected = create_block_mask(flex.block_mask.mask_mod, 2, None, 384, 384, device="cpu")
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(flex.block_mask, name), getattr(expected, name)), name
    for name in ("kv", "full_kv", "q", "full_q"):
        counts = getattr(expected, f"{name}_num_blocks")[..., None]
        listed = torch.arange(3) < counts  # what stands behind is not read
        one, other = (getattr(mask, f"{name}_indices") for mask in (flex.block_mask, expected))
        assert torch.equal(one[listed], other[listed]) and one.dtype == other.dtype, name


@pytest.mark.slow
def test_flex_attention_is_not_compiled_again_for_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward alone, with the graph that would be compiled run as it is: the kernel itself needs a GPU."""
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=counter)
    monkeypatch.setattr(attention, "compiled_flex", lambda: compiled)
    compiles = []
    with torch.no_grad():
        for number, length in enumerate((130, 300, 600, 128 * 4, 900)):
            layout = some_layout(number, rows=2, length=length)
            real = layout.document_BL >= 0
            q, k, v = (x.detach() for x in qkv(layout, 4, 2, number, d=8, dtype=torch.float32))
            out = FlexAttention(layout).attend(0, q.double(), k.double(), v, 0.2 + number)
            assert out.dtype == v.dtype and out.shape == (2, length, 4, 8)
            torch.testing.assert_close(out[real], DenseAttention(layout).attend(0, q, k, v, 0.2 + number)[real])
            compiles.append(counter.frame_count)
    assert compiles[-1] == compiles[1] <= 2, "lengths are found to differ once"
    assert not any("f64[]" in graph.print_readable(print_output=False) for graph in counter.graphs), "a scale became an input"


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize(("length", "d"), [(256, 16), (200, 32), (90, 8)])
def test_flex_attention_equals_dense_forward_and_backward(heads: int, kv_heads: int, length: int, d: int) -> None:
    layout = some_layout(1, rows=4, length=length)
    real = layout.document_BL >= 0
    cuda = Layout(*(x.cuda() for x in (layout.document_BL, layout.span_BL, layout.start_D, layout.length_D)))
    results = []
    for backend, device in ((DenseAttention(layout), "cpu"), (FlexAttention(cuda), "cuda"), (DocumentAttention(cuda), "cuda")):
        leaves = qkv(layout, heads, kv_heads, d=d, dtype=torch.float32)
        out = backend.attend(0, *(x.to(device) for x in leaves), 0.3).cpu()[real]
        out.square().sum().backward()
        results.append([out, *(x.grad for x in leaves)])
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=5e-3)  # the kernel may multiply in TF32


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_a_cache_gives_what_one_pass_gives(heads: int, kv_heads: int) -> None:
    """Two documents of different prefix lengths, continued first by an image span, then token by token."""
    prefixes, span, d = [5, 9], 6, 8
    generator = torch.Generator().manual_seed(0)
    shapes = [[(1, h, n + span + 2, d) for h in (heads, kv_heads, kv_heads)] for n in prefixes]
    whole = [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in three] for three in shapes]
    expected = []
    for n, (q, k, v) in zip(prefixes, whole, strict=True):
        document = torch.zeros((1, n + span + 2), dtype=torch.int64)
        spans = torch.full_like(document, -1)
        spans[:, n : n + span] = 0
        layout = Layout(document, spans, torch.tensor([0]), torch.tensor([n + span + 2]))
        expected.append(DenseAttention(layout).attend(0, q, k, v, 0.3))
    parts = []
    for n, (q, k, v) in zip(prefixes, whole, strict=True):
        part = CachedAttention([1], torch.ones((n, n), dtype=torch.bool).tril())
        out = part.attend(0, q[:, :, :n], k[:, :, :n], v[:, :, :n], 0.3)
        torch.testing.assert_close(out, expected[len(parts)][:, :n], **CLOSE)
        parts.append(part)
    cache = CachedAttention.join(parts)
    assert cache.rows == 2

    def step(first: int, last: int) -> Tensor:
        taken = [[x[:, :, n + first : n + last] for x in parts] for n, parts in zip(prefixes, whole, strict=True)]
        return cache.attend(0, *(torch.cat(xs) for xs in zip(*taken, strict=True)), 0.3)

    for first, last, append in ((0, span, False), (0, span, True), (span, span + 1, True), (span + 1, span + 2, True)):
        cache.append = append
        out = step(first, last)
        for row, n in enumerate(prefixes):
            torch.testing.assert_close(out[row : row + 1], expected[row][:, n + first : n + last], **CLOSE)


def test_rows_of_a_cache_can_be_selected() -> None:
    cache = CachedAttention([2, 1])
    keys = [torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 3, 1), torch.full((1, 1, 4, 1), 2.0)]
    cache.cache = {0: [(k, k) for k in keys]}
    chosen = cache.select([1, 1, 2])
    assert chosen.group_sizes == [2, 1] and [k[:, 0, 0, 0].tolist() for k, _ in chosen.cache[0]] == [[1, 1], [2]]
    assert cache.select([0, 1, 2]) is cache and cache.select([2]).group_sizes == [1]
    with pytest.raises(ValueError, match="ascending"):
        cache.select([1, 0])
