"""The one place where attention kernels are chosen.

`plan` looks at a mask, the shapes and the device once a batch and names a kernel; `attend` runs it in every layer.
`print(plan)` tells which kernel runs and why. Each kernel equals `reference_attention` in value and gradient.

| kernel    | when                                                       | cost                     |
|-----------|------------------------------------------------------------|--------------------------|
| sdpa      | no limit, or causal over a whole sequence                  | flash kernels, no mask   |
| banded    | a window much shorter than the sequence                    | tokens x window          |
| blocked   | blocks, or a window with global tokens; no bias            | tokens x what is seen    |
| masked    | documents, padding, a bias, prefix, behind a cache         | tokens²                  |
| alone     | guesses of generation: each query as a step of its own     | tokens x keys            |
| flex      | on CUDA: all masks and soft cap; no bias, no dropout       | only the blocks in sight |
| reference | soft-capped scores elsewhere                               | tokens², scores stored   |

SDPA is given no mask where `is_causal` says the same, because any mask disables its flash kernels; `is_causal` is
aligned top-left and so is never used behind a cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import UserError
from ..masks import AttentionMask, Rule, within
from .blocked import Blocks, blocked_attention, keys_read, make_blocks

KERNELS = ("reference", "sdpa", "masked", "banded", "blocked", "flex")
FORCED = "forced"
_forced: ContextVar[str | None] = ContextVar("forced kernel", default=None)

_FLEX_MIN_TOKENS = 256
"""Below this a block-sparse kernel has nothing to skip (its blocks are 128 tokens)."""


@dataclass(frozen=True)
class Plan:
    """A mask lowered to a kernel, shared by all layers with the same window."""

    kernel: str
    why: str
    mask: AttentionMask = field(default_factory=AttentionMask)
    """What was lowered, over `queries` x `keys`: it says who sees whom whatever the kernel."""
    queries: int = 0
    keys: int = 0
    causal: bool = False
    """For `sdpa`: the kernel's own causal mask."""
    allowed: Tensor | None = None
    """bool or float `[batch or 1, heads or 1, queries, keys]` for `masked` and `reference`; blocks of it for
    `banded`.
    """
    softcap: float | None = None
    block_mask: Any = None
    blocks: Blocks | None = None
    spans: list[tuple[int, int]] | None = None
    """For `alone`: the first key that each query sees, and the one behind the last."""

    def __str__(self) -> str:
        size = f" {self.mask.window} of {self.keys} tokens" if self.kernel == "banded" and self.why != FORCED else ""
        return f"{self.kernel} ({self.why}{size})"


@contextmanager
def force_kernel(name: str) -> Iterator[None]:
    """Uses one kernel wherever it can express the mask, in this thread: for tests and measurements."""
    if name not in KERNELS:
        raise UserError(f"kernel is '{name}', but must be one of {', '.join(KERNELS)}.")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def plan(
    mask: AttentionMask,
    queries: int,
    keys: int,
    device: torch.device,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Plan:
    """Chooses a kernel for `mask` over `queries` x `keys` and builds what it needs, once a batch."""
    name, why = _choose(mask, queries, keys, device, softcap, dropout)
    chosen = Plan(name, why, mask, queries, keys, softcap=softcap)
    if name == "sdpa":
        return replace(chosen, causal=mask.causal and queries > 1 and not mask.cross)
    if name == "banded":
        return replace(chosen, allowed=_band_mask(mask, keys, device))
    if name == "blocked":
        return replace(chosen, blocks=make_blocks(mask, keys, device))
    if name == "flex":
        return replace(chosen, block_mask=_block_mask(mask, queries, keys, device))
    allowed = mask.allowed(queries, keys, device)
    if name == "masked" and mask.bias is not None:
        allowed = mask.bias if allowed is None else mask.bias.masked_fill(~allowed, -torch.inf)
    return replace(chosen, allowed=allowed)


def _choose(
    mask: AttentionMask, queries: int, keys: int, device: torch.device, softcap: float | None, dropout: float
) -> tuple[str, str]:
    window = mask.window if mask.window is not None and mask.window < keys and not mask.cross else None
    grouped, patterned = mask.documents is not None or mask.valid is not None, mask.patterned
    square = queries == keys and not mask.cross
    flex_can = device.type == "cuda" and mask.bias is None and square and keys >= _FLEX_MIN_TOKENS and dropout == 0
    possible = {"reference": "a readable reference"}
    if softcap is None:
        possible["masked"] = "bias" if mask.bias is not None else "a dense mask"
        free = mask.bias is None and not grouped and window is None and not patterned
        if free and (square or not mask.causal or queries == 1):
            possible["sdpa"] = "causal" if mask.causal else "every token sees every token"
        if square and window is not None and mask.bias is None and not patterned:
            possible["banded"] = "window"
        limited = (mask.sparse is not None and not mask.sparse.whole) or (
            window is not None and mask.global_tokens is not None
        )
        if square and limited and mask.bias is None and mask.prefix is None and _begins_real(mask):
            possible["blocked"] = "blocks and global tokens"
    if flex_can and (window is not None or grouped or patterned or softcap is not None):
        possible["flex"] = "block-sparse on CUDA"
    forced = _forced.get()
    if forced in possible:
        return forced, FORCED
    if forced and softcap is None:
        return "masked", f"{forced} cannot express this mask"
    for name in ("sdpa", "flex"):
        if name in possible:
            return name, possible[name]
    # The band holds 2·window keys a query (3 without causality): it wins once that is clearly less than the square.
    if "banded" in possible and window is not None and keys >= 4 * window:
        return "banded", possible["banded"]
    if "blocked" in possible and keys >= 2 * keys_read(mask):
        return "blocked", possible["blocked"]
    name = "masked" if "masked" in possible else "reference"
    return name, possible[name] if name == "masked" else "soft-capped scores"


def _begins_real(mask: AttentionMask) -> bool:
    """Whether rows are one document from their first token on, padding only behind it; where the host cannot see the
    values at no cost, the answer is no.
    """
    flags = [flags for flags in (mask.valid, mask.global_tokens) if flags is not None]
    if mask.documents is not None or torch.compiler.is_compiling():
        return False
    if any(f.device.type != "cpu" or isinstance(f, FakeTensor) for f in flags):
        return False
    return mask.valid is None or bool((mask.valid[:, 0].all()) & (mask.valid[:, 1:] <= mask.valid[:, :-1]).all())


def attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, dropout: float = 0.0) -> Tensor:
    """Softmax attention. q `[batch, heads, queries, head_dim]`, k and v `[batch, kv_heads, keys, head_dim]` -> like
    q.
    """
    grouped = q.shape[1] != k.shape[1]
    if plan.spans is not None:
        one = replace(plan, kernel="sdpa" if plan.softcap is None else "reference", spans=None)
        each = [(q[:, :, i : i + 1], k[:, :, a:b], v[:, :, a:b]) for i, (a, b) in enumerate(plan.spans)]
        return torch.cat([attend(*parts, one, scale, dropout) for parts in each], dim=2)
    if plan.kernel == "sdpa" and grouped and q.shape[2] == 1 and not plan.causal:
        return _one_query(q, k, v, None, scale, dropout)
    if plan.kernel == "sdpa":
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=plan.causal, scale=scale, dropout_p=dropout, enable_gqa=grouped
        )
    if plan.kernel == "masked":
        mask = plan.allowed
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)
        if grouped and q.shape[2] == 1 and (mask is None or mask.shape[1] == 1):
            return _one_query(q, k, v, mask, scale, dropout)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, dropout_p=dropout, enable_gqa=grouped
        )
    if plan.kernel == "banded":
        return _banded_attention(q, k, v, plan, scale, dropout)
    if plan.blocks is not None:
        return blocked_attention(q, k, v, plan.blocks, scale, dropout)
    if plan.kernel == "flex":
        return _flex()(q, k, v, _softcap_score(plan.softcap), plan.block_mask, scale, grouped)
    return reference_attention(q, k, v, plan.allowed, plan.mask.bias, scale, plan.softcap, dropout)


def _one_query(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    """One query a head: those that share keys are as good as several queries of one head, and read the keys once.

    mask `[batch or 1, 1, 1, keys]`.
    """
    together = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    mask = None if mask is None else mask.expand(-1, -1, together.shape[2], -1)
    return F.scaled_dot_product_attention(together, k, v, mask, dropout, scale=scale).reshape(q.shape)


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, bias: Tensor | None = None,
    scale: float | None = None, softcap: float | None = None, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """Attention as the paper writes it (Vaswani et al. 2017, equation 1), with every option; stores all scores."""
    groups = q.shape[1] // k.shape[1]
    weights = attention_weights(q, k, allowed, bias, scale, softcap).to(v.dtype)
    return F.dropout(weights, dropout) @ v.repeat_interleave(groups, dim=1)


def attention_weights(
    q: Tensor, k: Tensor, allowed: Tensor | None = None, bias: Tensor | None = None, scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:  # fmt: skip
    """softmax(q·k · scale + bias) over the keys that are allowed: what no fused kernel returns.

    Args:
        q: `[batch, heads, queries, head_dim]`.
        k: `[batch, kv_heads, keys, head_dim]`.
        allowed: bool `[batch or 1, heads or 1, queries or 1, keys]`; a query that may see no key has weights of zero.
        bias: float `[batch or 1, heads or 1, queries or 1, keys]`, of any precision.
        scale: factor on the scores; head_dim^-0.5 by default.
        softcap: scores become cap·tanh(score / cap).

    Returns:
        `[batch, heads, queries, keys]` in float32, or float64 for such queries.
    """
    k = k if q.shape[1] == k.shape[1] else k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q * (q.shape[-1] ** -0.5 if scale is None else scale) @ k.mT
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    wide = torch.promote_types(scores.dtype, torch.float32)
    if allowed is None:
        return scores.softmax(dim=-1, dtype=wide)
    # Not -inf, whose softmax is NaN in value and gradient where all keys are hidden.
    hidden = ~allowed
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1, dtype=wide).masked_fill(hidden, 0.0)


# --- a sliding window as overlapping blocks ---------------------------------------------------------------------------


def _band_mask(mask: AttentionMask, tokens: int, device: torch.device) -> Tensor:
    """bool `[blocks or batch·blocks, 1, window, span·window]`: which keys of its own and neighbouring blocks a query
    sees.
    """
    width = mask.window or 0
    blocks, span = -(-tokens // width), 2 if mask.causal else 3
    query = torch.arange(blocks * width, device=device).view(blocks, width, 1)
    first = torch.arange(-width, (blocks - 1) * width, width, device=device).view(blocks, 1, 1)
    key = first + torch.arange(span * width, device=device)
    allowed = within(query - key, mask.causal, mask.window)
    assert allowed is not None
    # Rows that only fill the last block see themselves, so that no softmax is empty; nobody else sees them.
    allowed = allowed & (key >= 0) & ((key < tokens) | (query >= tokens))
    segments = mask.segments()
    if segments is None:
        return allowed[:, None]
    padded = F.pad(segments, (0, blocks * width - tokens), value=-1)
    same = padded[:, query] == padded[:, key.clamp(0, blocks * width - 1)]  # [batch, blocks, window, span·window]
    return (allowed & same).flatten(0, 1)[:, None]


def _banded_attention(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, dropout: float) -> Tensor:
    """Attention within a window in time and memory proportional to tokens x window.

    queries   | block i-1 | block i | block i+1 |
    keys      |   each block of queries sees its own and the previous block (and the next, when not causal)
    """
    batch, heads, tokens, head_dim = q.shape
    width, allowed = plan.mask.window, plan.allowed
    assert allowed is not None and width is not None
    blocks = -(-tokens // width)
    q, k, v = (F.pad(x, (0, 0, 0, blocks * width - tokens)) for x in (q, k, v))
    q = _fold(q.unflatten(2, (blocks, width)))
    k, v = (_fold(_with_neighbours(x, blocks, width, plan.mask.causal)) for x in (k, v))
    if allowed.shape[0] != q.shape[0]:
        allowed = allowed.repeat(batch, 1, 1, 1)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=allowed, scale=scale, dropout_p=dropout, enable_gqa=heads != k.shape[1]
    )
    out = out.unflatten(0, (batch, blocks)).transpose(1, 2).reshape(batch, heads, blocks * width, head_dim)
    return out[:, :, :tokens]


def _with_neighbours(x: Tensor, blocks: int, width: int, causal: bool) -> Tensor:
    """`[batch, heads, blocks·width, head_dim]` -> `[batch, heads, blocks, 2 or 3 times width, head_dim]`."""
    padded = F.pad(x, (0, 0, width, 0 if causal else width))
    span = 2 if causal else 3
    return padded.unfold(2, span * width, width)[:, :, :blocks].mT


def _fold(x: Tensor) -> Tensor:
    """`[batch, heads, blocks, tokens, head_dim]` -> `[batch·blocks, heads, tokens, head_dim]`."""
    return x.transpose(1, 2).flatten(0, 1)


# --- block-sparse attention on CUDA -----------------------------------------------------------------------------------


@cache
def _flex() -> Any:
    """FlexAttention, compiled once for all layers: uncompiled it is slower than a dense mask."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@cache
def _softcap_score(softcap: float | None) -> Any:
    if softcap is None:
        return None
    return lambda score, batch, head, query, key: softcap * torch.tanh(score / softcap)


@cache
def _compiled_block_mask() -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask, dynamic=False)


def _block_mask(mask: AttentionMask, queries: int, keys: int, device: torch.device) -> Any:
    segments = mask.segments()
    rule = Rule(mask, queries, keys, device) if mask.patterned else None

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if rule is not None:
            return rule(batch, query, key)
        allowed = within(query - key, mask.causal, mask.window)
        if segments is None:
            return query >= 0 if allowed is None else allowed
        same = segments[batch, query] == segments[batch, key]
        return same if allowed is None else allowed & same

    batch = (None if segments is None else segments.shape[0]) if rule is None else rule.rows
    return _compiled_block_mask()(visible, batch, None, queries, keys, device=device)
