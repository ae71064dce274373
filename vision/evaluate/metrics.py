"""Accuracy and calibration error of a classifier over a whole validation set.

All figures are computed in float64 from the logits of every example at once; nothing is averaged over batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.evaluate.judgement import Confusion
from ...core.evaluate.reliability import Reliability, equal_mass, equal_width
from ...core.losses import IGNORED


@dataclass(frozen=True)
class Judgement:
    """The figures of one set of predictions.

    Args:
        class_names: one name a class, in the order of the logits.
        count: examples judged; those labelled `IGNORED` are not among them.
        top1: share whose most probable class is right.
        top5: share whose class is among the `k5` most probable ones; `k5` is 5, or the number of classes if smaller.
        balanced: mean of the accuracies of the classes that have examples.
        nll: mean negative log-likelihood of the right class, nats.
        brier: mean over examples of the squared distance between probabilities and the one-hot label, in 0..2.
        ece: expected calibration error over 15 equal-width bins, in 0..1.
        adaptive_ece: the same over bins of equally many examples (Nixon et al. 2019), which does not hide a crowd in
            one bin.
        confusion: examples of each true class (rows) by predicted class (columns), int `[classes, classes]`.
        reliability: what `ece` is computed from.
    """

    class_names: tuple[str, ...]
    count: int
    top1: float
    top5: float
    k5: int
    balanced: float
    nll: float
    brier: float
    ece: float
    adaptive_ece: float
    confusion: Tensor
    reliability: Reliability

    @property
    def per_class(self) -> dict[str, float | None]:
        """Accuracy of each class; None for a class without examples."""
        return dict(zip(self.class_names, Confusion(self.class_names, self.confusion.numpy()).recalls))

    def confusions(self, most: int = 5) -> list[tuple[str, str, int]]:
        """The most frequent mistakes: `(true class, predicted class, examples)`, the most frequent first."""
        return Confusion(self.class_names, self.confusion.numpy()).mistakes(most)

    def to_summary(self) -> dict[str, float]:
        """The figures of `summary.json`."""
        return {
            "val_top1": self.top1, "val_top5": self.top5, "val_balanced": self.balanced, "nll": self.nll,
            "brier": self.brier, "ece": self.ece, "adaptive_ece": self.adaptive_ece, "val_images": self.count,
        }  # fmt: skip


def judge(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> Judgement:
    """Judges predictions.

    Args:
        logits: `[examples, classes]`, any float type, of the whole set.
        labels: int `[examples]`; `IGNORED` leaves an example out.
        class_names: one name a class.

    Raises:
        UserError: shapes, names or labels disagree, a logit is not finite, or no example is left.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    logits, labels = checked(logits, labels, len(class_names))
    classes, log_p = logits.shape[1], logits.log_softmax(dim=1)
    p = log_p.exp()
    confidence, predicted = p.max(dim=1)
    right = (predicted == labels).double()
    k5 = min(5, classes)
    confusion = multiclass_confusion_matrix(predicted, labels, num_classes=classes)
    present = confusion.sum(dim=1) > 0
    recall = confusion.diagonal()[present] / confusion.sum(dim=1)[present]
    one_hot = torch.nn.functional.one_hot(labels, classes)
    reliability = equal_width(confidence, right)
    return Judgement(
        class_names=tuple(class_names),
        count=len(labels),
        top1=float(right.mean()),
        # From the logits: probabilities of far-off classes underflow to ties.
        top5=float((logits.topk(k5).indices == labels[:, None]).any(dim=1).double().mean()),
        k5=k5,
        balanced=float(recall.mean()),
        nll=float(-log_p.gather(1, labels[:, None]).mean()),
        brier=float((p - one_hot).square().sum(dim=1).mean()),
        ece=reliability.error,
        adaptive_ece=equal_mass(confidence, right).error,
        confusion=confusion,
        reliability=reliability,
    )


def checked(logits: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Logits in float64 `[examples, classes]` and labels `[examples]` on the CPU, without the ignored; raises
    UserError.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise UserError(
            f"Logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}, but must be [examples, classes] and "
            "[examples]."
        )
    if logits.shape[1] != classes:
        raise UserError(
            f"The model has {logits.shape[1]} classes, but {classes} class names were given; give one a class."
        )
    labels = labels.cpu().long()
    keep = labels != IGNORED
    logits, labels = logits.detach().cpu()[keep].double(), labels[keep]
    if not len(labels):
        raise UserError(f"There is nothing to judge: every label is {IGNORED} (ignored) or the set is empty.")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        bad = next(label for label in labels.tolist() if not 0 <= label < classes)
        raise UserError(f"A label is {bad}, but must be in 0..{classes - 1}, or {IGNORED} to be ignored.")
    if not torch.isfinite(logits).all():
        rows = int((~torch.isfinite(logits)).any(dim=1).sum())
        raise UserError(
            f"The logits of {rows} of {len(labels)} images are not finite; the model's weights have diverged."
        )
    return logits, labels
