"""ONE description of who may attend to whom; `kernels.py` lowers it to the fastest right kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import UserError
from .sparse import SparseConfig


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
        prefix: bool `[batch, keys]`; with `causal`, tokens of the prefix also see those of it that come later (prefix
            language models, Raffel et al. 2020, section 3.2.1).
        global_tokens: bool `[batch, keys]`; where `window` or `sparse` limits what is seen, these tokens see all, and
            all see them (Longformer).
        sparse: blocks that each token sees, in the place of `window`.
    """

    causal: bool = False
    window: int | None = None
    documents: Tensor | None = None
    valid: Tensor | None = None
    bias: Tensor | None = None
    cross: bool = False
    prefix: Tensor | None = None
    global_tokens: Tensor | None = None
    sparse: SparseConfig | None = None

    def __post_init__(self) -> None:
        for name, flags in (("valid", self.valid), ("prefix", self.prefix), ("global_tokens", self.global_tokens)):
            if flags is not None and (flags.dtype != torch.bool or flags.dim() != 2):
                words = "True for real tokens; a mask of ones and zeros becomes one with .bool()"
                raise UserError(
                    f"{name} is {flags.dtype} {tuple(flags.shape)}, but must be bool [batch, tokens]"
                    f"{f', {words}' if name == 'valid' else ''}."
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
        if self.sparse is not None and self.window is not None:
            raise UserError(f"window is {self.window}, but must be null where sparse says which blocks are near.")

    @property
    def patterned(self) -> bool:
        """Whether more than order, distance and documents decides."""
        shared = self.global_tokens is not None and self.window is not None
        return not self.cross and (shared or self.sparse is not None or (self.causal and self.prefix is not None))

    def last(self, keys: int) -> AttentionMask:
        """The same for the last `keys` keys."""

        def cut(part: Tensor | None) -> Tensor | None:
            return None if part is None else part[..., -keys:]

        names = ("documents", "valid", "bias", "prefix", "global_tokens")
        return replace(self, **{name: cut(getattr(self, name)) for name in names})

    def weighed(self, queries: int, keys: int, dtype: torch.dtype, device: torch.device) -> AttentionMask:
        """The same with the weight of the first blocks in its bias."""
        if self.sparse is None or self.sparse.weight == 1:
            return self
        rule = Rule(self, queries, keys, device)
        row, key = torch.arange(rule.rows, device=device)[:, None, None], torch.arange(keys, device=device)
        wide = torch.promote_types(dtype, torch.float32)
        own = rule.log_weight(row, key[keys - queries :, None], key[None], wide)[:, None]
        return replace(self, bias=own if self.bias is None else self.bias + own)

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
        if self.patterned:
            rule = Rule(self, queries, keys, device)
            row = torch.arange(rule.rows, device=device)[:, None, None]
            return rule(row, query[:, None], key[None, :]).expand(rule.rows, queries, keys)[:, None]
        distance = query[:, None] - key[None, :]
        allowed = within(distance, self.causal, self.window)
        segments = self.segments()
        if segments is not None:
            same = segments[:, keys - queries : keys, None] == segments[:, None, :keys]
            allowed = same if allowed is None else allowed & same
            return allowed[:, None]
        return None if allowed is None else allowed[None, None]


class Rule:
    """Who sees whom as a function of indices, which dense masks, blocks and FlexAttention ask in their own ways.

    Args:
        mask: over `queries` x `keys`, not `cross`.
        queries: the last of the keys.
        keys: how many.
        device: of the indices.

    Attributes:
        rows: rows of the batch that differ, or 1.
        hubs: bool `[batch or 1, keys]`, real tokens that see all and are seen by all; None for none.
        partners: int `[batch or 1, queries, random]`, numbers of the random blocks of each query, -1 for none.
        short: bool `[batch or 1, keys]`, tokens of documents that blocks do not limit; None for none.
    """

    def __init__(self, mask: AttentionMask, queries: int, keys: int, device: torch.device | str | None) -> None:
        self.mask, self.first = mask, keys - queries
        self.segments, self.prefix = mask.segments(), mask.prefix
        self.hubs, self.number, self.partners, self.short = mask.global_tokens, None, None, None
        if mask.sparse is not None:
            self._count_blocks(mask.sparse, keys, device)
        if self.hubs is not None and self.segments is not None:
            self.hubs = self.hubs & (self.segments >= 0)
        tensors = (self.segments, self.prefix, self.hubs, self.number)
        self.rows = max([1, *(len(tensor) for tensor in tensors if tensor is not None)])

    def __call__(self, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether each query sees each key: indices that broadcast -> bool."""
        mask, seen = self.mask, key == key

        def both(of: Tensor) -> tuple[Tensor, Tensor]:
            which = row if len(of) > 1 else torch.zeros_like(row)
            return of[which, query], of[which, key]

        if mask.window is not None:
            seen = (query - key).abs() < mask.window
        elif mask.sparse is not None and self.number is not None:
            own, other = both(self.number)
            seen = (own - other).abs() <= mask.sparse.around
            if self.partners is not None:
                which = row if len(self.partners) > 1 else torch.zeros_like(row)
                for choice in range(self.partners.shape[2]):
                    seen = seen | (self.partners[which, query - self.first, choice] == other)
            if self.short is not None:
                seen = seen | both(self.short)[0]
        if self.hubs is not None:
            one, other = both(self.hubs)
            seen = seen | one | other
        if mask.causal:
            order = key <= query
            if self.prefix is not None:
                one, other = both(self.prefix)
                order = order | (one & other)
            seen = seen & order
        if self.segments is not None:
            one, other = both(self.segments)
            seen = seen & (one == other)
        return seen

    def log_weight(self, row: Tensor, query: Tensor, key: Tensor, dtype: torch.dtype) -> Tensor:
        """What is added to scores because keys of the first blocks count `sparse.weight` times; as in a call."""
        sparse, hubs, number = self.mask.sparse, self.hubs, self.number
        assert sparse is not None and hubs is not None and number is not None
        limited = ~hubs if self.short is None else ~(hubs | self.short)

        def of(x: Tensor, at: Tensor) -> Tensor:
            return x[row if len(x) > 1 else torch.zeros_like(row), at]

        more = of(limited, query) & (of(number, key) < sparse.first)
        return more.to(dtype) * math.log(sparse.weight)

    def _count_blocks(self, sparse: SparseConfig, keys: int, device: torch.device | str | None) -> None:
        """Numbers the blocks of each document from 0, and chooses the global and the random ones."""
        if self.segments is None:
            position = torch.arange(keys, device=device)[None]
            tokens = torch.full_like(position, keys)
        else:
            position = positions_in_segments(self.segments)
            run = (position == 0).cumsum(1) - 1
            most = torch.zeros_like(position).scatter_reduce(1, run, position, "amax")
            tokens = most.gather(1, run) + 1  # of the document of each token
        number, blocks = position // sparse.block, (tokens + sparse.block - 1) // sparse.block
        if sparse.whole:
            self.short = tokens <= sparse.whole
        hubs = number < sparse.first
        if sparse.last:
            hubs = hubs | (number >= blocks - sparse.last)
        self.number = number
        self.hubs = hubs if self.hubs is None else hubs | self.hubs
        if sparse.random:
            self.partners = self._choose(sparse, number[:, self.first :, None], blocks[:, self.first :, None], keys)

    def _choose(self, sparse: SparseConfig, number: Tensor, blocks: Tensor, keys: int) -> Tensor:
        """The random blocks of each query: those of the highest `_mixed` number among the blocks that it would not see
        otherwise. With `causal` these are before it, so that the choice stays while a text grows.
        """
        other = torch.arange(-(-keys // sparse.block), device=number.device)
        free = (other >= sparse.first) & ((number - other).abs() > sparse.around)
        free = free & (other < (number if self.mask.causal else blocks - sparse.last))
        mixed = _mixed(number, other, sparse.seed).masked_fill(~free, -1)
        best = mixed.topk(min(sparse.random, mixed.shape[-1]), dim=-1)
        return best.indices.masked_fill(best.values < 0, -1)


def _mixed(one: Tensor, other: Tensor, seed: int) -> Tensor:
    """A number of 32 bits for each pair and seed, the same on all devices and whatever stands beside it."""
    x = (one * 0x9E3779B1 + other * 0x85EBCA77 + seed * 0xC2B2AE3D) & 0xFFFFFFFF
    for factor, shift in ((0x2C1B3C6D, 15), (0x297A2D39, 12)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 15)


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
