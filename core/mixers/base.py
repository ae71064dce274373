"""What a mixer is: the part of a block that lets tokens exchange information.

`Transformer.forward` describes a batch once, as a `Call`. Each mixer turns it into what its forward needs (`prepare`),
and layers whose mixers have equal keys share the result. For generation a mixer makes the state of its layer (`start`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..config import TransformerConfig
from ..masks import AttentionMask


@dataclass(frozen=True)
class Call:
    """One call of a model, as its mixers need to know it.

    Args:
        mask: who may attend to whom; it speaks of all `keys` tokens.
        positions: of the new tokens, `[tokens]` or `[batch, tokens]`, with two rotary axes `[..., tokens, 2]`.
        tokens: how many are new.
        keys: how many there are with those of earlier calls, or in the memory of a cross-attention.
        dtype: of the token vectors.
        device: of the token vectors.
    """

    mask: AttentionMask
    positions: Tensor
    tokens: int
    keys: int
    dtype: torch.dtype
    device: torch.device

    def segments(self) -> tuple[Tensor, Tensor]:
        """Which new tokens are real, and which of these begin a document; both bool `[batch or 1, tokens]`.

        A document begins at a real token that no real token of the same document stands before, padding between them
        or not.
        """
        segments = self.mask.segments()
        if segments is None:
            segments = torch.zeros(1, self.keys, dtype=torch.long, device=self.device)
        real = segments >= 0
        index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
        last = torch.where(real, index, -1).cummax(dim=1).values  # the newest real token so far
        before = torch.cat([torch.full_like(last[:, :1], -1), last[:, :-1]], dim=1)
        same = segments.gather(1, before.clamp(min=0)) == segments
        begins = real & ((before < 0) | ~same)
        return real[:, -self.tokens :], begins[:, -self.tokens :]

    def lengths(self) -> Tensor | int:
        """How many tokens the document of each new token has so far, int `[batch, tokens]`; one number where all
        tokens are of one.
        """
        segments = self.mask.segments()
        if segments is None:
            return self.keys
        names, index = segments.unique(return_inverse=True)
        counts = torch.zeros(len(segments), len(names), dtype=torch.long, device=segments.device)
        counts.scatter_add_(1, index, torch.ones_like(index))
        return counts.gather(1, index)[:, -self.tokens :]


class LayerState(Protocol):
    """What one layer keeps of the tokens before the new ones.

    A forward pass writes beside what it found; only `commit`, after the last layer, makes it count. So a call that
    fails half way leaves everything as it was.
    """

    def commit(self) -> None:
        """Takes over what the forward pass wrote."""
        ...

    def copy(self) -> None:
        """Holds copies, which are of use in the mode they are made in (PyTorch's inference mode or not)."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keeps the batch rows with these indices, int `[rows]`."""
        ...


class Mixer(nn.Module):
    """`forward(x, *prepared, cache=None)`, `[batch, tokens, dim]` -> `[batch, tokens, dim]`."""

    key: Hashable
    """Layers with equal keys share what `prepare` returns."""
    vectors: tuple[str, ...] = ()
    """Names of parameters that are no matrices, whatever their shape: neither orthogonalised nor decayed."""

    def prepare(self, call: Call) -> tuple[Any, ...]:
        """What `forward` needs to know of a batch, made once for all layers with this key."""
        raise NotImplementedError

    def start(self, capacity: int) -> LayerState:
        """The state of a layer that has seen nothing yet, with room for `capacity` tokens."""
        raise NotImplementedError

    def initialise(self, config: TransformerConfig) -> None:
        """Set the parameters that the table in `core/initialise.py` does not suit; called after it."""


@runtime_checkable
class Weighted(Protocol):
    """An attention whose weights can be looked at: `weights` takes the arguments of `mix`, through which all passes."""

    def mix(self, *args: Any) -> Tensor:
        """Takes the weighted sum of the values."""
        ...

    def weights(self, *args: Any) -> Tensor:
        """The weights of that sum, at least float32 `[..., heads, queries, keys]`."""
        ...
