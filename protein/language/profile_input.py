"""The profile of an alignment as the input of a sequence model: a window of columns around each residue."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..read.alphabet import AMINO_ACIDS
from ..read.profile import BACKGROUND
from .model import VOCABULARY

FLOOR = 0.01
"""What is added to frequencies before their logarithms are taken."""
FEATURES = 2 * len(AMINO_ACIDS) + 1
"""Log-odds of the amino acids, the entropy of the column, and which amino acid stands there."""
FIRST = VOCABULARY.index("L")
"""Of ESM-2's numbers the first amino acid; the twenty follow each other."""


class ProfileInput(nn.Module):
    """Profiles -> vectors that are added to the embeddings of the residues: one linear layer over the features of a
    window, the classical input of predictors of secondary structure (Jones 1999, "Protein secondary structure
    prediction based on position-specific scoring matrices").

    Args:
        dim: width of the vectors.
        window: columns that each residue sees, itself in the middle; odd.
    """

    background: Tensor

    def __init__(self, dim: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.conv = nn.Conv1d(FEATURES, dim, window, padding=window // 2, bias=False)
        nn.init.normal_(self.conv.weight, std=(FEATURES * window) ** -0.5)
        self.register_buffer("background", torch.tensor(BACKGROUND), persistent=False)

    def features(self, tokens: Tensor, profile: Tensor) -> Tensor:
        """`[batch, tokens, FEATURES]`, zero where no residue is.

        Args:
            tokens: ESM-2's, `[batch, tokens]`.
            profile: frequencies `[batch, tokens, 20]`, zero where no residue is.
        """
        odds = ((profile + FLOOR) / (self.background.to(profile) + FLOOR)).log() / 2
        entropy = -(profile * profile.clamp(min=1e-9).log()).sum(-1, keepdim=True) / 3
        letters = torch.arange(FIRST, FIRST + len(AMINO_ACIDS), device=tokens.device)
        there = (tokens[..., None] == letters).to(profile)
        real = profile.sum(-1, keepdim=True) > 0
        return torch.cat([odds, entropy, there], dim=-1) * real

    def forward(self, tokens: Tensor, profile: Tensor) -> Tensor:
        """`[batch, tokens, dim]`."""
        found = self.features(tokens, profile).to(self.conv.weight.dtype)
        return self.conv(found.transpose(1, 2)).transpose(1, 2)
