"""Fixed windows over a stream of tokens, cut into whole batches by numpy.

A batch is indexed by an array of window starts, so that one fancy indexing builds all of it: fetching single samples in
Python and collating them costs more than a small model's step on a CPU.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .tokens import TokenArray

IGNORED = -100


class Windows(Dataset[dict[str, Tensor]]):
    """Batches of windows: `windows[starts]` for an int64 array of offsets [batch] into the token stream.

    A batch holds `tokens` and `targets` (the next token, -100 where it is not scored), int64 [batch, context], and,
    when `packed`, `documents` [batch, context]: the number of the document each token belongs to. The first token of a
    document is never a target: nothing that the model may see announces it. Positions behind the end of the stream are
    ignored, too.
    """

    def __init__(self, array: TokenArray, context: int, packed: bool) -> None:
        self.array = array
        self.context = context
        self.packed = packed

    def __getstate__(self) -> dict[str, Any]:
        # Every worker maps the files itself; pickling a map would copy the corpus.
        return {key: value for key, value in self.__dict__.items() if key != "_maps"}

    @cached_property
    def _maps(self) -> tuple[np.ndarray, np.ndarray]:
        return self.array.open()

    def __getitem__(self, starts: np.ndarray) -> dict[str, Tensor]:
        stream, borders = self._maps
        at = starts[:, None] + np.arange(self.context + 1)
        outside = at >= len(stream) if at.size and at.max() >= len(stream) else None
        tokens = stream[at if outside is None else np.minimum(at, len(stream) - 1)].astype(np.int64)
        # Copies: with a single row the slices would share memory, and ignored targets would spoil the inputs.
        inputs, targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        if outside is not None:
            targets[outside[:, 1:]] = IGNORED
        batch = {"tokens": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
        if self.packed:
            # Positions behind the end count as the last document: causal attention keeps them from the real tokens.
            documents = np.searchsorted(borders, at, side="right") - 1
            targets[documents[:, 1:] != documents[:, :-1]] = IGNORED
            batch["documents"] = torch.from_numpy(np.ascontiguousarray(documents[:, :-1]))
        return batch


class Shuffled:
    """The order of training: window starts [batch] of one rank, batch after batch.

    In epoch e the windows tile the stream from a random phase in [0, context), in random order and each once; both come
    from a generator seeded by (seed, e). Every epoch has the same number of batches: windows that do not fill the last
    one, and tokens outside the tiling, are left out in that epoch only. The batch at a position is a pure function of
    that position, which is what makes resuming exact.

    Args:
        tokens: length of the stream.
        context: tokens of a window.
        batch_size: windows of a batch on one rank.
        rank, world: which part of every global batch of `batch_size * world` windows is taken.
        seed: seed of all epochs.
        position: returns how many batches were consumed, over all epochs, when an iteration starts; or None: iterate
            one epoch after the other.
    """

    def __init__(
        self,
        tokens: int,
        context: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        position: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._tokens, self._context, self._seed = tokens, context, seed
        self._batch_size, self._rank, self._world = batch_size, rank, world
        self._position = position
        self._served = 0
        self._epoch: tuple[int, np.ndarray] | None = None
        self.windows = training_windows(tokens, context)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.windows // (self._batch_size * self._world)

    def __iter__(self) -> Iterator[np.ndarray]:
        # The trainer counts the batches of an epoch itself, and sometimes keeps one iterator for several epochs.
        if (start := self._position()) is not None:
            yield from map(self.batch, itertools.count(start))
            return
        start, self._served = self._served, self._served + len(self)
        yield from map(self.batch, range(start, start + len(self)))

    def batch(self, position: int) -> np.ndarray:
        """Return the window starts of the batch at `position`."""
        epoch, index = divmod(position, len(self))
        first = (index * self._world + self._rank) * self._batch_size
        return self._starts(epoch)[first : first + self._batch_size]

    def _starts(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            generator = np.random.default_rng([self._seed, epoch])
            free = self._tokens - 1 - self.windows * self._context
            phase = generator.integers(min(self._context, free + 1))
            self._epoch = epoch, phase + self._context * generator.permutation(self.windows)
        return self._epoch[1]


class InOrder:
    """The order of validation: every window once, one behind the other, so that every token is scored once.

    The ranks take disjoint windows and equally many batches of equal shape; what is too much lies behind the end of the
    stream, where everything is ignored. Arguments as for `Shuffled`.
    """

    def __init__(self, tokens: int, context: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self._context, self._batch_size, self._rank, self._world = context, batch_size, rank, world
        self._windows = -(-(tokens - 1) // context)

    def __len__(self) -> int:
        return -(-self._windows // (self._batch_size * self._world))

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(len(self)):
            first = (index * self._world + self._rank) * self._batch_size
            yield self._context * np.arange(first, first + self._batch_size)


class Batches:
    """An iterable over the batches of an order, read in this process or by workers.

    It is not a `DataLoader`: one starts to read ahead as soon as it is iterated, and Lightning iterates it before a
    checkpoint is restored whenever something asked for the number of steps. Here nothing is read, and no position
    taken, before the first batch is asked for. Nor does Lightning put a sampler of its own into it.
    """

    def __init__(self, windows: Windows, order: Shuffled | InOrder, workers: int, pin: bool) -> None:
        self._windows = windows
        self._order = order
        self._workers = workers
        self._pin = pin

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if self._workers:
            yield from self._loader
            return
        for starts in self._order:
            batch = self._windows[starts]
            yield {name: tensor.pin_memory() for name, tensor in batch.items()} if self._pin else batch

    @cached_property
    def _loader(self) -> DataLoader:
        # `tokenizers` prints a warning at every fork unless this says that threads are wanted.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        return DataLoader(
            self._windows,
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


def training_windows(tokens: int, context: int) -> int:
    """Return the number of windows of an epoch; the same for every phase where the stream holds two windows or more."""
    if tokens <= context:
        return 0
    return max(1, (tokens - context) // context)
