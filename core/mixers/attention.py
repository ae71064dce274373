"""Multi-head attention with grouped keys and values (Vaswani et al. 2017, section 3.2; Ainslie et al. 2023)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..config import TransformerConfig
from ..errors import UserError
from ..layers import Norm
from ..positions import LearnedRotary, Rotary, Rotation, make_rotary, rotate
from .base import Call, LayerState, Mixer
from .blocked import Hubs, make_hubs
from .cache import LayerCache, MemoryCache
from .convolution import ShortConvolution
from .kernels import Plan, attend, attention_weights, plan
from .recurrent import Row, rows


class Attention(Mixer):
    """out(softmax(q·k + bias) v). `[batch, tokens, dim]` -> `[batch, tokens, dim]`.

    The linear layers are named `q`, `k`, `v` and `out`; hooks on them, or on the input of `out` (the heads' outputs,
    side by side), see everything but the attention weights, which no fused kernel stores (`core.lens` shows them).

    Args:
        config: of the whole model.
        layer: which layer this is, from 0; it decides the window and the rotation.
        cross: queries read a memory, which has neither window nor rotation.
    """

    def __init__(self, config: TransformerConfig, layer: int, cross: bool = False) -> None:
        super().__init__()
        config = config.resolved()
        heads, kv_heads, head_dim = config.heads, config.kv_heads or 0, config.head_dim or 0
        rotary = None if cross else config.rotary_at(layer)
        self.head_dim, self.cross = head_dim, cross
        self.scale = head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.window, self.softcap = None if cross else config.window_at(layer), config.attention_softcap
        self.sparse = None if cross or config.sparse is None else config.sparse.at(layer)
        self.rotary = None if rotary is None else make_rotary(rotary, heads, head_dim)
        own = None
        if rotary is not None and rotary.learned:  # layers with angles of their own share nothing
            own, self.vectors = layer, ("rotary.rate",)
        self.key = ("attention", self.window, self.sparse, self.softcap, rotary, own)
        self.qk_norm, self.dropout = config.qk_norm, config.attention_dropout
        self.q = nn.Linear(config.dim, heads * head_dim, bias=config.has_bias("q"))
        self.k = nn.Linear(config.dim, kv_heads * head_dim, bias=config.has_bias("k"))
        self.v = nn.Linear(config.dim, kv_heads * head_dim, bias=config.has_bias("v"))
        kernel, channels = 0 if cross else config.short_convolution, (heads + 2 * kv_heads) * head_dim
        self.conv = ShortConvolution(channels, kernel, False, not config.causal) if kernel else None
        if config.qk_norm == "head":
            self.q_norm, self.k_norm = Norm(head_dim, config), Norm(head_dim, config)
        elif config.qk_norm != "none":
            own = config.qk_norm == "per_head"
            self.q_norm = Norm(heads * head_dim, config, heads if own else None)
            self.k_norm = Norm(kv_heads * head_dim, config, kv_heads if own else None)
        gated = config.attention_gate and not cross
        self.gate = nn.Linear(config.dim, heads * head_dim, bias=config.has_bias("q")) if gated else None
        self.globally = None
        if config.global_projections and not cross:
            wide = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
            linears = {name: nn.Linear(config.dim, out, bias=config.has_bias(name)) for name, out in wide.items()}
            self.globally = nn.ModuleDict(linears)
        self.inner_norm = Norm(heads * head_dim, config) if "attention" in config.inner_norm else None
        self.out = nn.Linear(heads * head_dim, config.dim, bias=config.has_bias("out"))

    def initialise(self, config: TransformerConfig) -> None:
        """The convolution starts as the identity, so that the model starts as one without."""
        if self.conv is not None:
            nn.init.zeros_(self.conv.weight)
            nn.init.ones_(self.conv.weight[:, :, self.conv.own])

    def prepare(self, call: Call) -> tuple[Plan, Rotation | None, Row | None, Hubs | None]:
        """The kernel with its mask, the angles of the new tokens, their order where a convolution reads them, and the
        global tokens where these have projections of their own.
        """
        mask, held = call.mask, call.keys
        if self.window is not None:
            # Behind a cache, a layer with a window holds only the keys that the new queries may see.
            held = min(held, self.window - 1 + call.tokens)
            mask = replace(mask if held == call.keys else mask.last(held), window=self.window)
        if self.sparse is not None:
            mask = replace(mask, sparse=self.sparse).weighed(call.tokens, held, call.dtype, call.device)
        hubs = None
        if self.globally is not None and mask.global_tokens is not None:
            if mask.bias is not None:
                raise UserError(
                    "A bias was given beside global_tokens, which global_projections cannot add; leave it out."
                )
            hubs = make_hubs(mask, held, call.device)
        dropout = self.dropout if self.training else 0.0
        chosen = plan(mask, call.tokens, held, call.device, self.softcap, dropout)
        row = None if self.conv is None else rows(replace(call, mask=replace(call.mask, bias=None)))
        return chosen, None if self.rotary is None else self._rotation(self.rotary, call), row, hubs

    def _rotation(self, rotary: Rotary | LearnedRotary, call: Call) -> Rotation:
        if not rotary.config.grows:
            return rotary(call.positions, call.dtype)
        past, valid = call.keys - call.tokens, call.mask.valid
        texts = [(past, call.keys)]
        if valid is not None:
            texts = list(zip(valid[:, :past].sum(dim=1).tolist(), valid.sum(dim=1).tolist(), strict=True))
        for before, after in texts:
            if before and rotary.config.rerotates(before, after):
                raise UserError(
                    f"A text grows from {before} to {after} tokens, where rotary.scaling {rotary.config.scaling} turns "
                    "the tokens before by other angles, so their cache is of no use; give the whole text without one."
                )
        return rotary(call.positions, call.dtype, call.lengths())

    def start(self, capacity: int) -> LayerState:
        """An empty cache of keys and values."""
        return MemoryCache() if self.cross else LayerCache(self.window, capacity)

    def forward(
        self, x: Tensor, plan: Plan, rotation: Rotation | None = None, row: Row | None = None,
        hubs: Hubs | None = None, cache: LayerState | None = None, memory: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Attends from `x` to itself, or with `cross` to `memory` `[batch, memory tokens, dim]`."""
        q, local = self.q(x), cache if isinstance(cache, LayerCache) else None
        if isinstance(cache, MemoryCache):
            k, v = cache.of(memory, self._keys_and_values)
        elif self.conv is not None and row is not None:
            q, k, v = self._convolved(self.conv, [q, self.k(x), self.v(x)], row, local)
            k, v = self._heads(k, "k", rotation), self._heads(v)
        else:
            k, v = self._keys_and_values(x if memory is None else memory, rotation)
        q = self._heads(q, "q", rotation)
        if local is not None:
            k, v = local.append(k, v)
        z = self.mix(q, k, v, plan)
        if hubs is not None:
            z = hubs.put(z, self._read_globally(x, hubs, rotation))
        z = z.transpose(1, 2).flatten(2)  # [batch, tokens, heads·head_dim]
        if self.gate is not None:
            z = z * self.gate(x).sigmoid()
        return self.out(z if self.inner_norm is None else self.inner_norm(z))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        """The heads' outputs `[batch, heads, queries, head_dim]`; keys and values include those of the cache."""
        return attend(q, k, v, plan, self.scale, self.dropout if self.training else 0.0)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        """The weights that `mix` applies (without dropout), float32 `[batch, heads, queries, keys]`."""
        allowed = plan.mask.allowed(plan.queries, plan.keys, q.device)
        return attention_weights(q.float(), k.float(), allowed, plan.mask.bias, self.scale, plan.softcap)

    def _read_globally(self, x: Tensor, hubs: Hubs, rotation: Rotation | None) -> Tensor:
        """What global tokens read with projections of their own, `[batch, heads, hubs, head_dim]`."""
        if "mix" in vars(self):
            raise UserError(
                "The lens sees one attention in a layer, but with global_projections the global tokens have another "
                "one; leave global_tokens out."
            )
        assert self.globally is not None
        q, k = (self._heads(self.globally[name](x), name, rotation) for name in "qk")
        v = self._heads(self.globally["v"](x))
        return hubs.attend(hubs.of(q), k, v, self.scale, self.dropout if self.training else 0.0)

    def _convolved(
        self, conv: ShortConvolution, parts: list[Tensor], row: Row, cache: LayerCache | None
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values after their convolution, `[batch, tokens, heads·head_dim]` each."""
        joined = row.pack(torch.cat(parts, dim=-1))
        y, inputs = conv(joined, row, None if cache is None else cache.inputs)
        if cache is not None:
            cache.new_inputs = inputs
        return row.unpack(y).split([part.shape[-1] for part in parts], dim=-1)

    def _keys_and_values(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor]:
        return self._heads(self.k(x), "k", rotation), self._heads(self.v(x))

    def _heads(self, x: Tensor, name: str = "v", rotation: Rotation | None = None) -> Tensor:
        """`[batch, tokens, heads·head_dim]` -> `[batch, heads, tokens, head_dim]`; q and k normalised and rotated."""
        norm = None if self.qk_norm == "none" or name == "v" else self.q_norm if name == "q" else self.k_norm
        if norm is not None and self.qk_norm != "head":
            x = norm(x)
        x = x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if norm is not None and self.qk_norm == "head":
            x = norm(x)
        return x if rotation is None else rotate(x, rotation, self.interleaved)

    @property
    def interleaved(self) -> bool:
        """Whether neighbouring channels are rotated together."""
        return self.rotary is not None and self.rotary.config.interleaved
