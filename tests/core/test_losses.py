"""The chunked cross-entropy equals the plain one, in value, gradient and every corner."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from triune.core import losses
from triune.core.errors import UserError
from triune.core.losses import cross_entropy_reference, linear_cross_entropy

TOKENS, DIM, VOCABULARY = 23, 6, 11
CHUNK = 5 * VOCABULARY
"""Five tokens at a time; the last chunk is shorter."""


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", CHUNK)


def problem(dtype: torch.dtype = torch.float64, bias: bool = True, ignored: float = 0.3) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    leaves = [torch.randn(TOKENS, DIM, dtype=dtype), torch.randn(VOCABULARY, DIM, dtype=dtype)]
    leaves += [torch.randn(VOCABULARY, dtype=dtype)] if bias else []
    targets = torch.randint(0, VOCABULARY, (TOKENS,))
    return [x.requires_grad_() for x in leaves], targets.masked_fill(torch.rand(TOKENS) < ignored, -100)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [True, False])
def test_chunked_equals_reference(dtype: torch.dtype, tolerance: float, softcap: float | None, bias: bool) -> None:
    leaves, targets = problem(dtype, bias)
    hidden, weight = leaves[:2]
    total, count = linear_cross_entropy(hidden, weight, targets, leaves[2] if bias else None, softcap)
    expected = cross_entropy_reference(hidden, weight, targets, leaves[2] if bias else None, softcap)
    assert total.dtype == expected.dtype == dtype
    assert count == (targets != -100).sum()
    torch.testing.assert_close(total, expected, atol=tolerance, rtol=tolerance)
    grads = [torch.autograd.grad(value * 0.37, leaves) for value in (total, expected)]
    torch.testing.assert_close(grads[0], grads[1], atol=tolerance, rtol=tolerance)


def test_reference_is_minus_log_softmax() -> None:
    (hidden, weight, bias), targets = problem()
    nats = 0.0
    for t in range(TOKENS):
        if targets[t] != -100:
            logits = 2 * torch.tanh((weight @ hidden[t] + bias) / 2)
            nats -= (logits[targets[t]] - logits.exp().sum().log()).item()
    assert abs(cross_entropy_reference(hidden, weight, targets, bias, 2.0).item() - nats) < 1e-10


def test_small_problems_take_the_reference() -> None:
    (hidden, weight, bias), targets = problem()
    total, count = linear_cross_entropy(hidden, weight, targets, bias)
    assert torch.equal(total, cross_entropy_reference(hidden, weight, targets, bias))
    assert count == (targets != -100).sum()


@pytest.mark.usefixtures("chunked")
def test_batches_are_flattened() -> None:
    (hidden, weight, bias), targets = problem()
    flat = linear_cross_entropy(hidden[:22], weight, targets[:22], bias)
    batch = linear_cross_entropy(hidden[:22].view(2, 11, DIM), weight, targets[:22].view(2, 11), bias)
    assert torch.equal(flat[0], batch[0])
    assert torch.equal(flat[1], batch[1])


@pytest.mark.usefixtures("chunked")
def test_all_ignored_is_zero_without_nan() -> None:
    leaves, targets = problem(ignored=2.0)
    total, count = linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2])
    assert total == 0
    assert count == 0
    for grad in torch.autograd.grad(total, leaves):
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck(softcap: float | None) -> None:
    leaves, targets = problem()
    assert torch.autograd.gradcheck(lambda h, w, b: linear_cross_entropy(h, w, targets, b, softcap)[0], leaves)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_inputs_without_gradient(frozen: int) -> None:
    leaves, targets = problem()
    expected = torch.autograd.grad(cross_entropy_reference(leaves[0], leaves[1], targets, leaves[2]), leaves)
    leaves[frozen] = leaves[frozen].detach()
    total, _ = linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2])
    live = [i for i in range(3) if i != frozen]
    grads = torch.autograd.grad(total, [leaves[i] for i in live])
    torch.testing.assert_close(grads, tuple(expected[i] for i in live), atol=1e-12, rtol=1e-12)


class Recorder:
    """Stands in for a function and remembers the sizes of what it returns."""

    def __init__(self, function: Any) -> None:
        self.function, self.sizes = function, []

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        out = self.function(*args, **kwargs)
        self.sizes.append(out.numel())
        return out


@pytest.mark.usefixtures("chunked")
def test_no_tensor_of_all_logits_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    (hidden, weight, bias), targets = problem()
    linear = Recorder(F.linear)
    monkeypatch.setattr(F, "linear", linear)
    linear_cross_entropy(hidden, weight, targets, bias)[0].backward()
    assert max(linear.sizes) <= CHUNK < TOKENS * VOCABULARY
    assert sum(linear.sizes) == TOKENS * VOCABULARY
    linear.sizes.clear()
    cross_entropy_reference(hidden, weight, targets, bias)
    assert linear.sizes == [TOKENS * VOCABULARY]  # so the check above can fail


@pytest.mark.usefixtures("chunked")
def test_validation_pays_for_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    (hidden, weight, bias), targets = problem()
    mm = Recorder(torch.mm)
    monkeypatch.setattr(torch, "mm", mm)
    with torch.no_grad():
        total, _ = linear_cross_entropy(hidden, weight, targets, bias)
    assert mm.sizes == []
    expected = cross_entropy_reference(hidden, weight, targets, bias)
    torch.testing.assert_close(total, expected.detach(), atol=1e-12, rtol=1e-12)
    linear_cross_entropy(hidden, weight, targets, bias)
    assert mm.sizes  # training does, in the forward pass


@pytest.mark.usefixtures("chunked")
def test_autocast_to_bfloat16() -> None:
    leaves, targets = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2])
        expected = cross_entropy_reference(leaves[0], leaves[1], targets, leaves[2])
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, atol=0, rtol=1e-2)
    grads = torch.autograd.grad(total * 0.37, leaves), torch.autograd.grad(expected * 0.37, leaves)
    for mine, theirs in zip(*grads, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, atol=0.05, rtol=0.05)


@pytest.mark.usefixtures("chunked")
def test_the_scale_of_the_loss_is_not_rounded_to_bfloat16() -> None:
    """1/391 rounds to bfloat16 with an error of 0.2 %, which would shrink or stretch the whole gradient."""
    (hidden, weight), targets = problem(torch.bfloat16, bias=False)
    grads = []
    for scale in (1.0, 1 / 391):
        total, _ = linear_cross_entropy(hidden, weight, targets)
        grads.append(torch.autograd.grad(total * scale, hidden)[0].double().norm())
    assert abs(grads[1] * 391 / grads[0] - 1) < 5e-4


@pytest.mark.usefixtures("chunked")
def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    """The gradients of the chunks are made in the forward pass, so there is nothing to differentiate again."""
    leaves, targets = problem()
    hidden, weight, bias = leaves
    total, _ = linear_cross_entropy(hidden, weight, targets, bias)
    for grad in torch.autograd.grad(total, leaves, create_graph=True, retain_graph=True):
        with pytest.raises(UserError, match="second derivative of the loss in chunks is asked for"):
            (total + grad.square().sum()).backward(retain_graph=True)  # a penalty on gradients
    (grad,) = torch.autograd.grad(cross_entropy_reference(hidden, weight, targets, bias), [hidden], create_graph=True)
    grad.square().sum().backward()  # which the reference can
