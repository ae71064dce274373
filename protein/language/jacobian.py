"""Contacts from the categorical Jacobian of any masked language model: what exchanging one residue does to all others.

For each position i and each amino acid a: the logits for the chain with a at i, minus those for the chain as it is, a
tensor `[residues, 20, residues, 20]`. Centred along all four axes, symmetrised, its Frobenius norms over the two axes
of 20 with the average product correction are contacts (Zhang et al. 2024), without a contact head: what the model uses,
where an attention map says what it reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.work import progress
from ..read import alphabet
from .model import VOCABULARY

FIRST = VOCABULARY.index("L")
"""Of the 20 amino acids, which follow each other."""
AMINO = len(alphabet.AMINO_ACIDS)
LONGEST = 700
"""Residues of a chain: its Jacobian has 400 numbers a pair, here 0.8 GB."""


@torch.no_grad()
def categorical_jacobian(model: Any, tokens: Tensor, batch_size: int = AMINO) -> Tensor:
    """The differences of logits, float32 `[residues, 20, residues, 20]`: exchanged position, amino acid put there,
    position of the answer, amino acid of the answer.

    Args:
        model: a `SequenceModel` in evaluation mode.
        tokens: ESM-2 ids of one chain, `[1, residues + 2]`.
        batch_size: chains of one pass.

    Raises:
        UserError: the chain is too long.
    """
    residues = tokens.shape[1] - 2
    if len(tokens) != 1 or residues > LONGEST:
        raise UserError(
            f"The Jacobian of {len(tokens)} chains of {residues:,} residues was asked for, but it is computed of one "
            f"chain of at most {LONGEST}; give a domain of it."
        )
    letters = slice(FIRST, FIRST + AMINO)
    whole = model(tokens)[0, 1:-1, letters].float()
    found = torch.empty(residues * AMINO, residues, AMINO)
    at, letter = torch.arange(residues * AMINO) // AMINO, torch.arange(residues * AMINO) % AMINO
    with progress("exchanging residues", residues, "residues") as step:
        for start in range(0, len(at), batch_size):
            rows = slice(start, start + batch_size)
            changed = tokens.repeat(len(at[rows]), 1)
            changed[torch.arange(len(changed)), at[rows] + 1] = (letter[rows] + FIRST).to(tokens.device)
            found[rows] = (model(changed)[:, 1:-1, letters].float() - whole).cpu()
            step(len(changed) / AMINO)
    return found.unflatten(0, (residues, AMINO))


def jacobian_contacts(jacobian: Tensor) -> Tensor:
    """Scores of contacts, float `[residues, residues]`, symmetric, zero on the diagonal."""
    x = jacobian
    for axis in range(4):
        x = x - x.mean(axis, keepdim=True)
    x = 0.5 * (x + x.permute(2, 3, 0, 1))
    norms = x.square().sum((1, 3)).sqrt().fill_diagonal_(0)
    row = norms.sum(0)
    return (norms - row[:, None] * row[None] / row.sum().clamp(min=1e-12)).fill_diagonal_(0)


def jacobian_effects(jacobian: Tensor) -> Tensor:
    """How far the logits at each place move when a residue is exchanged, root mean square over amino acids: float64
    `[places, residues]`.
    """
    return jacobian.double().square().mean((1, 3)).sqrt().mT
