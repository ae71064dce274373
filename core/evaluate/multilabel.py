"""Figures of yes-or-no labels, several for an example, in float64; a cell without a target counts for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .bootstrap import Figures, Resamples, mean_defined, percentiles
from .classification import MOST_RANKED, defined, defined_means, ranked, ranked_resamples
from .reliability import Reliability, equal_width


@dataclass(frozen=True)
class Decisions:
    """What a model says of each example and label.

    Args:
        truth: bool `[examples, labels]`.
        real: bool `[examples, labels]`; False where the target is missing.
        log_odds: of having the label, float64 `[examples, labels]`.
        given: the labels given, bool `[examples, labels]`.
        calibrated: log odds by numbers that the example did not help to fit; None without calibration.
        given_calibrated: labels by thresholds that the example did not help to choose.
    """

    truth: np.ndarray
    real: np.ndarray
    log_odds: np.ndarray
    given: np.ndarray
    calibrated: np.ndarray | None = None
    given_calibrated: np.ndarray | None = None

    @cached_property
    def by_label(self) -> dict[str, np.ndarray]:
        """AUROC and average precision `[labels]`; NaN for a label without both kinds of examples."""
        if self.log_odds.size > MOST_RANKED:
            return {}
        return ranked(self.log_odds, self.truth, self.real)

    def versions(self) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """The suffix of the figures, log odds and labels given: as trained and, if another, calibrated."""
        found = [("", self.log_odds, self.given)]
        if self.calibrated is not None and self.given_calibrated is not None:
            found.append(("_calibrated", self.calibrated, self.given_calibrated))
        return found


def of_cells(log_odds: np.ndarray, truth: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, ...]:
    """Nats and Brier score of each cell (0 where missing), probability, each float64 `[examples, labels]`."""
    signed = np.where(truth, log_odds, -log_odds)
    nats = np.logaddexp(0, -signed)
    p = np.exp(-np.logaddexp(0, -log_odds))
    brier = np.exp(-2 * np.logaddexp(0, signed))
    return nats * real, brier * real, p


def reliability(log_odds: np.ndarray, truth: np.ndarray, real: np.ndarray) -> Reliability:
    """Probability of each cell against the share of cells that have the label."""
    p = of_cells(log_odds, truth, real)[2]
    return equal_width(torch.from_numpy(p[real]), torch.from_numpy(truth[real].astype(np.float64)))


def multilabel_metrics(said: Decisions) -> dict[str, float]:
    """average_precision, auroc, macro_f1, micro_f1, exact (all labels of an example right), nll, brier, ece.

    Means over labels are over those that some example here has; average_precision and auroc also need one that has it
    not, and are left out where no label is like that. nll, `brier` (in 0..1) and ece (of the probability of a label)
    are means over cells. Names that end in `_calibrated` are by calibrated probabilities and chosen thresholds.
    """
    metrics = defined_means(said.by_label)
    for name, log_odds, given in said.versions():
        nats, brier, _ = of_cells(log_odds, said.truth, said.real)
        cells = said.real.sum()
        hits, true, named = (part.sum(axis=0) for part in _counted(said, given))
        metrics |= {
            f"macro_f1{name}": float((2 * hits / np.maximum(true + named, 1))[true > 0].mean()) if true.any() else None,
            f"micro_f1{name}": float(2 * hits.sum() / (true + named).sum()) if true.any() else None,
            f"exact{name}": float(_exact(said, given).mean()),
            f"nll{name}": float(nats.sum() / cells),
            f"brier{name}": float(brier.sum() / cells),
            f"ece{name}": reliability(log_odds, said.truth, said.real).error,
        }  # fmt: skip
    return {name: value for name, value in metrics.items() if value is not None}


def _counted(said: Decisions, given: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, true labels and labels given, bool `[examples, labels]`, of the real cells."""
    true, named = said.truth & said.real, given & said.real
    return true & named, true, named


def _exact(said: Decisions, given: np.ndarray) -> np.ndarray:
    return ((given == said.truth) | ~said.real).all(axis=1)


def multilabel_intervals(said: Decisions, resamples: Resamples) -> dict[str, tuple[float, float]]:
    """95 % intervals of `multilabel_metrics`, but for the calibration error."""
    from scipy import sparse

    count, labels = said.truth.shape
    blocks, versions = [sparse.csr_matrix(said.real.sum(axis=1, keepdims=True).astype(np.float64))], said.versions()
    for _, log_odds, given in versions:
        nats, brier, _ = of_cells(log_odds, said.truth, said.real)
        dense = np.column_stack([nats.sum(axis=1), brier.sum(axis=1), _exact(said, given)])
        blocks += [sparse.csr_matrix(dense), *(sparse.csr_matrix(part.astype(float)) for part in _counted(said, given))]

    def figures(sums: np.ndarray) -> Figures:
        found, cells = {}, sums[:, 0]
        for (name, *_), own in zip(versions, np.split(sums[:, 1:], len(versions), axis=1)):
            hits, true, named = (own[:, 3 + i * labels : 3 + (i + 1) * labels] for i in range(3))
            with np.errstate(invalid="ignore", divide="ignore"):
                found |= {
                    f"macro_f1{name}": mean_defined(np.where(true > 0, 2 * hits / (true + named), np.nan)),
                    f"micro_f1{name}": 2 * hits.sum(axis=1) / (true + named).sum(axis=1),
                    f"exact{name}": own[:, 2] / count,
                    f"nll{name}": own[:, 0] / cells,
                    f"brier{name}": own[:, 1] / cells,
                }
        return found

    found = resamples.of_sums(sparse.hstack(blocks).tocsr(), figures)
    found |= ranked_resamples(said.log_odds, said.truth, said.real, resamples)
    return percentiles(found)


def label_rows(said: Decisions, names: Sequence[str], thresholds: Sequence[float] | None) -> list[dict[str, Any]]:
    """A row for each label: cells, examples that have it, and figures of the labels given (by chosen thresholds where
    there are some); None where not defined.
    """
    given = said.versions()[-1][2]
    hits, true, named = (part.sum(axis=0) for part in _counted(said, given))
    rows = []
    for c, name in enumerate(names):
        row: dict[str, Any] = {"name": name, "count": int(said.real[:, c].sum()), "positive": int(true[c])}
        if thresholds is not None:
            row["threshold"] = float(thresholds[c])
        row["precision"] = float(hits[c] / named[c]) if named[c] else None
        row["recall"] = float(hits[c] / true[c]) if true[c] else None
        row["f1"] = float(2 * hits[c] / (true[c] + named[c])) if true[c] else None
        rows.append(row | {key: defined(values[c]) for key, values in said.by_label.items()})
    return rows
