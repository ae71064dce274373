"""Chooses the chains of structures that are the proteins of a query."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ...core.errors import UserError
from ...core.files import few
from .structure import Chain

TOUCHING = 8.0
"""Ångström between Cβ atoms of two chains up to which they touch."""


class Fit(NamedTuple):
    """A chain that is the protein of a sequence.

    Args:
        names: of the chains of the file that it takes.
        differing: residues that differ from the sequence.
        laid: the chain on the sequence.
    """

    names: frozenset[str]
    differing: int
    laid: Chain

    @property
    def seen(self) -> int:
        """Residues that have a position."""
        return int(self.laid.resolved.sum())


def select_chain(chains: Sequence[Chain], sequence: str) -> Chain:
    """Returns the chain that is the protein of `sequence`, laid on it: of several the one that differs least, then the
    one of which most was seen, then the first; a note names the others.

    Raises:
        UserError: none is; the alignment with the one that comes closest in length is shown.
    """
    fitting = sorted(_fitting(chains, sequence), key=lambda fit: (fit.differing, -fit.seen))
    return _noted(fitting[0], fitting, fitting[0].names)


def select_complex(chains: Sequence[Chain], sequences: Sequence[str]) -> Chain:
    """Returns the chains of one file that are the proteins of `sequences`, each laid on its own and all joined.

    Of several chains that fit equally well those are taken that touch the others most, so that a file with several
    copies of a complex gives one of them.

    Args:
        chains: of one file or several.
        sequences: of the chains of the complex; two that are the same take two chains.

    Raises:
        UserError: no file has all of them; what the first lacks is said.
    """
    problem: UserError | None = None
    for file in dict.fromkeys(chain.file for chain in chains):
        here = [chain for chain in chains if chain.file == file]
        try:
            if len(here) < len(sequences):
                raise UserError(f"there are {len(sequences)} chains in the complex, but only {len(here)} in '{file}'.")
            fitting = {sequence: _fitting(here, sequence) for sequence in dict.fromkeys(sequences)}
            taken = _assembled(fitting, sequences, file)
            names = frozenset().union(*(fit.names for fit in taken))
            return _joined([_noted(fit, fitting[sequence], names) for fit, sequence in zip(taken, sequences)])
        except UserError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _fitting(chains: Sequence[Chain], sequence: str) -> list[Fit]:
    """The chains that are the protein of a sequence, in the order of the file.

    Raises:
        UserError: there is none.
    """
    found: list[Fit] = []
    places: dict[str, list[tuple[Chain, np.ndarray]]] = {}
    problems: dict[str, UserError] = {}
    for one in chains:
        try:
            placement = one.place_on(sequence)
        except UserError as error:
            problems[one.name] = UserError(f"chain {one.name} (query) does not match the sequence (target): {error}")
            continue
        laid = one if one.sequence == sequence else one.laid(placement, sequence)
        found.append(Fit(frozenset([one.name]), len(placement.substituted), laid))
        if one.shared is not None:
            places.setdefault(one.shared.name, []).append((one, placement.where[placement.where >= 0]))
    found += [fit for parts in places.values() if (fit := _as_one(parts, sequence))]
    if not found:
        closest = min(chains, key=lambda one: abs(len(one.sequence) - len(sequence)))
        raise problems[closest.name]
    return found


def _as_one(parts: list[tuple[Chain, np.ndarray]], sequence: str) -> Fit | None:
    """Molecules of one name that lie one behind the other on a sequence, as the one chain that they then are."""
    ends = [(int(where.min()), int(where.max())) for _, where in parts]
    if len(parts) < 2 or any(end >= start for (_, end), (start, _) in pairwise(ends)):
        return None
    whole = parts[0][0].shared
    assert whole is not None
    try:
        placement = whole.place_on(sequence)
    except UserError:
        return None
    laid = whole if whole.sequence == sequence else whole.laid(placement, sequence)
    note = f"{len(parts)} molecules that share a name are parts of the sequence: read as one chain"
    laid = replace(laid, notes=[*laid.notes, note])
    return Fit(frozenset(part.name for part, _ in parts), len(placement.substituted), laid)


def _assembled(fitting: dict[str, list[Fit]], sequences: Sequence[str], file: str) -> list[Fit]:
    """A chain for each sequence: from each start that fits the first, those that differ least and touch most."""
    touches: dict[tuple[frozenset[str], frozenset[str]], int] = {}

    def touching(one: Fit, other: Fit) -> int:
        key = (one.names, other.names)
        if key not in touches:
            touches[key] = touches[other.names, one.names] = _touching(one.laid.cbeta, other.laid.cbeta)
        return touches[key]

    best: tuple[tuple[int, int, int], list[Fit]] | None = None
    for first in fitting[sequences[0]]:
        taken, together = [first], 0
        for sequence in sequences[1:]:
            free = [fit for fit in fitting[sequence] if not any(fit.names & one.names for one in taken)]
            if not free:
                break
            contacts = [sum(touching(fit, one) for one in taken) for fit in free]
            chosen = min(range(len(free)), key=lambda at: (free[at].differing, -contacts[at], -free[at].seen))
            taken.append(free[chosen])
            together += contacts[chosen]
        if len(taken) < len(sequences):
            continue
        rank = (sum(fit.differing for fit in taken), -together, -sum(fit.seen for fit in taken))
        if best is None or rank < best[0]:
            best = rank, taken
    if best is None:
        raise UserError(f"there are {len(sequences)} chains in the complex, but '{file}' does not have one for each.")
    return best[1]


def _touching(one: np.ndarray, other: np.ndarray) -> int:
    """Pairs of residues `[residues, 3]` of two chains that are in contact."""
    one, other = one[~np.isnan(one[:, 0])], other[~np.isnan(other[:, 0])]
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    return int((squares < TOUCHING**2).sum())


def _noted(best: Fit, fitting: Sequence[Fit], taken: Collection[str]) -> Chain:
    """The chain of a fit, with a note of the others that were not `taken`."""
    others = [fit.laid.name for fit in fitting if not fit.names & set(taken)]
    if not others:
        return best.laid
    note = f"{few(others)} fit the sequence, too; {best.laid.name} is used"
    return replace(best.laid, notes=[*best.laid.notes, note])


def _joined(parts: Sequence[Chain]) -> Chain:
    lengths = [len(part.sequence) for part in parts]
    index = np.concatenate([part.residue_index + start for part, start in zip(parts, np.cumsum([0, *lengths[:-1]]))])
    return Chain(
        name="+".join(part.name for part in parts),
        sequence="".join(part.sequence for part in parts),
        backbone=np.concatenate([part.backbone for part in parts]),
        cbeta=np.concatenate([part.cbeta for part in parts]),
        residue_index=index,
        file=parts[0].file,
        notes=[f"{part.name}: {note}" for part in parts for note in part.notes],
    )
