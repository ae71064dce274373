"""What the pair stack computes with a backward pass of its own, because autograd would store or copy too much.

| function         | what is not stored                          | plain form                |
|------------------|---------------------------------------------|---------------------------|
| `normalise`      | its input                                   | `F.layer_norm`            |
| `by_rows`        | what is between its inputs and its result   | `reference_by_rows`       |
| `triangle_sums`  | the operands of the sums                    | `reference_triangle_sums` |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...core.layers import Norm
from ...core.once import first_order

_CACHED = 1 << 18
"""Numbers of one tensor that stay in a CPU core's cache beside a few others."""

_HALVES = slice(None, 2), slice(2, None)


# --- LayerNorm --------------------------------------------------------------------------------------------------------


def normalise(z: Tensor, eps: float) -> Tensor:
    """LayerNorm without gain and bias over the last axis, `[..., dim]` -> `[..., dim]`; in autocast's dtype.

    In training the result is all that is stored; one copy serves every linear map of it, since each takes in gain and
    bias (`folded`).
    """
    if torch.is_grad_enabled():
        return cast(Tensor, _Normalise.apply(z, eps))
    return _normalised(z, eps)[0]


def folded(norm: Norm | None, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The linear map of what `norm` makes of a normalised x, as one of x: (x·g + b) Wᵀ + c = x (W·g)ᵀ + (W b + c).

    weight `[out, in]`, bias `[out]` -> the same. Without a norm, as they are.
    """
    if norm is None:
        return weight, bias
    assert norm.weight is not None and norm.bias is not None
    shift = (weight * norm.bias).sum(1)  # not a matrix product, which autocast would round
    return weight * norm.weight, shift if bias is None else shift + bias


def _normalised(z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The result and 1 / the standard deviation `[..., 1]`."""
    x, _, rstd = torch.native_layer_norm(z, z.shape[-1:], None, None, eps)
    kind = z.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else z.dtype
    return x.to(dtype), rstd.to(torch.promote_types(z.dtype, torch.float32))


class _Normalise(torch.autograd.Function):
    """x = r (z - mean z), so dz = r (dx - mean dx - x mean(dx·x)): PyTorch's own formula for a mean of 0 and r = 1,
    times r.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, eps: float) -> Tensor:
        x, rstd = _normalised(z, eps)
        ctx.save_for_backward(x, rstd)
        ctx.dtype = z.dtype
        return x

    @staticmethod
    @first_order("the layer norm of pairs", "torch.nn.functional.layer_norm")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, rstd = ctx.saved_tensors
        grad, x = grad.to(rstd.dtype), x.to(rstd.dtype)
        still = torch.zeros_like(rstd), torch.ones_like(rstd)
        wants = [True, False, False]
        result, _, _ = torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], *still, None, None, wants)
        return result.mul_(rstd).to(ctx.dtype), None


# --- maps of single pairs, a few rows at a time -----------------------------------------------------------------------


def by_rows(
    function: Callable[..., Tensor], chunk: int | None, rows: Sequence[Tensor], weights: Sequence[Tensor | None],
    last: tuple[Tensor, Tensor],
) -> Tensor:  # fmt: skip
    """`function(*rows, *weights)`, then the linear map `last`, for `chunk` rows at a time; all at once when it is None.

    Equal to `reference_by_rows`. The backward pass computes `function` again for each chunk (Chen et al. 2016), which
    costs less than it seems, because on a CPU a chunk stays in the cache; the product of `last` is not computed again.

    Args:
        function: of parts of `rows` and of `weights`; each row of the result depends on the same row alone.
        chunk: rows at a time.
        rows: `[batch, rows, columns, ...]`.
        weights: what else `function` reads.
        last: weight and bias.
    """
    if chunk is None:
        return reference_by_rows(function, rows, weights, last)
    if torch.compiler.is_compiling():  # a compiler fuses better than it unrolls
        again = checkpoint(reference_by_rows, function, rows, weights, last, use_reentrant=False)
        return cast(Tensor, again)
    return cast(Tensor, _ByRows.apply(function, chunk, len(rows), *rows, *last, *weights))


def reference_by_rows(
    function: Callable[..., Tensor], rows: Sequence[Tensor], weights: Sequence[Tensor | None],
    last: tuple[Tensor, Tensor],
) -> Tensor:  # fmt: skip
    """All rows at once."""
    return F.linear(function(*rows, *weights), *last)


class _ByRows(torch.autograd.Function):
    """The tensors are `rows` (`count` of them), weight and bias of `last`, and the other weights."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], chunk: int, count: int, *tensors: Any) -> Tensor:
        rows, (weight, bias, *others) = tensors[:count], tensors[count:]
        kind = rows[0].device.type
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        ctx.function, ctx.chunk, ctx.count = function, chunk, count
        ctx.save_for_backward(*tensors)
        whole = None
        for start, *parts in _chunks(chunk, *rows):
            y = F.linear(function(*parts, *others), weight, bias)
            if whole is None:
                whole = y.new_empty(*rows[0].shape[:-1], y.shape[-1])
            whole[:, start : start + chunk] = y
        assert whole is not None
        return whole

    @staticmethod
    @first_order("maps of pairs by rows", "reference_by_rows")
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        tensors, count = ctx.saved_tensors, ctx.count
        rows, (weight, bias, *others) = tensors[:count], tensors[count:]
        others = [None if w is None else w.detach().requires_grad_() for w in others]
        wanted = [w for w in others if w is not None]
        grads = [torch.empty_like(t) for t in rows] + [torch.zeros_like(w) for w in (weight, bias, *wanted)]
        kind, dtype, enabled = ctx.autocast
        with torch.autocast(kind, dtype, enabled=enabled):
            for start, g, *parts in _chunks(ctx.chunk, grad, *rows):
                leaves = [part.detach().requires_grad_() for part in parts]
                with torch.enable_grad():
                    y = ctx.function(*leaves, *others)
                flat = g.flatten(0, -2)
                of_weight, of_bias = flat.mT @ y.detach().flatten(0, -2), flat.sum(0)
                found = torch.autograd.grad(y, [*leaves, *wanted], (g @ weight).to(y.dtype))
                for whole, part in zip(grads, found[:count]):
                    whole[:, start : start + ctx.chunk] = part
                for whole, part in zip(grads[count:], (of_weight, of_bias, *found[count:])):
                    whole += part
        of_others = iter(grads[count + 2 :])
        return None, None, None, *grads[: count + 2], *(None if w is None else next(of_others) for w in others)


def _chunks(chunk: int, *tensors: Tensor) -> Iterator[Any]:
    """The first row of each chunk, and the chunk of each tensor."""
    starts = range(0, tensors[0].shape[1], chunk)
    return zip(starts, *(tensor.split(chunk, dim=1) for tensor in tensors))


# --- triangle multiplication ------------------------------------------------------------------------------------------


def triangle_sums(
    x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, directions: tuple[bool, ...]
) -> Tensor:  # fmt: skip
    """The sums over k of Algorithms 11 and 12, from the four gated maps of a normalised pair representation.

    Equal to `reference_triangle_sums`.

    Args:
        x: `[batch, n, n, dim]`.
        weight: `[4·channels, dim]`; its rows are those of a, b, the gate of a and the gate of b.
        bias: `[4·channels]`.
        mask: bool `[batch, n]`; residues k that are not real are left out.
        directions: whether each equal share of the channels is summed over outgoing edges (or incoming ones).

    Returns:
        `[batch, n, n, channels]`.
    """
    return cast(Tensor, _TriangleSums.apply(x, weight, bias, mask, directions))


def reference_triangle_sums(
    x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, directions: tuple[bool, ...]
) -> Tensor:  # fmt: skip
    """The same by plain operations."""
    operands = F.glu(F.linear(x, weight, bias), dim=-1).movedim(-1, 1)  # [batch, 2·channels, n, n]
    if mask is not None:
        operands = operands * (mask[:, None, :, None] & mask[:, None, None, :])
    return sum_over_k(operands, directions).movedim(1, -1)


def sum_over_k(operands: Tensor, directions: tuple[bool, ...]) -> Tensor:
    """a_ik · b_jk for outgoing and a_ki · b_kj for incoming edges. `[batch, 2·channels, n, n]` -> `[batch, channels,
    n, n]`.
    """
    pairs = zip(*(half.chunk(len(directions), dim=1) for half in operands.chunk(2, dim=1)))
    parts = [a @ b.mT if outgoing else a.mT @ b for outgoing, (a, b) in zip(directions, pairs)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class _TriangleSums(torch.autograd.Function):
    """Values and gates are stored, their products made again. Everything has channels first, for the batched products.

    The mask lives in the gates: a gate of 0 stops the gradient as well, since σ' = σ(1 - σ).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, directions: tuple[bool, ...]
    ) -> Tensor:  # fmt: skip
        batch, n = x.shape[:2]
        weight = weight.to(x.dtype)
        # bmm, because matmul of a matrix and a batch copies its result.
        maps = torch.bmm(weight.expand(batch, -1, -1), x.flatten(1, 2).mT)
        maps = maps.view(batch, 4, -1, n, n)  # values of a and b, gates of a and b
        shift = bias.view(4, -1, 1, 1)
        sums = maps.new_empty(batch, maps.shape[2], n, n)
        for i, outgoing, c in _blocks(maps, directions):
            values, gates = maps[i, :2, c], maps[i, 2:, c]
            maps[i, :, c].add_(shift[:, c])
            gates.sigmoid_()
            if mask is not None:
                gates[0].mul_(mask[i, None, :] if outgoing else mask[i, :, None])  # one factor of a product is enough
            a, b = values * gates
            torch.bmm(*((a, b.mT) if outgoing else (a.mT, b)), out=sums[i, c])
        ctx.save_for_backward(x, weight, maps)
        ctx.directions, ctx.dtype = directions, bias.dtype
        return sums.permute(0, 2, 3, 1).contiguous()

    @staticmethod
    @first_order("triangle sums", "reference_triangle_sums")
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, maps = ctx.saved_tensors
        grad, grad_maps = _channels_first(grad), torch.empty_like(maps)
        for i, outgoing, c in _blocks(maps, ctx.directions):
            values, gates, of_values, of_gates = (m[i, part, c] for m in (maps, grad_maps) for part in _HALVES)
            (a, b), g = values * gates, grad[i, c]
            torch.bmm(*((g, b) if outgoing else (b, g.mT)), out=of_values[0])
            torch.bmm(*((g.mT, a) if outgoing else (a, g)), out=of_values[1])
            torch.mul(of_values, values, out=of_gates)
            torch.ops.aten.sigmoid_backward.grad_input(of_gates, gates, grad_input=of_gates)
            of_values.mul_(gates)
        grad_maps = grad_maps.flatten(1, 2).flatten(2)  # [batch, 4·channels, n²]
        grad_x = torch.bmm(grad_maps.mT, weight.expand(len(x), -1, -1)).view_as(x)
        grad_weight = sum(one @ pairs.flatten(0, 1) for one, pairs in zip(grad_maps, x))
        grad_bias = grad_maps.sum((0, 2), dtype=ctx.dtype)
        return grad_x, cast(Tensor, grad_weight).to(ctx.dtype), grad_bias, None, None


def _blocks(maps: Tensor, directions: tuple[bool, ...]) -> Iterator[tuple[int, bool, slice]]:
    """Example, direction and channels of what is computed together: on a CPU as much as stays in its cache."""
    batch, _, channels, n, _ = maps.shape
    share = channels // len(directions)
    size = share if maps.is_cuda else max(1, min(share, _CACHED // n**2))
    for i in range(batch):
        for part, outgoing in enumerate(directions):
            first, end = part * share, (part + 1) * share
            for start in range(first, end, size):
                yield i, outgoing, slice(start, min(start + size, end))


def _channels_first(x: Tensor) -> Tensor:
    """`[batch, n, n, channels]` -> `[batch, channels, n, n]`, contiguous."""
    result = x.new_empty(x.shape[0], x.shape[3], *x.shape[1:3])
    for to, one in zip(result, x):
        to.flatten(1).copy_(one.flatten(0, 1).mT)  # as a matrix: a quarter of the time of a permuted copy
    return result
