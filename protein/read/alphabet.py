"""Residue letters to numbers and back: one alphabet for sequences, alignments and profiles.

Numbers 0-19 are the amino acids in alphabetical order of their letters, so that they are also the columns of a profile.
(ESM-2's own order, which its checkpoints need, belongs to the sequence model.)
"""

from __future__ import annotations

import numpy as np

from ...core.errors import UserError

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
UNKNOWN, GAP, MASK, PAD = 20, 21, 22, 23
VOCABULARY = 24
LETTERS = AMINO_ACIDS + "X-#."
"""The letter of each number; `#` and `.` stand for mask and padding and are never read."""

# Selenocysteine and pyrrolysine are read as what they replace; letters for two amino acids at once as unknown.
READ_AS = {"U": "C", "O": "K", "B": "X", "Z": "X", "J": "X"}

INVALID = 255
"""What a byte that is no residue letter becomes in `TABLE`."""


def _table() -> np.ndarray:
    table = np.full(256, INVALID, dtype=np.uint8)
    for number, letter in enumerate(LETTERS[: GAP + 1]):
        table[ord(letter)] = number
    for letter, read in READ_AS.items():
        table[ord(letter)] = LETTERS.index(read)
    return table


TABLE = _table()
"""Number of each byte, uint8 [256]: upper-case letters and `-` only; readers fold case where their format says so."""


def encode(sequence: str, name: str = "the sequence") -> np.ndarray:
    """Return the numbers uint8 [residues] of a sequence in upper-case letters; `-` is a gap.

    Raises:
        UserError: a character is no residue letter; `name` says whose it is.
    """
    raw = np.frombuffer(sequence.encode("latin-1", "replace"), dtype=np.uint8)
    tokens = TABLE[raw]
    if (wrong := np.flatnonzero(tokens == INVALID)).size:
        raise UserError(unknown_letter(name, sequence[wrong[0]], int(wrong[0]) + 1, wrong.size))
    return tokens


def decode(tokens: np.ndarray) -> str:
    """Return the letters of numbers [residues]."""
    return "".join(LETTERS[token] for token in tokens)


def unknown_letter(name: str, letter: str, position: int, count: int) -> str:
    """Return the sentence about a character that is no residue letter."""
    more = f" (and {count - 1} more)" if count > 1 else ""
    return (
        f"{name} holds {letter!r} at position {position}{more}, which is no residue letter: allowed are the 20 amino "
        "acids, X for unknown, B, Z, J, U, O, and - for a gap"
    )
