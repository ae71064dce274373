"""Several yes-or-no labels for an example."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..checks import check, check_types
from ..errors import UserError
from ..evaluate import multilabel as figures
from ..evaluate.bootstrap import Resamples
from ..evaluate.calibration import best_threshold, platt
from ..evaluate.judgement import Judgement, Panel
from ..files import few
from .base import Arrays, Head, HeadSpec, Judged, Labelled, Monitor, Parts, as_tensor, kept
from .classify import NEIGHBOURS_PRIOR
from .losses import Sums, binary, positive_weights

SEPARATOR = "|"
"""Between the labels of one example in a table of results."""

CELLS = ("share with the label", "share with the label", "probability of a label", "examples x labels")
"""What the reliability diagram says beside its axes."""


@dataclass(frozen=True)
class MultilabelOptions:
    """How labels are learned.

    Args:
        positive_weights: `balanced` lets the examples that have a label weigh as much as those that have it not.
        focal: gamma of a focal loss (Lin et al. 2017); 0 for none.
        label_smoothing: targets become (1 - label_smoothing)·target + label_smoothing / 2.
    """

    positive_weights: Literal["none", "balanced"] = "none"
    focal: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_types(self, "head.options.")
        check(0 <= self.focal <= 10, "head.options.focal", self.focal, "0 to 10")
        check(
            0 <= self.label_smoothing < 1, "head.options.label_smoothing", self.label_smoothing,
            "at least 0 and below 1 (such as 0.1)",
        )  # fmt: skip


class Multilabel(Head):
    """One sigmoid for each label.

    Probabilities are those of data with the labels' shares in training, also after a training with balanced weights,
    whose logarithms are taken from the outputs first. A label is given from an output of 0 on or, once `calibrate` has
    chosen a threshold for it, from that probability on.
    """

    kind = "multilabel"
    Options: ClassVar[type] = MultilabelOptions

    @classmethod
    def prepare(cls, target: Labelled, options: dict[str, Any] | None = None) -> HeadSpec:
        """Counts which training rows have each label, and which have it not; of every label some must."""
        values = np.asarray(target.values, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(target.names):
            raise UserError(f"Labels are {values.shape}, but must be [examples, {len(target.names)}].")
        real = ~np.isnan(values)
        if not ((values == 0) | (values == 1) | ~real).all():
            bad = values[real & (values != 0) & (values != 1)][0]
            raise UserError(f"A label is {bad:g}, but must be 0 or 1, or NaN for a missing one.")
        if not real.any():
            raise UserError("All targets of the training rows are missing; there is nothing to learn.")
        training = {"positive": (values == 1).sum(axis=0).tolist(), "negative": (values == 0).sum(axis=0).tolist()}
        if not any(training["positive"]):
            raise UserError("No training row has any of the labels; there is nothing to learn.")
        return HeadSpec(cls.kind, tuple(target.names), asdict(cls.Options(**options or {})), training)

    @property
    def width(self) -> int:
        return len(self.spec.names)

    @property
    def monitor(self) -> Monitor:
        return ("average_precision", "max")

    def _counts(self) -> tuple[list[int], list[int]]:
        """Training rows that have each label and have it not; as many of both for a spec that does not say."""
        equal = [1] * self.width
        positive, negative = (self.spec.training.get(name) or equal for name in ("positive", "negative"))
        return positive, negative

    @property
    def weights(self) -> list[float]:
        """The weight of those that have each label; none when it is 1."""
        return positive_weights(*self._counts()) if self.options.positive_weights == "balanced" else []

    def _log_odds(self) -> list[float]:
        """Of the training rows; of a label with one kind only as if each kind had half an example more."""
        pairs = [(p, n) if p and n else (p + 0.5, n + 0.5) for p, n in zip(*self._counts())]
        return [math.log(p / n) for p, n in pairs]

    def prior(self) -> list[float]:
        weights = self.weights or [1.0] * self.width
        return [odds + math.log(weight) for odds, weight in zip(self._log_odds(), weights)]

    def loss(self, outputs: Tensor, targets: Tensor) -> Sums:
        weights = torch.tensor(self.weights, device=outputs.device) if self.weights else None
        return binary(outputs, targets, weights, self.options.focal, self.options.label_smoothing)

    def averaged(self, targets: Tensor, weights: Tensor) -> Tensor:
        real = ~targets.isnan()
        held = weights[..., None] * real
        prior = weights.new_tensor(self._log_odds()).sigmoid()
        p = ((held * targets.nan_to_num()).sum(1) + NEIGHBOURS_PRIOR * prior) / (held.sum(1) + NEIGHBOURS_PRIOR)
        odds = torch.logit(p.clamp(1e-6, 1 - 1e-6))
        return odds + weights.new_tensor(self.weights).log() if self.weights else odds

    def log_odds(self, outputs: Tensor, calibration: dict[str, Any]) -> Tensor:
        """Without the weights, and calibrated: float64 `[..., labels]`."""

        def numbers(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=outputs.device)

        odds = outputs.double()
        if self.weights:
            odds = odds - numbers(self.weights).log()
        if "scale" not in calibration:
            return odds
        return odds * numbers(calibration["scale"]) + numbers(calibration["shift"])

    def over_views(self, outputs: Tensor) -> Tensor:
        """Outputs of the mean of the probabilities."""
        shift = torch.tensor(self.weights or [1.0] * self.width, dtype=torch.float64, device=outputs.device).log()
        return (self.log_odds(outputs, {}).sigmoid().mean(0).logit(1e-12) + shift).to(outputs.dtype)

    def given(self, outputs: Tensor, calibration: dict[str, Any]) -> Tensor:
        """The labels given, bool `[..., labels]`."""
        if (thresholds := calibration.get("thresholds")) is None:
            return outputs >= 0
        return self.log_odds(outputs, calibration).sigmoid() >= torch.tensor(thresholds, device=outputs.device)

    def predict(self, outputs: Tensor, calibration: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """labels (those given, joined by `|`), and `p_NAME` for each label."""
        outputs, calibration = outputs.detach().cpu(), self.spec.calibration if calibration is None else calibration
        p = self.log_odds(outputs, calibration).sigmoid().numpy()
        given = self.given(outputs, calibration).numpy()
        joined = np.empty(given.shape[:-1], dtype=object)
        for place in np.ndindex(joined.shape):
            joined[place] = SEPARATOR.join(self.spec.names[c] for c in np.flatnonzero(given[place]))
        return {"labels": joined} | {f"p_{name}": p[..., c] for c, name in enumerate(self.spec.names)}

    def calibrate(self, outputs: Tensor, targets: Arrays) -> dict[str, Any]:
        """Scale and shift of the log odds of each label, and the threshold of its probability with the best F1."""
        outputs, labels, _ = self.kept(outputs, targets)
        columns = list(zip(self.log_odds(outputs, {}).numpy().T, labels.numpy().T, strict=True))
        pairs = [platt(odds[~np.isnan(truth)], truth[~np.isnan(truth)]) for odds, truth in columns]
        found: dict[str, Any] = {"scale": [scale for scale, _ in pairs], "shift": [shift for _, shift in pairs]}
        p = self.log_odds(outputs, found).sigmoid().numpy()
        real = ~np.isnan(labels.numpy())
        return found | {
            "thresholds": [best_threshold(p[held, c], labels.numpy()[held, c]) for c, held in enumerate(real.T)]
        }

    def said_of(self, outputs: Tensor, targets: Tensor, parts: Parts) -> figures.Decisions:
        odds, given = self.log_odds(outputs, {}), self.given(outputs, {})
        real, truth = (~targets.isnan()).numpy(), (targets == 1).numpy()
        said = figures.Decisions(truth, real, odds.numpy(), given.numpy())
        if not parts:
            return said
        calibrated, chosen = torch.empty_like(odds), torch.empty_like(given)
        for rows, fitted in parts:
            calibrated[rows], chosen[rows] = self.log_odds(outputs[rows], fitted), self.given(outputs[rows], fitted)
        return replace(said, calibrated=calibrated.numpy(), given_calibrated=chosen.numpy())

    def figures_of(self, said: figures.Decisions) -> dict[str, float]:
        return figures.multilabel_metrics(said)

    def judged(self, said: figures.Decisions, metrics: dict[str, float], drawn: Resamples, about: Judged) -> Judgement:
        truth, real = said.truth, said.real
        panels = [
            Panel(title, figures.reliability(log_odds, truth, real), metrics[f"nll{name}"], *CELLS)
            for title, (name, log_odds, _) in zip(("as trained", "calibrated"), said.versions())
        ]
        fitted = self.calibrate(about.outputs, about.targets) if about.calibration is None else about.calibration
        return Judgement(
            self.kind,
            len(about.targets),
            metrics,
            figures.multilabel_intervals(said, drawn),
            self._baseline(truth, real),
            figures.label_rows(said, self.spec.names, fitted.get("thresholds")),
            [drawn.said(), *self._unseen(truth & real)],
            panels=panels,
        )

    def _baseline(self, truth: np.ndarray, real: np.ndarray) -> dict[str, float]:
        """The share of each label in training as its probability."""
        odds = np.broadcast_to(np.array(self._log_odds()), truth.shape)
        return figures.multilabel_metrics(figures.Decisions(truth, real, odds, odds >= 0))

    def _unseen(self, truth: np.ndarray) -> list[str]:
        missing = [name for c, name in enumerate(self.spec.names) if not truth[:, c].any()]
        if not missing:
            return []
        return [f"No example here has {len(missing)} of {self.width} labels ({few(missing)}); means leave them out."]

    def kept(self, outputs: Tensor, targets: Arrays, groups: Any = None) -> tuple[Tensor, Tensor, np.ndarray | None]:
        targets = as_tensor(targets).double()
        if targets.shape != outputs.shape:
            raise UserError(
                f"Labels are {tuple(targets.shape)}, but must be {tuple(outputs.shape)}: a column for each label."
            )
        return kept(outputs, targets, lambda t: ~t.isnan().all(dim=1), groups)
