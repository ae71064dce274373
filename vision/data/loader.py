"""The order of images, batch by batch; see the core's data module for how it resumes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core.training import data
from ...core.training.data import Batches, Draw, InOrder

__all__ = ["Batches", "Draw", "InOrder", "Shuffled"]


class Shuffled(data.Shuffled):
    """The order of training, with repeated augmentation.

    Args:
        count, batch_size, rank, world, seed, position: as for the core's `Shuffled`.
        repeats: how often each example of a global batch is in it (repeated augmentation, Hoffer et al. 2020); an epoch
            then visits a different 1/repeats of the examples.
    """

    def __init__(
        self, count: int, batch_size: int, rank: int = 0, world: int = 1, seed: int = 0, repeats: int = 1, **more: Any
    ) -> None:
        super().__init__(count, batch_size, rank, world, seed, **more)
        self._repeats = repeats

    def permutation(self, epoch: int) -> np.ndarray:
        order = super().permutation(epoch)
        if self._repeats == 1:
            return order
        size = self._batch_size * self._world
        distinct = -(-size // self._repeats)
        blocks = order[: len(self) * distinct].reshape(len(self), distinct)
        # Copies lie far apart in the batch, so that mixing neighbours does not mix an image with itself.
        return np.tile(blocks, (1, self._repeats))[:, :size].reshape(-1)
