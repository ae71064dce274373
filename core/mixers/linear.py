"""Linear attention and retention: a query reads a sum of outer products of keys and values."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TransformerConfig
from ..layers import rms_norm
from .convolution import ShortConvolution
from .decayed_scan import decayed_scan
from .recurrent import RecurrentMixer, Row, State, exact, wide
from .recurrent_options import LinearOptions, RetentionOptions


class _OuterProducts(RecurrentMixer):
    """Queries, keys and values of several heads, with a convolution over them if asked for."""

    def __init__(self, config: TransformerConfig, options: LinearOptions | RetentionOptions) -> None:
        super().__init__()
        self.heads, width = config.heads, config.head_dim or 0
        state, bias = options.state or 0, partial(options.biased, config.bias)
        self.q = nn.Linear(config.dim, self.heads * state, bias=bias("q"))
        self.k = nn.Linear(config.dim, self.heads * state, bias=bias("k"))
        self.v = nn.Linear(config.dim, self.heads * width, bias=bias("v"))
        self.sizes = [self.heads * state, self.heads * state, self.heads * width]
        self.conv = ShortConvolution(sum(self.sizes), options.conv, options.conv_bias) if options.conv else None
        self.out = nn.Linear(self.heads * width, config.dim, bias=bias("out"))

    def read(self, x: Tensor, row: Row, state: State) -> tuple[Tensor, ...]:
        """q, k and v, each `[batch, tokens, heads, width]`."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.conv is not None:
            y, inputs = self.conv(torch.cat([q, k, v], dim=-1), row, state.get("inputs"))
            state.put("inputs", inputs)
            q, k, v = F.silu(y).split(self.sizes, dim=-1)
        return wide(*(x.unflatten(-1, (self.heads, -1)) for x in (q, k, v)))


class LinearAttention(_OuterProducts):
    """y_t = φ(q_t)ᵀ Σ φ(k_s) v_sᵀ / φ(q_t)ᵀ Σ φ(k_s), sums over s <= t, φ = elu + 1 (Katharopoulos et al. 2020)."""

    def mix(self, x: Tensor, row: Row, state: State) -> Tensor:
        q, k, v = self.read(x, row, state)
        with exact(x):
            q, k = F.elu(q) + 1, row.hold(F.elu(k) + 1)
            ones = torch.ones_like(v[..., :1])  # their sum is the normaliser
            decay = torch.zeros_like(v[..., 0])
            y, memory = decayed_scan(q, k, torch.cat([v, ones], dim=-1), decay, row.begins, state.get("memory"))
            state.put("memory", memory)
            y = y[..., :-1] / y[..., -1:].clamp(min=torch.finfo(y.dtype).tiny)
        return self.out(y.flatten(2).to(x.dtype))


class Retention(_OuterProducts):
    """Outer products that decay by a fixed factor a token, which differs between heads (Sun et al. 2023).

    out(SiLU(gate(x)) · norm(y)), with a norm over each head. Deviation from the paper: queries and keys are not rotated
    by their position.
    """

    def __init__(self, config: TransformerConfig, options: RetentionOptions) -> None:
        super().__init__(config, options)
        self.gate = nn.Linear(config.dim, self.sizes[2], bias=options.biased(config.bias, "gate"))
        self.eps = config.norm_eps

    def log_decay(self, device: torch.device) -> Tensor:
        """`[heads]`: ln(1 - 2^-x) with x from 5 to 9, evenly spaced, as in the authors' code."""
        return torch.log1p(-torch.exp2(-torch.linspace(5, 9, self.heads, device=device)))

    def mix(self, x: Tensor, row: Row, state: State) -> Tensor:
        q, k, v = self.read(x, row, state)
        with exact(x):
            decay = self.log_decay(x.device).to(v.dtype).expand(v.shape[:3])
            y, memory = decayed_scan(
                q, row.hold(k) / math.sqrt(k.shape[-1]), v, row.hold(decay), row.begins, state.get("memory")
            )
            state.put("memory", memory)
            y = rms_norm(y, None, self.eps)
        return self.out(F.silu(self.gate(x)) * y.flatten(2).to(x.dtype))
