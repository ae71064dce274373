"""A sum of outer products that decays: the recurrence behind linear attention, retention and Mamba-2.

    S_t = exp(g_t) S_{t-1} + k_t v_tᵀ        y_t = q_tᵀ S_t

Two forms with one signature: `reference_decayed_scan` follows the equation token by token; `decayed_scan` computes the
same in chunks by matrix products (SSD, Dao and Gu 2024, section 6), at the cost of tokens·chunk instead of a loop.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PART = 4096
"""Tokens computed at once: bounds the memory of a long sequence without a cache of chunks."""


def reference_decayed_scan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, begins: Tensor | None = None, state: Tensor | None = None,
    chunk: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Follows the recurrence token by token; arguments and results as `decayed_scan`. `chunk` is not used."""
    heads = v.shape[2]
    q, k = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (q, k))
    s = v.new_zeros(v.shape[0], heads, k.shape[3], v.shape[3]) if state is None else state
    outputs = []
    for t in range(v.shape[1]):
        if begins is not None:
            s = s.masked_fill(begins[:, t, None, None, None], 0.0)
        s = log_decay[:, t, :, None, None].exp() * s + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t, :, None, :] @ s).squeeze(-2))
    return torch.stack(outputs, dim=1), s


def decayed_scan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, begins: Tensor | None = None, state: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Computes the recurrence in chunks.

    Args:
        q: `[batch, tokens, groups, state]`; each group serves heads / groups neighbouring heads.
        k: `[batch, tokens, groups, state]`.
        v: `[batch, tokens, heads, width]`.
        log_decay: `[batch, tokens, heads]`, at most 0. With 0 and a key of zeros a token leaves the state as it is.
        begins: bool `[batch, tokens]`, True where the state is cleared before the token (a document begins).
        state: `[batch, heads, state, width]` before the first token; zeros by default.
        chunk: tokens a chunk. The result does not depend on it, beyond rounding.

    Returns:
        y `[batch, tokens, heads, width]` and the state after the last token.
    """
    tokens = v.shape[1]
    if tokens == 1:
        return _one(q, k, v, log_decay, begins, state)
    outputs = []
    for start in range(0, tokens, PART):
        part = slice(start, start + PART)
        y, state = _part(
            q[:, part], k[:, part], v[:, part], log_decay[:, part], None if begins is None else begins[:, part],
            state, min(chunk, tokens),
        )  # fmt: skip
        outputs.append(y)
    assert state is not None
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), state


def _one(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, begins: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token, as in generation: the state is read and written as seldom as it can be."""
    groups = q.shape[2]
    keys, values = k[:, 0, :, None, :, None], v[:, 0].unflatten(1, (groups, -1))[..., None, :]
    if state is None:
        s = keys * values  # [batch, groups, heads/groups, state, width]
    else:
        if begins is not None:
            state = state.masked_fill(begins[:, 0, None, None, None], 0.0)
        s = torch.addcmul((state * log_decay[:, 0, :, None, None].exp()).unflatten(1, (groups, -1)), keys, values)
    y = q[:, 0, :, None, None, :] @ s
    return y.flatten(1, 3)[:, None], s.flatten(1, 2)


def _part(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, begins: Tensor | None, state: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    tokens, groups, heads = v.shape[1], q.shape[2], v.shape[2]
    q, k, v = (chunks(x, chunk).unflatten(1, (groups, -1)) for x in (q, k, v))  # [batch, groups, 1 or more, c, Q, ·]
    between, head, tail, whole = (
        x.unflatten(1, (groups, -1)) for x in chunk_decays(chunks(log_decay[..., None], chunk), begins, chunk)
    )
    added = k.mT @ (v * tail[..., None])  # [batch, groups, heads/groups, chunks, state, width]
    before, s = [], (
        added.new_zeros(*added.shape[:3], *added.shape[4:]) if state is None else state.unflatten(1, (groups, -1))
    )  # fmt: skip
    for c in range(added.shape[3]):
        before.append(s)
        s = whole[:, :, :, c, None, None] * s + added[:, :, :, c]
    y = (q @ k.mT * between) @ v + head[..., None] * (q @ torch.stack(before, dim=3))
    y = y.reshape(y.shape[0], heads, -1, y.shape[-1]).transpose(1, 2)
    return y[:, :tokens], s.flatten(1, 2)


def chunks(x: Tensor, chunk: int) -> Tensor:
    """`[batch, tokens, heads, width]` -> `[batch, heads, chunks, chunk, width]`, filled up with zeros."""
    missing = -x.shape[1] % chunk
    x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x  # filling up by nothing would copy
    return x.unflatten(1, (-1, chunk)).movedim(3, 1)


def chunk_decays(log_decay: Tensor, begins: Tensor | None, chunk: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is left of one token at another. Products of decays are differences of sums of logarithms, never quotients,
    which would overflow. The sums are taken in float64: where they are large (-100), those of float32 have lost as many
    digits of the difference between neighbours.

    Args:
        log_decay: `[batch, heads, chunks, chunk, 1]`.
        begins: bool `[batch, tokens]` or None; nothing passes the beginning of a document.
        chunk: tokens a chunk.

    Returns:
        From token j to token i of a chunk `[batch, heads, chunks, chunk, chunk]` (zero above the diagonal), from the
        chunk's start to token i `[batch, heads, chunks, chunk]`, from token j to the chunk's end, likewise, and over
        the whole chunk `[batch, heads, chunks]`.
    """
    dtype, wide = log_decay.dtype, log_decay.dtype if log_decay.device.type == "mps" else torch.float64
    total = log_decay.squeeze(-1).cumsum(-1, dtype=wide)  # an accelerator without float64 keeps its own type
    open_ = torch.ones(chunk, chunk, dtype=torch.bool, device=total.device).tril()
    difference = (total[..., :, None] - total[..., None, :]).to(dtype)
    left, total = (total[..., -1:] - total).to(dtype), total.to(dtype)
    if begins is None:
        return difference.masked_fill(~open_, -torch.inf).exp(), total.exp(), left.exp(), total[..., -1].exp()
    begins = F.pad(begins, (0, -begins.shape[1] % chunk)).unflatten(1, (-1, chunk))[:, None]
    segment = begins.cumsum(-1)  # [batch, 1, chunks, chunk], 0 before the first beginning in the chunk
    open_ = open_ & (segment[..., :, None] == segment[..., None, :])
    between = difference.masked_fill(~open_, -torch.inf).exp()
    head = total.masked_fill(segment > 0, -torch.inf).exp()
    tail = left.masked_fill(segment != segment[..., -1:], -torch.inf).exp()
    return between, head, tail, head[..., -1]
