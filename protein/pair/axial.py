"""Gated attention along one axis of `[batch, rows, tokens, dim]`, with one additive bias that all rows share.

The rows are independent sequences to the core's kernels. What is special is the bias `[batch, heads, tokens, tokens]`:
it comes from the pair representation, needs a gradient, and carries the key mask (which is the same for all rows,
because the pair mask is m ⊗ m). So nothing of the size rows x heads x tokens² is ever stored: the forward pass hands
the kernel a broadcast view, and the backward pass sums the bias's gradient over a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...core.layers import Norm
from ...core.mixers.kernels import Plan, attend, attention_weights, reference_attention
from ...core.once import first_order
from .gradients import by_rows, folded

MASKED = -1e9
"""Added to the scores of masked keys: finite, so that a row of padding gives no NaN."""

_CPU_SCORES, _GPU_SCORES = 1 << 20, 1 << 26
"""Scores the backward pass holds at once: what mostly stays in a CPU's cache, and enough to fill a GPU."""


def join(parts: Iterable[Tensor], size: int, dim: int) -> Tensor:
    """Concatenates `parts` along `dim` to `size`: each is written to its place and then dropped (for use without
    gradients).
    """
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

    In training a chunk keeps its inputs only and is computed again in the backward pass (Chen et al. 2016) as far as
    the input of its last product: what the function stores exists for one chunk at a time, and on a CPU stays in the
    cache.

    Args:
        function: of tensors `[batch, rows, ...]`; each row of its result depends on the same row of them alone.
        chunk: rows at a time.
        tensors: `[batch, rows, ...]`.
        dim: the axis of the result that holds the rows.
    """
    rows, training = tensors[0].shape[1], torch.is_grad_enabled()
    if chunk is None or (chunk >= rows and not training):
        return function(*tensors)
    # A split of one part would copy the gradient.
    parts = zip(*(tensor.split(chunk, dim=1) for tensor in tensors)) if chunk < rows else [tensors]
    if not training:
        return join((function(*part) for part in parts), rows, dim)
    # No function here draws random numbers, so their state need not be kept.
    done = [checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.cat(done, dim) if len(done) > 1 else done[0]


def key_bias(bias: Tensor, mask: Tensor | None) -> Tensor:
    """Adds the key mask, bool `[batch, keys]`, to a bias `[batch, heads, queries, keys]`, once for all rows.

    Contiguous, or PyTorch's fused CPU kernel would write it out for every row.
    """
    if mask is not None:
        # masked_fill rather than a sum: it keeps the small numbers of a bfloat16 bias.
        bias = torch.where(mask[:, None, None, :], bias, torch.full((), MASKED, dtype=bias.dtype, device=bias.device))
    return bias.contiguous()


class GatedAttention(nn.Module):
    """Attention with AlphaFold2's gate: out(sigmoid(gate(x)) · heads). `[batch, rows, tokens, dim]` -> the same.

    All of it passes through `mix`, so that its weights can be recorded (`core.mixers.base.Weighted`).
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim, self.scale = head_dim, head_dim**-0.5
        self.q, self.k, self.v = (nn.Linear(dim, heads * head_dim, bias=False) for _ in range(3))
        self.out = nn.Linear(heads * head_dim, dim)
        self.gate = nn.Linear(dim, heads * head_dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`bias` `[batch, heads or 1, tokens or 1, tokens]`, shared by all rows."""
        return self.close(x, self.mix(x, bias))

    def mix(self, x: Tensor, bias: Tensor | None, norm: Norm | None = None) -> Tensor:
        """The heads' outputs `[batch, rows, tokens, heads, head_dim]`. With a norm, x is normalised already."""
        return shared_bias_attention(x, *self._projection(norm), bias, self.head_dim, self.scale)

    def weights(self, x: Tensor, bias: Tensor | None, norm: Norm | None = None) -> Tensor:
        """The weights that `mix` applies, float32 `[batch, rows, heads, tokens, tokens]`."""
        qkv = _project(x, *self._projection(norm), self.head_dim).float()
        rows = [attention_weights(*_heads(row)[:2], bias=bias, scale=self.scale) for row in qkv.unbind(1)]
        return torch.stack(rows, dim=1)

    def _projection(self, norm: Norm | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the linear map to q, k and v, with the norm's gain in them."""
        return folded(norm, torch.cat([self.q.weight, self.k.weight, self.v.weight]))

    def close(self, x: Tensor, heads: Tensor, norm: Norm | None = None, chunk: int | None = None) -> Tensor:
        """Gates the heads' outputs, then mixes them. With a norm, x is normalised already."""
        gate, out = folded(norm, self.gate.weight, self.gate.bias), (self.out.weight, self.out.bias)
        return by_rows(_gated, chunk, (x, heads.flatten(3)), gate, out)


def _gated(x: Tensor, heads: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.sigmoid(F.linear(x, weight, bias)) * heads


def shared_bias_attention(
    x: Tensor, weight: Tensor, shift: Tensor | None, bias: Tensor | None, head_dim: int, scale: float
) -> Tensor:
    """Softmax attention within each row of x. Equal to `reference_shared_bias_attention`.

    Args:
        x: `[batch, rows, tokens, dim]`.
        weight: `[3·heads·head_dim, dim]`, the linear maps to q, k and v.
        shift: `[3·heads·head_dim]`, their bias.
        bias: added to the scores of every row, `[batch, heads or 1, tokens or 1, tokens]`.
        head_dim: channels of a head.
        scale: of q·k.

    Returns:
        `[batch, rows, tokens, heads, head_dim]`.
    """
    if bias is not None and torch.is_grad_enabled():
        return cast(Tensor, _SharedBiasAttention.apply(x, weight, shift, bias, head_dim, scale))
    return _attend(_project(x, weight, shift, head_dim), bias, scale)


def reference_shared_bias_attention(
    x: Tensor, weight: Tensor, shift: Tensor | None, bias: Tensor | None, head_dim: int, scale: float
) -> Tensor:
    """The same with everything stored."""
    qkv = _project(x, weight, shift, head_dim)
    rows = [reference_attention(*_heads(row), None, bias, scale).transpose(1, 2) for row in qkv.unbind(1)]
    return torch.stack(rows, dim=1)


def _project(x: Tensor, weight: Tensor, shift: Tensor | None, head_dim: int) -> Tensor:
    """q, k and v: `[..., tokens, 3, heads, head_dim]`."""
    return F.linear(x, weight, shift).unflatten(-1, (3, -1, head_dim))


def _heads(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`[rows, tokens, 3, heads, head_dim]` -> q, k, v, each `[rows, heads, tokens, head_dim]`."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
    return q, k, v


def _attend(qkv: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    if bias is None:
        z = attend(*_heads(qkv.flatten(0, 1)), Plan("sdpa", "no bias"), scale)
        return z.transpose(1, 2).unflatten(0, qkv.shape[:2])
    # One call for each example: only then is the bias of all its rows a view with stride 0.
    shape = (qkv.shape[1], -1, qkv.shape[2], qkv.shape[2])
    plans = [Plan("masked", "a bias for all rows", allowed=one[None].expand(shape)) for one in bias]
    parts = [attend(*_heads(one), plan, scale).transpose(1, 2) for one, plan in zip(qkv, plans)]
    return torch.stack(parts) if len(parts) > 1 else parts[0][None]


class _SharedBiasAttention(torch.autograd.Function):
    """The kernel forward; backward by the equations, a few rows at a time, from q, k and v computed again.

        P = softmax(q kᵀ·scale + bias)    D = P · (dO vᵀ - sum(dO · O))
        dq = D k·scale    dk = Dᵀ q·scale    dv = Pᵀ dO    dbias = sum over rows of D

    PyTorch's kernels either cannot differentiate the bias (CPU: they fall back to storing all scores) or write its
    gradient once for every row before they sum it (CUDA, memory-efficient).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, shift: Tensor | None, bias: Tensor, head_dim: int, scale: float
    ) -> Tensor:
        qkv = _project(x, weight, shift, head_dim)
        # Detached: PyTorch's fused CPU kernel turns down a bias that requires a gradient, even here.
        out = _attend(qkv, bias.detach(), scale)
        ctx.dtypes = x.dtype, weight.dtype
        ctx.save_for_backward(x.to(qkv.dtype), weight.to(qkv.dtype), shift, bias, out)
        ctx.scale = scale
        return out

    @staticmethod
    @first_order("attention with a shared bias", "reference_shared_bias_attention")
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, shift, bias, out = ctx.saved_tensors
        batch, rows, tokens, _ = x.shape
        heads, head_dim = out.shape[-2:]
        most = _GPU_SCORES if x.is_cuda else _CPU_SCORES
        step = max(1, min(rows, most // (heads * tokens**2)))
        wide = torch.promote_types(bias.dtype, torch.float32)
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight, dtype=wide)
        grad_bias, grad_shift = torch.zeros_like(bias, dtype=wide), grad_weight.new_zeros(len(weight))
        cast_shift = None if shift is None else shift.to(x.dtype)
        for i in range(batch):
            for start in range(0, rows, step):
                part = (i, slice(start, start + step))
                qkv = _project(x[part], weight, cast_shift, head_dim)
                grad_qkv, of_bias = _backward_rows(qkv, bias[i], out[part], grad[part], ctx.scale)
                grad_x[part] = grad_qkv @ weight
                grad_qkv = grad_qkv.flatten(0, -2)
                grad_weight += grad_qkv.mT @ x[part].flatten(0, 1)
                grad_shift += grad_qkv.sum(0, dtype=wide)
                grad_bias[i] += of_bias.sum_to_size(bias[i].shape)
        of_shift = None if shift is None else grad_shift.to(shift.dtype)
        return grad_x.to(ctx.dtypes[0]), grad_weight.to(ctx.dtypes[1]), of_shift, grad_bias.to(bias.dtype), None, None


def _backward_rows(qkv: Tensor, bias: Tensor, out: Tensor, grad: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradients of q, k and v, `[rows, tokens, 3·heads·head_dim]`, and of the bias, summed over the rows.

    qkv `[rows, tokens, 3, heads, head_dim]`; out, grad `[rows, tokens, heads, head_dim]`.
    """
    wide, rows = torch.promote_types(qkv.dtype, torch.float32), len(qkv)
    q, k, v = (t.flatten(0, 1) for t in _heads(qkv))  # [rows · heads, tokens, head_dim]: copies, read by all products
    q, grad, out = q * scale, grad.transpose(1, 2).flatten(0, 1), out.transpose(1, 2).flatten(0, 1)
    weights = (q @ k.mT).to(wide)  # [rows · heads, tokens, tokens]
    weights.unflatten(0, (rows, -1)).add_(bias)
    weights = weights.softmax(-1)
    grad_v = weights.to(grad.dtype).mT @ grad
    correction = (grad * out).sum(-1, keepdim=True, dtype=wide)
    scores = (grad @ v.mT).to(wide).sub_(correction).mul_(weights)
    grad_bias = scores.unflatten(0, (rows, -1)).sum(0)
    scores = scores.to(q.dtype)
    grads = torch.stack([(scores @ k).mul_(scale), scores.mT @ q, grad_v]).unflatten(1, (rows, -1))
    return grads.permute(1, 3, 0, 2, 4).flatten(2), grad_bias
