"""One class out of several that have an order, such as grades."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..evaluate import classification, ordinal
from ..evaluate.bootstrap import Resamples
from ..evaluate.calibration import bisected
from .base import Arrays, HeadSpec, Labelled, Monitor
from .classify import NEIGHBOURS_PRIOR, OneClass, class_columns, class_counts, shares
from .losses import Sums, at_least_float32, ordered, ordered_log_p

NARROWEST = 1e-3
"""Log odds between two neighbouring cuts, at least."""


@dataclass(frozen=True)
class OrdinalOptions:
    """There is nothing to choose."""


class Ordinal(OneClass):
    """Proportional odds (McCullagh 1980, section 2): P(class > k) = sigmoid(score - cut k), with one score for each
    example and rising cuts, which are kept apart by construction, so that the probabilities of "more than k" never rise
    with k. Learned by maximum likelihood.

    The class named is the median: the number of k with P(class > k) above a half, which has the least expected distance
    in ranks (and is the rule of CORAL, Cao et al. 2020).
    """

    kind = "ordinal"
    Options: ClassVar[type] = OrdinalOptions

    @classmethod
    def prepare(cls, target: Labelled, options: dict[str, Any] | None = None) -> HeadSpec:
        counts = class_counts(target.values, target.names)
        return HeadSpec(cls.kind, tuple(target.names), asdict(cls.Options(**options or {})), {"counts": counts})

    def build(self) -> None:
        self.linear = nn.Linear(self.dim, 1, bias=False)
        # The first cut, then what softplus makes the distances to the next ones.
        self.cuts = nn.Parameter(torch.empty(self.width))
        self.restart()

    def restart(self) -> None:
        nn.init.zeros_(self.linear.weight)
        rising = [-odds for odds in self.prior()]
        gaps = [max(b - a, NARROWEST * 1.001) - NARROWEST for a, b in pairwise(rising)]
        start = [rising[0], *(gap + math.log(-math.expm1(-gap)) for gap in gaps)]
        with torch.no_grad():
            self.cuts.copy_(torch.tensor(start))

    @property
    def width(self) -> int:
        return len(self.spec.names) - 1

    @property
    def monitor(self) -> Monitor:
        return ("rank_mae", "min")

    @property
    def shares(self) -> list[float]:
        """Of the classes in training; equal ones for a spec that does not say."""
        return shares(self.spec.training.get("counts") or [1] * len(self.spec.names))

    def prior(self) -> list[float]:
        """Log odds of more than each class but the last."""
        return [math.log((1 - p) / p) for p in accumulate(self.shares[:-1])]

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors `[..., dim]` -> log odds of more than each class but the last, `[..., classes - 1]`, falling."""
        score = at_least_float32(self.linear(vectors))
        cuts = self.cuts.to(score)
        return score - torch.cat([cuts[:1], F.softplus(cuts[1:]) + NARROWEST]).cumsum(0)

    def loss(self, outputs: Tensor, targets: Tensor) -> Sums:
        return ordered(outputs, targets)

    def averaged(self, targets: Tensor, weights: Tensor) -> Tensor:
        more = targets[..., None] > torch.arange(self.width, device=targets.device)
        p = (weights[..., None] * more).sum(1) / weights.sum(1, keepdim=True)
        prior = weights.new_tensor(self.prior()).sigmoid()
        return torch.logit((p + NEIGHBOURS_PRIOR * prior) / (1 + NEIGHBOURS_PRIOR))

    def log_p(self, outputs: Tensor, calibration: dict[str, Any]) -> Tensor:
        """Log probabilities float64 `[..., classes]`."""
        return ordered_log_p(outputs.double() / calibration.get("temperature", 1.0))

    def predict(self, outputs: Tensor, calibration: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """label, its probability, the expected rank (from 0) and `p_NAME` for each class."""
        outputs = outputs.detach().cpu()
        p = self.log_p(outputs, self.spec.calibration if calibration is None else calibration).exp().numpy()
        columns = class_columns(self.spec.names, p, median(outputs))
        first = {name: columns.pop(name) for name in ("label", "probability")}
        return first | {"rank": p @ np.arange(p.shape[-1])} | columns

    def calibrate(self, outputs: Tensor, targets: Arrays) -> dict[str, Any]:
        """A temperature for the log odds, with targets smoothed as in `fit_temperature`; the median stays."""
        outputs, labels, _ = self.kept(outputs, targets)
        rate = 1 / (len(labels) + 2)

        def slope(temperature: float) -> float:
            # The likelihood is concave in 1 / temperature: it is so in the log odds (Burridge 1981).
            inverse = torch.tensor(1 / temperature, dtype=torch.float64, requires_grad=True)
            log_p = ordered_log_p(outputs * inverse)
            nats = (rate - 1) * log_p.gather(1, labels[:, None]).mean() - rate * log_p.mean()
            return float(torch.autograd.grad(nats, inverse)[0])

        with torch.enable_grad():
            return {"temperature": bisected(slope, float(outputs.square().mean().sqrt()))}

    def named(self, outputs: Tensor) -> np.ndarray:
        return median(outputs)

    def figures_of(self, said: classification.Answers) -> dict[str, float]:
        return ordinal.ordinal_metrics(said)

    def intervals_of(self, answers: classification.Answers, drawn: Resamples) -> Any:
        return ordinal.ordinal_intervals(answers, drawn)

    def rows_of(self, answers: classification.Answers) -> Any:
        return ordinal.rank_rows(answers, self.spec.names)

    def baseline(self, labels: np.ndarray) -> dict[str, float]:
        """Always the median class of the training, with the shares as probabilities."""
        log_p = np.broadcast_to(np.log(self.shares), (len(labels), len(self.spec.names)))
        middle = sum(odds > 0 for odds in self.prior())
        return ordinal.ordinal_metrics(classification.Answers(labels, np.full(len(labels), middle), log_p))


def median(outputs: Tensor) -> np.ndarray:
    """The median class of log odds `[..., classes - 1]`, int64 `[...]`."""
    return (outputs > 0).sum(dim=-1).cpu().numpy()
