"""ONE description of who may attend to whom; `kernels.py` lowers it to the fastest right kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import UserError


@dataclass(frozen=True)
class AttentionMask:
    """Which query may attend to which key. Everything left out means "no limit".

    Queries are the *last* `queries` of the `keys` positions, so that the same description serves training (queries ==
    keys) and generation with a cache (fewer queries than keys). With `cross`, queries belong to another sequence and
    only `valid` and `bias` apply.

    Args:
        causal: query i sees keys at or before its own position.
        window: query i sees keys at a distance |i - j| < window: with `causal`, `window` keys including itself
            (Hugging Face's convention; `flash_attn`'s window_size=(w, 0) means w + 1 keys).
        documents: int `[batch, keys]`, a token sees only tokens of its own document (packing). Ids are at least 0.
        valid: bool `[batch, keys]`, True for real tokens. Real tokens never see padding; padding sees padding, so
            that no row of the softmax is empty, and its outputs mean nothing.
        bias: float `[batch or 1, heads or 1, queries, keys]`, added to the scaled scores; receives a gradient.
        cross: queries are another sequence than keys.
    """

    causal: bool = False
    window: int | None = None
    documents: Tensor | None = None
    valid: Tensor | None = None
    bias: Tensor | None = None
    cross: bool = False

    def __post_init__(self) -> None:
        if self.valid is not None and (self.valid.dtype != torch.bool or self.valid.dim() != 2):
            raise UserError(
                f"valid is {self.valid.dtype} {tuple(self.valid.shape)}, but must be bool [batch, tokens], True "
                "for real tokens; a mask of ones and zeros becomes one with .bool()."
            )
        if self.documents is not None and (self.documents.is_floating_point() or self.documents.dim() != 2):
            raise UserError(
                f"documents is {self.documents.dtype} {tuple(self.documents.shape)}, but must be int [batch, tokens]."
            )
        if self.bias is not None and (not self.bias.is_floating_point() or self.bias.dim() != 4):
            raise UserError(
                f"bias is {self.bias.dtype} {tuple(self.bias.shape)}, but must be float [batch or 1, heads or 1, "
                "queries, keys]."
            )

    def last(self, keys: int) -> AttentionMask:
        """The same for the last `keys` keys."""

        def cut(part: Tensor | None) -> Tensor | None:
            return None if part is None else part[..., -keys:]

        return replace(self, documents=cut(self.documents), valid=cut(self.valid), bias=cut(self.bias))

    def segments(self) -> Tensor | None:
        """Documents and padding as one: int `[batch, keys]`, padding is document -1. None when all tokens are one."""
        if self.valid is None:
            return self.documents
        documents = torch.zeros_like(self.valid, dtype=torch.long) if self.documents is None else self.documents
        return documents.masked_fill(~self.valid, -1)

    def allowed(self, queries: int, keys: int, device: torch.device | str | None = None) -> Tensor | None:
        """The readable reference: bool `[batch or 1, 1, queries, keys]`, True where attention may go; None for no
        limit.
        """
        if self.cross:
            return None if self.valid is None else self.valid[:, None, None, :].expand(-1, 1, queries, -1)
        key = torch.arange(keys, device=device)
        query = key[keys - queries :]
        distance = query[:, None] - key[None, :]
        allowed = within(distance, self.causal, self.window)
        segments = self.segments()
        if segments is not None:
            same = segments[:, keys - queries : keys, None] == segments[:, None, :keys]
            allowed = same if allowed is None else allowed & same
            return allowed[:, None]
        return None if allowed is None else allowed[None, None]


def within(distance: Tensor, causal: bool, window: int | None) -> Tensor | None:
    """Whether a key at `distance` = query - key positions is visible; None when nothing limits it."""
    allowed = distance >= 0 if causal else None
    if window is not None:
        near = distance.abs() < window
        allowed = near if allowed is None else allowed & near
    return allowed


def positions_in_segments(segments: Tensor) -> Tensor:
    """Number the tokens of each segment from 0. `segments` int `[batch, tokens]` -> int `[batch, tokens]`.

    A packed document, or a row with padding on its left, gets the positions it would have alone.
    """
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values
