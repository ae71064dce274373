"""Figures of ordered classes: how far the answer is from the truth, in ranks."""

from __future__ import annotations

from typing import Any

import numpy as np

from .bootstrap import Figures, Resamples, percentiles, spearman
from .classification import Answers, probability_metrics, probability_parts


def ordinal_metrics(answers: Answers) -> dict[str, float]:
    """accuracy, rank_mae (mean distance of ranks), quadratic_kappa (Cohen 1968; left out when all ranks are the same),
    spearman (of the true and the expected rank), nll, brier, ece, and the last three calibrated.
    """
    labels, predicted = answers.labels, answers.predicted
    metrics = {"accuracy": float((labels == predicted).mean()), "rank_mae": float(np.abs(labels - predicted).mean())}
    if len(np.unique(np.concatenate([labels, predicted]))) > 1:
        ranks, named = (values.astype(np.float64) for values in (labels, predicted))
        by_chance = np.square(ranks).mean() + np.square(named).mean() - 2 * ranks.mean() * named.mean()
        metrics["quadratic_kappa"] = float(1 - np.square(ranks - named).mean() / by_chance)
    expected = expected_rank(answers)
    if np.ptp(labels) > 0 and np.ptp(expected) > 1e-12:
        metrics["spearman"] = float(spearman(labels.astype(np.float64), expected, np.ones((1, len(labels))))[0])
    return metrics | probability_metrics(answers)


def expected_rank(answers: Answers) -> np.ndarray:
    """The mean of the ranks by their probabilities, float64 `[examples]`."""
    return np.exp(answers.log_p) @ np.arange(answers.classes)


def ordinal_intervals(answers: Answers, resamples: Resamples) -> dict[str, tuple[float, float]]:
    """95 % intervals of `ordinal_metrics`."""
    true, named = answers.labels.astype(np.float64), answers.predicted.astype(np.float64)
    gap = true - named
    parts, probabilities = probability_parts(answers)
    own = np.column_stack([np.ones(len(true)), gap == 0, np.abs(gap), gap**2, true, named, true**2 + named**2])

    def figures(sums: np.ndarray) -> Figures:
        count, right, distance, square, t, n, squares = sums[:, : own.shape[1]].T
        # Of ranks drawn from both sides independently the mean squared distance follows from these sums.
        by_chance = squares - 2 * t * n / count
        with np.errstate(invalid="ignore", divide="ignore"):
            kappa = 1 - square / np.where(by_chance > 1e-9, by_chance, np.nan)
        found = {"accuracy": right / count, "rank_mae": distance / count, "quadratic_kappa": kappa}
        return found | probabilities(sums[:, own.shape[1] :], count)

    found = resamples.of_sums(np.column_stack([own, parts]), figures)
    expected = expected_rank(answers)
    found |= resamples.of_ranks(lambda weights: {"spearman": spearman(true, expected, weights)}, 1)
    return percentiles(found)


def rank_rows(answers: Answers, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each class, in order: examples, how often it is named, recall, and mean distance in ranks."""
    rows = []
    for c, name in enumerate(names):
        mine = answers.labels == c
        named = answers.predicted[mine]
        rows.append({
            "name": name, "count": int(mine.sum()), "named": int((answers.predicted == c).sum()),
            "recall": float((named == c).mean()) if mine.any() else None,
            "rank_mae": float(np.abs(named - c).mean()) if mine.any() else None,
        })  # fmt: skip
    return rows
