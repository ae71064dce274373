"""Figures of predicted numbers and of their intervals, in float64 from all examples at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .bootstrap import Figures, Resamples, mean_defined, spearman
from .judgement import Scatter

AVERAGED = ("scaled_mae", "r2", "spearman", "nll", "pinball", "coverage", "coverage_calibrated")
"""Figures without a unit, whose mean over several targets says something."""


@dataclass(frozen=True)
class Numbers:
    """What a model says of one target, of the examples that have it.

    Args:
        name: the target.
        true, value: float64 `[examples]`.
        scale: standard deviation of the training targets.
        ends: intervals by name ("" as the model gives them, "_calibrated" by numbers that the example did not help to
            fit), each low and high `[examples]`.
        losses: further figures of each example, such as `nll`, float64 `[examples]`.
    """

    name: str
    true: np.ndarray
    value: np.ndarray
    scale: float
    ends: dict[str, tuple[np.ndarray, np.ndarray]]
    losses: dict[str, np.ndarray]

    def scatter(self) -> Scatter:
        """What the picture is drawn from, with the calibrated intervals where there are some."""
        low, high = self.ends.get("_calibrated") or self.ends.get("") or (None, None)
        return Scatter(self.name, self.true, self.value, low, high)

    def columns(self) -> dict[str, np.ndarray]:
        """What each example adds to the figures that are means."""
        found = {"mae": np.abs(self.true - self.value), **self.losses}
        for name, (low, high) in self.ends.items():
            found[f"coverage{name}"] = ((low <= self.true) & (self.true <= high)).astype(np.float64)
            found[f"width{name}"] = high - low
        return found


def regress_metrics(numbers: Numbers) -> dict[str, float]:
    """mae, rmse, scaled_mae (mae over the standard deviation of the training targets), r2, spearman, losses, coverage
    and mean width of the intervals. r2 and spearman are left out where they are not defined (constant numbers).
    """
    true, value = numbers.true, numbers.value
    means = {name: float(column.mean()) for name, column in numbers.columns().items()}
    mae = means.pop("mae")
    metrics = {"mae": mae, "rmse": float(np.sqrt(np.square(true - value).mean())), "scaled_mae": mae / numbers.scale}
    if len(true) > 1 and np.ptp(true) > 0:
        metrics["r2"] = float(1 - np.square(true - value).sum() / np.square(true - true.mean()).sum())
        if np.ptp(value) > 0:
            metrics["spearman"] = float(spearman(true, value, np.ones((1, len(true))))[0])
    return metrics | means


def averaged(each: list[dict[str, Any]]) -> dict[str, float]:
    """One target's figures; of several the means of those without a unit, over the targets that define them."""
    if len(each) == 1:
        return {name: value for name, value in each[0].items() if value is not None}
    found = {}
    for name in AVERAGED:
        if values := [row[name] for row in each if row.get(name) is not None]:
            found[name] = float(np.mean(values))
    return found


def regress_resamples(numbers: Numbers, rows: np.ndarray, count: int, resamples: Resamples) -> Figures:
    """`regress_metrics` of each resample of `count` examples, of which `rows` have this target."""
    columns = numbers.columns()
    centred = numbers.true - numbers.true.mean()
    errors = np.square(numbers.true - numbers.value)
    parts = np.zeros((count, 4 + len(columns)))
    parts[rows] = np.stack([np.ones(len(rows)), centred, centred**2, errors, *columns.values()], axis=1)

    def of_sums(sums: np.ndarray) -> Figures:
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sums / sums[:, :1]
            found = {name: means[:, 4 + i] for i, name in enumerate(columns)}
            spread = means[:, 2] - means[:, 1] ** 2
            spread[spread <= 1e-12 * max(float((centred**2).mean()), 1e-300)] = np.nan
            found |= {"rmse": np.sqrt(means[:, 3]), "r2": 1 - means[:, 3] / spread}
        return found | {"scaled_mae": found["mae"] / numbers.scale}

    found = resamples.of_sums(parts, of_sums)
    return found | resamples.of_ranks(
        lambda weights: {"spearman": spearman(numbers.true, numbers.value, weights[:, rows])}, 1
    )


def averaged_resamples(each: list[Figures]) -> Figures:
    """As `averaged`, of each resample."""
    if len(each) == 1:
        return each[0]
    found = {}
    for name in AVERAGED:
        held = [figures[name] for figures in each if name in figures]
        if held and len({len(values) for values in held}) == 1:
            found[name] = mean_defined(np.stack(held, axis=1))
    return found
