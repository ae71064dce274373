"""A short convolution between two gates, which needs no state but its last inputs (LFM2, Liquid AI 2025)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from ..config import TransformerConfig
from .convolution import ShortConvolution
from .recurrent import RecurrentMixer, Row, State
from .recurrent_options import ConvolutionOptions


class GatedConvolution(RecurrentMixer):
    """out(q_t · Σ_j w_j (k v)_{t-j}), channel by channel; `k`, `q` and `v` are B, C and x of its published code."""

    memories = ("inputs",)

    def __init__(self, config: TransformerConfig, options: ConvolutionOptions) -> None:
        super().__init__()
        dim, bias = config.dim, partial(options.biased, config.bias)
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=bias(name)) for name in "qkv")
        self.conv = ShortConvolution(dim, options.conv, options.conv_bias)
        self.out = nn.Linear(dim, dim, bias=bias("out"))

    def mix(self, x: Tensor, row: Row, state: State) -> Tensor:
        y, inputs = self.conv(self.k(x) * self.v(x), row, state.get("inputs"))
        state.put("inputs", inputs)
        return self.out(self.q(x) * y)
