"""Lay one sequence on another: which residue of the one is which of the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core.errors import UserError

LEAST_IDENTITY = 0.9
"""Share of aligned residues that must agree for two sequences to count as the same protein."""

LEAST_OVERLAP = 0.5
"""Share of the shorter sequence that must be aligned."""


MOST_LINES = 40
"""Lines of an alignment that are shown."""


def positions(part: str, whole: str) -> np.ndarray:
    """Return where each residue of `part` lies in `whole`, int64 [residues of part], -1 for one that lies nowhere.

    Raises:
        UserError: they are not the same protein; the alignment of the two is shown.
    """
    if part == whole:
        return np.arange(len(part))
    # A stretch, as a construct of its protein; the same answer as the alignment's, without its cost.
    if len(part) > 20 and whole.count(part) == 1:
        return whole.index(part) + np.arange(len(part))
    alignment = aligner().align(whole, part)[0]
    where = np.full(len(part), -1)
    same = 0
    for (start, end), (first, last) in zip(*alignment.aligned):
        where[first:last] = np.arange(start, end)
        same += sum(_agree(a, b) for a, b in zip(whole[start:end], part[first:last]))
    aligned = int((where >= 0).sum())
    if aligned < LEAST_OVERLAP * min(len(part), len(whole)) or same < LEAST_IDENTITY * aligned:
        raise UserError(
            f"the two sequences are not the same protein: {same} of {aligned} aligned residues agree (at least "
            f"{LEAST_IDENTITY:.0%} should), of {len(whole)} and {len(part)}\n\n{_shown(str(alignment))}"
        )
    return where


def _shown(alignment: str) -> str:
    """The first lines of an alignment; enough to see what is wrong."""
    lines = alignment.rstrip().splitlines()
    more = [f"... ({len(lines) - MOST_LINES} more lines)"] if len(lines) > MOST_LINES else []
    return "\n".join(lines[:MOST_LINES] + more)


def identity(one: str, other: str) -> float:
    """Return the share of agreeing residues among the aligned ones; 0 if less than half of the shorter is aligned."""
    alignment = aligner().align(one, other)[0]
    same = aligned = 0
    for (start, end), (first, last) in zip(*alignment.aligned):
        same += sum(_agree(a, b) for a, b in zip(one[start:end], other[first:last]))
        aligned += end - start
    return same / aligned if aligned >= LEAST_OVERLAP * min(len(one), len(other)) else 0.0


def _agree(a: str, b: str) -> bool:
    return a == b or "X" in (a, b)


def aligner() -> Any:
    """Return a global aligner that wants exact stretches and lets loops and ends be missing."""
    from Bio.Align import PairwiseAligner

    return PairwiseAligner(
        mode="global",
        wildcard="X",
        match_score=1,
        mismatch_score=-1,
        open_gap_score=-2,
        extend_gap_score=-0.05,
        end_gap_score=0,
    )
