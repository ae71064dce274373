"""A linear recurrence in each channel alone: the one behind RG-LRU and Mamba's selective scan.

    h_t = a_t h_{t-1} + b_t

Two forms with one signature: `reference_channel_scan` follows the equation token by token; `channel_scan` runs through
all chunks side by side and then through their ends, which takes chunk + tokens / chunk steps. It multiplies only, so
that a decay of exactly zero is as exact as any other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_channel_scan(
    a: Tensor, b: Tensor, begins: Tensor | None = None, state: Tensor | None = None, chunk: int = 1
) -> tuple[Tensor, Tensor]:
    """Follows the recurrence token by token; arguments and results as `channel_scan`. `chunk` is not used."""
    h = torch.zeros_like(b[:, 0]) if state is None else state
    outputs = []
    for t in range(b.shape[1]):
        if begins is not None:
            h = h.masked_fill(_spread(begins[:, t], h), 0.0)
        h = a[:, t] * h + b[:, t]
        outputs.append(h)
    return torch.stack(outputs, dim=1), h


def channel_scan(
    a: Tensor, b: Tensor, begins: Tensor | None = None, state: Tensor | None = None, chunk: int = 32
) -> tuple[Tensor, Tensor]:
    """Computes the recurrence in chunks.

    Args:
        a: `[batch, tokens, ...]`, the decay of each channel in 0 to 1. With 1 and a b of 0 a token leaves the state as
            it is.
        b: `[batch, tokens, ...]`.
        begins: bool `[batch, tokens]`, True where the state is cleared before the token (a document begins).
        state: `[batch, ...]` before the first token; zeros by default.
        chunk: tokens a chunk. The result does not depend on it, beyond rounding.

    Returns:
        h `[batch, tokens, ...]` and its value after the last token.
    """
    tokens = b.shape[1]
    if tokens == 1:
        return reference_channel_scan(a, b, begins, state)
    if begins is not None:
        a = a.masked_fill(_spread(begins, a), 0.0)
    filling = [0, 0] * (b.dim() - 2) + [0, -tokens % min(chunk, tokens)]
    a, b = (F.pad(x, filling, value=value).unflatten(1, (-1, min(chunk, tokens))) for x, value in ((a, 1.0), (b, 0.0)))
    inside, decays = [b[:, :, 0]], [a[:, :, 0]]  # h of a chunk that starts from zero, and the decay since its start
    for t in range(1, b.shape[2]):
        inside.append(a[:, :, t] * inside[-1] + b[:, :, t])
        decays.append(a[:, :, t] * decays[-1])
    h = torch.zeros_like(b[:, 0, 0]) if state is None else state
    before = []
    for c in range(b.shape[1]):
        before.append(h)
        h = decays[-1][:, c] * h + inside[-1][:, c]
    y = torch.stack(inside, dim=2) + torch.stack(decays, dim=2) * torch.stack(before, dim=1)[:, :, None]
    return y.flatten(1, 2)[:, :tokens], h


def _spread(flags: Tensor, like: Tensor) -> Tensor:
    """Gives `flags` trailing axes of length one, so that they broadcast over the channels of `like`."""
    return flags.reshape(*flags.shape, *[1] * (like.dim() - flags.dim()))
