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
from .points import blocks_of, check_heads, has_heads, matching, points
from .record import swapped

Edit = Callable[[Tensor], Tensor]
"""Gets the value of a point and returns another one of its shape."""

Edges = Tensor | Callable[[Tensor, Tensor], Tensor]
"""Which edges to cut: bool `[queries, keys]`, `[heads, queries, keys]` or `[batch, heads, queries, keys]`, True where
the query shall not see the key; or a function from the numbers of queries `[queries, 1]` and keys `[1, keys]` to such.
"""


@contextmanager
def lens(
    model: nn.Module, *, edit: Mapping[str, Edit] | None = None, cut: Mapping[int | str, Edges] | None = None,
    keep: Sequence[str] | Mapping[str, Callable[[Tensor], Tensor]] = (),
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """Runs `model` in the `with` block under edits and cuts; yields what is kept, by point.

    Args:
        model: holds one Transformer, of any task.
        edit: functions by point or pattern; they are applied in the order of computation.
        cut: edges by layer, or by heads of the pair stack (`2.start_z`). A query that sees no key any more reads zeros.
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


def sloped(
    model: nn.Module, score: Callable[[], Tensor], names: Sequence[str]
) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
    """Values of points, and the slope of a score in each: lists by point, of every pass that `score` makes."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def track(name: str, x: Tensor) -> Tensor:
        """The same value, of which a gradient can be asked though nothing before it may have one."""
        if not torch.is_grad_enabled():  # a pass whose gradients the model does not want
            return x
        seen[name].append(x if x.requires_grad else x.detach().requires_grad_())
        return seen[name][-1]

    with torch.enable_grad(), lens(model, edit={name: partial(track, name) for name in names}):
        value = score()
    slopes = iter(torch.autograd.grad(value, [x for some in seen.values() for x in some]))
    return {n: [x.detach() for x in some] for n, some in seen.items()}, {
        n: [next(slopes) for _ in some] for n, some in seen.items()
    }


def _cuts(model: nn.Module, cut: Mapping[int | str, Edges], missing: set[str]) -> dict[Any, Callable[..., Any]]:
    """For the attention of each place, what takes the place of its `mix`."""
    wraps: dict[Any, Callable[..., Any]] = {}
    blocks, known = blocks_of(model), points(model)
    for place, edges in cut.items():
        if isinstance(place, int):
            check_heads(model, place, [])
        elif not has_heads(place):
            raise UserError(f"Edges were cut at {place}, but can be cut at heads alone: z, or start_z and the like.")
        for name in matching(known, place) if isinstance(place, str) else [f"{place}.z"]:
            attn = getattr(blocks[int(name.split(".")[0])], "attn", None)
            found = partial(missing.discard, f"the cut in layer {place}")
            if isinstance(attn, Attention):
                wraps[attn] = partial(_without, attn, edges, place, found)
            elif name in known:
                wraps[known[name].module] = partial(_without_gated, known[name].size, edges, place, found)
            else:
                kind = type(attn).__name__
                raise UserError(f"Layer {place} has no attention (it is a {kind}), so no edge can be cut.")
    return wraps


def _without(attn: Attention, edges: Edges, place: int | str, found: Any, mix: Callable[..., Tensor]) -> Any:
    def mixed(q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        if plan.queries != plan.keys:
            raise UserError(
                f"Edges of layer {place} were cut behind a cache, where keys have other numbers than tokens; run the "
                "whole input at once, without one."
            )
        gone = _gone(edges, (q.shape[0], q.shape[1], plan.queries, plan.keys), q.device, place)
        allowed = plan.mask.allowed(plan.queries, plan.keys, q.device)
        if bool((gone if allowed is None else gone & allowed).any()):
            found()
        left = ~gone if allowed is None else allowed & ~gone
        dropout = attn.dropout if attn.training else 0.0
        return reference_attention(q, k, v, left, plan.mask.bias, attn.scale, plan.softcap, dropout)

    return mixed


def _without_gated(heads: int, edges: Edges, place: int | str, found: Any, mix: Callable[..., Tensor]) -> Any:
    """For attention whose `mix` takes x `[batch, rows, tokens, dim]` and a bias shared by all rows (the pair stack)."""

    def mixed(x: Tensor, bias: Tensor | None, *more: Any) -> Tensor:
        gone = _gone(edges, (x.shape[0], heads, x.shape[2], x.shape[2]), x.device, place)
        if bool(gone.any()):
            found()
        gone = gone.expand(-1, heads, x.shape[2], -1)
        masked = torch.zeros_like(gone, dtype=x.dtype) if bias is None else bias.expand_as(gone)
        z = mix(x, masked.masked_fill(gone, torch.finfo(x.dtype).min / 2), *more)
        return z.masked_fill(gone.all(-1).mT[:, None, :, :, None], 0.0)

    return mixed


def _gone(edges: Edges, full: tuple[int, ...], device: torch.device, place: int | str) -> Tensor:
    """Edges as bool `[batch or 1, heads or 1, queries, keys]`."""
    if not isinstance(edges, Tensor):
        edges = edges(torch.arange(full[2], device=device)[:, None], torch.arange(full[3], device=device)[None])
    gone = edges.to(device)
    whole = gone.reshape((1,) * (4 - gone.dim()) + tuple(gone.shape)) if gone.dim() <= 4 else gone
    fits = whole.dim() == 4 and all(have in (1, want) for have, want in zip(whole.shape, full))
    if gone.dtype != torch.bool or not fits:
        raise UserError(
            f"The edges to cut in layer {place} are {gone.dtype} {list(gone.shape)}, but must be bool [queries, keys], "
            f"[heads, queries, keys] or [batch, heads, queries, keys], here {list(full)}."
        )
    return whole
