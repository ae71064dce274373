"""From the tokens of an example to one vector."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import check, check_choice

PoolKind = Literal["class", "mean", "attention", "last"]


class Pool(nn.Module):
    """Tokens `[batch, tokens, dim]` to vectors `[batch, dim]`; what is padding changes nothing.

    Args:
        kind: the `class` token (the first real one), the `mean` of the real tokens, their mean by a learned
            `attention` (softmax of query·token / sqrt(dim), one query for all examples, which starts at zero and so
            at the mean), or the `last` real token.
        dim: width of the tokens.
        prefix: real tokens at the beginning that `mean`, `attention` and `last` leave out, such as a class token and
            registers.
    """

    def __init__(self, kind: PoolKind, dim: int, prefix: int = 0) -> None:
        super().__init__()
        check_choice("pool", kind, PoolKind)
        check(prefix >= 0, "prefix", prefix, "0 or more")
        self.kind, self.prefix, self.dim = kind, prefix, dim
        if kind == "attention":
            self.query = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """Vectors `[batch, dim]`; zero for an example without a token to read.

        Args:
            tokens: `[batch, tokens, dim]`.
            valid: bool `[batch, tokens]`, True for real tokens, in any place; None means all.
        """
        if valid is None:
            valid = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        number = valid.cumsum(dim=1)  # of each real token, from 1
        if self.kind == "class":
            read = valid & (number == 1)
        else:
            read = valid & (number > self.prefix)
        if self.kind == "last":
            read = read & (number == number[:, -1:])
        if self.kind == "attention":
            weights = self.weights(tokens, read)
        else:
            weights = read / read.sum(dim=1, keepdim=True).clamp_min(1)
        # Padding may hold anything, also what is not finite.
        tokens = torch.where(read[..., None], tokens, 0)
        return torch.einsum("bt,btd->bd", weights.to(tokens.dtype), tokens)

    def weights(self, tokens: Tensor, read: Tensor) -> Tensor:
        """What each token counts, `[batch, tokens]`, in at least float32; 0 where `read` is False."""
        tokens = torch.where(read[..., None], tokens, 0).to(torch.promote_types(tokens.dtype, torch.float32))
        scores = tokens @ self.query.to(tokens.dtype) * self.dim**-0.5
        lowest = torch.finfo(scores.dtype).min  # not -inf: of an example without tokens that would be NaN
        return torch.where(read, scores, lowest).softmax(dim=1) * read

    def extra_repr(self) -> str:
        return f"{self.kind}, prefix={self.prefix}"


POOLS: tuple[str, ...] = get_args(PoolKind)
"""The kinds of pools."""
