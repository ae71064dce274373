"""Attention weights of some heads, a few at a time, as the model runs: nothing is kept between layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..mixers.attention import Attention
from ..mixers.kernels import Plan, attention_weights
from ..transformer import Transformer
from .record import watched


@torch.no_grad()
def stream_attention(
    transformer: Transformer, run: Callable[[], Any], consume: Callable[[int, Tensor], None],
    heads: Sequence[Tensor] | None = None, group: int | None = None,
) -> None:  # fmt: skip
    """Calls `run()`, which runs `transformer` with its fused kernels, and hands weights to `consume(layer, weights)`.

    Args:
        transformer: in evaluation mode.
        run: runs it once.
        consume: gets float32 `[batch, at most group, queries, keys]`, heads in the order of `heads`.
        heads: for each layer the numbers of its heads, int `[n]`; layers without any are skipped. All by default.
        group: heads at a time; all of a layer by default.
    """

    def look(layer: int, attn: Attention, wanted: Tensor) -> Callable[..., None]:
        def see(q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> None:
            allowed = plan.mask.allowed(plan.queries, plan.keys, q.device)
            if allowed is not None and bool(allowed.all()):
                allowed = None  # saves a pass over all weights
            bias, shared = plan.mask.bias, q.shape[1] // k.shape[1]
            for part in wanted.to(q.device).split(group or len(wanted)):
                own = bias if bias is None or bias.shape[1] == 1 else bias[:, part]
                found = attention_weights(q[:, part], k[:, part // shared], allowed, own, attn.scale, plan.softcap)
                consume(layer, found.float())

        return see

    looks = {}
    block: Any
    for layer, block in enumerate(transformer.blocks):
        wanted = torch.arange(transformer.config.heads) if heads is None else heads[layer]
        if len(wanted):
            looks[block.attn] = look(layer, block.attn, wanted)
    with watched(looks):
        run()
