"""Fixed windows over a stream of tokens, cut into whole batches by numpy.

A batch is indexed by an array of window starts, so that one fancy indexing builds all of it: fetching single samples
in Python and collating them costs more than a small model's step on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...core.losses import IGNORED
from ...core.training import data
from ...core.training.permutation import Arrangement, permutation
from .shards import ShardedTokens
from .tokens import TokenArray, documents_at


class Windows(Dataset[dict[str, Tensor]]):
    """Batches of windows: `windows[starts]` for an int64 array of offsets `[batch]` into the token stream.

    A batch holds `tokens` and `targets` (the next token, -100 where it is not scored), int64 `[batch, context]`, and,
    when `packed`, `documents` `[batch, context]`: the number of the document each token belongs to. The first token
    of a document is never a target: nothing that the model may see announces it. Positions behind the end of the
    stream are ignored, too.
    """

    def __init__(self, array: TokenArray | ShardedTokens, context: int, packed: bool) -> None:
        self.array = array
        self.context = context
        self.packed = packed

    def __getstate__(self) -> dict[str, Any]:
        # Every worker maps the files itself; pickling a map would copy the corpus.
        return {key: value for key, value in self.__dict__.items() if key != "_maps"}

    @cached_property
    def _maps(self) -> tuple[Any, Any]:
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
            documents = documents_at(borders, at)
            targets[documents[:, 1:] != documents[:, :-1]] = IGNORED
            batch["documents"] = torch.from_numpy(np.ascontiguousarray(documents[:, :-1]))
        return batch


class ShuffledWindows(data.Shuffled):
    """The order of training: window starts `[batch]` of one rank, batch after batch.

    In epoch e the windows tile the stream from a random phase in [0, context), in random order and each once; both
    come from a generator seeded by (seed, e). Every epoch has the same number of batches: windows that do not fill
    the last one, and tokens outside the tiling, are left out in that epoch only.

    Args:
        tokens: length of the stream.
        context: tokens of a window.
        options: as for the core's `Shuffled`.
    """

    def __init__(self, tokens: int, context: int, *options: Any, **more: Any) -> None:
        self.windows = training_windows(tokens, context)
        super().__init__(self.windows, *options, **more)
        self._tokens, self._context = tokens, context

    def permutation(self, epoch: int) -> Starts:
        generator = np.random.default_rng([self._seed, epoch])
        free = self._tokens - 1 - self.windows * self._context
        phase = int(generator.integers(min(self._context, free + 1)))
        return Starts(phase, self._context, permutation(self.windows, generator))

    def batch(self, position: int) -> np.ndarray:
        """Returns the window starts of the batch at `position`."""
        return self.take(position)


@dataclass(frozen=True)
class Starts:
    """Where the windows of an epoch start, in the order in which it visits them: `starts[places]`."""

    phase: int
    context: int
    order: Arrangement

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        return self.phase + self.context * self.order[places]


class WindowsInOrder:
    """The order of validation: every window once, one behind the other, so that every token is scored once.

    The ranks take disjoint windows and equally many batches of equal shape; what is too much lies behind the end of
    the stream, where everything is ignored. Arguments as for `ShuffledWindows`.
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


def training_windows(tokens: int, context: int) -> int:
    """Returns the number of windows of an epoch; the same for every phase where the stream holds two windows or
    more.
    """
    if tokens <= context:
        return 0
    return max(1, (tokens - context) // context)
