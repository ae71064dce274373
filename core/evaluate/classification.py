"""Figures of class probabilities and of yes-or-no labels, in float64 from all examples at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .bootstrap import Figures, Resamples, mean_defined, percentiles, ranking
from .judgement import Confusion, Panel
from .reliability import equal_mass, equal_width

MOST_RANKED = 20_000_000
"""Examples x classes of which AUROC and average precision are computed; a few seconds."""
RANKED = ("average_precision", "auroc")


@dataclass(frozen=True)
class Answers:
    """What a classifier says of a set of examples.

    Args:
        labels: true classes, int64 `[examples]`.
        predicted: the classes it names, int64 `[examples]`.
        log_p: log probabilities float64 `[examples, classes]`.
        calibrated: the same after calibration, each example by numbers that it did not help to fit; None without
            calibration.
        written: as `predict` writes them, with one calibration for all examples; None without.
    """

    labels: np.ndarray
    predicted: np.ndarray
    log_p: np.ndarray
    calibrated: np.ndarray | None = None
    written: np.ndarray | None = None

    @property
    def classes(self) -> int:
        """Classes of the model."""
        return self.log_p.shape[1]

    def versions(self) -> list[tuple[str, np.ndarray]]:
        """The suffix of the figures and the log probabilities: as trained and, if others, calibrated."""
        found = [("", self.log_p)]
        return found if self.calibrated is None else [*found, ("_calibrated", self.calibrated)]

    @cached_property
    def margins(self) -> np.ndarray:
        """What ranks the examples for each class, `[examples, classes]`, see `margins`: of the probabilities that are
        written, because a temperature keeps the order of the classes of one example, but not that of the examples.
        """
        return margins(self.log_p if self.written is None else self.written)

    @cached_property
    def by_class(self) -> dict[str, np.ndarray]:
        """AUROC and average precision of each class against the others `[classes]`; NaN where not defined, nothing for
        sets of more than `MOST_RANKED` numbers.
        """
        if self.log_p.size > MOST_RANKED:
            return {}
        return ranked(self.margins, self.labels[:, None] == np.arange(self.classes))


def of_example(log_p: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, ...]:
    """Nats, Brier score, confidence in the predicted class and whether it is right, each float64 `[examples]`."""
    rows, p = np.arange(len(labels)), np.exp(log_p)
    brier = np.square(p).sum(axis=1) - 2 * p[rows, labels] + 1
    return -log_p[rows, labels], brier, p[rows, predicted], (predicted == labels).astype(np.float64)


def confusion(answers: Answers, names: Sequence[str]) -> Confusion:
    """Examples by true and predicted class."""
    flat = np.bincount(answers.labels * answers.classes + answers.predicted, minlength=answers.classes**2)
    return Confusion(tuple(names), flat.reshape(answers.classes, answers.classes))


def classify_metrics(answers: Answers) -> dict[str, float]:
    """accuracy, balanced_accuracy, macro_f1, average_precision, auroc, nll, brier, ece, and the last three calibrated.

    Means over classes are over those that occur in the labels. `auroc` and `average_precision` are of each class
    against the others, by the probabilities that are written; left out where no class has both. `brier` is in 0..2.
    Top-5 accuracy from six classes on.
    """
    return hit_metrics(answers) | defined_means(answers.by_class) | probability_metrics(answers)


def hit_metrics(answers: Answers) -> dict[str, float]:
    """Those of `classify_metrics` that count what is right: accuracy, top5, balanced_accuracy, macro_f1."""
    labels, predicted = answers.labels, answers.predicted
    truth = np.bincount(labels, minlength=answers.classes)
    named = np.bincount(predicted, minlength=answers.classes)
    right = np.bincount(labels[predicted == labels], minlength=answers.classes)
    here = truth > 0
    metrics = {"accuracy": float((predicted == labels).mean())}
    if answers.classes > 5:
        metrics["top5"] = float(top(answers, 5).mean())
    metrics["balanced_accuracy"] = float((right[here] / truth[here]).mean())
    metrics["macro_f1"] = float((2 * right[here] / (truth + named)[here]).mean())
    return metrics


def probability_metrics(answers: Answers) -> dict[str, float]:
    """nll, brier and ece, as trained and calibrated."""
    metrics = {}
    for name, log_p in answers.versions():
        nats, brier, confidence, right = of_example(log_p, answers.labels, answers.predicted)
        ece = equal_width(torch.from_numpy(confidence), torch.from_numpy(right)).error
        metrics |= {f"nll{name}": float(nats.mean()), f"brier{name}": float(brier.mean()), f"ece{name}": ece}
    return metrics


def probability_parts(answers: Answers) -> tuple[np.ndarray, Callable[[np.ndarray, np.ndarray], Figures]]:
    """What each example adds to nll and brier, `[examples, columns]`, and these figures from sums `[resamples,
    columns]` and the number of examples `[resamples]`.

    The calibration error has no percentile interval: drawing examples twice adds noise to every bin, so that most
    resamples have a larger error than the examples.
    """
    each = [of_example(log_p, answers.labels, answers.predicted)[:2] for _, log_p in answers.versions()]

    def figures(sums: np.ndarray, total: np.ndarray) -> Figures:
        names = [f"{figure}{suffix}" for suffix, _ in answers.versions() for figure in ("nll", "brier")]
        return {name: sums[:, column] / total for column, name in enumerate(names)}

    return np.column_stack([column for pair in each for column in pair]), figures


def panels(answers: Answers, metrics: dict[str, float]) -> list[Panel]:
    """The halves of the reliability diagram."""
    found = []
    for title, (name, log_p) in zip(("as trained", "calibrated"), answers.versions()):
        _, _, *pair = of_example(log_p, answers.labels, answers.predicted)
        confidence, right = map(torch.from_numpy, pair)
        bins, even = equal_width(confidence, right), equal_mass(confidence, right)
        found.append(Panel(title, bins, metrics[f"nll{name}"], adaptive=even.error))
    return found


def top(answers: Answers, most: int) -> np.ndarray:
    """Whether the true class is among the `most` probable ones, bool `[examples]`; of equally probable ones the first
    come first, so that a constant answer does not count as right for all that it ties.
    """
    own = answers.log_p[np.arange(len(answers.labels)), answers.labels][:, None]
    before = np.arange(answers.classes) < answers.labels[:, None]
    return ((answers.log_p > own) | ((answers.log_p == own) & before)).sum(axis=1) < most


def margins(log_p: np.ndarray) -> np.ndarray:
    """Log odds of each class, which rank as its probability does but do not tie near 1.

    Rounded to 1e-9, far below what 32-bit outputs can say, so that the same logits in another order of the classes do
    tie: the last digit of their sum depends on the order.
    """
    rows, best = np.arange(len(log_p)), log_p.argmax(axis=1)
    others = log_p.copy()
    others[rows, best] = -np.inf
    with np.errstate(divide="ignore"):
        rest = np.log(-np.expm1(log_p))
    # Of the likeliest class the rest is the sum of the others: 1 - p would be rounded away near certainty.
    rest[rows, best] = np.logaddexp.reduce(others, axis=1)
    return np.round(log_p - rest, 9)


def ranked(scores: np.ndarray, positive: np.ndarray, real: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """AUROC and average precision of each column `[columns]`; NaN where a column has one kind only.

    `real` bool `[examples, columns]` leaves out cells without a target.
    """
    found = {name: np.full(scores.shape[1], np.nan) for name in RANKED}
    for column in range(scores.shape[1]):
        kept = slice(None) if real is None else real[:, column]
        truth, score = positive[kept, column], scores[kept, column]
        if truth.any() and not truth.all():
            for name, value in zip(RANKED, ranking(score, truth, np.ones((1, len(score))))):
                found[name][column] = value[0]
    return found


def defined_means(ranked: dict[str, np.ndarray]) -> dict[str, float]:
    """The mean of each figure over the columns that define it; left out where none does."""
    means = {name: float(mean_defined(values, 0)) for name, values in ranked.items()}
    return {name: value for name, value in means.items() if np.isfinite(value)}


def classify_intervals(answers: Answers, resamples: Resamples) -> dict[str, tuple[float, float]]:
    """95 % intervals of `classify_metrics`, but for the calibration error."""
    from scipy import sparse

    labels, predicted, classes = answers.labels, answers.predicted, answers.classes
    count, rows = len(labels), np.arange(len(labels))
    right, (parts, probabilities) = predicted == labels, probability_parts(answers)
    dense = np.column_stack([np.ones(count), right, top(answers, min(5, classes)), parts])
    ones = np.ones(count)
    hits, true, named = (
        sparse.csr_matrix((values, (rows, column)), (count, classes))
        for values, column in ((right.astype(np.float64), labels), (ones, labels), (ones, predicted))
    )

    def figures(sums: np.ndarray) -> Figures:
        total, width = sums[:, 0], dense.shape[1]
        found = {"accuracy": sums[:, 1] / total} | ({"top5": sums[:, 2] / total} if classes > 5 else {})
        found |= probabilities(sums[:, 3:width], total)
        hits, true, named = (sums[:, width + i * classes : width + (i + 1) * classes] for i in range(3))
        with np.errstate(invalid="ignore", divide="ignore"):
            found["balanced_accuracy"] = mean_defined(hits / true)
            found["macro_f1"] = mean_defined(np.where(true > 0, 2 * hits / (true + named), np.nan))
        return found

    found = resamples.of_sums(sparse.hstack([sparse.csr_matrix(dense), hits, true, named]).tocsr(), figures)
    if answers.by_class:
        found |= ranked_resamples(answers.margins, labels[:, None] == np.arange(classes), None, resamples)
    return percentiles(found)


def ranked_resamples(
    scores: np.ndarray, positive: np.ndarray, real: np.ndarray | None, resamples: Resamples
) -> Figures:
    """Mean AUROC and average precision over the columns that each resample defines."""
    columns = [c for c in range(scores.shape[1]) if positive[:, c].any()]

    def figures(weights: np.ndarray) -> Figures:
        each = [
            ranking(scores[:, c], positive[:, c], weights if real is None else weights * real[:, c]) for c in columns
        ]
        return {name: mean_defined(np.stack([e[i] for e in each], axis=1)) for i, name in enumerate(RANKED)}

    return resamples.of_ranks(figures, len(columns)) if columns else {}


def class_rows(answers: Answers, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class: examples, precision, recall, F1, AUROC and average precision; None where not defined."""
    counts = confusion(answers, names).counts
    hits, true, named = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return [
        {
            "name": name,
            "count": int(true[c]),
            "precision": float(hits[c] / named[c]) if named[c] else None,
            "recall": float(hits[c] / true[c]) if true[c] else None,
            "f1": float(2 * hits[c] / (true[c] + named[c])) if true[c] else None,
            **{key: defined(values[c]) for key, values in answers.by_class.items()},
        }
        for c, name in enumerate(names)
    ]


def defined(value: float) -> float | None:
    """A number, or None for NaN."""
    return float(value) if np.isfinite(value) else None
