"""Linear layers with weights of 8 or 4 bits, to generate on a CPU, where reading the weights is what takes the time.

| kind | weight                                                                   | bytes a weight |
|------|--------------------------------------------------------------------------|----------------|
| int8 | one scale for each output, from -127 to 127                              | 1.0            |
| int4 | a scale and a middle for each 32 inputs, 16 steps from smallest to largest | 0.625        |

Inputs are rounded to bfloat16, products are summed in float32. The steps of a 4-bit GGUF file (Q4_0, Q4_1: blocks of 32
as well) are found again, but their scales are rounded to bfloat16.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UserError
from .grouped import StackedLinear

Kind = Literal["int8", "int4"]
GROUP = 32
"""Inputs that share a scale in int4."""
_ROWS = 16
"""The int4 kernel takes outputs in blocks of this many."""
_SAME_INPUT = (("q", "k", "v"), ("gate", "up"))
"""Layers of `Attention` and `FeedForward` that read the same tensor."""


class PackedLinear(nn.Module):
    """A linear layer that cannot be trained or saved. `[..., in]` -> `[..., out]`, in the type of its input.

    Args:
        linear: what it computes approximately.
        kind: how the weights are stored; int4 becomes int8 where the outputs are no multiple of 16.
    """

    def __init__(self, linear: nn.Linear, kind: Kind) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind = "int8" if linear.out_features % _ROWS else kind
        self.padding = -linear.in_features % GROUP  # the kernels read whole groups, beyond the end too
        with torch.no_grad():
            weight = F.pad(linear.weight.detach().float(), (0, self.padding))
            weight, scales = (_int4 if self.kind == "int4" else _int8)(weight)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16)
        if self.padding:
            rows = F.pad(rows, (0, self.padding))
        if self.kind == "int4":
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.weight, GROUP, self.scales)
        else:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scales)  # type: ignore[arg-type]
        y = y.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.kind}"


class _Together:
    """Packs linear layers with the same input as one: generating a token, a call costs about as much as its weights.

    The layers still stand where they stood, as `_Part`s. The first that is called computes all of them and keeps the
    results until each has been fetched for the same tensor.
    """

    def __init__(self, linears: list[nn.Linear], kind: Kind) -> None:
        first = linears[0]
        whole = nn.Linear(first.in_features, sum(x.out_features for x in linears), first.bias is not None, "meta")
        whole.weight = nn.Parameter(torch.cat([linear.weight for linear in linears]), requires_grad=False)
        if first.bias is not None:
            whole.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]), requires_grad=False)
        self.packed = PackedLinear(whole, kind)
        self.sizes = [linear.out_features for linear in linears]
        self.input: Tensor | None = None
        self.outputs: dict[int, Tensor] = {}

    def fetch(self, part: int, x: Tensor) -> Tensor:
        if self.input is not x or part not in self.outputs:
            self.input, self.outputs = x, dict(enumerate(self.packed(x).split(self.sizes, dim=-1)))
        output = self.outputs.pop(part)
        if not self.outputs:
            self.input = None
        return output


class _Part(nn.Module):
    """One of the layers of a `_Together`. `[..., in]` -> `[..., out]`."""

    def __init__(self, together: _Together, part: int) -> None:
        super().__init__()
        self.packed = together.packed if part == 0 else None  # so that its weights are seen once
        self._together, self.part = together, part
        self.in_features, self.out_features = together.packed.in_features, together.sizes[part]

    def forward(self, x: Tensor) -> Tensor:
        return self._together.fetch(self.part, x)


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = (weight.abs().amax(1) / 127).to(torch.bfloat16)
    steps = weight / scales.float().clamp(min=1e-30)[:, None]
    return steps.round_().clamp_(-127, 127).to(torch.int8), scales


def _int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    groups = weight.unflatten(1, (-1, GROUP))  # [out, groups, 32]
    low, high = groups.amin(2), groups.amax(2)
    step = ((high - low) / 15).to(torch.bfloat16)
    middle = (low + 8 * step.float()).to(torch.bfloat16)  # a weight is (its number - 8)·step + middle
    numbers = (groups - middle.float()[..., None]) / step.float().clamp(min=1e-30)[..., None] + 8
    numbers = numbers.round_().clamp_(0, 15).to(torch.int32).flatten(1)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
    return packed, torch.stack([step.T, middle.T], dim=2).contiguous()  # [groups, out, 2]


def pack(model: nn.Module, kind: Kind) -> nn.Module:
    """Replaces the linear layers inside `model`, one after the other, so that no second copy of all weights exists.

    Raises UserError for a model that is not on a CPU, or has experts.
    """
    if next(model.parameters()).device.type != "cpu":
        raise UserError(f"Weights of {kind} are for a CPU; on a GPU leave --weights out.")
    if any(isinstance(module, StackedLinear) for module in model.modules()):
        raise UserError(f"Weights of {kind} are for linear layers, and this model has experts; leave --weights out.")
    for parent in list(model.modules()):
        for names in _SAME_INPUT:
            linears = [x for name in names if type(x := getattr(parent, name, None)) is nn.Linear]
            if len(linears) == len(names) and _alike(linears):
                together = _Together(linears, kind)
                for part, name in enumerate(names):
                    setattr(parent, name, _Part(together, part))
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child, kind))
    return model


def _alike(linears: list[nn.Linear]) -> bool:
    """They have the same inputs, and all or none of them a bias."""
    return len({(linear.in_features, linear.bias is None) for linear in linears}) == 1
