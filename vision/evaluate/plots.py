"""Pictures of images: mistakes and learning curves. Each writes a PNG; those of any head are the core's."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...core.canvas import BLUE, GREY, PALE, RED, counted, figure, fitted, plain, save
from ...core.losses import IGNORED

# --- most confident mistakes ------------------------------------------------------------------------------------------


def confident_mistakes(logits: Tensor, labels: Tensor, most: int = 24) -> list[int]:
    """Indices of the wrong predictions of `logits` `[examples, classes]`, the most confident first."""
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    wrong = (predicted != labels) & (labels != IGNORED)
    order = confidence.masked_fill(~wrong, -1).argsort(descending=True, stable=True)
    return order[: min(most, int(wrong.sum()))].tolist()


def mistakes(
    images: Sequence[Any], logits: Tensor, labels: Tensor, class_names: Sequence[str], target: Path, title: str = ""
) -> None:
    """A grid of wrongly classified images, as `confident_mistakes` chooses them.

    Args:
        images: one for each row of `logits`: PIL images, or arrays `[height, width]` or `[height, width, 3]` of uint8
            or 0..1.
        logits: `[len(images), classes]`; divide them by the temperature for calibrated probabilities.
        labels: int `[len(images)]`.
        class_names: one name a class.
        target: the PNG.
        title: put before the headline.
    """
    columns = max(3, min(6, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    names = fitted(class_names, 22)
    lines = 1 + max((_with_share(name, 0.5).count("\n") for name in names), default=0)
    drawn = figure(1.75 * columns, (1.95 + 0.3 * lines) * rows + 0.4)
    p = logits.double().softmax(dim=1)
    grid = np.atleast_1d(drawn.subplots(rows, columns)).reshape(-1)
    for axes in grid:
        axes.set_axis_off()
    for axes, image, row, label in zip(grid, images, p, labels.tolist()):
        show(axes, image)
        predicted = int(row.argmax())
        below = _with_share(f"is {names[int(label)]}", row[int(label)])
        pad = 3 + 11 * (below.count("\n") + 1)
        axes.set_title(_with_share(names[predicted], row[predicted]), fontsize=9, color=RED, pad=pad)
        axes.text(0.5, 1.02, below, transform=axes.transAxes, ha="center", va="bottom", fontsize=8, color="#333333")
    head = f"{title}: most confident mistakes" if title else "most confident mistakes"
    head += " (predicted in red, the true class below)" if len(images) else ": none"
    # An empty line below it, where the layout does not count the pads of titles.
    drawn.suptitle(f"{head}\n", x=0.01, ha="left", fontsize=11)
    save(drawn, target)


def _with_share(name: str, p: float | Tensor) -> str:
    """A name of `fitted` and a probability, which has a line of its own where the last one is full."""
    return f"{name}{chr(10) if len(name.rpartition(chr(10))[2]) > 13 else ' '}({percent(p)})"


def percent(p: float | Tensor) -> str:
    """99.97% must not read as certainty, nor 0.01% as impossible."""
    p = float(p)
    if 0.999 < p < 1:
        return ">99.9%"
    return "<0.1%" if 0 < p < 0.001 else f"{p:.1%}" if p < 0.1 or p > 0.9 else f"{p:.0%}"


def show(axes: Any, image: Any) -> None:
    """Draws an image into `axes`; small ones keep their pixels."""
    picture = small_picture(image, 384)
    axes.imshow(picture, interpolation="nearest" if max(picture.size) < 100 else "antialiased")
    axes.set_axis_off()


def small_picture(image: Any, most: int) -> Any:
    """A Pillow image of mode RGB, reduced to at most `most` pixels a side."""
    from PIL import Image

    array = np.asarray(image)
    if array.dtype != np.uint8:
        array = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    picture = Image.fromarray(array.squeeze()).convert("RGB")
    picture.thumbnail((most, most))
    return picture


# --- learning curves --------------------------------------------------------------------------------------------------


def learning_curves(metrics: Path, target: Path, title: str = "", baselines: dict[str, float] | None = None) -> bool:
    """Loss and accuracy over the steps of a `metrics.csv`; False when there is nothing to draw yet.

    Args:
        metrics: the file that training writes; columns `loss`, `val_loss`, `val_top1` and, if there, `val_top5`.
        target: the PNG.
        title: put before the headline.
        baselines: accuracies in 0..1 to draw as lines, by name.
    """
    from ...core.training.run.plot import read_metrics, smooth

    train, val = read_metrics(metrics)
    if len(train) + len(val) < 2:
        return False
    top1, top5 = (read_column(metrics, name) for name in ("val_top1", "val_top5"))
    drawn = figure(10.4 if top1 else 6.5, 4.2)
    losses, *rest = drawn.subplots(1, 2 if top1 else 1, squeeze=False, sharex=True)[0]
    values = [v for _, v in train]
    losses.plot([s for s, _ in train], values, color=PALE, linewidth=0.8, alpha=0.7)
    losses.plot([s for s, _ in train], smooth(values, len(values) / 50), color=BLUE, linewidth=1.8, label="training")
    if val:
        losses.plot(*zip(*val), color=RED, linewidth=1.8, marker="o", markersize=_dot(val), label="validation")
    losses.set_title("loss (nats per image)", loc="left", fontsize=10)
    for axes in rest:
        _accuracies(axes, top1, top5, baselines or {})
    for axes in (losses, *rest):
        axes.set_xlabel("optimizer steps")
        axes.xaxis.set_major_formatter(counted)
        plain(axes)
        axes.legend(frameon=False, fontsize=9)
    drawn.suptitle(title, x=0.01, ha="left", fontsize=11)
    save(drawn, target)
    return True


def _dot(points: list) -> int:
    """The size of the marks: one alone has no line to be seen by."""
    return 3 if len(points) > 1 else 8


def _accuracies(axes: Any, top1: list, top5: list, baselines: dict[str, float]) -> None:
    from matplotlib.ticker import PercentFormatter

    if top5 and max(v for _, v in top5) < 0.9999:
        axes.plot(*zip(*top5), color=PALE, linewidth=1.5, marker="o", markersize=_dot(top5), label="top-5")
    axes.plot(*zip(*top1), color=RED, linewidth=1.8, marker="o", markersize=_dot(top1), label="top-1")
    step, best = max(top1, key=lambda point: point[1])
    for (name, value), line in zip(baselines.items(), ("--", ":", "-.")):
        # In the legend rather than on the line, where two of nearly one value would be written over each other.
        axes.axhline(value, color=GREY, linewidth=1.2, linestyle=line, label=f"{name} {value:.1%}")
    axes.set_title(f"validation accuracy: best {best:.2%} at step {step:,}", loc="left", fontsize=10)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(top=1.0 if best > 0.9 else None)


def read_column(metrics: Path, name: str) -> list[tuple[int, float]]:
    """`(step, value)` pairs of one column of a `metrics.csv`; empty when it has no such column."""
    with metrics.open(newline="") as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]
