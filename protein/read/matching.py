"""Lays one sequence on another: which residue of the one is which of the other.

Residue numbers come first and letters check them; letters alone decide only where numbers cannot, and residues that
letters could put at several places are put nowhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.errors import UserError
from ...core.files import few
from .breaks import not_torn

LEAST_IDENTITY = 0.9
"""Share of aligned residues that must agree for two sequences to count as the same protein."""

LEAST_OVERLAP = 0.5
"""Share of the shorter sequence that must be aligned."""

CLEARLY = 3
"""Letters by which one place must agree better than any other, and as many more for each that does not agree there."""

SHORTEST_STRETCH = 5
"""Residues that letters alone can place."""

WORD, EDGE = 8, 3
"""Residues of a stretch that tell its place, and those at its ends that do not."""

WAY_OUT = "give a file whose residue numbers count along the sequence, or one with SEQRES"

MOST_LINES = 40
"""Lines of an alignment that are shown."""


@dataclass(frozen=True)
class Placement:
    """Where the residues of one sequence lie in another.

    Args:
        where: int64 `[residues]`, -1 for one that lies nowhere, or whose place is not certain.
        substituted: residues that lie where the other sequence has another letter, such as A12V: its letter, the place
            counted from 1, the letter of this one.
        notes: what was decided on the way.
    """

    where: np.ndarray
    substituted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def place(
    part: str,
    whole: str,
    index: np.ndarray | None = None,
    first: int | None = None,
    complete: bool = True,
    counted: bool = True,
    broken: Sequence[int] = (),
) -> Placement:
    """Lays `part` on `whole`.

    With `index`, every offset of the numbers is tried, and the one taken at which at least 90 % of the letters agree.
    Of several equally good ones (repeats) it is the one at which residue n is the n-th of `whole`; if that is none of
    them, the place is not known. Where the numbers fit at no offset, or letters contradict them, an alignment of the
    letters decides.

    Args:
        part: letters of the residues that are to be placed.
        whole: letters of the sequence they are placed on.
        index: int `[residues of part]`, rising positions along the protein; None where only the order is known.
        first: the number of the residue at index 0, in the author's count; None where there is none.
        complete: `part` is a whole sequence; else of residues that were seen, among which any others may be missing, so
            that letters place only what occurs once.
        counted: the numbers count what is missing; else they are followed only where all letters agree.
        broken: residues of `part` behind which no bond follows, so that others are missing there.

    Raises:
        UserError: they are not the same protein, and the alignment of the two is shown; or the place is not certain.
    """
    if part == whole:
        return Placement(np.arange(len(part)))
    where, notes = _placed(part, whole, index, first, complete, counted, broken)
    where, torn = not_torn(part, whole, where, broken)
    if torn:
        notes = [*notes, f"{torn} residues beside a broken bond fit the sequence at several places and are left out"]
    return _result(part, whole, where, notes)


def _placed(
    part: str,
    whole: str,
    index: np.ndarray | None,
    first: int | None,
    complete: bool,
    counted: bool,
    broken: Sequence[int],
) -> tuple[np.ndarray, list[str]]:
    """Where the residues lie by numbers and letters, and what was decided on the way; see `place`."""
    if index is None:
        return _by_letters(part, whole, complete, broken)
    where, notes = _by_numbers(part, whole, index, first)
    if where is not None and (where >= 0).all() and not _differing(part, whole, where).any():
        return where, notes
    where = where if counted else None
    try:
        other, more = _by_letters(part, whole, complete, broken)
    except UserError:
        if where is None or (where < 0).mean() > 1 - LEAST_IDENTITY:
            raise
        return _doubtful_left_out(part, whole, where), notes
    if where is None:
        return other, [*more, "residue numbers do not fit the sequence: placed by letters"]
    return _reconciled(part, whole, where, other, notes)


def _result(part: str, whole: str, where: np.ndarray, notes: list[str]) -> Placement:
    placed = int((where >= 0).sum())
    if placed < LEAST_OVERLAP * min(len(part), len(whole)):
        raise UserError(
            f"the place of {len(part) - placed} of {len(part)} residues in the sequence is not certain; {WAY_OUT}."
        )
    differing = np.flatnonzero(_differing(part, whole, where))
    names = tuple(f"{whole[where[at]]}{where[at] + 1}{part[at]}" for at in differing.tolist())
    if names:
        notes = [*notes, f"{len(names)} of {placed} residues differ from the sequence: {few(names)}"]
    if placed < len(part):
        notes = [*notes, f"{len(part) - placed} of {len(part)} residues of the chain have no place in the sequence"]
    return Placement(where, names, tuple(notes))


def _differing(part: str, whole: str, where: np.ndarray) -> np.ndarray:
    """Which residues lie on another letter, bool `[residues of part]`; X agrees with every letter."""
    letters, others = _letters(part), _letters(whole)[np.maximum(where, 0)]
    unknown = (letters == ord("X")) | (others == ord("X"))
    return (where >= 0) & (letters != others) & ~unknown


def _letters(sequence: str) -> np.ndarray:
    return np.frombuffer(sequence.encode("latin-1", "replace"), dtype=np.uint8)


# -- numbers ----------------------------------------------------------------------------------------------------------


def _by_numbers(part: str, whole: str, index: np.ndarray, first: int | None) -> tuple[np.ndarray | None, list[str]]:
    """Positions at one offset from the numbers and what to say of them, or None where the letters agree at no offset.

    Raises:
        UserError: they agree at several, and the author's count does not tell which.
    """
    at = np.asarray(index, dtype=np.int64) - int(index[0])
    if (np.diff(at) < 1).any():
        return None, []
    named = None if first is None else first + int(index[0]) - 1
    agreeing = _offsets(part, whole, at)
    if not agreeing:
        return None, []
    most = max(agreeing.values())
    best = [offset for offset, same in agreeing.items() if same == most]
    second = max((same for same in agreeing.values() if same < most), default=0)
    mismatches = sum(letter != "X" for letter in part) - most
    exact = not mismatches and named not in agreeing
    clear = len(agreeing) == 1 or most - second > CLEARLY * (1 + mismatches)
    if len(best) == 1 and (named in best or exact or clear):
        return _at_offset(at, best[0], len(whole)), []
    if named in best:
        where = _at_offset(at, int(named), len(whole))
        return where, [f"its letters fit at {len(best)} places: placed by its residue numbers"]
    found = [_at_offset(at, offset, len(whole)) for offset in sorted(agreeing)]
    places = few([f"{where[where >= 0][0] + 1}-{where[where >= 0][-1] + 1}" for where in found])
    raise UserError(
        f"the chain fits the sequence at {len(agreeing)} places (residues {places}), and its residue numbers do not "
        f"tell which; {WAY_OUT}."
    )


def _at_offset(at: np.ndarray, offset: int, length: int) -> np.ndarray:
    where = at + offset
    return np.where((where >= 0) & (where < length), where, -1)


def _offsets(part: str, whole: str, at: np.ndarray) -> dict[int, int]:
    """The offsets at which the letters agree as those of the same protein do, and how many agree at each."""
    letters, others = _letters(part), _letters(whole)
    known = letters != ord("X")
    found = {}
    least = LEAST_OVERLAP * min(len(part), len(whole))
    for offset in range(-int(at[-1]), len(whole)):
        low, high = np.searchsorted(at, (-offset, len(whole) - offset))
        if high - low < least:
            continue
        there = others[at[low:high] + offset]
        same = (letters[low:high] == there) | (there == ord("X")) | ~known[low:high]
        if same.mean() >= LEAST_IDENTITY:
            found[offset] = int((letters[low:high] == there).sum())
    return found


def _reconciled(
    part: str, whole: str, where: np.ndarray, other: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, list[str]]:
    """One placement of residues that numbers put at `where` and letters at `other`."""
    apart = (where >= 0) & (other >= 0) & (where != other)
    if not apart.any():
        return _filled(_doubtful_left_out(part, whole, where), other, notes)
    wrong, others_wrong = _differing(part, whole, where), _differing(part, whole, other)
    more = int(((other >= 0) & ~others_wrong).sum()) - int(((where >= 0) & ~wrong).sum())
    refuted = wrong[apart].mean() > 0.5 and not others_wrong[apart].any()
    if refuted or more > CLEARLY * (1 + int(others_wrong.sum())):
        return other, [*notes, f"{int(apart.sum())} residues are placed by their letters, which contradict the numbers"]
    kept = np.where(apart, -1, where)
    return kept, [*notes, f"{int(apart.sum())} residues are left out: letters and numbers place them differently"]


def _filled(where: np.ndarray, other: np.ndarray, notes: list[str]) -> tuple[np.ndarray, list[str]]:
    """Positions by numbers and, of residues that numbers put outside of the sequence, those by letters.

    Where a number jumps and letters do not, the residues beside may agree by chance; and numbers that do not count what
    is missing in one place place nothing alone in another, where a few letters agree by chance as well.
    """
    filled = wanted = np.where(where < 0, other, where)
    filled = filled.copy()
    for at in np.flatnonzero((np.diff(filled) == 1) & (np.diff(where < 0) != 0)).tolist():
        beside = slice(at + 1, at + 1 + EDGE) if where[at] >= 0 else slice(max(0, at + 1 - EDGE), at + 1)
        filled[beside] = np.where(where[beside] < 0, -1, filled[beside])
    more = int(((filled >= 0) & (where < 0)).sum())
    if (np.diff(filled[filled >= 0]) < 1).any():
        return where, notes
    if not more:
        lost = int(((wanted >= 0) & (where < 0)).sum())
        return where, [*notes, f"{lost} residues beside jumps of the numbers are left out"] if lost else notes
    for start, end in _stretches(where):
        if end - start < SHORTEST_STRETCH and (other[start:end] < 0).all():
            filled[start:end] = -1
    lost = int(((wanted >= 0) & (filled < 0)).sum())
    notes = [*notes, f"{lost} residues beside jumps of the numbers are left out"] if lost else notes
    return filled, [*notes, f"{more} residues are placed by their letters, which their numbers would put outside"]


def _doubtful_left_out(part: str, whole: str, where: np.ndarray) -> np.ndarray:
    """Positions without the ends of stretches at which two residues or more differ, and without short stretches in
    which one does: more likely, the numbers do not count what is missing there.
    """
    agree = (where >= 0) & ~_differing(part, whole, where)
    kept = where.copy()
    for start, end in _stretches(where):
        before, behind = _loose_ends(agree[start:end])
        most = 0 if end - start < SHORTEST_STRETCH else 1
        for here in (slice(start, start + before), slice(end - behind, end)):
            if (~agree[here]).sum() > most:
                kept[here] = -1
    return kept


# -- letters ----------------------------------------------------------------------------------------------------------


def positions(part: str, whole: str) -> np.ndarray:
    """Returns where each residue of `part` lies in `whole` by its letters, int64 `[residues of part]`, -1 for one that
    lies nowhere or whose place is not certain.

    Raises:
        UserError: they are not the same protein; the alignment of the two is shown.
    """
    return place(part, whole).where


def _by_letters(part: str, whole: str, complete: bool, broken: Sequence[int]) -> tuple[np.ndarray, list[str]]:
    # A stretch, as a construct of its protein; the same answer as the alignment's, without its cost.
    if complete and len(part) > 20 and (at := whole.find(part)) >= 0 and whole.find(part, at + 1) < 0:
        return at + np.arange(len(part)), []
    alignment = aligner().align(whole, part)[0]
    where = _aligned(alignment, len(part))
    placed = where >= 0
    same = int((placed & ~_differing(part, whole, where)).sum())
    aligned = int(placed.sum())
    if aligned < LEAST_OVERLAP * min(len(part), len(whole)) or same < LEAST_IDENTITY * aligned:
        raise UserError(
            f"the two sequences are not the same protein: {same} of {aligned} aligned residues agree (at least "
            f"{LEAST_IDENTITY:.0%} should), of {len(whole)} and {len(part)}\n\n{_shown(str(alignment))}"
        )
    # The best alignment of the reversed sequences prefers gaps at the other side: where the two differ, others are as
    # good.
    back = _aligned(aligner().align(whole[::-1], part[::-1])[0], len(part))[::-1]
    backward = np.where(back >= 0, len(whole) - 1 - back, -1)
    kept = _trimmed(part, whole, where) if complete else _anchored(part, whole, where, broken)
    certain = np.where(where == backward, kept, -1)
    uncertain = (where >= 0) & (certain < 0)
    if not uncertain.any():
        return where, []
    if (certain >= 0).sum() < LEAST_OVERLAP * min(len(part), len(whole)):
        raise UserError(
            f"{int(uncertain.sum())} of {len(part)} residues fit the sequence at several places, and nothing tells "
            f"which; {WAY_OUT}."
        )
    return certain, [f"{int(uncertain.sum())} residues fit the sequence at several places and are left out"]


def _trimmed(part: str, whole: str, where: np.ndarray) -> np.ndarray:
    """Positions without what an alignment of letters cannot place: at both ends of each stretch without a gap, the
    residues before three that agree, and whole stretches of fewer than five.
    """
    agree = (where >= 0) & ~_differing(part, whole, where)
    kept = where.copy()
    for start, end in _stretches(where):
        before, behind = _loose_ends(agree[start:end])
        if end - start < SHORTEST_STRETCH:
            before = end - start
        kept[start : start + before] = kept[end - behind : end] = -1
    return kept


def _anchored(part: str, whole: str, where: np.ndarray, broken: Sequence[int]) -> np.ndarray:
    """Positions of the residues in words of eight that agree and occur once, without the three next to each gap and
    each broken bond, over which no word is one, and next to residues of which several differ, which may agree there by
    chance.
    """
    agree = (where >= 0) & ~_differing(part, whole, where)
    kept = np.full_like(where, -1)
    for first, last in _stretches(where, broken):
        for start, end in _likely(agree, first, last):
            inner = (
                start + (EDGE if start > first or where[start] > 0 else 0),
                end - (EDGE if end < last or where[end - 1] < len(whole) - 1 else 0),
            )
            for at in range(start, end - WORD + 1):
                word, here = part[at : at + WORD], slice(max(at, inner[0]), min(at + WORD, inner[1]))
                if agree[at : at + WORD].all() and whole.find(word, whole.find(word) + 1) < 0:
                    kept[here] = where[here]
    return kept


def _likely(agree: np.ndarray, start: int, end: int) -> list[tuple[int, int]]:
    """The parts of a stretch between residues that differ beside each other; a single one is a substitution."""
    wrong = start + np.flatnonzero(~agree[start:end])
    near = np.diff(wrong) <= EDGE
    beside = wrong[np.concatenate([near, [False]]) | np.concatenate([[False], near])] if len(wrong) else wrong
    borders = [start, *beside.tolist(), end]
    return [(a + (a in beside), b) for a, b in itertools.pairwise(borders) if b > a]


def _stretches(where: np.ndarray, broken: Sequence[int] = ()) -> list[tuple[int, int]]:
    """The start and end of each run of residues whose positions follow each other, and that no bond lacks between."""
    apart = np.diff(where) != 1
    apart[[at for at in broken if at < len(apart)]] = True
    borders = (np.flatnonzero(apart) + 1).tolist()
    return list(zip([0, *borders], [*borders, len(where)]))


def _loose_ends(agree: np.ndarray) -> tuple[int, int]:
    """Residues of a stretch before the first three in a row that agree, and behind the last three."""
    threes = np.flatnonzero(agree[:-2] & agree[1:-1] & agree[2:]) if len(agree) > 2 else np.empty(0, dtype=int)
    return (int(threes[0]), len(agree) - int(threes[-1]) - 3) if len(threes) else (len(agree), 0)


def _aligned(alignment: Any, residues: int) -> np.ndarray:
    where = np.full(residues, -1)
    for (start, end), (first, last) in zip(*alignment.aligned):
        where[first:last] = np.arange(start, end)
    return where


def _shown(alignment: str) -> str:
    """The first lines of an alignment; enough to see what is wrong."""
    lines = alignment.rstrip().splitlines()
    more = [f"... ({len(lines) - MOST_LINES} more lines)"] if len(lines) > MOST_LINES else []
    return "\n".join(lines[:MOST_LINES] + more)


def aligner() -> Any:
    """Returns a global aligner that wants exact stretches and lets loops and ends be missing."""
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
