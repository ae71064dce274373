"""What is near to what: exact search by cosine, copies, and labels that the neighbours contradict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import UserError

ROWS, QUERIES = 1 << 14, 1 << 10
"""Vectors of the index, and queries, that are compared at once: 64 MiB of cosines."""
MOST_PAIRS = 1_000_000
IGNORED = -100


class Found(NamedTuple):
    """The nearest vectors of each query, the nearest first.

    cosines: float32 `[queries, k]`; -inf where the index has fewer.
    rows: int64 `[queries, k]`; -1 where the index has fewer.
    """

    cosines: np.ndarray
    rows: np.ndarray


def unit(values: np.ndarray) -> np.ndarray:
    """Vectors of length one, float32 `[rows, dim]`. A vector of zeros stays so: its cosines are 0."""
    values = np.asarray(values, np.float32)
    squares = np.einsum("nd,nd->n", values, values)
    if not ((squares > 1e-30) & (squares < 1e30)).all():
        # The largest number first, so that squares neither vanish nor overflow.
        scale = np.abs(values).max(1, keepdims=True, initial=0)
        values = values / np.where(scale > 0, scale, 1)
        squares = np.einsum("nd,nd->n", values, values)
    length = np.sqrt(squares)[:, None]
    return values / np.where(length > 0, length, 1)


def search(queries: np.ndarray, index: np.ndarray, k: int, skip: np.ndarray | None = None) -> Found:
    """Returns the `k` vectors of an index with the largest cosines to each query, exactly; of equals the first.

    Args:
        queries: `[queries, dim]`.
        index: `[rows, dim]`; may be a memory map, which is read block by block.
        k: how many.
        skip: int `[queries]`, a row of the index that is left out (the query itself); -1 for none.
    """
    parts = [_search(unit(queries[start : start + QUERIES]), index, k,
                     None if skip is None else skip[start : start + QUERIES])
             for start in range(0, len(queries), QUERIES)]  # fmt: skip
    if not parts:
        return Found(np.empty((0, k), np.float32), np.empty((0, k), np.int64))
    return Found(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _search(queries: np.ndarray, index: np.ndarray, k: int, skip: np.ndarray | None) -> Found:
    cosines = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    for start in range(0, len(index), ROWS):
        found = queries @ unit(index[start : start + ROWS]).T
        if skip is not None:
            inside = np.flatnonzero((skip >= start) & (skip < start + found.shape[1]))
            found[inside, skip[inside] - start] = -np.inf
        cosines, rows = _best(cosines, rows, found, start, k)
    rows[np.isneginf(cosines)] = -1
    return Found(cosines, rows)


def _best(
    cosines: np.ndarray, rows: np.ndarray, found: np.ndarray, start: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best of what is known and of a new block; of equal cosines the lower row."""
    numbers = np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)
    if found.shape[1] > 4 * k:
        # All that are not below the k-th largest, which may be more than k where some are equal. Once k are known,
        # few of a block are better than them, and the block need not be sorted.
        least = cosines[:, -1]
        if np.isneginf(least).any():
            least = np.partition(found, found.shape[1] - k, axis=1)[:, found.shape[1] - k]
        good = found >= least[:, None]
        place, keep = _places(good)
        found = np.where(keep, np.take_along_axis(found, place, 1), -np.inf)
        numbers = place + start
    both, places = np.concatenate([cosines, found], 1), np.concatenate([rows, numbers], 1)
    order = np.argsort(-both, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(both, order, 1), np.take_along_axis(places, order, 1)


def _places(good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of True in each row, in order, filled up with 0 to equal numbers; and which are no filling."""
    row, column = np.nonzero(good)
    counts = good.sum(1)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.zeros((len(good), int(counts.max(initial=0))), np.int64)
    found[row, rank] = column
    return found, np.arange(found.shape[1]) < counts[:, None]


def reference_search(queries: np.ndarray, index: np.ndarray, k: int, skip: np.ndarray | None = None) -> Found:
    """`search`, one query at a time, in float64."""
    rows = np.asarray(index, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    cosines = np.full((len(queries), k), -np.inf, np.float32)
    found = np.full((len(queries), k), -1, np.int64)
    for i, query in enumerate(np.asarray(queries, np.float64)):
        values = rows @ (query / max(float(np.linalg.norm(query)), np.finfo(np.float64).tiny))
        order = [row for row in np.argsort(-values, kind="stable") if skip is None or row != skip[i]][:k]
        cosines[i, : len(order)], found[i, : len(order)] = values[order], order
    return Found(cosines, found)


# -- copies -----------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two rows that are alike, the lower one first."""

    first: int
    second: int
    cosine: float


def alike(index: np.ndarray, threshold: float, most: int = MOST_PAIRS) -> list[Pair]:
    """All pairs of vectors whose cosine is at least `threshold`, the most alike first.

    Raises:
        UserError: there are more than `most`.
    """
    pairs: list[Pair] = []
    block = ROWS // 4
    # A cosine of a vector with itself may be 1 - 1e-7 in float32, and should count as 1.
    least = threshold - 1e-6
    for start in range(0, len(index), block):
        left = unit(index[start : start + block])
        for other in range(start, len(index), block):
            right = left if other == start else unit(index[other : other + block])
            found = left @ right.T
            if other == start:
                found[np.tril_indices(len(found))] = -np.inf
            rows, columns = np.nonzero(found >= least)
            pairs += [
                Pair(start + int(i), other + int(j), float(found[i, j])) for i, j in zip(rows, columns, strict=True)
            ]
            if len(pairs) > most:
                raise UserError(
                    f"More than {most:,} pairs of vectors are alike by {threshold:g} or more; raise the threshold."
                )
    return sorted(pairs, key=lambda pair: (-pair.cosine, pair.first, pair.second))


def clusters(pairs: list[Pair]) -> list[list[int]]:
    """Rows that are joined by pairs, directly or through others; the largest cluster first."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while (above := parent.setdefault(row, row)) != row:
            parent[row] = row = parent[above]
        return row

    for pair in pairs:
        one, other = sorted((root(pair.first), root(pair.second)))
        parent[other] = one
    found: dict[int, list[int]] = {}
    for row in sorted(parent):
        found.setdefault(root(row), []).append(row)
    return sorted(found.values(), key=lambda rows: (-len(rows), rows))


# -- labels -----------------------------------------------------------------------------------------------------------


class Doubt(NamedTuple):
    """A label that most neighbours contradict.

    row: of the index.
    label, other: the class it has, and the one of most of its neighbours.
    votes: the part of its labelled neighbours that have the other class; `own` the part that has its own.
    cosine: mean of those with the other class.
    """

    row: int
    label: int
    other: int
    votes: float
    own: float
    cosine: float


@dataclass(frozen=True)
class Doubts:
    """Labels in doubt, the clearest first, and how well neighbours tell labels at all.

    Args:
        doubts: see `Doubt`.
        agreement: the part of the rows whose class is that of most of their neighbours (leave-one-out k-NN).
        majority: the part that has the most frequent class, which is what guessing reaches.
        rows: how many have a label and labelled neighbours.
    """

    doubts: list[Doubt]
    agreement: float
    majority: float
    rows: int


def doubtful(index: np.ndarray, labels: np.ndarray, k: int = 10) -> Doubts:
    """Finds labels that more than half of the `k` nearest labelled vectors contradict with one other class.

    Args:
        index: `[rows, dim]`.
        labels: int `[rows]`, -100 where there is none; such rows are no neighbours.
        k: neighbours.

    Raises:
        UserError: fewer than two rows have a label.
    """
    rows = np.flatnonzero(labels != IGNORED)
    if len(rows) < 2:
        raise UserError(f"{len(rows)} of {len(labels):,} vectors have a label, but at least 2 must; give more.")
    values, own = np.asarray(index[rows], np.float32), labels[rows]
    cosines, near = search(values, values, min(k, len(rows) - 1), np.arange(len(rows)))
    of = own[near]  # [rows, k], the class of each neighbour
    votes = np.concatenate(
        [(part[:, :, None] == part[:, None, :]).sum(2) for part in np.array_split(of, len(of) // ROWS + 1)]
    )
    most, mine = votes.max(1), (of == own[:, None]).sum(1)
    doubts = []
    for i in np.flatnonzero((most > mine) & (most > near.shape[1] / 2)):
        other = int(of[i, votes[i].argmax()])
        shares = (float(most[i] / near.shape[1]), float(mine[i] / near.shape[1]))
        doubts.append(Doubt(int(rows[i]), int(own[i]), other, *shares, float(cosines[i][of[i] == other].mean())))
    doubts.sort(key=lambda doubt: (-doubt.votes, -doubt.cosine, doubt.row))
    tied = (votes == most[:, None]).sum(1) / most  # classes that share the most votes
    agreement = float(np.where(mine == most, 1 / tied, 0.0).mean())  # a tie counts as the part of it that is right
    majority = float(np.unique(own, return_counts=True)[1].max() / len(rows))
    return Doubts(doubts, agreement, majority, len(rows))
