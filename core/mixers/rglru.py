"""RG-LRU (De et al. 2024, "Griffin"): a linear recurrence in each channel, with gates for decay and input."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TransformerConfig
from .channel_scan import channel_scan
from .convolution import ShortConvolution
from .recurrent import RecurrentMixer, Row, State, exact, wide
from .recurrent_options import RGLRUOptions

STEEPEST = 1000.0
"""Bound on the slope of the square root in 1 - a², which has none at zero (released code of RecurrentGemma)."""
SHARPNESS = 8.0
"""c of the paper: the largest power of the base decay."""


def root(x: Tensor) -> Tensor:
    """sqrt(x) with a slope of at most `STEEPEST`."""
    return cast(Tensor, _Root.apply(x)) if torch.is_grad_enabled() else x.sqrt()


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.sqrt()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (y,) = ctx.saved_tensors
        return grad / (2 * y).clamp(min=1 / STEEPEST)


class RGLRU(RecurrentMixer):
    """out(GELU(gate(x)) · h), h_t = a_t h_{t-1} + sqrt(1 - a_t²) (i_t · v_t), a_t = exp(-8 r_t softplus(Λ)).

    v is a convolution of v(x); the gates r and i are sigmoids of matrices that are block-diagonal by head. The first
    token of a document enters with the factor 1, as in the released RecurrentGemma.
    """

    vectors = ("decay", "gate_bias")

    def __init__(self, config: TransformerConfig, options: RGLRUOptions) -> None:
        super().__init__()
        width, self.heads = options.width or 0, config.heads
        bias = partial(options.biased, config.bias)
        self.v = nn.Linear(config.dim, width, bias=bias("v"))
        self.gate = nn.Linear(config.dim, width, bias=bias("gate"))
        self.conv = ShortConvolution(width, options.conv, options.conv_bias) if options.conv else None
        block = width // self.heads
        self.gate_weight = nn.Parameter(torch.zeros(2, self.heads, block, block))
        self.gate_bias = nn.Parameter(torch.zeros(2, self.heads, 1, block))
        self.decay = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, config.dim, bias=bias("out"))

    @torch.no_grad()
    def initialise(self, config: TransformerConfig) -> None:
        """exp(-softplus(Λ)) in 0.9 to 0.999 (its square evenly), gates within 1/sqrt(block)."""
        nn.init.normal_(self.gate_weight, std=1 / math.sqrt(self.gate_weight.shape[-1]))
        square = torch.empty_like(self.decay).uniform_(0.9**2, 0.999**2)
        self.decay.copy_((square.rsqrt() - 1).log())

    def mix(self, x: Tensor, row: Row, state: State) -> Tensor:
        v = self.v(x)
        if self.conv is not None:
            v, inputs = self.conv(v, row, state.get("inputs"))
            state.put("inputs", inputs)
        (v,) = wide(v)
        with exact(x):
            by_head = v.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [batch, heads, tokens, block]
            gates = by_head[:, None] @ self.gate_weight.to(v.dtype) + self.gate_bias.to(v.dtype)
            r, i = gates.sigmoid().transpose(2, 3).flatten(3).unbind(1)
            log_a = -SHARPNESS * r * F.softplus(self.decay.to(v.dtype))
            factor = root(-torch.expm1(2 * log_a))
            factor = torch.where(self._first(v, row, state)[..., None], 1.0, factor)
            h, memory = channel_scan(row.hold(log_a).exp(), row.hold(factor * i * v), row.begins, state.get("memory"))
            state.put("memory", memory)
        return self.out(F.gelu(self.gate(x), approximate="tanh") * h.to(x.dtype))

    @staticmethod
    def _first(v: Tensor, row: Row, state: State) -> Tensor:
        """bool `[batch, tokens]`: the first token of each document."""
        seen = state.get("seen")
        fresh = torch.ones(v.shape[0], dtype=torch.bool, device=v.device) if seen is None else ~seen
        some = torch.ones_like(fresh) if row.count is None else row.count > 0
        state.put("seen", some | ~fresh)
        first = F.pad(fresh[:, None], (0, v.shape[1] - 1))
        return first if row.begins is None else first | row.begins
