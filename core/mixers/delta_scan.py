"""The gated delta rule (Yang et al. 2024, "Gated delta networks"): a state that corrects what it holds under a key.

    S ← exp(g_t) S_{t-1}        S_t = S + β_t k_t (v_t - Sᵀ k_t)ᵀ        y_t = q_tᵀ S_t

Two forms with one signature: `reference_delta_scan` follows the equation token by token; `delta_scan` computes the
corrections of a chunk at once, as the solution of a triangular system (Yang et al. 2024, "Parallelizing linear
transformers with the delta rule", section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .decayed_scan import chunk_decays, chunks


def reference_delta_scan(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, begins: Tensor | None = None,
    state: Tensor | None = None, chunk: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Follow the recurrence token by token; arguments and results as `delta_scan`. `chunk` is not used."""
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
    state: Tensor | None = None, chunk: int = 64,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the recurrence in chunks.

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
        return reference_delta_scan(q, k, v, beta, log_decay, begins, state)
    chunk = min(chunk, tokens)
    q, k, v, beta = (chunks(x, chunk) for x in (q, k, v, beta[..., None]))  # [batch, heads, chunks, chunk, ·]
    between, head, tail, whole = chunk_decays(chunks(log_decay[..., None], chunk), begins, chunk)
    # The corrections u solve u_i + β_i Σ_{j<i} between_ij (k_i·k_j) u_j = β_i (v_i - head_i Sᵀ k_i), with S the state
    # before the chunk; they are linear in S, so one solution serves: u = own - seen S.
    system = (beta * between * (k @ k.mT)).tril(-1)
    right = torch.cat([beta * v, beta * head[..., None] * k], dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    own, seen = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    scores, reading, writing = q @ k.mT * between, head[..., None] * q, (k * tail[..., None]).mT
    s = own.new_zeros(*own.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state
    outputs = []
    for c in range(own.shape[2]):
        u = own[:, :, c] - seen[:, :, c] @ s
        outputs.append(scores[:, :, c] @ u + reading[:, :, c] @ s)
        s = whole[:, :, c, None, None] * s + writing[:, :, c] @ u
    y = torch.stack(outputs, dim=2).flatten(2, 3).transpose(1, 2)
    return y[:, :tokens], s
