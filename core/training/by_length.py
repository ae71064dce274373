"""Orders that put sequences of about one length into a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .data import Draw, InOrder, Shuffled

VERSION = 1
"""Of the order that `PooledByLength` draws; see versions.py."""
POOL = 64
"""Batches among which sequences are sorted by length: little padding, and still a random order."""


class PooledByLength(Shuffled):
    """The order of training: random, sorted by length within pools of batches, the batches in random order again.

    Args:
        lengths: of the sequences.
        options: as for the core's `Shuffled`.
    """

    def __init__(self, lengths: np.ndarray, *options: Any) -> None:
        super().__init__(len(lengths), *options)
        self._lengths = lengths

    def permutation(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self._seed, epoch])
        batch = self._batch_size * self._world
        order = self.drawn(generator)[: len(self) * batch]
        pools = [
            part[np.argsort(self._lengths[part], kind="stable")]
            for part in np.split(order, range(POOL * batch, len(order), POOL * batch))
        ]
        return generator.permutation(np.concatenate(pools).reshape(-1, batch)).ravel()

    def drawn(self, generator: np.random.Generator) -> np.ndarray:
        """What an epoch visits before it is sorted, int64 `[examples]`."""
        return generator.permutation(self._count)


class SequencesByLength(InOrder):
    """The order of validation: each sequence once, beside those of about its length; arguments of `PooledByLength`."""

    def __init__(self, lengths: np.ndarray, *options: Any) -> None:
        super().__init__(len(lengths), *options)
        self._sorted = np.argsort(lengths, kind="stable")

    def __iter__(self) -> Iterator[Draw]:
        for draw in super().__iter__():
            yield draw._replace(indices=np.where(draw.indices < 0, -1, self._sorted[draw.indices]))
