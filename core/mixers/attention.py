"""Multi-head attention with grouped keys and values (Vaswani et al. 2017, section 3.2; Ainslie et al. 2023)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from ..config import TransformerConfig
from ..layers import Norm
from ..masks import AttentionMask
from ..positions import Rotary, Rotation, rotate
from .base import Call, Mixer
from .cache import LayerCache
from .kernels import Plan, attend, plan


class Attention(Mixer):
    """out(softmax(q·k + bias) v). `[batch, tokens, dim]` -> `[batch, tokens, dim]`.

    The linear layers are named `q`, `k`, `v` and `out`; hooks on them, or on the input of `out` (the heads' outputs,
    side by side), see everything but the attention weights, which no fused kernel stores.
    """

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        config = config.resolved()
        heads, kv_heads, head_dim = config.heads, config.kv_heads or 0, config.head_dim or 0
        rotary = config.rotary_at(layer)
        self.head_dim, self.window, self.softcap = head_dim, config.window_at(layer), config.attention_softcap
        self.rotary = None if rotary is None else Rotary(rotary, head_dim)
        self.key = ("attention", self.window, self.softcap, rotary)
        self.scale = head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.interleaved = rotary is not None and rotary.interleaved
        self.qk_norm, self.dropout = config.qk_norm, config.attention_dropout
        self.q = nn.Linear(config.dim, heads * head_dim, bias=config.has_bias("q"))
        self.k = nn.Linear(config.dim, kv_heads * head_dim, bias=config.has_bias("k"))
        self.v = nn.Linear(config.dim, kv_heads * head_dim, bias=config.has_bias("v"))
        if config.qk_norm != "none":
            full = config.qk_norm == "full"
            self.q_norm = Norm(heads * head_dim if full else head_dim, config)
            self.k_norm = Norm(kv_heads * head_dim if full else head_dim, config)
        self.inner_norm = Norm(heads * head_dim, config) if "attention" in config.inner_norm else None
        self.out = nn.Linear(heads * head_dim, config.dim, bias=config.has_bias("out"))

    def prepare(self, call: Call) -> tuple[Plan, Rotation | None]:
        """The mask lowered to a kernel, and the rotations of the new tokens."""
        mask, keys = call.mask, call.keys
        if self.window is not None and self.window - 1 + call.tokens < keys:
            # Behind a cache, a layer with a window holds only the keys that the new queries may see.
            keys = self.window - 1 + call.tokens
            mask = _last(mask, keys)
        lowered = plan(
            replace(mask, window=self.window), call.tokens, keys, call.device, self.softcap,
            self.dropout if self.training else 0.0,
        )  # fmt: skip
        return lowered, None if self.rotary is None else self.rotary(call.positions, call.dtype)

    def start(self, capacity: int) -> LayerCache:
        """Keys and values, of the window only where there is one."""
        return LayerCache(self.window, capacity)

    def forward(
        self, x: Tensor, plan: Plan, rotation: Rotation | None = None, cache: LayerCache | None = None,
        memory: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend from `x` to itself, or to `memory` `[batch, memory tokens, dim]` when given."""
        q, k = self.queries_and_keys(x, rotation, memory)
        v = self._heads(self.v(x if memory is None else memory))
        if cache is not None:
            k, v = cache.append(k, v)
        z = attend(q, k, v, plan, self.scale, self.dropout if self.training else 0.0)
        z = z.transpose(1, 2).flatten(2)  # [batch, tokens, heads·head_dim]
        return self.out(z if self.inner_norm is None else self.inner_norm(z))

    def queries_and_keys(
        self, x: Tensor, rotation: Rotation | None = None, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the attention weights are computed from: q `[batch, heads, tokens, head_dim]` and k `[batch, kv_heads,
        …]`.

        Normalised and rotated, without the scale. Whoever wants to see attention weights recomputes them from these;
        the fused kernels never store them.
        """
        q, k = self.q(x), self.k(x if memory is None else memory)
        if self.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = self._heads(q), self._heads(k)
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation, self.interleaved), rotate(k, rotation, self.interleaved)
        return q, k

    def _heads(self, x: Tensor) -> Tensor:
        """`[batch, tokens, heads·head_dim]` -> `[batch, heads, tokens, head_dim]`."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def _last(mask: AttentionMask, keys: int) -> AttentionMask:
    """The mask over the last `keys` only."""
    return replace(
        mask,
        documents=None if mask.documents is None else mask.documents[:, -keys:],
        valid=None if mask.valid is None else mask.valid[:, -keys:],
        bias=None if mask.bias is None else mask.bias[..., -keys:],
    )
