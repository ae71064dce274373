"""What an alignment says about residues and pairs before any attention: weighted frequencies and covariances.

Sequences are weighted by one over the number of rows that share 80 % of their letters (the weight of direct coupling
analysis; Morcos et al. 2011), so that the result does not depend on how often a family was sequenced. Covariances are
taken between *learned* vectors of the letters, so the layers above see a few channels instead of 21 x 21.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..read.alphabet import GAP, PAD, VOCABULARY
from .axial import in_chunks

IDENTITY = 0.8
GROUP = 4
"""Channels whose covariances make one norm."""
LETTERS = GAP + 1
FREQUENCIES = LETTERS + 1
"""Numbers that `column_statistics` gives for a residue."""


def sequence_weights(msa: Tensor, mask: Tensor | None = None) -> Tensor:
    """Weight of each row of `[batch, rows, residues]`: 1 / (rows with at least 80 % of its letters, itself included).

    Returns float32 `[batch, rows]`, 0 for rows of PAD; the sum over rows is Neff.
    """
    real = msa < PAD
    if mask is not None:
        real = real & mask[:, None]
    hot = (F.one_hot(msa, VOCABULARY) * real[..., None]).flatten(2).float()
    near = hot @ hot.mT >= IDENTITY * real.sum(-1)[:, :, None]
    rows = real.any(-1)
    return rows / (near & rows[:, None]).sum(-1).clamp(min=1)


@torch.no_grad()
def column_statistics(
    msa: Tensor, mask: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Row weights `[batch, rows]`, summing to 1, and `[batch, residues, FREQUENCIES]`, both of `dtype`.

    The latter are the weighted frequencies of the 20 amino acids, X and gap, and log(Neff) / 5.
    """
    weights = sequence_weights(msa, mask).to(dtype)
    neff = weights.sum(1, keepdim=True).clamp(min=1e-6)
    weights = weights / neff
    hot = F.one_hot(msa.clamp(max=LETTERS), LETTERS + 1)[..., :LETTERS].to(dtype)
    frequencies = torch.einsum("br,brla->bla", weights, hot)
    depth = (neff.log() / 5)[:, None].expand(-1, msa.shape[2], 1)
    return weights, torch.cat([frequencies, depth], dim=-1)


class Covariance(nn.Module):
    """Covariances of alignment columns as an update of z.

    Each letter is a learned vector of `channels` numbers. Their weighted covariance between columns i and j,
    `[channels, channels]`, enters z through a linear layer; so do the norms of its diagonal blocks of 4 x 4 after the
    average product correction (Dunn et al. 2008), in units of their standard deviation over the map, which makes them
    comparable between alignments of different depth.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.groups = max(1, channels // GROUP)
        self.letters = nn.Parameter(torch.randn(LETTERS, channels) / math.sqrt(channels))
        self.pairs = nn.Linear(channels * channels, dim)
        self.norms = nn.Linear(self.groups, dim)

    def forward(self, msa: Tensor, weights: Tensor, mask: Tensor | None = None, chunk: int | None = None) -> Tensor:
        """msa int `[batch, rows, residues]`, weights `[batch, rows]` summing to 1 -> `[batch, residues, residues,
        dim]`.
        """
        x = F.pad(self.letters, (0, 0, 0, 1))[msa.clamp(max=LETTERS)]  # mask and padding have the vector 0
        x = x - torch.einsum("br,brlc->blc", weights, x)[:, None]
        x = x * weights.sqrt()[..., None, None]
        right = x.flatten(2)  # [batch, rows, residues·channels]
        joined = in_chunks(lambda left: self._rows(left, right), chunk, x.transpose(1, 2))
        update, norms = joined[..., : -self.groups], joined[..., -self.groups :]
        return update + self.norms(standardise(average_product_correction(norms, mask), mask))

    def _rows(self, left: Tensor, right: Tensor) -> Tensor:
        """left `[batch, some, rows, channels]` -> `[batch, some, residues, dim + groups]`."""
        batch, some, _, channels = left.shape
        products = left.mT.flatten(1, 2) @ right
        products = products.view(batch, some, channels, -1, channels).transpose(2, 3)
        step = channels // self.groups
        blocks = [
            products[..., g * step : (g + 1) * step, g * step : (g + 1) * step].square().sum((-1, -2))
            for g in range(self.groups)
        ]
        norms = (torch.stack(blocks, dim=-1) + 1e-6).sqrt()
        return torch.cat([self.pairs(products.flatten(3)), norms], dim=-1)


def _pair_weight(mask: Tensor | None, like: Tensor) -> Tensor:
    """1 for real pairs that are not on the diagonal, `[batch or 1, residues, residues, 1]`."""
    apart = ~torch.eye(like.shape[1], dtype=torch.bool, device=like.device)[None]
    if mask is not None:
        apart = apart & mask[:, :, None] & mask[:, None, :]
    return apart[..., None].to(like.dtype)


def average_product_correction(maps: Tensor, mask: Tensor | None = None) -> Tensor:
    """maps_ij - mean_i · mean_j / mean, each channel of `[batch, residues, residues, channels]`, diagonal and padding
    left out.
    """
    weight = _pair_weight(mask, maps)
    kept = maps * weight
    count = weight.sum(2, keepdim=True).clamp(min=1)
    row = kept.sum(2, keepdim=True) / count
    total = kept.sum((1, 2), keepdim=True) / weight.sum((1, 2), keepdim=True).clamp(min=1)
    return (maps - row * row.transpose(1, 2) / total.clamp(min=1e-6)) * weight


def standardise(maps: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean 0 and standard deviation 1 over the real pairs of each map, and channel, off the diagonal."""
    weight = _pair_weight(mask, maps)
    count = weight.sum((1, 2), keepdim=True).clamp(min=1)
    mean = (maps * weight).sum((1, 2), keepdim=True) / count
    centred = (maps - mean) * weight
    return centred / (centred.square().sum((1, 2), keepdim=True) / count + 1e-8).sqrt()
