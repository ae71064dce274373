"""The gated delta rule (Yang et al. 2024, "Gated delta networks"): a state that corrects what it holds under a key.

    S ← exp(g_t) S_{t-1}        S_t = S + β_t k_t (v_t - Sᵀ k_t)ᵀ        y_t = q_tᵀ S_t

Two forms with one signature: `reference_delta_scan` follows the equation token by token; `delta_scan` computes the
corrections of a chunk at once, as the solution of a triangular system (Yang et al. 2024, "Parallelizing linear
transformers with the delta rule", section 3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .decayed_scan import chunk_decays, chunks

BLOCK = 4
"""Size of the triangular matrices that are inverted by their powers. With 8 the rounding of equal keys is four times as
large."""


def reference_delta_scan(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, begins: Tensor | None = None,
    state: Tensor | None = None, chunk: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Follows the recurrence token by token; arguments and results as `delta_scan`. `chunk` is not used."""
    s = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3]) if state is None else state
    outputs = []
    for t in range(v.shape[1]):
        if begins is not None:
            s = s.masked_fill(begins[:, t, None, None, None], 0.0)
        s = log_decay[:, t, :, None, None].exp() * s
        error = v[:, t] - (k[:, t, :, None, :] @ s).squeeze(-2)
        s = s + k[:, t, :, :, None] * (beta[:, t, :, None] * error)[:, :, None, :]
        outputs.append((q[:, t, :, None, :] @ s).squeeze(-2))
    return torch.stack(outputs, dim=1), s


def delta_scan(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, begins: Tensor | None = None,
    state: Tensor | None = None, chunk: int = 16,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Computes the recurrence in chunks.

    Args:
        q: `[batch, tokens, heads, state]`.
        k: `[batch, tokens, heads, state]`, of length at most one, or the state may grow without bound.
        v: `[batch, tokens, heads, width]`.
        beta: `[batch, tokens, heads]` in 0 to 1: the part of the error that is corrected.
        log_decay: `[batch, tokens, heads]`, at most 0. With 0 and a beta of 0 a token leaves the state as it is.
        begins: bool `[batch, tokens]`, True where the state is cleared before the token (a document begins).
        state: `[batch, heads, state, width]` before the first token; zeros by default.
        chunk: tokens a chunk. The result does not depend on it, beyond rounding.

    Returns:
        y `[batch, tokens, heads, width]` and the state after the last token.
    """
    tokens = v.shape[1]
    if tokens == 1:
        return _one(q, k, v, beta, log_decay, begins, state)
    chunk, heads = min(chunk, tokens), v.shape[2]
    q, k, v, beta = (chunks(x, chunk).contiguous() for x in (q, k, v, beta[..., None]))
    between, head, tail, whole = chunk_decays(chunks(log_decay[..., None], chunk), begins, chunk)
    # The corrections u solve u_i + β_i Σ_{j<i} between_ij (k_i·k_j) u_j = β_i (v_i - head_i Sᵀ k_i), with S the state
    # before the chunk. The matrices are inverted for all chunks at once; the rest is done chunk by chunk, while its
    # numbers are in the processor's cache.
    solve = unit_lower_inverse(k @ k.mT * (between * beta)) * beta.mT
    s = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state
    s, outputs = s.flatten(0, 1), []
    parts = (q, k, v, solve, between, head[..., None], tail[..., None], whole[..., None, None])
    for q, k, v, solve, between, head, tail, whole in zip(*(x.flatten(0, 1).unbind(1) for x in parts), strict=True):
        u = solve @ (v - head * (k @ s))  # each of the parts is now [batch·heads, chunk, ·]
        outputs.append((head * (q @ s)).baddbmm_(between * (q @ k.mT), u))
        s = (whole * s).baddbmm_(k.mT, tail * u)
    y = torch.stack(outputs, dim=1).unflatten(0, (-1, heads)).flatten(2, 3).transpose(1, 2)
    return y[:, :tokens], s.unflatten(0, (-1, heads))


def _one(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, begins: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token, as in generation. Key and query read the decayed state at once: y = qᵀ exp(g) S + (q·k) u with the
    correction u = β (v - exp(g) Sᵀ k).
    """
    q, k, v, beta, decay = q[:, 0], k[:, 0], v[:, 0], beta[:, 0, :, None], log_decay[:, 0, :, None].exp()
    if state is None:
        state = v.new_zeros(*k.shape, v.shape[-1])
    elif begins is not None:
        state = state.masked_fill(begins[:, 0, None, None, None], 0.0)
    kept, asked = (decay[..., None] * torch.stack([k, q], dim=2) @ state).unbind(2)
    u = beta * (v - kept)
    s = torch.addcmul(state * decay[..., None], k[..., None], u[:, :, None])
    return torch.addcmul(asked, (q * k).sum(-1, keepdim=True), u)[:, None], s


def unit_lower_inverse(x: Tensor) -> Tensor:
    """The inverse of I + L, with L the part of `x` `[..., size, size]` below its diagonal; the rest is not read.

    Blocks of `BLOCK` are inverted as the product (I - L)(I + L²)(I + L⁴)…, which ends because L to the power of `BLOCK`
    is zero; then two neighbours A and B with C below A become one, whose lower left part is -B⁻¹ C A⁻¹. The product
    alone would serve any size, but the powers of a large L grow beyond what float32 can take back. A batch of LAPACK's
    triangular solutions takes longer, forward and backward.
    """
    size, width = x.shape[-1], BLOCK
    while width < size:
        width *= 2
    x = F.pad(x, (0, width - size, 0, width - size)) if width > size else x
    power, reach = _diagonal_blocks(x, BLOCK).tril(-1), 2
    inverse = torch.eye(BLOCK, dtype=x.dtype, device=x.device) - power
    while reach < BLOCK:
        power, reach = power @ power, 2 * reach
        inverse = inverse + inverse @ power
    at = BLOCK
    while at < width:
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        below = -(second @ _diagonal_blocks(x, 2 * at)[..., at:, :at] @ first)
        inverse = torch.cat([F.pad(first, (0, at)), torch.cat([below, second], dim=-1)], dim=-2)
        at *= 2
    return inverse[..., 0, :size, :size]


def _diagonal_blocks(x: Tensor, size: int) -> Tensor:
    """`[..., n·size, n·size]` -> the n blocks on its diagonal, `[..., n, size, size]`."""
    x = x.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))
    return x.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
