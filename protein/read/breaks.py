"""What a missing bond says about where residues lie: something is missing there, so that they are no neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LONGEST_GUESS = 40
"""Residues of a run that is tried at other places; a longer one would not agree there by chance."""


def not_torn(part: str, whole: str, where: np.ndarray, broken: Sequence[int]) -> tuple[np.ndarray, int]:
    """Positions without the residues that were put beside each other though no bond joins them, and how many were left.

    Of the two runs of residues at a broken bond the one is left out that fits the sequence as well elsewhere, between
    what lies before and behind it; with all before, or behind, it where they would have to move as well, since the same
    numbers or letters placed them. Where neither does, the atoms are merely badly placed, and both stay.

    Args:
        part: letters of the residues.
        whole: letters of the sequence.
        where: int64 `[residues of part]`, positions in `whole`, -1 for one that lies nowhere.
        broken: residues behind which no bond follows.
    """
    kept, edges = where.copy(), set(broken)
    for at in broken:
        if at + 1 >= len(where) or kept[at] < 0 or kept[at + 1] != kept[at] + 1:
            continue
        start, end = at, at + 2
        while start > 0 and start - 1 not in edges and kept[start - 1] == kept[start] - 1:
            start -= 1
        while end < len(where) and end - 1 not in edges and kept[end] == kept[end - 1] + 1:
            end += 1
        before, behind = slice(start, at + 1), slice(at + 1, end)
        placed = np.flatnonzero(kept >= 0)
        lowest = kept[placed[placed < start]].max(initial=-1) + 1
        highest = kept[placed[placed >= end]].min(initial=len(whole))
        here, last, first = int(kept[start]), int(kept[at + 1]) - 1, int(where[at]) + 2
        if _fits(part[before], whole, here, (lowest, last)):
            kept[before] = -1
        elif _fits(part[before], whole, here, (start, last)):
            kept[: at + 1] = -1
        if _fits(part[behind], whole, int(where[at + 1]), (first, highest)):
            kept[behind] = -1
        elif _fits(part[behind], whole, int(where[at + 1]), (first, len(whole) - (len(where) - end))):
            kept[at + 1 :] = -1
    return kept, int(((where >= 0) & (kept < 0)).sum())


def _fits(run: str, whole: str, here: int, room: tuple[int, int]) -> bool:
    """Whether a run agrees with the sequence somewhere in `room` as well as `here`."""
    if len(run) > LONGEST_GUESS:
        return False

    def agreeing(at: int) -> int:
        return sum(a == b or "X" in (a, b) for a, b in zip(run, whole[at : at + len(run)]))

    least = agreeing(here)
    return any(agreeing(at) >= least for at in range(room[0], room[1] - len(run) + 1))
