"""Answers to the patches of images: how far they cover the true ones, and a picture of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...core.canvas import figure, fitted, save
from ..masks import PALETTE

MOST_SHOWN = 6
"""Images of one picture."""


def mean_iou(labels: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Mean over the classes that occur of intersection over union: of the patches that are or are called of a class,
    the part that both are.

    Args:
        labels: true classes, int64 `[patches]`.
        predicted: those that the model names, int64 `[patches]`.
        classes: how many there are.
    """
    flat = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    both = np.diag(flat)
    either = flat.sum(0) + flat.sum(1) - both
    return float((both[either > 0] / either[either > 0]).mean())


class Shown(NamedTuple):
    """One image of a picture.

    Args:
        image: uint8 `[height, width]` or `[height, width, 3]`, as the model was shown it.
        true: `[rows, columns]` of patches, NaN without a label.
        predicted: `[rows, columns]`.
    """

    image: np.ndarray
    true: np.ndarray
    predicted: np.ndarray


def draw_patches(shown: Sequence[Shown], names: Sequence[str] | None, target: Path, title: str) -> None:
    """Images beside their true and predicted labels; `names` are those of classes, None for numbers."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    drawn = figure(5.6, 0.8 + 1.8 * len(shown))
    grid = drawn.subplots(len(shown), 3, squeeze=False)
    colours = np.array(PALETTE).reshape(-1, 3) / 255
    limits: dict[str, Any] = {"cmap": ListedColormap(colours[:255]), "vmin": -0.5, "vmax": 254.5}
    if names is None:
        there = np.concatenate([np.append(one.true[one.true == one.true], one.predicted) for one in shown])
        limits = {"cmap": "viridis", "vmin": float(there.min()), "vmax": float(there.max())}
    last = None
    for axes, one in zip(grid, shown):
        axes[0].imshow(one.image, cmap="gray", vmin=0, vmax=255)
        for place, values in ((1, one.true), (2, one.predicted)):
            last = axes[place].imshow(np.ma.masked_invalid(values % 255 if names else values), **limits)
            axes[place].set_facecolor("white")
        for each in axes:
            each.set_xticks([])
            each.set_yticks([])
    for axes, head in zip(grid[0], ("image", "true (white: no label)", "predicted")):
        axes.set_title(head, loc="left", fontsize=10)
    if names is None:
        drawn.colorbar(last, ax=grid[:, 1:].ravel().tolist(), location="bottom", shrink=0.8, aspect=40)
    else:
        seen = sorted({int(v) for one in shown for part in one[1:] for v in part[part == part]})
        short = fitted(names, 24, 1)
        handles = [Patch(color=colours[number % 255], label=short[number]) for number in seen[:24]]
        drawn.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower center", ncols=min(6, len(handles)))
    drawn.suptitle(title, x=0.01, ha="left", fontsize=11)
    save(drawn, target)
