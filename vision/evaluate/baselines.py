"""What a result must beat: always saying the commonest class, and a linear model on the pixels."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.losses import IGNORED
from ..data.found import FoundImages

MOST_IMAGES = 4000
"""Training images that the pixel baseline looks at."""

MOST_WORK = 5e7
"""Images x pixel values x classes of one fit; about 2 seconds on one core."""

SIDES = (32, 24, 16, 12, 8)
"""Larger images are averaged down to the first of these sides that `MOST_WORK` allows."""

STRENGTHS = (1.0, 0.1, 0.01, 0.001)
"""Inverse regularisation of the logistic regression; the best on a fifth of the training images is taken."""


@dataclass(frozen=True)
class Baseline:
    """One baseline.

    Args:
        name: "majority class" or "logistic regression".
        top1: accuracy on the validation images, in 0..1; None when it was skipped.
        note: what it was given, or why it was skipped.
        seconds: what it cost.
    """

    name: str
    top1: float | None
    note: str
    seconds: float = 0.0

    def __str__(self) -> str:
        result = "skipped" if self.top1 is None else f"{self.top1:.1%}"
        return f"{self.name}: {result} ({self.note})"


def majority(train_labels: Tensor, val_labels: Tensor, class_names: list[str] | tuple[str, ...]) -> Baseline:
    """Always predict the commonest training class. Labels int `[images]`; -100 is ignored."""
    commonest = int(torch.bincount(train_labels[train_labels != IGNORED]).argmax())
    val_labels = val_labels[val_labels != IGNORED]
    return Baseline(
        "majority class", float((val_labels == commonest).double().mean()), f"always '{class_names[commonest]}'"
    )


def all_baselines(data: FoundImages, names: list[str]) -> list[Baseline]:
    """The majority class and the linear model on the validation images of `data`, whose classes are called `names`."""
    train, val = data.arrays("train"), data.arrays("val")
    counts = (torch.tensor(data.counts(side)) for side in ("train", "val"))
    train_labels, val_labels = (torch.arange(data.classes).repeat_interleave(count) for count in counts)
    found = [majority(train_labels, val_labels, names)]
    if train is None or val is None:
        return [*found, Baseline("logistic regression", None, "only for images that are kept in memory")]
    some = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(0))[:MOST_IMAGES]
    return [*found, logistic_regression(train[0][some], train[1][some], *val, data.classes)]


def affordable(images: Tensor, classes: int) -> tuple[int, int] | None:
    """The size (height, width) to which `images` `[n, channels, height, width]` must shrink; None if none is small
    enough.
    """
    n, channels, height, width = images.shape
    for side in (max(height, width), *SIDES):
        shrink = min(1.0, side / max(height, width))
        size = max(1, round(height * shrink)), max(1, round(width * shrink))
        if side <= SIDES[0] and n * channels * size[0] * size[1] * classes <= MOST_WORK:
            return size
    return None


def logistic_regression(
    train_images: Tensor, train_labels: Tensor, val_images: Tensor, val_labels: Tensor, classes: int
) -> Baseline:
    """Multinomial logistic regression on standardised pixels, with the regularisation chosen on training images.

    Args:
        train_images: `[n, channels, height, width]`, uint8 or float, in random order; the first `MOST_IMAGES` are used.
        train_labels: int `[n]`.
        val_images: the same for the images to judge, all of them.
        val_labels: int `[m]`.
        classes: number of classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    name, start = "logistic regression", time.perf_counter()
    keep = (train_labels != IGNORED).nonzero().flatten()[:MOST_IMAGES]
    train_images, train_labels, judged = train_images[keep], train_labels[keep], val_labels != IGNORED
    size = affordable(train_images, classes)
    if size is None:
        return Baseline(name, None, f"{len(keep)} images x {classes} classes would take minutes")
    if len(train_labels.unique()) < 2 or len(keep) < 10:
        return Baseline(name, None, "it needs ten training images of at least two classes")
    train, val = _standardised(train_images, val_images[judged], size)
    y, fit = train_labels.numpy(), len(keep) - len(keep) // 5

    def trained(strength: float, count: int) -> LogisticRegression:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=strength, max_iter=100, tol=1e-3).fit(train[:count], y[:count])

    if len(set(y[:fit])) < 2:
        return Baseline(name, None, "its first training images are all of one class")
    best = max(STRENGTHS, key=lambda strength: trained(strength, fit).score(train[fit:], y[fit:]))
    top1 = float((torch.from_numpy(trained(best, len(keep)).predict(val)) == val_labels[judged]).double().mean())
    note = f"{len(keep):,} training images as {size[1]} x {size[0]} pixels"
    return Baseline(name, top1, note, time.perf_counter() - start)


def _standardised(train: Tensor, val: Tensor, size: tuple[int, int]) -> tuple:
    """Pixels as rows of NumPy arrays, each column with the mean 0 and the deviation 1 of the training images."""
    rows = []
    for images in (train, val):
        chunks = [F.interpolate(part.float(), size, mode="area").flatten(1) for part in images.split(128)]
        rows.append(torch.cat(chunks))
    mean, std = rows[0].mean(dim=0), rows[0].std(dim=0)
    # A pixel that never changes in training says nothing, and its deviation cannot be divided by.
    std = torch.where(std > 1e-6, std, torch.inf)
    return tuple(((part - mean) / std).numpy() for part in rows)
