"""Mamba-2 (Dao and Gu 2024): outer products whose decay and step size depend on the input."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TransformerConfig
from ..layers import rms_norm
from .convolution import ShortConvolution
from .decayed_scan import decayed_scan
from .recurrent import RecurrentMixer, Row, State, exact, start_steps, wide
from .recurrent_options import Mamba2Options


class Mamba2(RecurrentMixer):
    """S_t = exp(Δ_t A) S_{t-1} + k_t (Δ_t v_t)ᵀ, y_t = q_tᵀ S_t + D v_t, out(norm(y · SiLU(gate(x)))).

    `q`, `k` and `v` are C, B and x of the paper; Δ = softplus(step(x) + dt_bias) and A = -exp(a_log), one a head.
    """

    vectors = ("a_log", "dt_bias", "d")

    def __init__(self, config: TransformerConfig, options: Mamba2Options) -> None:
        super().__init__()
        inner = options.inner
        bias = partial(options.biased, config.bias)
        self.heads, self.groups, self.floor, self.eps = (
            options.heads or 0,
            options.groups,
            options.floor,
            config.norm_eps,
        )
        self.sizes = [self.groups * options.state, self.groups * options.state, inner]
        self.q = nn.Linear(config.dim, self.sizes[0], bias=bias("q"))
        self.k = nn.Linear(config.dim, self.sizes[1], bias=bias("k"))
        self.v = nn.Linear(config.dim, inner, bias=bias("v"))
        self.gate = nn.Linear(config.dim, inner, bias=bias("gate"))
        self.step = nn.Linear(config.dim, self.heads, bias=bias("step"))
        self.conv = ShortConvolution(sum(self.sizes), options.conv, options.conv_bias) if options.conv else None
        self.a_log, self.dt_bias, self.d = (nn.Parameter(torch.zeros(self.heads)) for _ in range(3))
        self.norm_weight = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, config.dim, bias=bias("out"))

    @torch.no_grad()
    def initialise(self, config: TransformerConfig) -> None:
        """A in -16 to -1, evenly (Mamba-2's reference code), Δ in 0.001 to 0.1, D = 1."""
        self.a_log.uniform_(1, 16).log_()
        start_steps(self.dt_bias)
        self.d.fill_(1.0)

    def mix(self, x: Tensor, row: Row, state: State) -> Tensor:
        y = torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)
        if self.conv is not None:
            y, inputs = self.conv(y, row, state.get("inputs"))
            state.put("inputs", inputs)
        q, k, v, step = wide(*F.silu(y).split(self.sizes, dim=-1), self.step(x))
        q, k = (z.unflatten(-1, (self.groups, -1)) for z in (q, k))
        v = v.unflatten(-1, (self.heads, -1))
        with exact(x):
            step = F.softplus(step + self.dt_bias.to(v.dtype))
            step = row.hold(step.clamp(min=self.floor) if self.floor else step)
            y, memory = decayed_scan(
                q, k, v * step[..., None], -self.a_log.to(v.dtype).exp() * step, row.begins, state.get("memory")
            )
            state.put("memory", memory)
            y = (y + self.d.to(v.dtype)[:, None] * v).flatten(2)
        y = (y * F.silu(self.gate(x))).unflatten(-1, (self.groups, -1))
        return self.out(rms_norm(y, None, self.eps).flatten(2).to(x.dtype) * self.norm_weight.to(x.dtype))
