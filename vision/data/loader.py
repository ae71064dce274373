"""The order of images, batch by batch; see the core's data module for how it resumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.training import data
from ...core.training.data import Batches, Draw, InOrder
from ...core.training.permutation import Arrangement

__all__ = ["Batches", "Draw", "InOrder", "Shuffled"]


class Shuffled(data.Shuffled):
    """The order of training, with repeated augmentation.

    Args:
        count, batch_size, rank, world, seed, position: as for the core's `Shuffled`.
        repeats: how often each example of a global batch is in it (repeated augmentation, Hoffer et al. 2020); an epoch
            then visits a different 1/repeats of the examples.
        mixes: each image is mixed with the one before it in the global batch. Where several processes share that, a
            batch begins with the last image of the process before, which only lends itself to the next.
    """

    def __init__(
        self, count: int, batch_size: int, rank: int = 0, world: int = 1, seed: int = 0, repeats: int = 1,
        mixes: bool = False, **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(count, batch_size, rank, world, seed, **more)
        self._repeats = repeats
        self._lent = int(mixes and world > 1)

    def permutation(self, epoch: int) -> Arrangement:
        order = super().permutation(epoch)
        return order if self._repeats == 1 else _Repeated(order, self._batch_size * self._world, self._repeats)

    def batch(self, position: int) -> Draw:
        first, size = self._rank * self._batch_size, self._batch_size * self._world
        slots = np.arange(first - self._lent, first + self._batch_size) % size
        return Draw(position, self.at(position, slots), int(slots[0]))


@dataclass(frozen=True)
class _Repeated:
    """An order in which the examples of each batch of `size` come `repeats` times.

    Copies lie far apart in the batch, so that mixing neighbours does not mix an image with itself.
    """

    order: Arrangement
    size: int
    repeats: int

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        distinct = -(-self.size // self.repeats)
        batch, slot = np.divmod(places, self.size)
        return self.order[batch * distinct + slot % distinct]
