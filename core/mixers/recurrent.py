"""What the recurrent mixers have in common: a row of real tokens, read from left to right, and a state of fixed size.

Padding and packed documents are dealt with once, here: the real tokens of each row are moved to its front in their
order, so that a mixer sees them as it would see them alone, with padding only at the end, where its state is held.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..masks import AttentionMask
from .base import Call, Mixer


@dataclass(frozen=True)
class Row:
    """How the tokens of a batch are read. None stands for "as they are", "all" and "nowhere".

    Args:
        order: int `[batch or 1, tokens]`, the place of the token that is read at each step, real tokens first.
        count: int `[batch]`, number of real tokens.
        begins: bool `[batch, tokens]`, True where, in this order, another document begins.
    """

    order: Tensor | None = None
    count: Tensor | None = None
    begins: Tensor | None = None

    def pack(self, x: Tensor) -> Tensor:
        """`[batch, tokens, dim]` in the order of reading."""
        return x if self.order is None else x.gather(1, self.order[..., None].expand_as(x))

    def unpack(self, y: Tensor) -> Tensor:
        """The inverse of `pack`."""
        if self.order is None:
            return y
        return y.gather(1, self.order.argsort(dim=1)[..., None].expand_as(y))

    def hold(self, x: Tensor, value: float = 0.0) -> Tensor:
        """`[batch, tokens, ...]` with `value` where no real token stands."""
        if self.count is None:
            return x
        padding = torch.arange(x.shape[1], device=x.device) >= self.count[:, None]
        return x.masked_fill(padding.reshape(*padding.shape, *[1] * (x.dim() - 2)), value)

    def last(self, context: Tensor, length: int) -> Tensor:
        """The `length` entries of `[batch, length + tokens, dim]` that end with the last real token."""
        if self.count is None:
            return context[:, context.shape[1] - length :]
        places = self.count[:, None] + torch.arange(length, device=context.device)
        return context.gather(1, places[..., None].expand(-1, -1, context.shape[2]))


def rows(call: Call, backward: bool = False) -> Row:
    """The order in which the new tokens are read, from right to left if `backward`."""
    mask, tokens = _without_bias(call.mask), call.tokens
    documents, valid = (None if x is None else x[:, -tokens:] for x in (mask.documents, mask.valid))
    some = documents if valid is None else valid
    if some is None and not backward:
        return Row()
    if some is None:
        some = torch.zeros(1, tokens, device=call.device)
    order = torch.arange(tokens, device=some.device).expand(some.shape[0], -1)
    if backward:
        order = order.flip(1)
    count = None
    if valid is not None:
        order = order.gather(1, (~valid.gather(1, order)).byte().argsort(dim=1, stable=True))
        count = valid.sum(1)
    begins = None
    if documents is not None:
        read = documents.gather(1, order)
        begins = torch.zeros_like(read, dtype=torch.bool)
        begins[:, 1:] = read[:, 1:] != read[:, :-1]
    return Row(order if valid is not None or backward else None, count, begins)


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same in float32, or in their own type where that is wider: sums over many tokens need it."""
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors)


def exact(x: Tensor) -> torch.autocast | nullcontext[None]:
    """A block in which autocast leaves matrix products in the type of their factors."""
    if x.device.type == "meta":  # has no autocast
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


@torch.no_grad()
def start_steps(bias: Tensor, low: float = 1e-3, high: float = 1e-1) -> None:
    """Fills `bias` such that softplus(bias), the step size Δ, is spread evenly in its logarithm over `low` to `high`
    (Gu and Dao 2023, section 3.6).
    """
    step = torch.empty_like(bias).uniform_(math.log(low), math.log(high)).exp()
    bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus


class State:
    """The tensors that one recurrent layer keeps between calls, by name, each `[batch, ...]`. Their size is fixed.

    What a call writes counts after `commit`, so that one that fails half way leaves everything as it was.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._pending: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor | None:
        """What was kept under `name`, or None before the first call."""
        return self.tensors.get(name)

    def put(self, name: str, tensor: Tensor) -> None:
        """Keeps `tensor` under `name`, from `commit` on."""
        self._pending[name] = tensor

    def written(self, name: str) -> Tensor:
        """What the present call has put under `name`."""
        return self._pending[name]

    def commit(self) -> None:
        """Takes over what the forward pass wrote."""
        self.tensors, self._pending = self.tensors | self._pending, {}

    def copy(self) -> None:
        """Holds copies, which are of use in the mode they are made in (PyTorch's inference mode or not)."""
        self.tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}

    def select(self, rows: Tensor) -> None:
        """Keeps the batch rows with these indices, int `[rows]`."""
        self.tensors = {name: tensor[rows] for name, tensor in self.tensors.items()}


class RecurrentMixer(Mixer):
    """A mixer that reads the tokens of a row from left to right. `[batch, tokens, dim]` -> `[batch, tokens, dim]`."""

    key = "recurrent"
    memories: tuple[str, ...] = ("memory",)
    """Names of the tensors of its state in which it remembers (`core.lens`)."""

    def prepare(self, call: Call) -> tuple[Any, ...]:
        """The order of reading, shared by all recurrent layers.

        Raises:
            UserError: the call has a bias, which only attention can add to its scores.
        """
        return (rows(call),)

    def start(self, capacity: int) -> State:
        """The state before the first token; it does not grow with `capacity`."""
        return State()

    def forward(self, x: Tensor, row: Row, cache: State | None = None) -> Tensor:
        """Mixes; padding is left with outputs that mean nothing."""
        state = State() if cache is None else cache
        return row.unpack(self.mix(row.pack(x), row, state))

    def mix(self, x: Tensor, row: Row, state: State) -> Tensor:
        """Computes the outputs for `x` `[batch, tokens, dim]`, real tokens first, and moves `state` on."""
        raise NotImplementedError


class Bidirectional(Mixer):
    """out(forward) + out(backward): one mixer for each direction, for models that are not causal.

    The second reads the real tokens of each row, and of each document, from right to left.

    Args:
        forth: reads from left to right.
        back: another one of the same kind.
    """

    key = "bidirectional"

    def __init__(self, forth: RecurrentMixer, back: RecurrentMixer) -> None:
        super().__init__()
        self.forth, self.back = forth, back

    def prepare(self, call: Call) -> tuple[Any, ...]:
        """The orders of reading of both directions."""
        return rows(call), rows(call, backward=True)

    def forward(self, x: Tensor, forward: Row, backward: Row, cache: State | None = None) -> Tensor:
        """`[batch, tokens, dim]` -> `[batch, tokens, dim]`."""
        return self.forth(x, forward) + self.back(x, backward)


def _without_bias(mask: AttentionMask) -> AttentionMask:
    if mask.bias is not None:
        raise UserError(
            "A bias between tokens was given, but a recurrent mixer has no scores to add it to; use mixer attention in"
            " all layers."
        )
    return mask
