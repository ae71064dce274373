"""The order of examples, batch by batch, such that training resumes exactly where it stopped."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader


class Draw(NamedTuple):
    """One batch to fetch: `indices` int64 [batch], -1 for none; `position` counts the batches of all epochs of training,
    and is None in validation."""

    position: int | None
    indices: np.ndarray


class Source(Protocol):
    def __getitem__(self, draw: Draw) -> dict[str, Any]: ...


class Shuffled:
    """The order of training on one rank: each epoch is a permutation that (seed, epoch) determine.

    What does not fill the last batch of an epoch is left out in that epoch. The batch at a position is a pure function
    of that position, which is what makes resuming exact.

    Args:
        count: examples.
        batch_size: of one rank.
        rank, world: which part of every global batch of `batch_size * world` is taken.
        seed: of all epochs.
        repeats: how often each example of a global batch is in it (repeated augmentation, Hoffer et al. 2020); an epoch
            then visits a different 1/repeats of the examples.
        position: returns how many batches were consumed, over all epochs, when an iteration starts; or None: iterate
            one epoch after the other.
    """

    def __init__(
        self, count: int, batch_size: int, rank: int = 0, world: int = 1, seed: int = 0, repeats: int = 1,
        position: Callable[[], int | None] = lambda: None,
    ) -> None:  # fmt: skip
        self._count, self._batch_size, self._rank, self._world = count, batch_size, rank, world
        self._seed, self._repeats, self._position = seed, repeats, position
        self._served = 0
        self._epoch: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._count // (self._batch_size * self._world)

    def __iter__(self) -> Iterator[Draw]:
        # The trainer counts the batches of an epoch itself, and sometimes keeps one iterator for several epochs.
        if (start := self._position()) is not None:
            yield from map(self.batch, itertools.count(start))
            return
        start, self._served = self._served, self._served + len(self)
        yield from map(self.batch, range(start, start + len(self)))

    def batch(self, position: int) -> Draw:
        """The examples of this rank at a position."""
        epoch, index = divmod(position, len(self))
        first = (index * self._world + self._rank) * self._batch_size
        return Draw(position, self._order(epoch)[first : first + self._batch_size])

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._count)
            if self._repeats > 1:
                size = self._batch_size * self._world
                distinct = -(-size // self._repeats)
                blocks = order[: len(self) * distinct].reshape(len(self), distinct)
                # Copies lie far apart in the batch, so that mixing neighbours does not mix an image with itself.
                order = np.tile(blocks, (1, self._repeats))[:, :size].reshape(-1)
            self._epoch = epoch, order
        return self._epoch[1]


class InOrder:
    """The order of validation: each example once; ranks take disjoint parts and equally many batches of equal shape.

    The last batches are filled up with -1. Arguments as for `Shuffled`.
    """

    def __init__(self, count: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self._count, self._batch_size, self._rank, self._world = count, batch_size, rank, world

    def __len__(self) -> int:
        return -(-self._count // (self._batch_size * self._world))

    def __iter__(self) -> Iterator[Draw]:
        for index in range(len(self)):
            first = (index * self._world + self._rank) * self._batch_size
            indices = np.arange(first, first + self._batch_size)
            yield Draw(None, np.where(indices < self._count, indices, -1))


class Batches:
    """An iterable over the batches of an order, fetched in this process or by workers.

    It is not a `DataLoader`: one starts to read ahead as soon as it is iterated, and Lightning iterates it before a
    checkpoint is restored whenever something asked for the number of steps. Here nothing is read, and no position taken,
    before the first batch is asked for. Nor does Lightning put a sampler of its own into it.
    """

    def __init__(self, source: Source, order: Shuffled | InOrder, workers: int = 0, pin: bool = False) -> None:
        self._source, self._order, self._workers, self._pin = source, order, workers, pin

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._workers:
            yield from self._loader
            return
        for draw in self._order:
            batch = self._source[draw]
            yield {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.items()} if self._pin else batch

    @cached_property
    def _loader(self) -> DataLoader:
        return DataLoader(
            self._source,  # pyright: ignore[reportArgumentType]
            batch_size=None,
            sampler=self._order,  # pyright: ignore[reportArgumentType]
            num_workers=self._workers,
            persistent_workers=True,
            pin_memory=self._pin,
        )

    # Lightning warns, when it resumes within an epoch, about a loader without these two. The position needs no entry of
    # its own: it is the trainer's count of processed batches, which the checkpoint holds.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
