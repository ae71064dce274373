"""Several sources in fixed shares: which of them a sample comes from is a function of its number alone."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from ..errors import UserError

FINEST = 1000
"""Shares are multiples of one over at most this."""


def whole_weights(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the proportions of `weights`.

    Raises:
        UserError: a weight is not above 0, or their proportions need numbers above `FINEST`.
    """
    if not all(0 < weight < float("inf") for weight in weights):
        raise UserError(f"data.weights are {_shown(weights)}, but each must be a number above 0.")
    shares = [Fraction(weight / sum(weights)).limit_denominator(FINEST) for weight in weights]
    whole = lcm(*(share.denominator for share in shares))
    counts = [int(share * whole) for share in shares]
    if sum(counts) > FINEST or not all(counts):
        raise UserError(
            f"data.weights are {_shown(weights)}, but must be in proportions of whole numbers whose sum is at most"
            f" {FINEST:,}; give 0.7 and 0.3, for example."
        )
    return [count // gcd(*counts) for count in counts]


def _shown(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:g}" for weight in weights)


class Mixture:
    """The source of every sample, and which sample of that source it is.

    Of each `sum(weights)` samples in a row exactly as many come from a source as its weight says, spread evenly: next
    comes the source that lags most behind its share.

    Args:
        weights: whole numbers above 0.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self.weights = np.array(weights, dtype=np.int64)
        self._period = int(self.weights.sum())
        given = np.zeros(len(weights), dtype=np.int64)
        self._source = np.empty(self._period, dtype=np.int64)
        self._before = np.empty(self._period, dtype=np.int64)
        for place in range(self._period):
            lag = self.weights * (place + 1) - given * self._period
            chosen = int(np.argmax(lag))
            self._source[place], self._before[place] = chosen, given[chosen]
            given[chosen] += 1

    def __getitem__(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, sample of that source), int64 like `samples`, which count from the start of the training."""
        period, place = np.divmod(samples, self._period)
        source = self._source[place]
        return source, period * self.weights[source] + self._before[place]
