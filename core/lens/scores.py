"""What each head attends to, from queries, keys and the log of the softmax's sum: the weights are never stored.

A weight is exp(q·k · scale + bias - lse), where lse, the log of the sum over all keys, is what a fused kernel computes
anyway. So the weights of chosen edges cost one dot product each, and memory grows with the tokens, not their square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..mixers.attention import Attention
from ..mixers.kernels import Plan, attend
from .points import transformer_of
from .record import swapped

Pattern = Callable[[int, torch.device], Tensor]
"""Which keys count for each query: from the number of tokens to int `[batch or 1, tokens, keys that count]`, -1 for
none.
"""


def previous(tokens: int, device: torch.device) -> Tensor:
    """The token before."""
    return (torch.arange(tokens, device=device) - 1)[None, :, None]


def first(tokens: int, device: torch.device) -> Tensor:
    """The first token, where heads that have nothing to say often look; of later tokens."""
    return torch.where(torch.arange(tokens, device=device) > 0, 0, -1)[None, :, None]


def itself(tokens: int, device: torch.device) -> Tensor:
    """The token itself."""
    return torch.arange(tokens, device=device)[None, :, None]


def duplicate(ids: Tensor) -> Pattern:
    """Earlier copies of the same token; ids int `[batch, tokens]`."""
    return lambda tokens, device: _earlier(ids.to(device), 0)


def induction(ids: Tensor) -> Pattern:
    """The tokens that followed earlier copies of the same token (Olsson et al. 2022); ids int `[batch, tokens]`."""
    return lambda tokens, device: _earlier(ids.to(device), 1)


def _earlier(ids: Tensor, shift: int) -> Tensor:
    """int `[batch, tokens, most]`: `shift` behind each earlier copy of a token."""
    keys = [
        [[j + shift for j in range(i) if row[j] == row[i] and j + shift < i + (shift == 0)] for i in range(len(row))]
        for row in ids.tolist()
    ]
    most = max((len(found) for row in keys for found in row), default=0) or 1
    return torch.tensor([[found + [-1] * (most - len(found)) for found in row] for row in keys], device=ids.device)


def edges_of(keys: Tensor) -> Tensor:
    """What a pattern returns, as edges to cut: bool `[batch or 1, queries, keys]`."""
    rows, tokens, _ = keys.shape
    found = torch.zeros(rows, tokens, tokens + 1, dtype=torch.bool, device=keys.device)
    return found.scatter_(2, torch.where(keys < 0, tokens, keys), True)[..., :-1]


@torch.no_grad()
def head_scores(model: nn.Module, run: Callable[[], Any], patterns: Mapping[str, Pattern]) -> dict[str, Tensor]:
    """The attention of each head to the keys of a pattern, in a mean over the queries for which there are any.

    Args:
        model: in evaluation mode, holding one Transformer; layers without attention score NaN.
        run: runs it once, without a cache.
        patterns: by name, such as `{"previous": previous, "induction": induction(ids)}`.

    Returns:
        By name, float32 `[layers, heads]`, on the CPU.

    Raises:
        UserError: no query has a key of the pattern.
    """
    transformer = transformer_of(model)
    shape = (transformer.config.depth, transformer.config.heads)
    scores = {name: torch.full(shape, float("nan")) for name in patterns}
    keys: dict[str, Tensor] = {}

    def look(layer: int, attn: Attention) -> Callable[..., Any]:
        def wrap(mix: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def mixed(q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
                out, lse = attend_with_lse(q, k, v, plan, attn.scale)
                for name, pattern in patterns.items():
                    if name not in keys:
                        keys[name] = _checked(pattern(plan.queries, q.device), name, q, plan)
                    scores[name][layer] = _score(q, k, lse, keys[name], plan, attn.scale)
                return out

            return mixed

        return wrap

    blocks: Any = transformer.blocks
    wraps = {b.attn: look(layer, b.attn) for layer, b in enumerate(blocks) if isinstance(b.attn, Attention)}
    with swapped(wraps):
        run()
    return scores


def attend_with_lse(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    """What `attend` returns, and the log of the softmax's sum, float32 `[batch, heads, queries]`.

    On a CPU PyTorch's fused kernel returns both; elsewhere the sum is taken over blocks of queries.
    """
    shared = q.shape[1] // k.shape[1]
    if q.device.type == "cpu" and plan.softcap is None and plan.kernel in ("sdpa", "masked"):
        mask = plan.allowed if plan.kernel == "masked" else None
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -math.inf)
        wide_k, wide_v = (x if shared == 1 else x.repeat_interleave(shared, dim=1) for x in (k, v))
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, wide_k, wide_v, 0.0, plan.causal, attn_mask=None if mask is None else mask.to(q.dtype), scale=scale
        )
    blocks = [_scores(q[:, :, at : at + 64], k, plan, scale, at).logsumexp(-1) for at in range(0, q.shape[2], 64)]
    return attend(q, k, v, plan, scale), torch.cat(blocks, dim=2)


def _scores(q: Tensor, k: Tensor, plan: Plan, scale: float, at: int) -> Tensor:
    """Scores of queries from number `at` on, float32 `[batch, heads, some queries, keys]`; -inf where hidden."""
    rows = slice(at, at + q.shape[2])
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    found = (q.float() * scale) @ k.float().mT
    if plan.softcap is not None:
        found = plan.softcap * torch.tanh(found / plan.softcap)
    if plan.mask.bias is not None:
        found = found + plan.mask.bias[:, :, rows if plan.mask.bias.shape[2] > 1 else slice(None)]
    allowed = plan.mask.allowed(plan.queries, plan.keys, q.device)
    if allowed is None:
        return found
    return found.masked_fill(~allowed[:, :, rows if allowed.shape[2] > 1 else slice(None)], -math.inf)


def _score(q: Tensor, k: Tensor, lse: Tensor, keys: Tensor, plan: Plan, scale: float) -> Tensor:
    """The mean weight of the keys `[batch or 1, queries, n]`, by head: float32 `[heads]`, on the CPU."""
    batch, heads = q.shape[:2]
    k = k if k.shape[1] == heads else k.repeat_interleave(heads // k.shape[1], dim=1)
    keys = keys.expand(batch, -1, -1)
    allowed = plan.mask.allowed(plan.queries, plan.keys, q.device)
    total = torch.zeros(batch, heads, plan.queries, device=q.device)
    for key in keys.unbind(-1):  # [batch, queries]
        at = key.clamp(min=0)[:, None, :, None]
        found = (q.float() * k.gather(2, at.expand(-1, heads, -1, k.shape[-1])).float()).sum(-1) * scale
        if plan.softcap is not None:
            found = plan.softcap * torch.tanh(found / plan.softcap)
        if plan.mask.bias is not None:
            found = found + _of_edges(plan.mask.bias, key, heads)
        seen = (key >= 0)[:, None]
        if allowed is not None:
            seen = seen & _of_edges(allowed, key, heads)
        total += torch.exp(found - lse).masked_fill(~seen, 0.0)
    counts = (keys >= 0).any(-1).float()[:, None]
    return ((total * counts).sum((0, 2)) / counts.sum()).cpu()


def _of_edges(x: Tensor, key: Tensor, heads: int) -> Tensor:
    """Values of `x` `[batch or 1, heads or 1, queries or 1, keys]` at `key` `[batch, queries]`, by head:
    `[batch, heads, queries]`.
    """
    batch, queries = key.shape
    at = key.clamp(min=0)[:, None, :, None].expand(-1, heads, -1, 1)
    return x.expand(batch, heads, queries, x.shape[-1]).gather(3, at)[..., 0]


def _checked(keys: Tensor, name: str, q: Tensor, plan: Plan) -> Tensor:
    if plan.queries != plan.keys:
        raise UserError("Head scores were asked for behind a cache, but need the whole input at once; run without one.")
    if keys.dim() != 3 or keys.shape[1] != plan.queries or keys.shape[0] not in (1, q.shape[0]):
        raise UserError(
            f"The pattern '{name}' returns {list(keys.shape)}, but must return [{q.shape[0]} or 1, {plan.queries}, n]."
        )
    if not bool((keys >= 0).any()):
        raise UserError(f"The pattern '{name}' has no key for any query of this input; give another input.")
    return keys
