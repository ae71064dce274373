"""Attention weights of a model that runs on fused kernels, which never store them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..compiled import eager
from ..mixers.base import Weighted


@contextmanager
def record_attention(model: nn.Module, keep: Callable[[str, Tensor], Tensor | None]) -> Iterator[dict[str, Tensor]]:
    """Collects attention weights while the model runs its usual kernels: they are computed beside them.

        with record_attention(model, lambda name, weights: weights.mean(dim=1)) as seen:
            logits = model(images)
        seen["transformer.blocks.0.attn"]

    It works whatever kernel runs: with windows, documents, padding and a bias, in compiled blocks, and behind a cache,
    where `queries` are the new tokens and `keys` all that they may need. A layer that runs several times in a pass
    (recycling, or a pair model that computes its rows in chunks) leaves the weights of its last run.

    Args:
        model: anything that holds the core's `Attention` layers, or others with weights (`mixers.base.Weighted`).
        keep: called with the module name and the weights, float32 `[batch, heads, queries, keys]` (of a pair model's
            layers `[batch, rows, heads, tokens, tokens]`); returns what to store, such as the mean over heads (all
            weights of all layers can be large), or None for nothing.
    """
    seen: dict[str, Tensor] = {}

    def see(name: str, module: Weighted) -> Callable[..., None]:
        def look(*args: Any) -> None:
            kept = keep(name, module.weights(*args))
            if kept is not None:
                seen[name] = kept

        return look

    modules = {name: module for name, module in model.named_modules() if isinstance(module, Weighted)}
    with watched({module: see(name, module) for name, module in modules.items()}):
        yield seen


@contextmanager
def watched(looks: Mapping[Any, Callable[..., None]]) -> Iterator[None]:
    """Calls `looks[module](*args)`, without gradients, with what the `mix` of each such `Weighted` module is given."""

    def tap(look: Callable[..., None]) -> Callable[..., Any]:
        def wrap(mix: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def mixed(*args: Any) -> Tensor:
                with torch.no_grad():
                    look(*args)
                return mix(*args)

            return mixed

        return wrap

    with swapped({module: tap(look) for module, look in looks.items()}):
        yield


@contextmanager
def swapped(wraps: Mapping[Any, Callable[[Callable[..., Tensor]], Callable[..., Tensor]]]) -> Iterator[None]:
    """Puts `wraps[module](mix)` in the place of the `mix` of each such `Weighted` module; runs uncompiled meanwhile."""
    before = {module: vars(module).get("mix") for module in wraps}
    for module, wrap in wraps.items():
        vars(module)["mix"] = wrap(module.mix)
    try:
        # A compiled block would not run what was put in its place after its compilation, and say nothing.
        with eager():
            yield
    finally:
        for module, mix in before.items():
            if mix is None:
                del vars(module)["mix"]
            else:
                vars(module)["mix"] = mix
