"""Attention weights of a model that runs on fused kernels, which never store them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..mixers.attention import Attention
from ..mixers.kernels import Plan
from ..positions import Rotation

_ARGUMENTS = ("x", "plan", "rotation", "cache", "memory")


@contextmanager
def record_attention(model: nn.Module, keep: Callable[[str, Tensor], Tensor | None]) -> Iterator[dict[str, Tensor]]:
    """Collect attention weights while the model runs its usual kernels: a pre-hook recomputes them from the input.

        with record_attention(model, lambda name, weights: weights.mean(dim=1)) as seen:
            logits = model(images)
        seen["transformer.blocks.0.attn"]

    Args:
        model: anything that holds the core's `Attention` layers.
        keep: called with the module name and the weights `[batch, heads, queries, keys]`; returns what to store, such
            as the mean over heads (all weights of all layers can be large), or None for nothing.

    Raises:
        UserError: from the forward pass, for a layer whose mask was lowered to blocks (a window), or behind a cache.
    """
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            assert isinstance(module, Attention)
            with torch.no_grad():
                kept = keep(name, attention_weights(module, **dict(zip(_ARGUMENTS, args)), **kwargs))
            if kept is not None:
                seen[name] = kept

        return before

    handles = [
        module.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, Attention)
    ]
    try:
        # A compiled block would not run hooks that were added after its compilation, and say nothing.
        with torch.compiler.set_stance("force_eager"):
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def attention_weights(
    attn: Attention, x: Tensor, plan: Plan, rotation: Rotation | None = None, cache: Any = None,
    memory: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The weights that `attn(x, plan, …)` applies, float32 `[batch, heads, queries, keys]`; arguments as its
    forward.
    """
    if cache is not None or plan.kernel in ("banded", "flex"):
        what = "behind a cache" if cache is not None else f"of a layer that runs the {plan.kernel} kernel"
        raise UserError(f"Attention weights {what} cannot be recorded; use a model with full attention.")
    q, k = attn.queries_and_keys(x, rotation, memory)
    scores = q.float() @ k.float().repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT * attn.scale
    if plan.softcap is not None:
        scores = plan.softcap * torch.tanh(scores / plan.softcap)
    if plan.bias is not None:
        scores = scores + plan.bias
    if plan.causal:
        scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -torch.inf)
    if plan.allowed is not None:
        allowed = plan.allowed
        scores = scores.masked_fill(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores + allowed
    return scores.softmax(dim=-1)
