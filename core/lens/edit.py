"""`lens`: change values inside a model, cut what tokens see of each other, and keep what passes.

    with lens(model, edit={"3.z": double}, cut={2: previous}, keep=["*.resid_post"]) as seen:
        logits = model(tokens)
    seen["5.resid_post"]

No module, flag or entry of the state dict is added, so a model costs nothing more when nobody looks. The points are
those of `points`. Passes under a lens run uncompiled, because hooks that are added to a compiled model are not called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..mixers.attention import Attention
from ..mixers.kernels import Plan, reference_attention
from .points import check_heads, matching, points, transformer_of
from .record import swapped

Edit = Callable[[Tensor], Tensor]
"""Gets the value of a point and returns another one of its shape."""

Edges = Tensor | Callable[[Tensor, Tensor], Tensor]
"""Which edges to cut: bool `[queries, keys]`, `[heads, queries, keys]` or `[batch, heads, queries, keys]`, True where
the query shall not see the key; or a function from the numbers of queries `[queries, 1]` and keys `[1, keys]` to such.
"""


@contextmanager
def lens(
    model: nn.Module, *, edit: Mapping[str, Edit] | None = None, cut: Mapping[int, Edges] | None = None,
    keep: Sequence[str] | Mapping[str, Callable[[Tensor], Tensor]] = (),
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """Runs `model` in the `with` block under edits and cuts; yields what is kept, by point.

    Args:
        model: holds one Transformer, of any task.
        edit: functions by point or pattern; they are applied in the order of computation.
        cut: edges by layer. A query that sees no key any more reads zeros.
        keep: points or patterns whose values are kept, after edits; or functions by pattern of what to keep of each
            (such as a mean, where all values would be large). They are detached; of several passes the last is kept.

    Raises:
        UserError: a point, layer or head that the model does not have; an edit of another shape; and at the end, where
            a named edit, cut or value was never reached, so that nothing was done: no silent effect of none.
    """
    known = points(model)
    kept: Mapping[str, Callable[[Tensor], Tensor]] = (
        keep if isinstance(keep, Mapping) else dict.fromkeys(keep, lambda x: x)
    )
    seen: dict[str, Tensor] = {}
    missing = {f"the edit of {pattern}" for pattern in edit or {}} | {f"the value of {pattern}" for pattern in kept}
    missing |= {f"the cut in layer {layer}" for layer in cut or {}}

    def change(function: Edit, pattern: str, name: str, x: Tensor) -> Tensor:
        new = function(x)
        if not isinstance(new, Tensor) or new.shape != x.shape:
            shape = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise UserError(f"The edit of {name} returns {shape}, but must return a tensor of {list(x.shape)}.")
        missing.discard(f"the edit of {pattern}")
        return new

    def store(function: Callable[[Tensor], Tensor], pattern: str, name: str, x: Tensor) -> None:
        seen[name] = function(x.detach())
        missing.discard(f"the value of {pattern}")

    with ExitStack() as stack:
        for pattern, function in (edit or {}).items():
            for name in matching(known, pattern):
                stack.enter_context(known[name].hooked(partial(change, function, pattern, name)))
        for pattern, function in kept.items():
            for name in matching(known, pattern):
                stack.enter_context(known[name].hooked(partial(store, function, pattern, name)))
        # Runs uncompiled even where nothing is cut: hooks that a compiled model does not know are not called.
        stack.enter_context(swapped(_cuts(model, cut, missing) if cut else {}))
        yield seen
        if missing:
            raise UserError(
                f"Nothing came of {', '.join(sorted(missing))}: the model did not pass there within the block (or no "
                "edge that was cut was seen); run it, in this thread, with the points that this input reaches."
            )


def _cuts(model: nn.Module, cut: Mapping[int, Edges], missing: set[str]) -> dict[Any, Callable[..., Any]]:
    """For the attention of each layer, what takes the place of its `mix`."""
    wraps: dict[Any, Callable[..., Any]] = {}
    blocks: Any = transformer_of(model).blocks
    for layer, edges in cut.items():
        check_heads(model, layer, [])
        attn = blocks[layer].attn
        if not isinstance(attn, Attention):
            raise UserError(f"Layer {layer} has no attention (it is a {type(attn).__name__}), so no edge can be cut.")
        wraps[attn] = partial(_without, attn, edges, layer, missing)
    return wraps


def _without(attn: Attention, edges: Edges, layer: int, missing: set[str], mix: Callable[..., Tensor]) -> Any:
    def mixed(q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        if plan.queries != plan.keys:
            raise UserError(
                f"Edges of layer {layer} were cut behind a cache, where keys have other numbers than tokens; run the "
                "whole input at once, without one."
            )
        rows = torch.arange(plan.queries, device=q.device)[:, None]
        gone = edges if isinstance(edges, Tensor) else edges(rows, torch.arange(plan.keys, device=q.device)[None])
        gone = _checked(gone.to(q.device), q, plan, layer)
        allowed = plan.mask.allowed(plan.queries, plan.keys, q.device)
        lost = gone if allowed is None else gone & allowed
        if bool(lost.any()):
            missing.discard(f"the cut in layer {layer}")
        left = ~gone if allowed is None else allowed & ~gone
        dropout = attn.dropout if attn.training else 0.0
        return reference_attention(q, k, v, left, plan.mask.bias, attn.scale, plan.softcap, dropout)

    return mixed


def _checked(gone: Tensor, q: Tensor, plan: Plan, layer: int) -> Tensor:
    """Edges as bool `[batch or 1, heads or 1, queries, keys]`."""
    whole = gone.reshape((1,) * (4 - gone.dim()) + tuple(gone.shape)) if gone.dim() <= 4 else gone
    full = (q.shape[0], q.shape[1], plan.queries, plan.keys)
    fits = whole.dim() == 4 and all(have in (1, want) for have, want in zip(whole.shape, full))
    if gone.dtype != torch.bool or not fits:
        raise UserError(
            f"The edges to cut in layer {layer} are {gone.dtype} {list(gone.shape)}, but must be bool [queries, keys], "
            f"[heads, queries, keys] or [batch, heads, queries, keys], here {list(full)}."
        )
    return whole
