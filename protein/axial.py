"""Gated attention along one axis of `[batch, rows, tokens, dim]`, with one additive bias that all rows share.

The rows are independent sequences to the core's kernels. What is special is the bias `[batch, heads, tokens, tokens]`: it
comes from the pair representation, needs a gradient, and carries the key mask (which is the same for all rows, because
the pair mask is m ⊗ m). So nothing of the size rows x heads x tokens² is ever stored: the forward pass hands the kernel
a broadcast view, and the backward pass sums the bias's gradient over a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.attention import Attention
from ..core.config import TransformerConfig
from ..core.kernels import Plan, attend, reference_attention

MASKED = -1e9
"""Added to the scores of masked keys: finite, so that a row of padding gives no NaN."""

_CPU_SCORES, _GPU_SCORES = 1 << 19, 1 << 26
"""Scores the backward pass holds at once: what stays in a core's cache, and enough to fill a GPU."""


def join(parts: Iterable[Any], size: int, dim: int) -> Tensor:
    """Concatenate `parts` along `dim` to `size`; without gradients, each is written to its place and then dropped."""
    if torch.is_grad_enabled():
        return torch.cat(list(parts), dim=dim)
    whole, start = None, 0
    for part in parts:
        if whole is None:
            whole = part.new_empty(*part.shape[:dim], size, *part.shape[dim + 1 :])
        whole.narrow(dim, start, part.shape[dim]).copy_(part)
        start += part.shape[dim]
    assert whole is not None and start == size, "the parts must fill the whole"
    return whole


def in_chunks(function: Callable[..., Tensor], chunk: int | None, *tensors: Tensor, dim: int = 1) -> Tensor:
    """`function(*tensors)`, computed for `chunk` rows (axis 1 of each) at a time; all at once when `chunk` is None.

    In training a chunk keeps its inputs only and is computed again in the backward pass (Chen et al. 2016): what the
    function stores exists for one chunk at a time, and on a CPU stays in the cache.

    Args:
        function: of tensors `[batch, rows, ...]`; each row of its result depends on the same row of them alone.
        chunk: rows at a time.
        tensors: `[batch, rows, ...]`.
        dim: the axis of the result that holds the rows.
    """
    rows = tensors[0].shape[1]
    if chunk is None or (chunk >= rows and not torch.is_grad_enabled()):
        return function(*tensors)
    parts = zip(*(tensor.split(chunk, dim=1) for tensor in tensors))
    if torch.is_grad_enabled():
        # No function here draws random numbers, so their state need not be kept.
        run = (checkpoint(function, *p, use_reentrant=False, preserve_rng_state=False) for p in parts)
        return join(run, rows, dim)
    return join((function(*part) for part in parts), rows, dim)


def key_bias(bias: Tensor, mask: Tensor | None) -> Tensor:
    """Add the key mask, bool `[batch, keys]`, to a bias `[batch, heads, queries, keys]`, once for all rows."""
    if mask is None:
        return bias
    # masked_fill rather than a sum: it keeps the small numbers of a bfloat16 bias.
    return torch.where(mask[:, None, None, :], bias, torch.full((), MASKED, dtype=bias.dtype, device=bias.device))


class GatedAttention(Attention):
    """The core's attention with AlphaFold2's gate: out(sigmoid(gate(x)) · heads). `[batch, rows, tokens, dim]` -> the same."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        config = TransformerConfig(dim=dim, depth=1, heads=heads, head_dim=head_dim, position="none", bias=["out"])
        super().__init__(config, layer=0)
        self.gate = nn.Linear(dim, heads * head_dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`bias` `[batch, heads or 1, tokens or 1, tokens]`, shared by all rows."""
        q, k, v = (self._rows(linear(x)) for linear in (self.q, self.k, self.v))
        z = shared_bias_attention(q, k, v, bias, self.scale)  # [batch, rows, heads, tokens, head_dim]
        return self.out(torch.sigmoid(self.gate(x)) * z.transpose(2, 3).flatten(3))

    def _rows(self, x: Tensor) -> Tensor:
        """`[batch, rows, tokens, heads·head_dim]` -> `[batch, rows, heads, tokens, head_dim]`."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(2, 3)


def shared_bias_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax attention within each row. q, k, v `[batch, rows, heads, tokens, head_dim]` -> the same.

    Equal to `reference_shared_bias_attention`.
    """
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():
        out = _SharedBiasAttention.apply(q, k, v, bias, scale)
        assert isinstance(out, Tensor)
        return out
    return _attend(q, k, v, bias, scale)


def reference_shared_bias_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """The same with all scores stored."""
    rows = [reference_attention(a, b, c, None, bias, scale) for a, b, c in zip(q.unbind(1), k.unbind(1), v.unbind(1))]
    return torch.stack(rows, dim=1)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    if bias is None:
        flat_q, flat_k, flat_v = (t.flatten(0, 1) for t in (q, k, v))
        return attend(flat_q, flat_k, flat_v, Plan("sdpa", "no bias"), scale).unflatten(0, q.shape[:2])
    # One call for each example: only then is the bias of all its rows a view with stride 0.
    shape = (-1, -1, q.shape[3], k.shape[3])
    parts = [
        attend(q[i], k[i], v[i], Plan("masked", "a bias for all rows", allowed=bias[i : i + 1].expand(shape)), scale)
        for i in range(q.shape[0])
    ]
    return torch.stack(parts) if len(parts) > 1 else parts[0][None]


class _SharedBiasAttention(torch.autograd.Function):
    """The kernel forward; backward by the equations, a few rows at a time.

        P = softmax(q kᵀ·scale + bias)    D = P · (dO vᵀ - sum(dO · O))
        dq = D k·scale    dk = Dᵀ q·scale    dv = Pᵀ dO    dbias = sum over rows of D

    PyTorch's kernels either cannot differentiate the bias (CPU: they fall back to storing all scores) or write its
    gradient once for every row before they sum it (CUDA, memory-efficient).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
        out = _attend(q, k, v, bias, scale)
        ctx.save_for_backward(q, k, v, bias, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, bias, out = ctx.saved_tensors
        batch, rows, heads, tokens, _ = q.shape
        most = _GPU_SCORES if q.is_cuda else _CPU_SCORES
        step = max(1, min(rows, most // (heads * tokens * k.shape[3])))
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        grad_bias = torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32))
        for i in range(batch):
            for start in range(0, rows, step):
                part = (i, slice(start, start + step))
                grads = _backward_rows(q[part], k[part], v[part], bias[i], out[part], grad[part], ctx.scale)
                grad_q[part], grad_k[part], grad_v[part] = grads[:3]
                grad_bias[i] += grads[3].sum_to_size(bias[i].shape)
        return grad_q, grad_k, grad_v, grad_bias.to(bias.dtype), None


def _backward_rows(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, grad: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients for some rows: q, k, v, out, grad `[rows, heads, tokens, head_dim]`; the last for the bias, summed over them."""
    wide = torch.promote_types(q.dtype, torch.float32)
    weights = (q @ k.mT).to(wide).mul_(scale).add_(bias).softmax(-1)  # [rows, heads, tokens, tokens]
    grad_v = weights.to(grad.dtype).mT @ grad
    correction = (grad * out).sum(-1, keepdim=True, dtype=wide)
    scores = (grad @ v.mT).to(wide).sub_(correction).mul_(weights)
    grad_bias = scores.sum(0)
    scores = scores.mul_(scale).to(q.dtype)
    return scores @ k, scores.mT @ q, grad_v, grad_bias
