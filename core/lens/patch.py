"""Activation patching: values of a clean run, put into a corrupted one, and how much of the answer comes back.

An effect is (patched - corrupted) / (clean - corrupted) of a measure of the output: 1 brings the clean answer back, 0
changes nothing (Vig et al. 2020; Meng et al. 2022). `attribute` estimates all effects from two forward passes and one
backward pass: gradient x difference (Nanda 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..work import progress
from .edit import lens, sloped
from .points import Part, Point, check_parts, has_heads, matching, points, transformer_of

Measure = Callable[[Any], Tensor]
"""From what the model returns to one number."""


@torch.no_grad()
def patch(
    model: nn.Module, clean: Any, corrupted: Any, measure: Measure, where: Sequence[str] = ("*.resid_post",),
    positions: Sequence[int] | None = None, heads: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """The effect of each point, position and head: one pass of the model for each.

    Args:
        model: in evaluation mode; it is called with `clean` and with `corrupted`.
        clean: input `[batch, tokens, ...]`.
        corrupted: another one of the same shape.
        measure: one number from the model's output, such as a difference of two logits.
        where: points or patterns.
        positions: tokens to patch one by one; all of them together by default.
        heads: patch each head by itself; `where` must then name points with heads (`q`, `k`, `v`, `z`).

    Returns:
        By point, effects `[positions or 1, heads or 1]`.

    Raises:
        UserError: inputs of different shape, or of equal answers.
    """
    known = points(model)
    names = list(dict.fromkeys(name for pattern in where for name in matching(known, pattern)))
    kept, top, bottom = _both(model, clean, corrupted, measure, names)
    _check_positions(kept, positions)
    at = [slice(None)] if positions is None else [slice(p, p + 1) for p in positions]
    found: dict[str, Tensor] = {}
    parts = {name: range(kept[name].shape[-2]) if _by_head(known, name, heads) else [None] for name in names}
    with progress("patching", len(at) * sum(map(len, parts.values())), "passes") as step:
        for name in names:
            effects = torch.empty(len(at), len(parts[name]), dtype=torch.float64)
            for i, tokens in enumerate(at):
                for j, head in enumerate(parts[name]):
                    part = slice(None) if head is None else slice(head, head + 1)
                    with lens(model, edit={name: partial(_put, kept[name], _at(name, tokens, part))}):
                        effects[i, j] = (float(measure(model(corrupted))) - bottom) / (top - bottom)
                    step(1)
            found[name] = effects
    return found


def attribute(
    model: nn.Module, clean: Any, corrupted: Any, measure: Measure, where: Sequence[str] = ("*.resid_post",),
    positions: Sequence[int] | None = None, heads: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """The linear estimate of what `patch` measures, for all points at once; arguments and result as there."""
    known = points(model)
    names = list(dict.fromkeys(name for pattern in where for name in matching(known, pattern)))
    kept, top, bottom = _both(model, clean, corrupted, measure, names)
    _check_positions(kept, positions)
    values, slopes = sloped(model, lambda: measure(model(corrupted)), names)
    found = {}
    for name in names:
        product = slopes[name][-1].double() * (kept[name] - values[name][-1]).double() / (top - bottom)
        split = _by_head(known, name, heads)
        product = product.movedim(-2, 2).flatten(3) if split else product.flatten(2)
        summed = product.sum(-1).sum(0)  # [tokens] or [tokens, heads]
        summed = summed if split else summed[:, None]
        found[name] = summed.sum(0, keepdim=True) if positions is None else summed[list(positions)]
    return found


@torch.no_grad()
def path(
    model: nn.Module, clean: Any, corrupted: Any, measure: Measure, sender: Part,
    receiver: Part | None = None,
) -> float:  # fmt: skip
    """The effect of one part on the answer through another part alone (path patching, Wang et al. 2022).

    The model runs on the corrupted input; the sender gets its clean value, and all branches between it and the receiver
    keep what they add in the corrupted run, so that only the residual stream carries the difference. What the receiver
    then computes is put into a second corrupted run.

    Args:
        model: in evaluation mode.
        clean, corrupted: inputs of one shape.
        measure: one number from the model's output.
        sender: a point and a head of it, or None for all of it; `z`, `attn_out`, `mixed`, `hidden` or `ffn_out`.
        receiver: likewise, of a later layer, such as ("5.q", 2); None for the answer itself (the direct path).

    Raises:
        UserError: the receiver is not behind the sender.
    """
    check_parts(model, [sender, *([] if receiver is None else [receiver])])
    start, (kind, depth) = int(sender[0].split(".")[0]), (sender[0].split(".")[1], transformer_of(model).config.depth)
    stop = depth if receiver is None else int(receiver[0].split(".")[0])
    if kind not in ("z", "mixed", "attn_out", "hidden", "ffn_out") or stop <= start:
        raise UserError(
            f"The path goes from {sender[0]} to {receiver[0] if receiver else 'the answer'}, but must begin at a "
            "branch (z, mixed, attn_out, hidden, ffn_out) and end in a later layer."
        )
    # Branches behind the sender; those of the receiver's layer come after it or do not matter to its inputs.
    between = [f"{layer}.{branch}" for layer in range(start, depth) for branch in ("attn_out", "ffn_out")]
    between.remove(f"{start}.attn_out")
    if kind in ("hidden", "ffn_out"):
        between.remove(f"{start}.ffn_out")
    kept, top, bottom = _both(model, clean, corrupted, measure, [sender[0]])
    with lens(model, keep=between) as held:
        model(corrupted)
    if receiver is not None:
        # What the receiver reads must not be frozen where it is a branch itself.
        between = [name for name in between if int(name.split(".")[0]) < stop]
        if receiver[0].split(".")[1] in ("hidden", "ffn_out"):
            between.append(f"{stop}.attn_out")
    freeze: dict[str, Any] = {name: partial(_take, held[name]) for name in between}
    send = {sender[0]: partial(_put, kept[sender[0]], _at(sender[0], slice(None), _one(sender[1])))}
    if receiver is None:
        with lens(model, edit=send | freeze):
            return (float(measure(model(corrupted))) - bottom) / (top - bottom)
    with lens(model, edit=send | freeze, keep=[receiver[0]]) as seen:
        model(corrupted)
    with lens(
        model, edit={receiver[0]: partial(_put, seen[receiver[0]], _at(receiver[0], slice(None), _one(receiver[1])))}
    ):
        return (float(measure(model(corrupted))) - bottom) / (top - bottom)


def _one(number: int | None) -> slice:
    return slice(None) if number is None else slice(number, number + 1)


def _take(value: Tensor, x: Tensor) -> Tensor:
    return value


def _both(
    model: nn.Module, clean: Any, corrupted: Any, measure: Measure, names: Sequence[str]
) -> tuple[dict[str, Tensor], float, float]:
    """Values of the clean run, and the measure of both runs."""
    if isinstance(clean, Tensor) and isinstance(corrupted, Tensor) and clean.shape != corrupted.shape:
        raise UserError(
            f"clean is {list(clean.shape)} and corrupted {list(corrupted.shape)}, but they must have one shape, because"
            " values are put in at the same positions; pad the shorter one, or exchange single tokens."
        )
    with torch.no_grad():
        with lens(model, keep=names) as seen:
            top = float(measure(model(clean)))
        bottom = float(measure(model(corrupted)))
    if top == bottom:
        raise UserError(f"The measure is {top:g} for both inputs, so there is nothing to bring back; choose others.")
    return dict(seen), top, bottom


def _check_positions(kept: dict[str, Tensor], positions: Sequence[int] | None) -> None:
    """Raises UserError for positions that a point does not have, where a patch would do nothing."""
    for name, value in kept.items() if positions is not None else ():
        count = 0 if name.split(".")[1].startswith("state_") else value.shape[1]
        if wrong := [at for at in positions or () if not 0 <= at < count]:
            raise UserError(
                f"Position {wrong[0]} is named, but {name} has {count or 'no'} positions; name others or another point."
            )


def _by_head(known: dict[str, Point], name: str, heads: bool) -> bool:
    if heads and not known[name].headed:
        raise UserError(f"The point {name} has no heads; name q, k, v or z, or leave heads out.")
    return heads


def _at(name: str, tokens: slice, part: slice) -> tuple[Any, ...]:
    """The index of some positions, and of some heads or channels."""
    if part == slice(None):
        return (slice(None), tokens)
    return (slice(None), tokens, ..., part, slice(None)) if has_heads(name) else (slice(None), tokens, ..., part)


def _put(value: Tensor, at: tuple[Any, ...], x: Tensor) -> Tensor:
    x = x.clone()
    x[at] = value[at]
    return x
