"""The distance classes of the pair model: their edges, their mean, and what they say about contacts."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pair.model import FIRST_BREAK, LAST_BREAK
from .metrics import CUTOFF

NEAREST = 6
"""Pairs closer than this in sequence are not compared."""


def expected_distances(logits: Tensor, rows: int = 128) -> Tensor:
    """The mean of a distogram in ångström, `[residues, residues, bins]` -> `[residues, residues]`.

    A class counts as its middle, the open ones at both ends as those half a class beyond the outermost breaks.
    """
    bins = logits.shape[-1]
    half = (LAST_BREAK - FIRST_BREAK) / (bins - 2) / 2
    middles = torch.linspace(FIRST_BREAK - half, LAST_BREAK + half, bins, device=logits.device)
    return torch.cat([part.softmax(-1) @ middles for part in logits.split(rows)])


def bin_edges(bins: int) -> Tensor:
    """Ångström between the classes of a distogram, float64 `[bins - 1]`; the first and the last class are open."""
    return torch.linspace(FIRST_BREAK, LAST_BREAK, bins - 1, dtype=torch.float64)


def below_contact(distogram: Tensor) -> tuple[Tensor, float]:
    """Probability of the classes that lie below 8 Å as a whole, `[residues, residues]`, and the edge they end at."""
    edges = bin_edges(distogram.shape[-1])
    count = int((edges <= CUTOFF).sum())
    return distogram[..., :count].sum(-1), float(edges[count - 1])


def agreement(contacts: Tensor, distogram: Tensor) -> str:
    """How far the contact probabilities, which have a layer of their own, are from what the distogram says."""
    below, edge = below_contact(distogram)
    i, j = torch.triu_indices(len(contacts), len(contacts), NEAREST)
    apart = (contacts[i, j] - below[i, j]).abs()
    if not len(apart):
        return "no pair is far enough apart to compare contacts with distances"
    return (
        f"the distogram's probability of less than {edge:.2f} Å is {float(apart.mean()):.3f} from the contact "
        f"probability on average, {float(apart.max()):.3f} at most"
    )
