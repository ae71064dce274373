"""Block-sparse attention in time and memory proportional to what is seen.

Each block of queries reads a list of key blocks (its neighbours and its random ones) and, beside them, the global
tokens gathered from the whole sequence. Global tokens are few, so as queries they read everything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..masks import AttentionMask, Rule
from ..sparse import SparseConfig


@dataclass(frozen=True)
class Hubs:
    """The global tokens of a batch; `rows` is the batch, or 1 where all rows are alike.

    Args:
        places: int `[rows, hubs]`; rows with fewer are filled up with the number of tokens.
        allowed: bool `[rows, 1, hubs, tokens]`, what they see as queries.
    """

    places: Tensor
    allowed: Tensor

    def of(self, x: Tensor) -> Tensor:
        """Their rows, `[batch, heads, tokens, head_dim]` -> `[batch, heads, hubs, head_dim]`."""
        at = self._places(x).clamp(max=x.shape[2] - 1)
        return x.gather(2, at.expand(-1, x.shape[1], -1, x.shape[3]))

    def put(self, x: Tensor, new: Tensor) -> Tensor:
        """`x` `[batch, heads, tokens, head_dim]` with theirs replaced by `new` `[batch, heads, hubs, head_dim]`."""
        at = self._places(x).expand(-1, x.shape[1], -1, x.shape[3])
        return F.pad(x, (0, 0, 0, 1)).scatter(2, at, new)[:, :, : x.shape[2]]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
        """What they read: q `[batch, heads, hubs, head_dim]`, k and v of all tokens -> like q."""
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.allowed, scale=scale, dropout_p=dropout, enable_gqa=grouped
        )

    def _places(self, x: Tensor) -> Tensor:
        return self.places.expand(x.shape[0], -1)[:, None, :, None]


@dataclass(frozen=True)
class Blocks:
    """What `blocked_attention` needs of a mask; `rows` is the batch, or 1 where all rows are alike.

    Args:
        width: tokens of a block.
        listed: int `[rows, blocks, span]`, the key blocks that each block of queries reads.
        allowed: bool `[rows, blocks, width, span·width + hubs]`, which of these keys each query sees.
        hubs: the global tokens.
    """

    width: int
    listed: Tensor
    allowed: Tensor
    hubs: Hubs


def keys_read(mask: AttentionMask) -> int:
    """How many keys of a block's list a query reads, without global tokens."""
    sides = 1 if mask.causal else 2
    if mask.sparse is not None:
        return (sides * mask.sparse.around + 1 + mask.sparse.random) * mask.sparse.block
    return (sides + 1) * (mask.window or 0)


def make_blocks(mask: AttentionMask, tokens: int, device: torch.device) -> Blocks:
    """Lowers a mask with `sparse`, or with `window` and `global_tokens`, whose rows begin with a real token."""
    rule, sparse = Rule(mask, tokens, tokens, device), mask.sparse
    width, around = (mask.window or 1, 1) if sparse is None else (sparse.block, sparse.around)
    blocks = -(-tokens // width)
    own = torch.arange(blocks, device=device)
    listed = own[:, None] + torch.arange(-around, 1 if mask.causal else around + 1, device=device)
    listed = listed.expand(rule.rows, -1, -1)
    if rule.partners is not None:
        partners = rule.partners[:, ::width].expand(rule.rows, -1, -1)  # equal for the tokens of a block
        listed = torch.cat([listed, partners], dim=2)
    exists = (listed >= 0) & (listed < blocks)
    row = torch.arange(rule.rows, device=device)[:, None, None, None]
    query = torch.arange(blocks * width, device=device).view(1, blocks, width, 1)
    key = (listed[..., None] * width + torch.arange(width, device=device)).flatten(2)[:, :, None]
    inside = query.clamp(max=tokens - 1), key.clamp(0, tokens - 1)
    hubs = _flags(rule, tokens, device)
    allowed = rule(row, *inside) & (key < tokens) & exists.repeat_interleave(width, 2)[:, :, None]
    allowed = allowed & ~hubs[row, inside[1]]  # those stand beside the list
    allowed = allowed | ((query >= tokens) & (key == query))  # rows that fill the last block, which nobody reads
    most = _count(sparse, tokens) if mask.global_tokens is None and mask.valid is None else int(hubs.sum(1).max())
    found = _hubs(rule, hubs, most)
    at = found.places.clamp(max=tokens - 1)[:, None, None]
    beside = rule(row, inside[0], at) & (found.places < tokens)[:, None, None]
    return Blocks(width, listed.clamp(0, blocks - 1), torch.cat([allowed, beside], 3), found)


def make_hubs(mask: AttentionMask, tokens: int, device: torch.device) -> Hubs:
    """The tokens that `mask` says are global, over a whole sequence."""
    rule = Rule(mask, tokens, tokens, device)
    hubs = _flags(rule, tokens, device)
    return _hubs(rule, hubs, int(hubs.sum(1).max()))


def _flags(rule: Rule, tokens: int, device: torch.device) -> Tensor:
    hubs = torch.zeros(1, tokens, dtype=torch.bool, device=device) if rule.hubs is None else rule.hubs
    return hubs.expand(rule.rows, -1)


def _hubs(rule: Rule, flags: Tensor, most: int) -> Hubs:
    every = torch.arange(flags.shape[1], device=flags.device)
    places = torch.where(flags, every, len(every)).sort(1).values[:, :most]
    row = torch.arange(len(flags), device=flags.device)[:, None, None]
    seen = rule(row, places.clamp(max=len(every) - 1)[..., None], every) | (places == len(every))[..., None]
    return Hubs(places, seen[:, None])


def _count(sparse: SparseConfig | None, tokens: int) -> int:
    """How many global tokens `sparse` gives a row of so many."""
    if sparse is None:
        return 0
    blocks = -(-tokens // sparse.block)
    begin = min(sparse.first * sparse.block, tokens)
    return min(begin + max(tokens - max(blocks - sparse.last, sparse.first) * sparse.block, 0), tokens)


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, scale: float, dropout: float) -> Tensor:
    """Softmax attention over the keys that `blocks` lists; equals `reference_attention` with the dense mask.

    Args:
        q: `[batch, heads, tokens, head_dim]`.
        k: `[batch, kv_heads, tokens, head_dim]`, as v.
        v: the values.
        blocks: from `make_blocks`.
        scale: factor on the scores.
        dropout: on the weights.

    Returns:
        Like q.
    """
    batch, heads, tokens, head_dim = q.shape
    width, count, grouped = blocks.width, blocks.listed.shape[1], heads != k.shape[1]
    offset = torch.arange(batch, device=q.device)[:, None, None] * count
    listed = (blocks.listed + offset).flatten()
    allowed = blocks.allowed.expand(batch, -1, -1, -1).flatten(0, 1)[:, None]

    def cut(x: Tensor) -> Tensor:
        """`[batch, heads, tokens, head_dim]` -> `[batch·blocks, heads, width, head_dim]`."""
        x = F.pad(x, (0, 0, 0, count * width - tokens))
        return x.unflatten(2, (count, width)).transpose(1, 2).flatten(0, 1)

    def gathered(x: Tensor) -> Tensor:
        """The listed blocks, then the global tokens: `[batch·blocks, kv_heads, span·width + hubs, head_dim]`."""
        near = cut(x).index_select(0, listed).unflatten(0, (batch * count, -1)).transpose(1, 2).flatten(2, 3)
        beside = blocks.hubs.of(x)[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
        return torch.cat([near, beside], dim=2)

    out = F.scaled_dot_product_attention(
        cut(q), gathered(k), gathered(v), attn_mask=allowed, scale=scale, dropout_p=dropout, enable_gqa=grouped
    )
    out = out.unflatten(0, (batch, count)).transpose(1, 2).reshape(batch, heads, count * width, head_dim)[:, :, :tokens]
    if blocks.hubs.places.shape[1] == 0:
        return out
    return blocks.hubs.put(out, blocks.hubs.attend(blocks.hubs.of(q), k, v, scale, dropout))
