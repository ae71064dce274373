"""Tokens to one vector by attention."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..core.config import FeedForwardKind, TransformerConfig
from ..core.initialise import initialise
from ..core.layers import FeedForward, Norm
from ..core.masks import AttentionMask
from ..core.mixers.attention import Attention
from ..core.mixers.kernels import plan
from ..core.rotary import RotaryConfig


class AttentionPool(nn.Module):
    """A learned query reads tokens `[batch, tokens, dim]` -> `[batch, dim]`: x = attn(query, tokens); x + ffn(norm(x)).

    SigLIP's MAP head (Zhai et al. 2022, section 3.1), made of the core's parts.

    Args:
        config: of the blocks, whose width, norm and biases the pool has.
        heads, ffn, ffn_dim: its own; None means as the blocks.
    """

    def __init__(
        self, config: TransformerConfig, heads: int | None = None, ffn: FeedForwardKind | None = None,
        ffn_dim: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        config = replace(
            config, position="none", rotary=RotaryConfig(), window=None, qk_norm="none", inner_norm=[],
            attention_softcap=None, sparse=None, experts=None,
            ffn=ffn or next((kind for kind in config.ffns if kind != "none"), "gelu"),
            ffn_dim=ffn_dim or config.resolved().ffn_dim,
        )  # fmt: skip
        if heads is not None:
            config = replace(config, heads=heads, kv_heads=None, head_dim=None)
        self.latent = nn.Parameter(torch.empty(1, 1, config.dim).normal_(std=config.dim**-0.5))
        self.attn = Attention(config, 0, cross=True)
        self.norm = Norm(config.dim, config)
        self.ffn = FeedForward(config)
        initialise(self, config)

    def forward(self, tokens: Tensor) -> Tensor:
        everything = plan(AttentionMask(cross=True), 1, tokens.shape[1], tokens.device)
        x = self.attn(self.latent.expand(tokens.shape[0], -1, -1), everything, memory=tokens)
        return (x + self.ffn(self.norm(x)))[:, 0]
