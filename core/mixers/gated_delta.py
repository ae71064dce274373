"""Gated DeltaNet (Yang et al. 2024), as in Qwen3-Next: a state that corrects what it holds under a key."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TransformerConfig
from ..layers import rms_norm
from .convolution import ShortConvolution
from .delta_scan import delta_scan
from .recurrent import RecurrentMixer, Row, State, exact, start_steps, wide
from .recurrent_options import GatedDeltaOptions


class GatedDelta(RecurrentMixer):
    """out(norm(y) · SiLU(gate(x))), y from the gated delta rule with β = sigmoid(beta(x)) and log decay
    -exp(a_log) · softplus(step(x) + dt_bias).

    There may be fewer heads of queries and keys, each then serves several neighbouring ones of the values. Queries and
    keys have length one in each head, queries are then divided by sqrt(state); the norm is over each head.
    """

    vectors = ("a_log", "dt_bias")

    def __init__(self, config: TransformerConfig, options: GatedDeltaOptions) -> None:
        super().__init__()
        self.heads, self.key_heads, self.eps = options.heads or 0, options.key_heads or 0, config.norm_eps
        state, width = options.state or 0, options.width or 0
        self.sizes = [self.key_heads * state, self.key_heads * state, self.heads * width]
        bias = partial(options.biased, config.bias)
        self.q = nn.Linear(config.dim, self.sizes[0], bias=bias("q"))
        self.k = nn.Linear(config.dim, self.sizes[1], bias=bias("k"))
        self.v = nn.Linear(config.dim, self.sizes[2], bias=bias("v"))
        self.gate = nn.Linear(config.dim, self.sizes[2], bias=bias("gate"))
        self.beta = nn.Linear(config.dim, self.heads, bias=False)
        self.step = nn.Linear(config.dim, self.heads, bias=False)
        self.conv = ShortConvolution(sum(self.sizes), options.conv, options.conv_bias) if options.conv else None
        self.a_log, self.dt_bias = (nn.Parameter(torch.zeros(self.heads)) for _ in range(2))
        self.norm_weight = nn.Parameter(torch.ones(width))
        self.out = nn.Linear(self.sizes[2], config.dim, bias=bias("out"))

    @torch.no_grad()
    def initialise(self, config: TransformerConfig) -> None:
        """A in -16 to -0.01 and Δ in 0.001 to 0.1, as in the authors' code."""
        self.a_log.uniform_(0.01, 16).log_()
        start_steps(self.dt_bias)

    def mix(self, x: Tensor, row: Row, state: State) -> Tensor:
        y = torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)
        if self.conv is not None:
            y, inputs = self.conv(y, row, state.get("inputs"))
            state.put("inputs", inputs)
        y, beta, step = wide(F.silu(y), self.beta(x), self.step(x))
        with exact(x):
            q, k, v = y.split(self.sizes, dim=-1)
            q, k = (z.unflatten(-1, (self.key_heads, -1)) for z in (q, k))
            q, k = (z * (z.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for z in (q, k))
            q, k = (z.repeat_interleave(self.heads // self.key_heads, dim=2) for z in (q, k))
            v = v.unflatten(-1, (self.heads, -1))
            log_decay = -self.a_log.to(y.dtype).exp() * F.softplus(step + self.dt_bias.to(y.dtype))
            y, memory = delta_scan(
                q * q.shape[-1] ** -0.5, k, v, row.hold(beta.sigmoid()), row.hold(log_decay), row.begins,
                state.get("memory"),
            )  # fmt: skip
            state.put("memory", memory)
            y = rms_norm(y, self.norm_weight.to(y.dtype), self.eps).flatten(2)
        return self.out((y * F.silu(self.gate(x))).to(x.dtype))
