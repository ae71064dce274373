"""Numbers fitted on validation data that make probabilities and intervals honest, and figures that they did not help to
choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEVEL = 0.9
"""The share of examples that an interval is to cover."""

FEWEST = 5
"""Examples of each kind that a label needs for a calibration of its own."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the lowest negative log-likelihood of `labels` int `[examples]` under `logits` /
    temperature.

    The likelihood is concave in b = 1 / temperature, so its slope has one root, which bisection cannot miss:

        slope(b) = mean over examples of  Σ softmax(b·z)·z  -  target·z

    Targets are smoothed as if 1 of n + 2 examples had a random label (Platt 1999), or a set without any mistake would
    be fitted best by a temperature of 0, that is, by certainty.
    """
    z = logits.double() - logits.double().mean(dim=1, keepdim=True)
    # Centred logits: the random part of the target is then 0.
    wanted = z.gather(1, labels[:, None]).mean() * (1 - 1 / (len(labels) + 2))

    def slope(temperature: float) -> float:
        return float(((z / temperature).softmax(dim=1) * z).sum(dim=1).mean() - wanted)

    return bisected(slope, float(z.std()))


def bisected(slope: Callable[[float], float], size: float) -> float:
    """The temperature at which `slope`, that of the likelihood to 1 / temperature with its sign changed, is 0.

    `size` is that of the logits: the search runs from near certainty to near uniformity whatever it is. 1 for a size of
    0, when a model says nothing and all classes are equal at every temperature.
    """
    if size == 0 or not math.isfinite(size):
        return 1.0
    low, high = size / 1e4, size * 1e4
    while high / low > 1 + 1e-6:
        middle = (low * high) ** 0.5
        # Too sure of itself on average at this temperature: heat.
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return (low * high) ** 0.5


def halves(count: int, groups: Sequence[Any] | np.ndarray | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Numbers of the examples of two halves; all examples of a group in one. The second is empty with one group."""
    generator = torch.Generator().manual_seed(seed)
    if groups is None:
        order = torch.randperm(count, generator=generator)
        return order[::2], order[1::2]
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    place = torch.randperm(int(group.max()) + 1, generator=generator)[torch.from_numpy(group.reshape(-1))]
    return (place % 2 == 0).nonzero()[:, 0], (place % 2 == 1).nonzero()[:, 0]


def platt(log_odds: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Scale and shift of log odds `[examples]` with the lowest negative log-likelihood (Platt 1999).

    Targets are smoothed as there: (n⁺ + 1) / (n⁺ + 2) and 1 / (n⁻ + 2). The scale is above 0, so that the order of
    the examples stays. 1 and 0 with fewer than `FEWEST` examples of either kind, which say too little.
    """
    from scipy.optimize import minimize

    positive = positive.astype(bool)
    yes, no = int(positive.sum()), int((~positive).sum())
    if min(yes, no) < FEWEST or np.ptp(log_odds) == 0:
        return 1.0, 0.0
    spread, middle = float(log_odds.std()), float(log_odds.mean())
    aims = np.where(positive, (yes + 1) / (yes + 2), 1 / (no + 2))
    z = (log_odds - middle) / spread

    def nats(weights: np.ndarray) -> tuple[float, np.ndarray]:
        odds = weights[0] * z + weights[1]
        wrong = np.exp(-np.logaddexp(0, -odds)) - aims
        return float((np.logaddexp(0, odds) - aims * odds).mean()), np.array([(wrong * z).mean(), wrong.mean()])

    start = np.array([1.0, float(np.log(yes / no))])
    found = minimize(nats, start, jac=True, method="L-BFGS-B", bounds=[(1e-6, None), (None, None)], tol=1e-12).x
    return float(found[0] / spread), float(found[1] - found[0] * middle / spread)


def best_threshold(probability: np.ndarray, positive: np.ndarray) -> float:
    """The threshold with the highest F1: a label is given from this probability on; 0.5 without both kinds of examples.

    Between two neighbouring probabilities every threshold gives the same answers; the middle is taken. Of equal F1 the
    threshold nearest to a half.
    """
    from sklearn.metrics import precision_recall_curve

    positive = positive.astype(bool)
    if not positive.any() or positive.all():
        return 0.5
    precision, recall, thresholds = precision_recall_curve(positive, probability)
    precision, recall = precision[:-1], recall[:-1]  # the last point says yes to nothing
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    below = np.concatenate([[0.0], thresholds[:-1]])
    middles = (below + thresholds) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(middles[best[np.argmin(np.abs(middles[best] - 0.5))]])


def conformal(scores: np.ndarray, level: float = LEVEL) -> float | None:
    """What the score of a further example stays below with a probability of at least `level`.

    The ceil((n + 1)·level)-th smallest of n scores (Vovk et al. 2005; Lei et al. 2018, section 2.2), exact for
    exchangeable examples whatever the model. None when n is too small for it to exist (below 9 at 90 %).
    """
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return None if rank > len(scores) or not len(scores) else float(np.partition(scores, rank - 1)[rank - 1])
