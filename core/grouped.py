"""Rows sorted by group, each multiplied by the matrix of its group: the linear layers of experts."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x_i W_gᵀ for each row i of group g, without padding: the fast form of `reference_grouped_linear`.

    An operator of its own, so that the compiler, the count of FLOPs and fake tensors need not know how many rows a
    group has. Groups may be empty.

    Args:
        x: `[rows, in]`, sorted by group.
        weight: `[groups, out, in]`.
        ends: int32 `[groups]`, the rows of the groups up to each, summed; the last is the number of rows.

    Returns:
        `[rows, out]`.
    """
    return cast(Tensor, torch.ops.triune.grouped_linear(x, weight, ends))


def reference_grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The readable form of `grouped_linear`: each row gathers its matrix."""
    group = torch.searchsorted(ends, torch.arange(x.shape[0], device=x.device, dtype=ends.dtype), right=True)
    return (weight[group] @ x[..., None])[..., 0]


def _hopper(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch's kernel for groups takes these: bfloat16 on a GPU from Hopper on, rows of 16 bytes."""
    if not (
        x.is_cuda and x.dtype == weight.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device)[0] >= 9
    ):
        return False
    return x.shape[1] % 8 == 0 and weight.shape[1] % 8 == 0


def _spans(ends: Tensor) -> list[tuple[int, int, int]]:
    """Group, first row and end of the groups that have rows."""
    stops = ends.tolist()
    return [(g, a, b) for g, (a, b) in enumerate(zip([0, *stops], stops, strict=False)) if b > a]


@torch.library.custom_op("triune::grouped_linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    if _hopper(x, weight):
        return F.grouped_mm(x.contiguous(), weight.mT, offs=ends)
    y = x.new_empty(x.shape[0], weight.shape[1])
    for group, first, end in _spans(ends):
        torch.mm(x[first:end], weight[group].T, out=y[first:end])
    return y


@torch.library.custom_op("triune::grouped_outer", mutates_args=())
def _outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Σ_i l_i r_iᵀ over the rows of each group: `[rows, out]` and `[rows, in]` -> `[groups, out, in]`."""
    sums = left.new_zeros(ends.shape[0], left.shape[1], right.shape[1])
    for group, first, end in _spans(ends):
        torch.mm(left[first:end].T, right[first:end], out=sums[group])
    return sums


@_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_outer.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, ends = ctx.saved_tensors
    to_x = grouped_linear(grad, weight.mT, ends) if ctx.needs_input_grad[0] else None
    to_weight = torch.ops.triune.grouped_outer(grad, x, ends) if ctx.needs_input_grad[1] else None
    return to_x, to_weight, None


def _outer_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    left, right, ends = ctx.saved_tensors
    return grouped_linear(right, grad, ends), grouped_linear(left, grad.mT, ends), None


_linear.register_autograd(_linear_backward, setup_context=_keep)
_outer.register_autograd(_outer_backward, setup_context=_keep)


class StackedLinear(nn.Module):
    """The linear layers of several experts as one tensor, `[experts, out, in]`. `[rows, in]` -> `[rows, out]`.

    Args:
        experts: how many.
        in_features: width of the input.
        out_features: width of the output.
        bias: whether each expert has one, `[experts, out]`.
    """

    def __init__(self, experts: int, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.experts, self.in_features, self.out_features = experts, in_features, out_features
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(experts, out_features)) if bias else None
        nn.init.normal_(self.weight, std=in_features**-0.5)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """`[rows, in]`, sorted by expert, and int32 `[experts]` where the rows of each end -> `[rows, out]`."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y = grouped_linear(x, self.weight.to(x.dtype), ends)
        if self.bias is None:
            return y
        sizes = torch.diff(ends, prepend=ends.new_zeros(1))
        return y + self.bias.to(y.dtype).repeat_interleave(sizes, dim=0, output_size=x.shape[0])

    def extra_repr(self) -> str:
        return f"{self.experts} x ({self.in_features}, {self.out_features}), bias={self.bias is not None}"
