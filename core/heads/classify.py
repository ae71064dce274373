"""One class out of several."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..checks import check, check_types
from ..errors import UserError
from ..evaluate import classification as figures
from ..evaluate.bootstrap import Resamples
from ..evaluate.calibration import fit_temperature
from ..evaluate.judgement import Judgement
from ..files import few
from ..losses import IGNORED
from .base import Arrays, Head, HeadSpec, Judged, Labelled, Monitor, Parts, kept
from .losses import Sums, balanced_weights, cross_entropy, one_vs_rest

NEIGHBOURS_PRIOR = 0.02
"""Weight of the classes' shares in training beside all neighbours together, so that no class is impossible."""


@dataclass(frozen=True)
class ClassifyOptions:
    """How a class is learned.

    Args:
        class_weights: `balanced` lets all classes weigh the same in training, however many examples they have.
        focal: gamma of a focal loss, which lowers the weight of what is right already (Lin et al. 2017 use 2); 0 for
            none.
        label_smoothing: part of each label that is spread over all classes.
        one_vs_rest: learn one yes-or-no question for each class instead of their softmax (DeiT III; Touvron et al.
            2022); probabilities are those of the softmax all the same.
    """

    class_weights: Literal["none", "balanced"] = "none"
    focal: float = 0.0
    label_smoothing: float = 0.0
    one_vs_rest: bool = False

    def __post_init__(self) -> None:
        check_types(self, "head.options.")
        check(0 <= self.focal <= 10, "head.options.focal", self.focal, "0 to 10")
        check(
            0 <= self.label_smoothing < 1, "head.options.label_smoothing", self.label_smoothing,
            "at least 0 and below 1 (such as 0.1)",
        )  # fmt: skip
        check(
            not (self.focal and self.label_smoothing), "head.options.label_smoothing", self.label_smoothing,
            "0 with a focal loss",
        )  # fmt: skip
        check(
            not self.one_vs_rest or (self.class_weights == "none" and not self.focal), "head.options.one_vs_rest",
            self.one_vs_rest, "false with class_weights balanced or a focal loss",
        )  # fmt: skip


class OneClass(Head):
    """A head whose answer is one of several classes: how all such are judged."""

    @abstractmethod
    def log_p(self, outputs: Tensor, calibration: dict[str, Any]) -> Tensor:
        """Log probabilities float64 `[..., classes]`."""

    @abstractmethod
    def named(self, outputs: Tensor) -> np.ndarray:
        """The class that is named, int64 `[...]`."""

    @abstractmethod
    def intervals_of(self, answers: figures.Answers, drawn: Resamples) -> Any:
        """Their intervals."""

    @abstractmethod
    def rows_of(self, answers: figures.Answers) -> Any:
        """A table of the classes."""

    @abstractmethod
    def baseline(self, labels: np.ndarray) -> dict[str, float]:
        """The figures of the best constant answer to the training rows."""

    def said_of(self, outputs: Tensor, targets: Tensor, parts: Parts) -> figures.Answers:
        labels, named, log_p = targets.numpy(), self.named(outputs), self.log_p(outputs, {})
        if not parts:
            return figures.Answers(labels, named, log_p.numpy())
        found = torch.empty_like(log_p)
        for rows, fitted in parts:
            found[rows] = self.log_p(outputs[rows], fitted)
        # Halves that judge each other have two calibrations; the head will have that of all examples.
        written = found if len(parts) == 1 else self.log_p(outputs, self.calibrate(outputs, targets))
        return figures.Answers(labels, named, log_p.numpy(), found.numpy(), written.numpy())

    def judged(self, said: figures.Answers, metrics: dict[str, float], drawn: Resamples, about: Judged) -> Judgement:
        return Judgement(
            self.kind,
            len(about.targets),
            metrics,
            self.intervals_of(said, drawn),
            self.baseline(said.labels),
            self.rows_of(said),
            [drawn.said(), *absent(said.labels, self.spec.names)],
            figures.confusion(said, self.spec.names),
            figures.panels(said, metrics),
        )

    def kept(self, outputs: Tensor, targets: Arrays, groups: Any = None) -> tuple[Tensor, Tensor, np.ndarray | None]:
        outputs, labels, group = kept(outputs, targets, lambda t: t != IGNORED, groups)
        check_classes(labels, len(self.spec.names))
        return outputs, labels.long(), group


class Classify(OneClass):
    """Softmax over classes.

    Probabilities are those of data with the classes' shares in training, also after a training with balanced weights:
    the logarithms of the weights are taken from the logits first (Elkan 2001, theorem 2; Menon et al. 2021). The class
    named is that of the largest logit, weights included.
    """

    kind = "classify"
    Options: ClassVar[type] = ClassifyOptions

    @classmethod
    def prepare(cls, target: Labelled, options: dict[str, Any] | None = None) -> HeadSpec:
        counts = class_counts(target.values, target.names)
        return HeadSpec(cls.kind, tuple(target.names), asdict(cls.Options(**options or {})), {"counts": counts})

    @property
    def width(self) -> int:
        return len(self.spec.names)

    @property
    def monitor(self) -> Monitor:
        return ("balanced_accuracy" if self.weights else "accuracy", "max")

    @property
    def counts(self) -> list[int]:
        """Training examples of each class; equal ones for a spec that does not say."""
        return list(self.spec.training.get("counts") or [1] * self.width)

    @property
    def weights(self) -> list[float]:
        """The weight of each class in the loss; none when they are equal."""
        return balanced_weights(self.counts) if self.options.class_weights == "balanced" else []

    def prior(self) -> list[float]:
        """Log shares of the training rows, with the weights; a focal loss starts there too, though not at its best. Of
        yes-or-no questions the log odds of the shares.
        """
        if self.options.one_vs_rest:
            return [math.log(share) - math.log1p(-share) for share in shares(self.counts)]
        weights = self.weights or [1.0] * self.width
        return [math.log(share * weight) for share, weight in zip(shares(self.counts), weights)]

    def _shift(self, dtype: torch.dtype, device: Any = None) -> Tensor:
        """Log weights, `[classes]`."""
        return torch.tensor(self.weights or [1.0] * self.width, dtype=torch.float64).log().to(device, dtype)

    def loss(self, outputs: Tensor, targets: Tensor) -> Sums:
        """See `Head.loss`; targets may also be shares `[..., classes]`, of examples that were mixed."""
        if self.options.one_vs_rest:
            return one_vs_rest(outputs, targets, self.options.label_smoothing)
        weights = torch.tensor(self.weights, device=outputs.device) if self.weights else None
        return cross_entropy(outputs, targets, weights, self.options.focal, self.options.label_smoothing)

    def averaged(self, targets: Tensor, weights: Tensor) -> Tensor:
        votes = weights.new_zeros(len(targets), self.width).scatter_add_(1, targets, weights)
        mixed = votes + NEIGHBOURS_PRIOR * weights.sum(1, keepdim=True) * weights.new_tensor(shares(self.counts))
        return mixed.log() + self._shift(mixed.dtype, mixed.device)

    def honest(self, outputs: Tensor) -> Tensor:
        """Logits without the weights of the classes, float64 `[..., classes]`."""
        return outputs.double() - self._shift(torch.float64, outputs.device)

    def over_views(self, outputs: Tensor) -> Tensor:
        """Logits of the mean of the probabilities."""
        log_p = self.honest(outputs).log_softmax(dim=-1).logsumexp(0) - math.log(len(outputs))
        return (log_p + self._shift(torch.float64, outputs.device)).to(outputs.dtype)

    def log_p(self, outputs: Tensor, calibration: dict[str, Any]) -> Tensor:
        """Log probabilities float64 `[..., classes]`."""
        return (self.honest(outputs) / calibration.get("temperature", 1.0)).log_softmax(dim=-1)

    def predict(self, outputs: Tensor, calibration: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """label, its probability, and `p_NAME` for each class."""
        outputs = outputs.detach().cpu()
        p = self.log_p(outputs, self.spec.calibration if calibration is None else calibration).exp().numpy()
        named = outputs.argmax(dim=-1).numpy()
        return class_columns(self.spec.names, p, named)

    def calibrate(self, outputs: Tensor, targets: Arrays) -> dict[str, Any]:
        outputs, labels, _ = self.kept(outputs, targets)
        return {"temperature": fit_temperature(self.honest(outputs), labels)}

    def named(self, outputs: Tensor) -> np.ndarray:
        return outputs.argmax(dim=-1).numpy()

    def figures_of(self, said: figures.Answers) -> dict[str, float]:
        return figures.classify_metrics(said)

    def intervals_of(self, answers: figures.Answers, drawn: Resamples) -> Any:
        return figures.classify_intervals(answers, drawn)

    def rows_of(self, answers: figures.Answers) -> Any:
        return figures.class_rows(answers, self.spec.names)

    def baseline(self, labels: np.ndarray) -> dict[str, float]:
        """Always the commonest class of the training, with the shares as probabilities."""
        log_p = np.broadcast_to(np.log(shares(self.counts)), (len(labels), self.width))
        answers = figures.Answers(labels, np.full(len(labels), int(np.argmax(self.counts))), log_p)
        return figures.classify_metrics(answers)


def class_counts(values: Any, names: Sequence[str]) -> list[int]:
    """Examples of each class; raises UserError for a class out of range, fewer than two classes or no example."""
    values = np.asarray(values).ravel()
    values = values[values != IGNORED]
    if len(names) < 2:
        raise UserError(f"There is one class ({few(list(names))}), but a classifier needs two or more.")
    if not len(values):
        raise UserError("All targets of the training rows are missing; there is nothing to learn.")
    check_classes(torch.from_numpy(values), len(names))
    counts = np.bincount(values.astype(np.int64), minlength=len(names))
    if (counts > 0).sum() < 2:
        raise UserError(
            f"All training rows are of one class, '{names[int(counts.argmax())]}', and others are held out alone; hold "
            "out other rows."
        )
    return counts.tolist()


def check_classes(labels: Tensor, classes: int) -> None:
    """Raises UserError for a label that is no class."""
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        bad = next(label for label in labels.tolist() if not 0 <= label < classes)
        raise UserError(f"A label is {bad}, but must be in 0..{classes - 1}, or {IGNORED} for a missing one.")


def shares(counts: Sequence[int]) -> list[float]:
    """The share of each class; where one has no example as if each had half a further one."""
    more = 0.0 if all(counts) else 0.5
    total = sum(counts) + more * len(counts)
    return [(count + more) / total for count in counts]


def absent(labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """A note of the classes without an example here."""
    missing = sorted(set(range(len(names))) - set(np.unique(labels).tolist()))
    if not missing:
        return []
    listed = few([names[c] for c in missing])
    return [f"{len(missing)} of {len(names)} classes do not occur here ({listed}); means over classes leave them out."]


def class_columns(names: Sequence[str], p: np.ndarray, named: np.ndarray) -> dict[str, np.ndarray]:
    """label, probability and `p_NAME` of probabilities `[..., classes]` and the classes named `[...]`."""
    chosen = np.take_along_axis(p, named[..., None], axis=-1)[..., 0]
    columns = {"label": np.asarray(names, dtype=object)[named], "probability": chosen}
    return columns | {f"p_{name}": p[..., c] for c, name in enumerate(names)}
