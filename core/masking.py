"""Hiding tokens for a masked language model (Devlin et al. 2019, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .losses import IGNORED

VERSION = 1
"""Of what `hide_tokens` draws, and in which order; see training/versions.py."""
SHARE = 0.15
"""Part of the tokens that are to be guessed."""


def hide_tokens(
    tokens: Tensor, allowed: Tensor, mask: int, others: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Of 15 % of the allowed tokens 80 % become `mask`, 10 % another one, and 10 % stay as they are.

    Args:
        tokens: int `[batch, tokens]`.
        allowed: bool `[batch, tokens]`, which may be chosen.
        mask: number of the token that hides.
        others: int `[n]`, tokens of which one is drawn for a tenth of the chosen.
        generator: of the draws; on the device of `tokens`.

    Returns:
        The changed tokens, and the targets: what stood there, -100 where nothing is to be guessed.
    """
    options = {"generator": generator, "device": tokens.device}
    chosen = (torch.rand(tokens.shape, **options) < SHARE) & allowed
    kind = torch.rand(tokens.shape, **options)
    other = others.to(tokens.device)[torch.randint(len(others), tokens.shape, **options)]
    changed = torch.where(chosen & (kind < 0.8), mask, tokens)
    changed = torch.where(chosen & (kind >= 0.9), other, changed)
    return changed, tokens.masked_fill(~chosen, IGNORED)
