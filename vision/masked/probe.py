"""What an encoder has learned: a linear classifier on its frozen vectors, of the images that have a class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..evaluate.baselines import logistic_regression, majority
from ..model import VisionTransformer
from ..probe import Features, compute, linear_probe
from .data import PlainImages

LEAST = 20
"""Labelled images to learn from below which nothing is judged."""


@dataclass(frozen=True)
class Probed:
    """Accuracies in 0..1.

    Args:
        linear: of the linear probe; None where it could not be fitted.
        pixels, constant: of a logistic regression on the pixels, and of the commonest class.
        train, judged: images that were learned from, and that were judged.
    """

    linear: float | None
    pixels: float | None
    constant: float
    train: int
    judged: int


def probe(encoder: VisionTransformer, data: PlainImages, most: int, pixels: bool = True) -> Probed | None:
    """Judges frozen vectors on labelled validation images; None where too few images have a class.

    Args:
        encoder: a copy that may be moved to another device.
        data: set up.
        most: labelled training images to learn from, at most; half as many are judged.
        pixels: also judge the pixels themselves.
    """
    train_rows, val_rows = data.labelled("train", most), data.labelled("val", max(most // 2, 1))
    y, judged = data.labels_of("train", train_rows), data.labels_of("val", val_rows)
    if len(y) < LEAST or len(judged) < 2 or len(y[: len(y) - len(y) // 5].unique()) < 2:
        return None
    sides = []
    for side, rows, labels in (("train", train_rows, y), ("val", val_rows, judged)):
        vectors, thumbnails = compute(encoder, data, side, rows)
        sides.append(Features(vectors, labels, thumbnails))
    train, val = sides
    linear = linear_probe(train, val).top1
    plain = None
    if pixels:
        plain = logistic_regression(train.thumbnails, y, val.thumbnails, judged, data.classes).top1
    return Probed(linear, plain, majority(y, judged, data.labels).top1 or 0.0, len(y), len(judged))


def bare(encoder: VisionTransformer, state: dict[str, torch.Tensor]) -> VisionTransformer:
    """A copy of an encoder with the weights `state`, to be judged or exported."""
    copy = VisionTransformer(replace(encoder.config))
    copy.load_state_dict(state)
    return copy.eval()
