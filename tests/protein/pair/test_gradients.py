"""The hand-written backward passes against plain operations, in float64; and in bfloat16 against float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triune.core.errors import UserError
from triune.protein.pair.axial import _gated
from triune.protein.pair.blocks import PairBlock, _relu_linear, layer_norm
from triune.protein.pair.config import PairConfig
from triune.protein.pair.gradients import (
    by_rows,
    folded,
    normalise,
    reference_by_rows,
    reference_triangle_sums,
    triangle_sums,
)

BATCH, N, DIM, CHANNELS = 2, 5, 6, 4


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def compare(a: Tensor, b: Tensor, inputs: Sequence[Tensor | None], tolerance: float = 1e-12) -> None:
    """Equal results and equal gradients of every input for the same random gradient of the result."""
    wanted = [t for t in inputs if t is not None]
    weights = torch.randn_like(b)
    grads = [torch.autograd.grad((y * weights).sum(), wanted) for y in (a, b)]
    assert (a - b).abs().max() < tolerance
    for one, other in zip(*grads, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < tolerance * 10


@pytest.mark.parametrize("transposed", [False, True])
def test_normalise_is_layer_norm(transposed: bool) -> None:
    z = random(BATCH, N, 3, DIM)
    seen = z.transpose(1, 2) if transposed else z
    compare(normalise(seen, 1e-5), F.layer_norm(seen, (DIM,), eps=1e-5), [z])
    with torch.no_grad():
        assert (normalise(seen, 1e-5) - F.layer_norm(seen, (DIM,), eps=1e-5)).abs().max() < 1e-12


@pytest.mark.parametrize("bias", [False, True])
def test_folded_norm_is_norm_then_linear(bias: bool) -> None:
    torch.manual_seed(0)
    norm, linear = layer_norm(DIM).double(), nn.Linear(DIM, 3, bias=bias).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    z = random(BATCH, N, DIM)
    one = F.linear(normalise(z, norm.eps), *folded(norm, linear.weight, linear.bias))
    compare(one, linear(norm(z)), [z, *norm.parameters(), *linear.parameters()])


@pytest.mark.parametrize("directions", [(True,), (False,), (True, False)])
@pytest.mark.parametrize("masked", [False, True])
def test_triangle_sums(directions: tuple[bool, ...], masked: bool) -> None:
    torch.manual_seed(0)
    total = CHANNELS * len(directions)
    x, weight, bias = random(BATCH, N, N, DIM), random(4 * total, DIM), random(4 * total)
    mask = torch.arange(N)[None] < torch.tensor([[N], [N - 2]]) if masked else None
    real = torch.ones(BATCH, N, N, 1, dtype=torch.float64) if mask is None else mask[:, :, None] & mask[:, None, :]
    # Pairs with padding hold anything finite, so only real ones are compared.
    real = real.reshape(BATCH, N, N, 1)
    sums = [f(x, weight, bias, mask, directions) * real for f in (triangle_sums, reference_triangle_sums)]
    compare(*sums, [x, weight, bias], 1e-11)


@pytest.mark.parametrize(
    ("function", "count", "shapes"),
    [(_relu_linear, 1, [(CHANNELS, DIM), (CHANNELS,)]), (_gated, 2, [(DIM, DIM), (DIM,)])],
)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("chunk", [1, 2, N, N + 3])
def test_by_rows(
    function: Callable[..., Any], count: int, shapes: list[tuple[int, ...]], biased: bool, chunk: int
) -> None:
    torch.manual_seed(0)
    rows, weights = [random(BATCH, N, 3, DIM) for _ in range(count)], [random(*shape) for shape in shapes]
    if not biased:
        weights[1] = None
    last = (random(DIM, shapes[0][0]), random(DIM))
    one = by_rows(function, chunk, rows, weights, last)
    compare(one, reference_by_rows(function, rows, weights, last), [*rows, *weights, *last])


def test_by_rows_keeps_its_inputs_only() -> None:
    x, weights, last = random(1, N, N, DIM), [random(64, DIM), random(64)], (random(DIM, 64), random(DIM))
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        by_rows(_relu_linear, 2, (x,), weights, last)
    assert sorted(sizes) == sorted(t.numel() for t in (x, *weights, *last))


@pytest.mark.parametrize("chunk", [None, 4])
def test_bfloat16_is_as_near_as_bfloat16_can_be(chunk: int | None) -> None:
    """Autocast, forward and backward: relative errors of a few of its steps (2^-8), not of a lost factor."""
    torch.manual_seed(0)
    block = PairBlock(PairConfig.preset("evoformer", dim=32, triangle_dim=32, head_dim=8, dropout_pair=0.0))
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1)
    mask = torch.arange(12)[None] < torch.tensor([[12], [9]])
    z, weights = torch.randn(2, 12, 12, 32), torch.randn(12, 12, 32)

    def run(enabled: bool) -> list[Tensor]:
        x = z.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = block(x, mask, chunk)
        return [y, *torch.autograd.grad((y[0] * weights).sum(), [x, *block.parameters()])]

    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(run(True), run(False))]
    assert errors[0] < 0.01
    assert errors[1] < 0.02
    assert max(errors[2:]) < 0.15


def test_second_derivatives_are_refused_and_not_zero() -> None:
    """The incoming gradient of a sum is constant, where PyTorch's own decorator gives a zero without a word."""
    z = torch.randn(1, 3, 3, DIM, requires_grad=True)
    (grad,) = torch.autograd.grad(normalise(z, 1e-5).sum(), z, create_graph=True)
    with pytest.raises(UserError, match=r"second derivative of the layer norm of pairs.*layer_norm"):
        grad.square().sum().backward()
    (first,) = torch.autograd.grad(normalise(z, 1e-5).pow(3).sum(), z)
    assert torch.allclose(first, torch.autograd.grad(F.layer_norm(z, (DIM,), eps=1e-5).pow(3).sum(), z)[0], atol=1e-4)
