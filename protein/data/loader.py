"""The order of chains, batch by batch; see the core's data module for how it resumes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ...core.training import data
from ...core.training.data import Batches

__all__ = ["Batches", "ChainsByLength", "Draw", "ShuffledChains"]


class Draw(NamedTuple):
    """One batch to fetch.

    Args:
        chains: int64 `[batch]`, -1 for none.
        size: residues to which the batch is cut or filled up.
        position: counts the batches of all epochs of training; None in validation.
    """

    chains: np.ndarray
    size: int
    position: int | None = None


class ShuffledChains(data.Shuffled):
    """The order of training: chains, each batch cut or filled up to one size.

    Args:
        chains: numbers of the chains.
        size: residues of the batches.
        options: as for the core's `Shuffled`.
    """

    def __init__(self, chains: np.ndarray, size: int, *options: Any, **more: Any) -> None:
        super().__init__(len(chains), *options, **more)
        self._chains, self._size = chains, size

    def permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(self._chains)

    def batch(self, position: int) -> Draw:
        return Draw(self.take(position), self._size, position)


class ChainsByLength:
    """The order of validation: each chain once and whole, with chains of about its length.

    Batches are filled up to a multiple of `step` residues and hold as many chains as keep their pairs within `pairs`.
    The ranks take disjoint chains and equally many batches of equal shape; the last ones are filled up with -1.

    Args:
        chains: numbers of the chains.
        lengths: residues of each of them.
        pairs: residue pairs that a batch may hold, padding included; one chain always may.
        step: residues.
        rank, world: as for `Shuffled`.
    """

    def __init__(
        self, chains: np.ndarray, lengths: np.ndarray, pairs: int, step: int = 32, rank: int = 0, world: int = 1
    ) -> None:
        self._rank = rank
        order = np.argsort(lengths, kind="stable")
        sizes = -(-lengths[order] // step) * step
        self._draws: list[list[Draw]] = []
        for size in np.unique(sizes).tolist():
            group = chains[order][sizes == size]
            # No wider than the group needs, so that little of a batch is empty.
            width = max(1, min(pairs // size**2, -(-len(group) // world)))
            groups = -(-len(group) // (width * world))
            filled = np.full(groups * world * width, -1, dtype=np.int64)
            filled[: len(group)] = group
            parts = filled.reshape(groups, width, world)
            self._draws += [[Draw(parts[at, :, rank], size) for rank in range(world)] for at in range(groups)]

    def __len__(self) -> int:
        return len(self._draws)

    def __iter__(self) -> Iterator[Draw]:
        yield from (draws[self._rank] for draws in self._draws)
