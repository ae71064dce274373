"""Each algorithm against a reference that loops over the indices of the supplement, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triune.protein.pair import axial
from triune.protein.pair import blocks as pair
from triune.protein.pair.axial import reference_shared_bias_attention, shared_bias_attention
from triune.protein.pair.blocks import (
    EvoformerBlock,
    MSAColumnAttention,
    MSARowAttention,
    OuterProductMean,
    SharedDropout,
    Transition,
    TriangleAttention,
    TriangleMultiplication,
)
from triune.protein.pair.config import PairConfig

DIM, MSA_DIM, HEADS, HEAD_DIM, OUTER = 6, 5, 2, 3, 4
ROWS, RESIDUES = 3, 5


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def randomised(module: Any) -> Any:
    """Every parameter random: the usual start has zero updates."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


# --- references: loops over single numbers or vectors ---------------------------------------------------------------


def ln(x: Tensor, norm: nn.Module) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5) * norm.weight + norm.bias


def lin(x: Tensor, linear: nn.Linear) -> Tensor:
    y = linear.weight @ x
    return y if linear.bias is None else y + linear.bias


def attend_loop(a: nn.Module, xs: list[Tensor], bias: Callable[[int, int, int], Tensor | float]) -> list[Tensor]:
    """Gated attention over the vectors `xs`; `bias(head, query, key)`."""
    results = []
    for i, x in enumerate(xs):
        heads = []
        for h in range(HEADS):
            part = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
            q = lin(x, a.q)[part]
            scores = [q @ lin(y, a.k)[part] / HEAD_DIM**0.5 + bias(h, i, j) for j, y in enumerate(xs)]
            weights = torch.softmax(torch.stack(scores), 0)
            heads.append(sum(w * lin(y, a.v)[part] for w, y in zip(weights, xs)))
        results.append(lin(torch.sigmoid(lin(x, a.gate)) * torch.cat(heads), a.out))
    return results


def row_attention(module: MSARowAttention, m: Tensor, z: Tensor) -> Tensor:
    def bias(h: int, i: int, j: int) -> Tensor:
        return lin(ln(z[i, j], module.pair_norm), module.bias)[h]

    rows = [attend_loop(module.attention, [ln(x, module.norm) for x in row], bias) for row in m]
    return torch.stack([torch.stack(row) for row in rows])


def column_attention(module: MSAColumnAttention, m: Tensor) -> Tensor:
    columns = []
    for i in range(m.shape[1]):
        xs = [ln(m[s, i], module.norm) for s in range(m.shape[0])]
        columns.append(torch.stack(attend_loop(module.attention, xs, lambda *_: 0.0)))
    return torch.stack(columns, dim=1)


def outer_product_mean(module: OuterProductMean, m: Tensor) -> Tensor:
    rows, residues = m.shape[:2]
    z = []
    for i in range(residues):
        for j in range(residues):
            total = torch.zeros(OUTER * OUTER)
            for s in range(rows):
                a, b = lin(ln(m[s, i], module.norm), module.left), lin(ln(m[s, j], module.norm), module.right)
                total = total + torch.outer(a, b).flatten()
            z.append(lin(total, module.out) / (rows + 1e-3))
    return torch.stack(z).view(residues, residues, -1)


def triangle_multiplication(module: TriangleMultiplication, z: Tensor) -> Tensor:
    residues, kinds = z.shape[0], len(module.outgoing)
    hidden = module.product_norm.dim // kinds
    x = [[ln(z[i, j], module.norm) for j in range(residues)] for i in range(residues)]
    a_rows, b_rows, a_gate, b_gate = module.project.weight.chunk(4)
    a_bias, b_bias, a_gate_bias, b_gate_bias = module.project.bias.chunk(4)
    a = [[torch.sigmoid(a_gate @ v + a_gate_bias) * (a_rows @ v + a_bias) for v in row] for row in x]
    b = [[torch.sigmoid(b_gate @ v + b_gate_bias) * (b_rows @ v + b_bias) for v in row] for row in x]
    out = []
    for i in range(residues):
        for j in range(residues):
            sums = []
            for kind, outgoing in enumerate(module.outgoing):
                part = slice(kind * hidden, (kind + 1) * hidden)
                terms = [a[i][k] * b[j][k] if outgoing else a[k][i] * b[k][j] for k in range(residues)]
                sums.append(sum(terms)[part])
            gate = torch.sigmoid(lin(x[i][j], module.gate))
            out.append(gate * lin(ln(torch.cat(sums), module.product_norm), module.out))
    return torch.stack(out).view(residues, residues, -1)


def triangle_attention(module: TriangleAttention, z: Tensor) -> Tensor:
    residues = z.shape[0]
    x = [[ln(z[i, j], module.norm) for j in range(residues)] for i in range(residues)]
    out = torch.zeros_like(z)
    for i in range(residues):
        if module.starting:  # z_ij attends to z_ik with bias from z_jk
            update = attend_loop(module.attention, x[i], lambda h, j, k: lin(x[j][k], module.bias)[h])
            for j in range(residues):
                out[i, j] = update[j]
        else:  # z_ji attends to z_ki with bias from z_kj (Algorithm 14: b_ki for the pair (i, j))
            update = attend_loop(
                module.attention, [x[j][i] for j in range(residues)], lambda h, j, k: lin(x[k][j], module.bias)[h]
            )
            for j in range(residues):
                out[j, i] = update[j]
    return out


def transition(module: Transition, z: Tensor) -> Tensor:
    rows = [torch.stack([lin(torch.relu(lin(ln(v, module.norm), module.up)), module.down) for v in row]) for row in z]
    return torch.stack(rows)


def cases() -> dict[str, tuple[Callable[[], nn.Module], Callable, int]]:
    def multiplication(direction: str):
        return lambda: TriangleMultiplication(DIM, 4, direction)

    def attention(starting: bool):
        return lambda: TriangleAttention(DIM, HEADS, HEAD_DIM, starting)

    return {
        "7 row attention": (lambda: MSARowAttention(MSA_DIM, DIM, HEADS, HEAD_DIM), row_attention, 2),
        "8 column attention": (lambda: MSAColumnAttention(MSA_DIM, HEADS, HEAD_DIM), column_attention, 1),
        "9 msa transition": (lambda: Transition(MSA_DIM), transition, 1),
        "10 outer product mean": (lambda: OuterProductMean(MSA_DIM, DIM, OUTER), outer_product_mean, 1),
        "11 outgoing": (multiplication("outgoing"), triangle_multiplication, 0),
        "12 incoming": (multiplication("incoming"), triangle_multiplication, 0),
        "11+12 both": (multiplication("both"), triangle_multiplication, 0),
        "13 starting": (attention(True), triangle_attention, 0),
        "14 ending": (attention(False), triangle_attention, 0),
        "15 pair transition": (lambda: Transition(DIM), transition, 0),
    }


def inputs(kind: int) -> list[Tensor]:
    """0: z, 1: m, 2: both; for one example."""
    m, z = torch.randn(ROWS, RESIDUES, MSA_DIM), torch.randn(RESIDUES, RESIDUES, DIM)
    return [t.requires_grad_() for t in {0: [z], 1: [m], 2: [m, z]}[kind]]


@pytest.mark.parametrize("name", cases())
def test_algorithm_equals_loops(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small enough that the backward pass and the outer products run in several pieces.
    monkeypatch.setattr(axial, "_CPU_SCORES", 2 * HEADS * RESIDUES * RESIDUES)
    monkeypatch.setattr(pair, "_OUTER_NUMBERS", 2 * RESIDUES * OUTER * OUTER)
    make, reference, kind = cases()[name]
    module = randomised(make())
    args = inputs(kind)
    expected = reference(module, *args)
    weights = torch.randn_like(expected)
    grads = torch.autograd.grad((expected * weights).sum(), [*args, *module.parameters()])
    batched = module(*(a[None] for a in args))[0]
    assert (batched - expected).abs().max() < 1e-10
    own = torch.autograd.grad((batched * weights).sum(), [*args, *module.parameters()])
    for got, want in zip(own, grads):
        assert (got - want).abs().max() < 1e-10


@pytest.mark.parametrize("name", cases())
def test_batch_padding_and_chunks(name: str) -> None:
    """Padded residues and rows change nothing, and neither does computing two rows at a time."""
    make, _, kind = cases()[name]
    module = randomised(make()).eval()
    m, z = torch.randn(2, ROWS, RESIDUES, MSA_DIM), torch.randn(2, RESIDUES, RESIDUES, DIM)
    mask = torch.arange(RESIDUES + 2).expand(2, -1) < RESIDUES
    row_mask = torch.arange(ROWS + 1).expand(2, -1) < ROWS
    wide_m = torch.randn(2, ROWS + 1, RESIDUES + 2, MSA_DIM)
    wide_z = torch.randn(2, RESIDUES + 2, RESIDUES + 2, DIM)
    wide_m[:, :ROWS, :RESIDUES], wide_z[:, :RESIDUES, :RESIDUES] = m, z
    args, wide = {0: ([z], [wide_z]), 1: ([m], [wide_m]), 2: ([m, z], [wide_m, wide_z])}[kind]
    if name.startswith(("8", "10")):
        masks = [row_mask]
    else:
        masks = [] if isinstance(module, Transition) else [mask]
    with torch.no_grad():
        expected = module(*args)
        padded = module(*wide, *masks)
        chunked = module(*wide, *masks, chunk=2)
    assert (padded[:, : expected.shape[1], : expected.shape[2]] - expected).abs().max() < 1e-12
    assert (chunked - padded).abs().max() < 1e-12
    assert torch.isfinite(padded).all()


def test_incoming_is_outgoing_of_the_transpose() -> None:
    """sum_k a_ki b_kj on zᵀ is sum_k a_ik b_jk on z; the gate belongs to the edge (i, j), so it must be transposed
    too.
    """
    outgoing, incoming = TriangleMultiplication(DIM, 4, "outgoing"), TriangleMultiplication(DIM, 4, "incoming")
    incoming.load_state_dict(randomised(outgoing).state_dict())
    z = torch.randn(1, RESIDUES, RESIDUES, DIM)
    assert not torch.allclose(incoming(z.transpose(1, 2)), outgoing(z))
    for module in (outgoing, incoming):
        nn.init.zeros_(module.gate.weight)
    assert torch.allclose(incoming(z.transpose(1, 2)), outgoing(z), atol=1e-12)


def test_ending_is_starting_of_the_transpose() -> None:
    starting = randomised(TriangleAttention(DIM, HEADS, HEAD_DIM, starting=True))
    ending = TriangleAttention(DIM, HEADS, HEAD_DIM, starting=False)
    ending.load_state_dict(starting.state_dict())
    z = torch.randn(1, RESIDUES, RESIDUES, DIM)
    assert torch.allclose(ending(z), starting(z.transpose(1, 2)).transpose(1, 2), atol=1e-12)


@pytest.mark.parametrize("broadcast", [False, True])
def test_shared_bias_attention_equals_reference(broadcast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(axial, "_CPU_SCORES", 1)  # a row at a time
    x = torch.randn(2, 3, RESIDUES, DIM, requires_grad=True)
    weight = torch.randn(3 * HEADS * HEAD_DIM, DIM, requires_grad=True)
    shift = torch.randn(3 * HEADS * HEAD_DIM, requires_grad=True)
    bias = torch.randn(2, 1 if broadcast else HEADS, 1 if broadcast else RESIDUES, RESIDUES, requires_grad=True)
    args = x, weight, shift, bias
    results = [f(*args, HEAD_DIM, 0.7) for f in (shared_bias_attention, reference_shared_bias_attention)]
    weights = torch.randn_like(results[0])
    grads = [torch.autograd.grad((r * weights).sum(), args) for r in results]
    assert (results[0] - results[1]).abs().max() < 1e-12
    assert max((a - b).abs().max() for a, b in zip(*grads)) < 1e-11


def test_scores_are_never_stored_for_all_rows() -> None:
    """The largest tensor the forward pass saves for the backward pass is as large as z."""
    module = randomised(TriangleAttention(DIM, HEADS, HEAD_DIM, starting=True))
    sizes: list[int] = []

    def record(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    n = 12
    z = torch.randn(1, n, n, DIM, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
        module(z)
    assert max(sizes) <= n * n * max(DIM, HEADS * HEAD_DIM)


@pytest.mark.parametrize(("axis", "shape"), [(1, (2, 1, 6, 7)), (2, (2, 5, 1, 7))])
def test_dropout_mask_shape(axis: int, shape: tuple[int, ...]) -> None:
    """One mask along an axis, other for each channel; what is kept is scaled to keep the mean."""
    dropout = SharedDropout(0.25, axis)
    y = dropout(torch.ones(2, 5, 6, 7))
    first = y.select(axis, 0).unsqueeze(axis)
    assert first.shape == shape
    assert torch.equal(y, first.expand_as(y))
    assert set(y.unique().tolist()) == {0.0, 1 / 0.75}
    assert len({tuple(first[..., c].flatten().tolist()) for c in range(7)}) > 1  # channels differ
    assert torch.equal(dropout.eval()(y), y)


def test_which_update_gets_which_dropout() -> None:
    block = EvoformerBlock(PairConfig.preset("evoformer"))
    assert (block.drop_msa.rate, block.drop_msa.axis) == (0.15, 1)
    assert (block.pair.drop_rows.rate, block.pair.drop_rows.axis) == (0.25, 1)
    assert (block.pair.drop_columns.rate, block.pair.drop_columns.axis) == (0.25, 2)


def test_parameters_of_the_published_block() -> None:
    """Supplement, Table of Algorithm 6 at msa 256, pair 128: 1.83 M in a block."""
    block = EvoformerBlock(PairConfig.preset("evoformer"))

    def thousands(module: nn.Module) -> int:
        return round(sum(p.numel() for p in module.parameters()) / 1000)

    parts = [block.row, block.column, block.transition, block.outer]
    assert [thousands(p) for p in parts] == [330, 329, 526, 148]
    multiplications = nn.ModuleList(block.pair.multiplications)
    attentions = nn.ModuleList(block.pair.attentions)
    assert [thousands(p) for p in (multiplications, attentions, block.pair.transition)] == [199, 166, 132]
    assert thousands(block.pair) == 497
    assert thousands(block) == 1830


@pytest.mark.parametrize("name", cases())
def test_bfloat16_is_close(name: str) -> None:
    make, _, kind = cases()[name]
    module = randomised(make()).float()
    args = [a.float()[None] for a in inputs(kind)]
    expected = module(*args)
    with torch.autocast("cpu", torch.bfloat16):
        result = module(*args)
    error = (result.float() - expected).norm() / expected.norm()
    assert torch.isfinite(result).all()
    assert error < 0.03
