"""Mamba-1 (Gu and Dao 2023): a selective scan, whose step size, input and output depend on the token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TransformerConfig
from ..layers import rms_norm
from .channel_scan import channel_scan
from .convolution import ShortConvolution
from .recurrent import RecurrentMixer, Row, State, exact, start_steps, wide
from .recurrent_options import MambaOptions


def selective_scan(
    v: Tensor, step: Tensor, a: Tensor, k: Tensor, q: Tensor, begins: Tensor | None = None,
    state: Tensor | None = None, scan: Callable[..., tuple[Tensor, Tensor]] = channel_scan,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h_t = exp(Δ_t A) h_{t-1} + Δ_t k_t v_t, y_t = q_t·h_t in each channel.

    Args:
        v: `[batch, tokens, channels]`.
        step: Δ, `[batch, tokens, channels]`.
        a: A, `[channels, state]`, negative.
        k: B of the paper, `[batch, tokens, state]`.
        q: C of the paper, `[batch, tokens, state]`.
        begins: bool `[batch, tokens]`, True where the state is cleared before the token.
        state: `[batch, channels, state]` before the first token; zeros by default.
        scan: `channel_scan` or its reference.

    Returns:
        y `[batch, tokens, channels]` and the state after the last token.
    """
    h, state = scan((step[..., None] * a).exp(), (step * v)[..., None] * k[:, :, None], begins, state)
    return (h @ q[..., None]).squeeze(-1), state


class Mamba(RecurrentMixer):
    """out((scan(v) + D v) · SiLU(gate(x))) with v = SiLU(conv(v(x))).

    `k_low`, `q_low` and `step_low` read B, C and the step size from v; Δ = softplus(step(step_low) + dt_bias) and
    A = -exp(a_log), `[channels, state]`.
    """

    vectors = ("a_log", "dt_bias", "d")

    def __init__(self, config: TransformerConfig, options: MambaOptions) -> None:
        super().__init__()
        inner, rank = options.expand * config.dim, options.rank or 0
        bias = partial(options.biased, config.bias)
        self.eps = config.norm_eps
        self.v = nn.Linear(config.dim, inner, bias=bias("v"))
        self.gate = nn.Linear(config.dim, inner, bias=bias("gate"))
        self.conv = ShortConvolution(inner, options.conv, options.conv_bias) if options.conv else None
        self.step_low = nn.Linear(inner, rank, bias=False)
        self.k = nn.Linear(inner, options.state, bias=False)
        self.q = nn.Linear(inner, options.state, bias=False)
        self.step = nn.Linear(rank, inner, bias=False)
        self.norms: nn.ParameterDict | None = None
        if options.inner_norm:
            sizes = {"step": rank, "k": options.state, "q": options.state}
            self.norms = nn.ParameterDict({name: nn.Parameter(torch.ones(size)) for name, size in sizes.items()})
        self.a_log = nn.Parameter(torch.zeros(inner, options.state))
        self.dt_bias, self.d = (nn.Parameter(torch.zeros(inner)) for _ in range(2))
        self.out = nn.Linear(inner, config.dim, bias=bias("out"))

    @torch.no_grad()
    def initialise(self, config: TransformerConfig) -> None:
        """A = -(1..state) in each channel, Δ in 0.001 to 0.1, its projection within ±rank^-½, D = 1."""
        self.a_log.copy_(torch.arange(1, self.a_log.shape[1] + 1).log().expand_as(self.a_log))
        bound = self.step.in_features**-0.5
        nn.init.uniform_(self.step.weight, -bound, bound)
        start_steps(self.dt_bias)
        self.d.fill_(1.0)

    def mix(self, x: Tensor, row: Row, state: State) -> Tensor:
        v = self.v(x)
        if self.conv is not None:
            v, inputs = self.conv(v, row, state.get("inputs"))
            state.put("inputs", inputs)
        v = F.silu(v)
        low = {"step": self.step_low(v), "k": self.k(v), "q": self.q(v)}
        if self.norms is not None:
            low = {name: rms_norm(z, self.norms[name].to(z.dtype), self.eps) for name, z in low.items()}
        with exact(x):
            wide_v, k, q, step = wide(v, low["k"], low["q"], self.step(low["step"].to(self.dt_bias.dtype)))
            step = row.hold(F.softplus(step + self.dt_bias.to(step.dtype)))
            y, memory = selective_scan(
                wide_v, step, -self.a_log.to(step.dtype).exp(), k, q, row.begins, state.get("memory")
            )
            state.put("memory", memory)
            y = y + self.d.to(y.dtype) * wide_v
        return self.out(y.to(x.dtype) * F.silu(self.gate(x)))
