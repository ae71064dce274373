"""What an alignment says about its columns: weights of rows, their effective number (Neff) and the profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .alphabet import AMINO_ACIDS, GAP
from .complexes import spans

IDENTITY = 0.8
"""Rows at least this identical share one vote."""

MAX_GAPS = 0.5
"""Share of gaps from which a row is no longer informative."""

BLOCK = 1024
"""Rows that are compared with as many others at once."""

# Amino acid frequencies of Swiss-Prot, per mille, in the order of `AMINO_ACIDS`.
_PER_MILLE = (83, 14, 55, 68, 39, 71, 23, 59, 58, 97, 24, 41, 47, 39, 55, 66, 54, 69, 11, 29)
BACKGROUND = tuple(part / sum(_PER_MILLE) for part in _PER_MILLE)
"""Frequencies of the amino acids in proteins, in the order of `AMINO_ACIDS`; their sum is one."""


def one_hot(tokens: Tensor, states: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Indicator of each cell `[..., states]`; numbers of `states` and above (unknown, gap) become zeros."""
    indicator = torch.zeros(*tokens.shape, states, dtype=dtype, device=tokens.device)
    known = tokens < states
    return indicator.scatter_(-1, tokens.clamp_max(states - 1).long()[..., None], known[..., None].to(dtype))


def sequence_weights(tokens: np.ndarray | Tensor, identity: float = IDENTITY) -> Tensor:
    """Weight of each row, float32 `[rows]`: 1 / number of rows (itself among them) that are at least `identity` alike.

    Alike is the share of all columns in which two rows agree, gaps included (Morcos et al. 2011, as in EVfold).

    Args:
        tokens: uint8 `[rows, columns]`.
        identity: share of columns.
    """
    tokens = torch.as_tensor(tokens)
    # Counts are whole numbers; a hair below the threshold keeps 0.8 * 5 from excluding 4 of 5.
    least = identity * tokens.shape[1] - 1e-6
    neighbours = torch.zeros(len(tokens), device=tokens.device)
    blocks = [slice(start, start + BLOCK) for start in range(0, len(tokens), BLOCK)]
    for at, rows in enumerate(blocks):
        cells = one_hot(tokens[rows], GAP + 1).flatten(1)
        for others in blocks[at:]:
            alike = cells @ one_hot(tokens[others], GAP + 1).flatten(1).T >= least
            neighbours[rows] += alike.sum(1)
            if others != rows:
                neighbours[others] += alike.sum(0)
    return 1 / neighbours


def informative_rows(tokens: Tensor) -> Tensor:
    """Rows `[rows, columns]` with gaps in less than half of the columns: fragments say little about pairs."""
    return tokens[(tokens == GAP).float().mean(1) < MAX_GAPS]


def effective_sequences(tokens: np.ndarray | Tensor) -> float:
    """Neff: the sum of the `sequence_weights` of the informative rows of `[rows, columns]`."""
    return float(sequence_weights(informative_rows(torch.as_tensor(tokens))).sum())


def chain_depths(tokens: np.ndarray, chains: Sequence[int]) -> list[float]:
    """Neff of each chain, over the rows that are informative about that chain, paired or not."""
    return [effective_sequences(rows) for rows in chain_rows(tokens, chains)]


def chain_rows(tokens: np.ndarray, chains: Sequence[int]) -> list[np.ndarray]:
    """The columns of each chain, of the rows of `[rows, columns]` that have a residue there."""
    return [
        columns[(columns != GAP).any(1)] for columns in (tokens[:, span] for span in spans(chains, tokens.shape[1]))
    ]


def paired_rows(tokens: np.ndarray, one: slice, other: slice) -> np.ndarray:
    """The columns of two chains, of the rows that are informative about both, uint8 `[rows, columns of both]`."""
    informative = [(tokens[:, span] == GAP).mean(1) < MAX_GAPS for span in (one, other)]
    return np.concatenate([tokens[:, one], tokens[:, other]], axis=1)[informative[0] & informative[1]]


COPIES = 0.9
"""Share of equal letters from which two chains of one row are the same protein, written twice."""


def written_twice(tokens: np.ndarray, width: int) -> np.ndarray:
    """Which rows hold one protein twice, in the chains of the first `width` columns and of the others, bool `[rows]`.

    Such rows, of homo-oligomers, have each residue beside itself: their letters say nothing about what touches what
    between the copies. Chains count as copies where the query's agree at one offset, along most of the shorter one.

    Args:
        tokens: uint8 `[rows, columns of both chains]`, the query first.
        width: columns of the first chain.
    """
    one, other = tokens[:, :width], tokens[:, width:]
    least = COPIES * min(one.shape[1], other.shape[1])
    for offset in range(-one.shape[1] + 1, other.shape[1]):
        left, right = one[:, max(0, -offset) :], other[:, max(0, offset) :]
        length = min(left.shape[1], right.shape[1])
        if length < least or (left[0, :length] == right[0, :length]).mean() < COPIES:
            continue
        left, right = left[:, :length], right[:, :length]
        seen = (left != GAP) & (right != GAP)
        return (seen & (left == right)).sum(1) >= COPIES * np.maximum(seen.sum(1), 1)
    return np.zeros(len(tokens), dtype=bool)


def chosen_rows(tokens: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """The query and rows drawn without replacement, weighted by one over the number of their near copies."""
    if len(tokens) <= rows:
        return np.arange(len(tokens))
    weights = sequence_weights(tokens[1:]).numpy()
    # Gumbel's trick: the largest of log w + noise are a draw without replacement.
    keys = np.log(weights) + np.random.default_rng(seed).gumbel(size=len(weights))
    return np.concatenate([[0], np.sort(np.argsort(-keys)[: rows - 1]) + 1])


def complex_profile(tokens: np.ndarray, chains: Sequence[int]) -> np.ndarray:
    """The `profile` of each chain, float32 `[columns, 20]`, from all rows that have a residue in it."""
    return np.concatenate([profile(rows) for rows in chain_rows(tokens, chains)])


def profile(tokens: np.ndarray, pseudocount: float = 10.0) -> np.ndarray:
    """Frequencies of the amino acids in each column, float32 `[columns, 20]`, rows weighted, gaps left out.

    To what was seen is added what BLOSUM62 (Henikoff and Henikoff 1992) expects in its place, as in PSI-BLAST
    (Altschul et al. 1997): ((n - 1) seen + pseudocount expected) / (n - 1 + pseudocount), n being the weighted rows
    with a residue. So a lone sequence has a profile too, the expected one; an unknown residue has that of the average
    protein.

    Args:
        tokens: uint8 `[rows, columns]`.
        pseudocount: how many rows the expectation weighs.
    """
    weights = sequence_weights(tokens).numpy()
    counts = np.stack([(weights[:, None] * (tokens == letter)).sum(0) for letter in range(len(AMINO_ACIDS))], axis=1)
    background = np.array(BACKGROUND)
    rows = counts.sum(1, keepdims=True)
    seen = np.divide(counts, rows, out=np.tile(background, (len(counts), 1)), where=rows > 0)
    expected = np.where(rows > 0, seen @ _replacements(background), background)
    more = np.maximum(rows - 1, 1e-6)
    return ((more * seen + pseudocount * expected) / (more + pseudocount)).astype(np.float32)


def _replacements(background: np.ndarray) -> np.ndarray:
    """Frequencies [20, 20] of what BLOSUM62 expects in place of each amino acid; its scores are log odds in half
    bits.
    """
    from Bio.Align import substitution_matrices

    table: Any = substitution_matrices.load("BLOSUM62")
    scores = np.array([[table[one][other] for other in AMINO_ACIDS] for one in AMINO_ACIDS])
    likely = background * 2 ** (scores / 2)
    return likely / likely.sum(1, keepdims=True)
