"""The small parts of a block: norm, feed-forward, layer scale, stochastic depth."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks

from .config import TransformerConfig
from .grouped import StackedLinear


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis of `[..., dim]`, with the gain the config asks for.

    With `parts` it is normalised over each of so many equal parts, with a gain for each channel and no bias. With
    `narrow` what it returns has the type of its weights, whatever the residual sum has.
    """

    def __init__(self, dim: int, config: TransformerConfig, parts: int | None = None, narrow: bool = False) -> None:
        super().__init__()
        self.narrow = narrow
        self.dim, self.kind, self.eps, self.parts = dim, config.norm, config.norm_eps, parts
        self.offset = config.norm_weight == "offset"
        has_weight = config.norm_weight != "none"
        has_bias = has_weight and config.norm_bias and config.norm == "layernorm" and parts is None
        start = torch.zeros if self.offset else torch.ones
        self.weight = nn.Parameter(start(dim)) if has_weight else None
        self.bias = nn.Parameter(torch.zeros(dim)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if self.narrow and weight is not None:
            x = x.to(weight.dtype)
        if self.offset and weight is not None and x.dtype in (torch.bfloat16, torch.float16):
            # One plus a small offset needs more digits than these have.
            bias = None if bias is None else bias.float()
            return self._gained(x.float(), weight.float() + 1.0, bias).to(x.dtype)
        if weight is not None:
            # One dtype throughout: mixed ones leave the fused kernels under autocast.
            weight = (weight + 1.0 if self.offset else weight).to(x.dtype)
            bias = None if bias is None else bias.to(x.dtype)
        return self._gained(x, weight, bias)

    def _gained(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.parts is not None:
            y = self._normalised(x.unflatten(-1, (self.parts, -1)), None, None).flatten(-2)
            return y if weight is None else y * weight
        return self._normalised(x, weight, bias)

    def _normalised(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.kind == "rmsnorm":
            return rms_norm(x, weight, self.eps)
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.kind}, eps={self.eps}"


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last axis. `[..., dim]` -> `[..., dim]`.

    PyTorch fuses this on CUDA only. On a CPU ours takes 0.45 to 0.75 of its time, forward and backward
    (`bench/norms.py`). Function transforms get PyTorch's.
    """
    plain = x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64)
    if plain or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    if torch.is_grad_enabled():
        y, _ = cast(tuple[Tensor, Tensor], _RMSNorm.apply(x, eps))
        return y if weight is None else y * weight
    y, _ = _over_root_mean_square(x, eps)  # what autograd costs is half of the time of one token
    return y if weight is None else y.mul_(weight)


def _over_root_mean_square(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x·r `[..., dim]` and r = (mean(x²) + eps)^-1/2 `[..., 1]`."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    r = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return x * r, r


class _RMSNorm(torch.autograd.Function):
    """y = r x and r = (mean(x²) + eps)^-1/2, so dx = r (dy - y mean(dy·y)) - dr r² y / n.

    r is an output too, because a second derivative has to go through it; nobody else takes it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y, r = _over_root_mean_square(x, eps)
        ctx.save_for_backward(y, r)
        ctx.save_for_forward(y, r)
        ctx.set_materialize_grads(False)
        return y, r

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_r: Tensor | None) -> tuple[Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        y, r = ctx.saved_tensors
        dx = None
        if grad is not None:
            mean = torch.linalg.vecdot(grad, y)[..., None] / y.shape[-1]
            dx = torch.addcmul(grad, y, mean, value=-1)
            dx = dx * r if torch.is_grad_enabled() else dx.mul_(r)
        if grad_r is not None:
            through = grad_r * r.square() * y / -y.shape[-1]
            dx = through if dx is None else dx + through
        return dx, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        y, r = ctx.saved_tensors
        mean = torch.linalg.vecdot(tangent, y)[..., None] / y.shape[-1]
        return (tangent - y * mean) * r, -r.square() * mean


def activation(kind: str, x: Tensor, reuse: bool = False) -> Tensor:
    """The non-linearity of a feed-forward kind (see `TransformerConfig.ffn`), elementwise.

    With `reuse` the result may stand where x stood: on a CPU a new tensor of that size costs more than the
    non-linearity, because each of its pages is asked of the system first.
    """
    if kind in ("gelu", "geglu", "gelu_tanh", "geglu_tanh"):
        approximate = "tanh" if kind.endswith("tanh") else "none"
        return torch.ops.aten.gelu_(x, approximate=approximate) if reuse else F.gelu(x, approximate=approximate)
    if kind == "quick_gelu":
        gate = torch.sigmoid(1.702 * x)
        return x.mul_(gate) if reuse else x * gate
    if kind in ("silu", "swiglu"):
        return F.silu(x, inplace=reuse)
    if kind == "relu2":
        return F.relu_(x).square_() if reuse else F.relu(x).square()
    return F.relu(x, inplace=reuse)


def seen_by_nobody(layer: nn.Module) -> bool:
    """Whether what `layer` returns may be overwritten: autograd stores nothing, and no hook may have kept it."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return type(layer) is nn.Linear and not layer._forward_hooks and not _global_forward_hooks


class FeedForward(nn.Module):
    """down(act(up(x))), or gated down(act(gate(x)) * up(x)). `[..., dim]` -> `[..., dim]`.

    Args:
        config: of the whole model.
        layer: which layer this is, from 0; it decides the kind.
        hidden: width between the layers; None means the config's.
        count: of experts, whose layers are stacked; `forward` then takes rows sorted by expert and where those of each
            end, as `StackedLinear` does. None for one feed-forward.
    """

    def __init__(
        self, config: TransformerConfig, layer: int = 0, hidden: int | None = None, count: int | None = None
    ) -> None:
        super().__init__()
        dim, hidden = config.dim, hidden or config.resolved().ffn_dim or 0
        make: Any = nn.Linear if count is None else partial(StackedLinear, count)
        self.kind, self.count = config.ffn_at(layer), count or 1
        self.gate = make(dim, hidden, bias=config.has_bias("gate")) if "glu" in self.kind else None
        self.up = make(dim, hidden, bias=config.has_bias("up"))
        self.inner_norm = Norm(hidden, config) if "ffn" in config.inner_norm else None
        self.dropout = config.dropout
        self.down = make(hidden, dim, bias=config.has_bias("down"))

    def forward(self, x: Tensor, *ends: Tensor) -> Tensor:
        first = self.up if self.gate is None else self.gate
        reuse = seen_by_nobody(first)
        hidden = activation(self.kind, first(x, *ends), reuse)
        if self.gate is not None:
            hidden = hidden.mul_(self.up(x)) if reuse else hidden * self.up(x, *ends)
        return self.down(self._hidden(hidden), *ends)

    def one(self, expert: int, x: Tensor) -> Tensor:
        """`x` through one of stacked experts alone. `[..., dim]` -> `[..., dim]`."""

        def linear(layer: Any, x: Tensor) -> Tensor:
            return F.linear(x, layer.weight[expert], None if layer.bias is None else layer.bias[expert])

        hidden = activation(self.kind, linear(self.up if self.gate is None else self.gate, x))
        if self.gate is not None:
            hidden = hidden * linear(self.up, x)
        return linear(self.down, self._hidden(hidden))

    def _hidden(self, x: Tensor) -> Tensor:
        if self.inner_norm is not None:
            x = self.inner_norm(x)
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Branch(nn.Module):
    """What a sub-layer's output passes before it is added to the residual: norm, gain, factor, dropout, stochastic
    depth.
    """

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.norm = Norm(config.dim, config) if config.placement in ("branch", "sandwich") else None
        gain, self.factor = config.layer_scale, config.residual_scale
        self.scale = nn.Parameter(torch.full((config.dim,), gain)) if gain is not None else None
        self.dropout = config.dropout
        self.skip = config.stochastic_depth * layer / max(config.depth - 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = self.norm(x)
        if self.scale is not None:
            x = x * self.scale
        if self.factor != 1:
            x = x * self.factor
        if self.training and self.dropout:
            x = F.dropout(x, self.dropout)
        if self.training and self.skip:
            x = drop_path(x, self.skip)
        return x


def drop_path(x: Tensor, chance: float) -> Tensor:
    """Zero whole examples of `[batch, ...]` with probability `chance` and scale the others to keep the mean."""
    keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= chance
    return x * keep.to(x.dtype) / (1 - chance)
