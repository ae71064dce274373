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

NUCLEOTIDES = tuple(AMINO_ACIDS.index(letter) for letter in "ACGT")
"""Numbers of the letters of DNA; the U of RNA is read as C."""

NUCLEOTIDE_SHARE = 0.95
"""Share of A, C, G, T, U and N among the known letters from which a sequence counts as DNA or RNA."""
CODED_SHARE = 0.75
AMBIGUOUS = "RYSWKMDHV"
"""The same where all other letters are codes for one of several nucleotides."""

FEWEST_LETTERS = 10
"""A shorter sequence is not judged by its composition."""

MOST_UNKNOWN = 0.5
"""Share of unknown residues (X) beyond which nothing can be predicted."""


def _table() -> np.ndarray:
    table = np.full(256, INVALID, dtype=np.uint8)
    for number, letter in enumerate(LETTERS[: GAP + 1]):
        table[ord(letter)] = number
    for letter, read in READ_AS.items():
        table[ord(letter)] = LETTERS.index(read)
    return table


TABLE = _table()
"""Number of each byte, uint8 `[256]`: upper-case letters and `-` only; readers fold case where their format says so."""


def encode(sequence: str, name: str = "the sequence") -> np.ndarray:
    """Returns the numbers uint8 `[residues]` of a sequence in upper-case letters; `-` is a gap.

    Raises:
        UserError: a character is no residue letter; `name` says whose it is.
    """
    raw = np.frombuffer(sequence.encode("latin-1", "replace"), dtype=np.uint8)
    tokens = TABLE[raw]
    if (wrong := np.flatnonzero(tokens == INVALID)).size:
        raise UserError(unknown_letter(name, sequence[wrong[0]], int(wrong[0]) + 1, wrong.size))
    return tokens


def decode(tokens: np.ndarray) -> str:
    """Returns the letters of numbers `[residues]`."""
    return "".join(LETTERS[token] for token in tokens)


def unknown_letter(name: str, letter: str, position: int, count: int) -> str:
    """Returns the sentence about a character that is no residue letter."""
    more = f" (and {count - 1} more)" if count > 1 else ""
    return (
        f"{name} holds {letter!r} at position {position}{more}, which is no residue letter: allowed are the 20 amino "
        "acids, X for unknown, B, Z, J, U, O, and - for a gap."
    )


def check_protein(tokens: np.ndarray, name: str, way_out: str = "") -> None:
    """Refuses what is written in residue letters but is no protein.

    A sequence counts as DNA or RNA when 95 % of its known letters are A, C, G, T, U or N and three of A, C, G and T
    occur; a random protein of ten residues passes for it once in a million times. It also does when they are 75 %, and
    all the others are codes for one of several nucleotides (R, Y, S, W, K, M, D, H, V; of 30 letters or more).

    Args:
        tokens: numbers of one sequence, uint8 `[residues]`; gaps are left out.
        name: whose they are, for the message.
        way_out: what to do if it is a protein nevertheless, such as "--force reads it as a protein".

    Raises:
        UserError: it is DNA or RNA, or more than half of it is unknown.
    """
    count = np.bincount(tokens, minlength=VOCABULARY)
    known, unknown = int(count[:UNKNOWN].sum()), int(count[UNKNOWN])
    more = f"; {way_out}" if way_out else ""
    if known < (1 - MOST_UNKNOWN) * (known + unknown):
        raise UserError(
            f"{name} is unknown (X) in {unknown:,} of {known + unknown:,} residues, but at least half must be "
            f"known{more}."
        )
    letters = count[list(NUCLEOTIDES)]
    share = (letters.sum() + count[AMINO_ACIDS.index("N")]) / max(known, 1)
    others = sum(int(count[place]) for place, letter in enumerate(AMINO_ACIDS) if letter not in "ACGTN" + AMBIGUOUS)
    coded = known >= 3 * FEWEST_LETTERS and share >= CODED_SHARE and not others
    if ((known >= FEWEST_LETTERS and share >= NUCLEOTIDE_SHARE) or coded) and (letters > 0).sum() > 2:
        raise UserError(
            f"{name} is DNA or RNA ({share:.0%} of its letters are A, C, G, T, U or N), but must be a protein; "
            f"translate it first{more}."
        )
