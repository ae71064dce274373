"""Random orders of any number of examples: the place of an example is computed, not looked up, where there are many."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from .versions import other_version

IN_MEMORY = 1 << 22
"""Up to so many examples the order lies in memory (8 bytes each), drawn by NumPy."""
ROUNDS = 8
VERSION = 2
"""Of the orders; version 1 drew those of more than `IN_MEMORY` examples as it draws the others."""


class Arrangement(Protocol):
    """The order of an epoch: `arrangement[places]` for int64 places `[any]` gives what stands there."""

    def __getitem__(self, places: np.ndarray, /) -> np.ndarray: ...


def permutation(count: int, generator: np.random.Generator) -> Arrangement:
    """A random order of 0 … `count` - 1: an array, or a `Feistel` where that would take much memory.

    Args:
        count: examples, below 2^62.
        generator: draws the order.
    """
    return generator.permutation(count) if count <= IN_MEMORY else Feistel(count, generator)


def check_version(version: int, count: int) -> None:
    """Raises UserError where a run that began with a version of the orders would see its examples in another one.

    Args:
        version: recorded in its checkpoint; 1 where there is none.
        count: its training examples.
    """
    if version > VERSION or (version < VERSION and count > IN_MEMORY):
        raise other_version(version > VERSION, f"the order of its {count:,} examples")


class Feistel:
    """A random order of 0 … `count` - 1 that takes no memory, however many there are.

    A number is written as two digits, of the bases `ceil(sqrt(count))` and the least that covers `count`. In every
    round a hash of one digit is added to the other, which can be undone, so that the whole is a permutation (a
    generalised Feistel network; Black and Rogaway 2002). A result of `count` or more goes through again until it is
    below; that is about one in `sqrt(count)`.

    Args:
        count: examples, below 2^62.
        generator: draws the keys of the rounds.
    """

    def __init__(self, count: int, generator: np.random.Generator) -> None:
        self._count = count
        self._left = max(1, math.isqrt(max(count - 1, 0)) + 1)
        self._right = max(1, -(-count // self._left))
        self._keys = generator.integers(1 << 63, size=ROUNDS).astype(np.uint64)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """What stands at `places`, int64 of the same shape; each of them from 0 to `count` - 1."""
        found = self._once(np.asarray(places, dtype=np.int64))
        while (beyond := found >= self._count).any():
            found[beyond] = self._once(found[beyond])
        return found

    def _once(self, numbers: np.ndarray) -> np.ndarray:
        left, right = (digit.astype(np.uint64) for digit in np.divmod(numbers, self._right))
        for number, key in enumerate(self._keys):
            if number % 2:
                right = (right + _hash(left, key) % np.uint64(self._right)) % np.uint64(self._right)
            else:
                left = (left + _hash(right, key) % np.uint64(self._left)) % np.uint64(self._left)
        return (left * np.uint64(self._right) + right).astype(np.int64)


def _hash(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """64 bits that look random, of uint64 values and a key (the last steps of SplitMix64, Steele et al. 2014)."""
    mixed = values ^ key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
