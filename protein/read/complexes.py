"""The chains of a complex in sequences and alignments that join them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .alignment import Alignment
from .alphabet import GAP

BETWEEN = 1 << 31
"""What stands for the separation of two residues of different chains: larger than any within one."""

JUMP = 200
"""Positions that a model counts from the end of one chain to the start of the next, as ColabFold does."""


def spans(chains: Sequence[int], residues: int) -> list[slice]:
    """Returns where each chain lies among `residues`; one slice over all of them for no `chains`."""
    ends = np.cumsum(chains).tolist() or [residues]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends)]


def chain_numbers(chains: Sequence[int], residues: int) -> np.ndarray:
    """Returns the number of each residue's chain, int64 `[residues]`, from 0."""
    return np.repeat(np.arange(max(len(chains), 1)), list(chains) or [residues])


def separations(chains: Sequence[int], residues: int) -> Tensor:
    """Returns |i - j| of residues of one chain and `BETWEEN` for those of two, int64 `[residues, residues]`."""
    at, number = torch.arange(residues), torch.from_numpy(chain_numbers(chains, residues))
    apart = (at[:, None] - at).abs()
    return apart.masked_fill(number[:, None] != number, BETWEEN)


def residue_index(chains: Sequence[int], residues: int) -> np.ndarray:
    """Returns positions along the protein with a jump of `JUMP` at each boundary, int64 `[residues]`."""
    return np.arange(residues) + JUMP * chain_numbers(chains, residues)


def name_of(number: int) -> str:
    """Returns the letters of a chain, by its number from 0: A to Z, a to z, then AA, AB, ..."""
    letters = string.ascii_letters[26:] + string.ascii_letters[:26]
    return letters[number] if number < 52 else letters[number // 52 - 1] + letters[number % 52]


def place_in_chain(chains: Sequence[int], residues: int) -> list[tuple[str, int]]:
    """Returns for each residue the letter of its chain and its place in it, from 1."""
    return [
        (name_of(number), at + 1)
        for number, span in enumerate(spans(chains, residues))
        for at in range(span.stop - span.start)
    ]


def parts(alignment: Alignment) -> list[Alignment]:
    """Returns the alignment of each chain: its columns, of the rows that have a residue there."""
    found = []
    for span in spans(alignment.chains, alignment.tokens.shape[1]):
        rows = np.flatnonzero((alignment.tokens[:, span] != GAP).any(1))
        names = [alignment.names[row] for row in rows]
        tokens, deletions = alignment.tokens[rows, span], alignment.deletions[rows, span]
        found.append(replace(alignment, names=names, tokens=tokens, deletions=deletions, chains=()))
    return found
