"""The figures of the core's head for one class, under the names that image classification has for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...core.evaluate.classification import hit_metrics, probability_metrics
from ...core.evaluate.judgement import Judgement
from ...core.heads.base import HeadSpec
from ...core.heads.classify import Classify
from ...core.heads.names import apart
from ...core.initialise import uninitialised

NAMES = {"accuracy": "top1", "balanced_accuracy": "balanced"}
"""What is called otherwise than in the core."""


def class_head(names: Sequence[str], counts: Sequence[int] | None = None, **options: Any) -> Classify:
    """The core's head for the classes of a `VisionTransformer`, for its loss, figures and probabilities; the layer is
    the model's own.

    Args:
        names: one a class, in the order of the logits; those that stand twice get their number.
        counts: training images of each class; None where they are not known.
        **options: see `ClassifyOptions`.
    """
    training = {} if counts is None else {"counts": list(counts)}
    with uninitialised():  # its own layer is not used: drawn, it would move the generator of dropout
        return Classify(1, HeadSpec(Classify.kind, tuple(apart(names)), options, training))


def of_epoch(head: Classify, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """top1, top5 and ece of a whole set: what each validation of a training needs."""
    said = head.said_of(*head.kept(logits, labels)[:2], [])
    found = _renamed(hit_metrics(said) | probability_metrics(said))
    return {name: found.get(name, 1.0) for name in ("top1", "top5", "ece")}


def summary(judged: Judgement, side: str) -> dict[str, float]:
    """The figures of `summary.json`. Of five classes or fewer top5 is 1."""
    metrics = {"top5": 1.0} | _renamed(judged.metrics)
    for panel, suffix in zip(judged.panels, ("", "_calibrated")):
        if panel.adaptive is not None:
            metrics[f"adaptive_ece{suffix}"] = panel.adaptive
    plain = ("nll", "brier", "ece", "adaptive_ece")
    found = {f"{side}_{name}": metrics[name] for name in ("top1", "top5", "balanced")}
    found |= {name: metrics[name] for name in plain} | {f"{side}_images": judged.count}
    calibrated = (f"{name}_calibrated" for name in plain)
    return found | {name: metrics[name] for name in calibrated if name in metrics}


def by_class(judged: Judgement) -> dict[str, Any]:
    """What `summary.json` keeps beside the figures: the accuracy of each class (None without images), and all that the
    head says, with intervals.
    """
    assert judged.confusion is not None
    intervals, baseline = _renamed(judged.intervals), _renamed(judged.baseline)
    baseline.pop("top1", None)  # which stands there as that of the majority class
    told = replace(judged, metrics=_renamed(judged.metrics), intervals=intervals, baseline=baseline)
    return {"per_class": dict(zip(judged.confusion.names, judged.confusion.recalls)), "judged": told.to_dict()}


def interval(judged: Judgement | None) -> list[str]:
    """A sentence about how well the accuracy is known; none where nothing was judged."""
    ends = judged.intervals.get("accuracy") if judged else None
    said = f"The accuracy lies between {ends[0]:.1%} and {ends[1]:.1%} (95 % of resamples)." if ends else ""
    return [said] if said else []


def _renamed(figures: dict[str, Any]) -> dict[str, Any]:
    return {NAMES.get(name, name): value for name, value in figures.items()}
