"""Percentile intervals of figures over resampled examples (Efron 1979), fast enough to be printed always.

A resample is a weight for each example: how often it was drawn. Figures of sums need one product of the weights with
what each example adds; figures of ranks are computed with all weights at once along one sorting.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RESAMPLES = 1000
"""At most; `Resamples.number` says when fewer."""
MOST_DRAWS = 20_000_000
"""Draws of one set of intervals, about half a second."""
FEWEST = 100
MOST_RANKED = 12_000_000
"""Weights that figures of ranks may read: resamples x examples x classes; about half a second."""
AT_ONCE = 1_000_000
"""Weights held at once: 8 MB."""

Figures = dict[str, np.ndarray]
"""By name, float `[resamples]`; NaN where a resample does not define the figure."""


@dataclass(frozen=True)
class Resamples:
    """Examples drawn with replacement, or whole groups of them.

    Args:
        count: examples.
        groups: what each example belongs to, `[count]`; None draws examples.
        most: resamples; fewer, but at least `FEWEST`, when draws would be more than `MOST_DRAWS`.
        seed: of the draws.

    `unit` is the number of each example's group, `[count]`, or None, and `units` how many examples or groups there are.
    """

    count: int
    groups: Sequence[Any] | np.ndarray | None = None
    most: int = RESAMPLES
    seed: int = 0
    unit: np.ndarray | None = field(init=False, default=None)
    units: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        unit, units = None, self.count
        if self.groups is not None:
            names, unit = np.unique(np.asarray(self.groups), return_inverse=True)
            # Groups of one example each are the examples.
            unit, units = (None if len(names) == self.count else unit.reshape(-1)), len(names)
        object.__setattr__(self, "unit", unit)
        object.__setattr__(self, "units", units)

    @property
    def number(self) -> int:
        """Resamples drawn."""
        return min(self.most, max(FEWEST, MOST_DRAWS // max(self.units, 1)))

    def chunks(self, number: int, width: int) -> Iterator[np.ndarray]:
        """The first `number` resamples as float64 `[some, units]`, so many at once that `width` columns fit."""
        generator = np.random.default_rng(self.seed)
        step = max(1, AT_ONCE // max(width, self.units, 1))
        for start in range(0, number, step):
            rows = min(step, number - start)
            drawn = generator.integers(0, self.units, (rows, self.units), dtype=np.int32)
            drawn += np.arange(rows, dtype=np.int32)[:, None] * self.units
            yield np.bincount(drawn.ravel(), minlength=rows * self.units).reshape(rows, self.units).astype(np.float64)

    def of_sums(self, parts: Any, figures: Callable[[np.ndarray], Figures]) -> Figures:
        """Figures of sums over examples.

        Args:
            parts: what each example adds, `[count, columns]`, dense or a scipy sparse matrix.
            figures: from sums `[resamples, columns]`.
        """
        from scipy import sparse

        if self.unit is not None:
            member = sparse.csr_matrix(
                (np.ones(self.count), (self.unit, np.arange(self.count))), (self.units, self.count)
            )
            parts = member @ parts
        summed = [np.asarray((parts.T @ weights.T).T) for weights in self.chunks(self.number, parts.shape[1])]
        return figures(np.concatenate(summed))

    def of_ranks(self, figures: Callable[[np.ndarray], Figures], columns: int) -> Figures:
        """Figures that need each example's weight, float64 `[resamples, count]`.

        `columns` of them, such as classes, are computed; with more than `MOST_RANKED` weights to read for the fewest
        resamples there are none.
        """
        number = min(self.number, MOST_RANKED // max(self.count * columns, 1))
        if number < min(FEWEST, self.most):
            return {}
        found = [
            figures(weights if self.unit is None else weights[:, self.unit])
            for weights in self.chunks(number, self.count)
        ]
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def said(self) -> str:
        """What the intervals are, in a sentence."""
        of = f"{self.units:,} examples" if self.unit is None else f"{self.units:,} groups of examples"
        return f"Intervals: 95 % of {self.number:,} bootstrap resamples of {of}, or of {FEWEST} and more for ranks."


def percentiles(figures: Figures) -> dict[str, tuple[float, float]]:
    """The ends that 95 % of the resamples lie between; none where more than half of them do not define the figure, or
    all give the same one: resamples of examples without a mistake know of none, which is no certainty.
    """
    found = {}
    for name, values in figures.items():
        defined = values[np.isfinite(values)]
        if 2 * len(defined) >= len(values) > 0 and defined.min() < defined.max():
            low, high = np.percentile(defined, [2.5, 97.5])
            found[name] = (float(low), float(high))
    return found


# --- figures of ranks under weights -----------------------------------------------------------------------------------


def ranking(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and AUROC `[resamples]` of scores `[examples]` under weights `[resamples, examples]`.

    Equal to scikit-learn's `average_precision_score` and `roc_auc_score` with `sample_weight`; NaN where one of the two
    kinds of example has no weight.
    """
    order, starts = _ties(scores)
    held = weights[:, order]
    pos = _tied(held * positive[order], starts)
    neg = _tied(held, starts) - pos
    below = np.cumsum(neg, axis=1)
    all_neg, all_pos = below[:, -1], pos.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = np.einsum("rn,rn->r", pos, below - neg / 2) / (all_pos * all_neg)
        above = np.cumsum(pos[:, ::-1], axis=1)[:, ::-1]
        precision = above / (above + all_neg[:, None] - below + neg)
        precision[pos == 0] = 0
        average = np.einsum("rn,rn->r", pos, precision) / all_pos
    average[all_neg == 0] = np.nan
    return average, auroc


def spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank correlation `[resamples]` of two columns `[examples]` under weights `[resamples, examples]`, ties at their
    mean rank; NaN where one is constant.
    """
    a, b = _ranks(x, weights), _ranks(y, weights)
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    a -= (weights * a).sum(axis=1, keepdims=True) / total
    b -= (weights * b).sum(axis=1, keepdims=True) / total
    spread = np.einsum("rn,rn,rn->r", weights, a, a) * np.einsum("rn,rn,rn->r", weights, b, b)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("rn,rn,rn->r", weights, a, b) / np.where(spread > 0, np.sqrt(spread), np.nan)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order, starts = _ties(values)
    held = _tied(weights[:, order], starts)
    middle = np.cumsum(held, axis=1) - (held - 1) / 2
    tie = np.empty(len(values), dtype=np.int64)
    tie[order] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(values)]))
    return middle[:, tie]


def _tied(weights: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums of the weights `[resamples, examples]` of equal values."""
    return weights if len(starts) == weights.shape[1] else np.add.reduceat(weights, starts, axis=1)


def _ties(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ascending order, and where in it each run of equal values begins."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    return order, np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))


def mean_defined(values: np.ndarray, axis: int = 1) -> np.ndarray:
    """The mean of what is defined (not NaN) along an axis; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=axis)
