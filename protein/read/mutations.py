"""Names of substitutions: A24G, and several at once, A24G:D30K."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ...core.errors import UserError
from .alphabet import AMINO_ACIDS

SEPARATORS = r"[:,;+/\s]+"
"""Between the substitutions of one protein."""
ONE = re.compile(r"(?:p\.)?([A-Za-z])(-?\d+)([A-Za-z])")


FEWEST = 4
"""Positions from which it is said that another numbering would fit; fewer fit somewhere by chance."""


class Mutation(NamedTuple):
    """One substitution.

    Args:
        wild, mutant: letters.
        position: as it was written.
    """

    wild: str
    position: int
    mutant: str

    def __str__(self) -> str:
        return f"{self.wild}{self.position}{self.mutant}"


def parse(text: str, where: str) -> list[Mutation]:
    """The substitutions of one cell.

    Raises:
        UserError: a part is not written as A24G, its mutant is no amino acid, or a position stands there twice.
    """
    found = []
    for part in re.split(SEPARATORS, text.strip()):
        match = ONE.fullmatch(part)
        if match is None:
            raise UserError(
                f"{where} is '{text[:60]}', but must be substitutions such as A24G, or A24G:D30K of several at once; "
                "write the letter of the sequence, its position, and the new letter."
            )
        mutation = Mutation(match[1].upper(), int(match[2]), match[3].upper())
        if mutation.mutant not in AMINO_ACIDS:
            raise UserError(f"{where} puts {mutation.mutant} in a protein, but must put one of {AMINO_ACIDS} there.")
        found.append(mutation)
    positions = [mutation.position for mutation in found]
    if len(set(positions)) < len(positions):
        raise UserError(f"{where} is '{text[:60]}', which changes a position twice; name each position once.")
    return found


def check(mutations: Sequence[Sequence[Mutation]], wheres: Sequence[str], letters: str, first: int, name: str) -> None:
    """Holds substitutions against their sequence.

    Args:
        mutations: of each row.
        wheres: what messages call each row.
        letters: of the sequence.
        first: number of its first residue.
        name: of the sequence.

    Raises:
        UserError: a position lies outside, or has another letter; where another `first` would fit all, it is said.
    """
    wrong = None
    for row, where in zip(mutations, wheres):
        for mutation in row:
            at = mutation.position - first
            if not 0 <= at < len(letters):
                wrong = wrong or (
                    f"{where} names position {mutation.position} ({mutation}), but {name} has the positions {first} to "
                    f"{first + len(letters) - 1}"
                )
            elif letters[at] != mutation.wild:
                wrong = wrong or (
                    f"{where} says that position {mutation.position} is {mutation.wild} ({mutation}), but it is "
                    f"{letters[at]} in {name}"
                )
    if wrong is None:
        return
    fit = _first_that_fits(mutations, letters)
    raise UserError(
        f"{wrong}; all would fit if the first residue had number {fit}: --first {fit}."
        if fit is not None
        else f"{wrong}; mend the table, give the sequence that was mutated, or say the number of its first residue with"
        " --first."
    )


def _first_that_fits(mutations: Sequence[Sequence[Mutation]], letters: str) -> int | None:
    """The only number of the first residue with which all letters agree; None for none or several."""
    known = {(mutation.position, mutation.wild) for row in mutations for mutation in row}
    if len(known) < FEWEST:
        return None
    low, high = min(position for position, _ in known), max(position for position, _ in known)
    fits = [
        first
        for first in range(high - len(letters) + 1, low + 1)
        if all(letters[position - first] == wild for position, wild in known)
    ]
    return fits[0] if len(fits) == 1 else None


def parse_sites(text: str, first: int, residues: int) -> list[int]:
    """Positions from 0 of "10-20,35", which are numbered from `first`.

    Raises:
        UserError: a part is no number or range, or lies outside of the sequence.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)(?:\s*-\s*(-?\d+))?\s*", part)
        if match is None:
            raise UserError(f"--sites is '{text}', but must be positions and ranges such as 10-20,35.")
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high or low < first or high >= first + residues:
            raise UserError(
                f"--sites has '{part.strip()}', but must lie from {first} to {first + residues - 1}, the lower number "
                "first."
            )
        found.update(range(low - first, high - first + 1))
    return sorted(found)
