"""Cross-entropy over a vocabulary without full-precision logits for the whole batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .once import first_order

IGNORED = -100
"""Targets with this value count for nothing."""

CHUNK_LOGITS = 1 << 23
"""Logits held at once: 32 MiB in float32."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of -log softmax(hidden·weightᵀ + bias)[target] in nats, and the number of targets that count.

    When the logits would take more than `CHUNK_LOGITS` numbers they are computed in chunks of tokens, forward and
    gradient together, so that only one chunk exists at a time. Equal to `cross_entropy_reference`.

    Args:
        hidden: `[..., dim]`.
        weight: `[vocabulary, dim]`.
        targets: int `[...]`; -100 is ignored.
        bias: `[vocabulary]`.
        softcap: logits become cap·tanh(logits / cap) (Gemma 2).
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    count = (targets != IGNORED).sum()
    if hidden.shape[0] * weight.shape[0] <= CHUNK_LOGITS:
        return cross_entropy_reference(hidden, weight, targets, bias, softcap), count
    if not torch.is_grad_enabled():
        # A Function is told which inputs need a gradient, but not that nobody will ask for one.
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    return _ChunkedCrossEntropy.apply(hidden, weight, targets, bias, softcap), count  # pyright: ignore[reportReturnType]


def cross_entropy_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """The same sum in three lines, all logits at once. hidden `[tokens, dim]`, targets `[tokens]`."""
    logits = F.linear(hidden, weight, bias)
    logits = logits.to(_at_least_float32(logits.dtype))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the gradients during the forward pass: the logits of a chunk are needed once and then dropped."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None
    ) -> Tensor:
        cast, cast_bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        needs, wide = any(ctx.needs_input_grad), _at_least_float32(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if needs else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if needs and bias is not None else None
        total = hidden.new_zeros((), dtype=wide)
        rows = max(1, CHUNK_LOGITS // weight.shape[0])
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            logits = F.linear(hidden[part], cast, cast_bias).to(wide)
            loss, grad = _nats_and_gradient(logits, targets[part], softcap, needs)
            total += loss
            if grad is None:
                continue
            grad = grad.to(hidden.dtype)
            assert grad_hidden is not None and grad_weight is not None
            torch.mm(grad, cast, out=grad_hidden[part])
            grad_weight += grad.mT @ hidden[part]
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        if needs:
            ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    @first_order("the loss in chunks", "cross_entropy_reference")
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias = ctx.saved_tensors
        return (
            (hidden * grad_total.expand(1, 1)).to(hidden.dtype),  # not 0-dim, which would be rounded to bfloat16 first
            weight * grad_total,
            None,
            None if bias is None else bias * grad_total,
            None,
        )


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _nats_and_gradient(
    logits: Tensor, targets: Tensor, softcap: float | None, needs: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of nats and, if asked, its gradient to `logits` `[tokens, vocabulary]` (which is overwritten)."""
    bend = None
    if softcap is not None:
        tanh = torch.tanh_(logits.div_(softcap))
        bend = 1 - tanh.square() if needs else None
        logits = tanh * softcap
    real = targets != IGNORED
    safe = targets.clamp_min(0)[:, None]
    log_total = logits.logsumexp(-1)
    nats = ((log_total - logits.gather(1, safe)[:, 0]) * real).sum()
    if not needs:
        return nats, None
    grad = logits.sub_(log_total[:, None]).exp_()
    grad.scatter_add_(1, safe, torch.full_like(safe, -1, dtype=grad.dtype))
    grad *= real[:, None]
    return nats, grad if bend is None else grad.mul_(bend)
