"""The pictures of a run: confusion matrix, reliability diagram, mistakes, learning curves. Each writes a PNG."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.canvas import BLUE, GREEN, GREY, PALE, RED, clip, counted, figure, fitted, plain, save
from .calibration import Calibration
from .metrics import BINS, IGNORED, Judgement

# --- confusion matrix -------------------------------------------------------------------------------------------------


def confusion_matrix(judged: Judgement, target: Path, title: str = "") -> None:
    """True classes in rows, predicted ones in columns, each row in shares; what is right blue, what is wrong red.

    The accuracy of each class stands beside its row. Up to 20 classes the cells hold numbers of images; with more, the
    most frequent mistakes are written below.
    """
    classes = len(judged.class_names)
    side = min(13.0, max(3.6, 2.6 + 0.42 * classes))
    font = max(4.5, min(10.0, 0.8 * 72 * (side - 1.5) / classes))
    names = fitted(judged.class_names, 24, 3 if classes <= 20 else 1)
    drawn = figure(side + 2.2, side + (0.5 if classes > 20 else 0.0))
    grid = drawn.add_gridspec(1, 2, width_ratios=[classes, max(classes * 0.22, 0.9)], wspace=0.01)
    axes = drawn.add_subplot(grid[0])
    axes.imshow(_colours(judged.confusion), interpolation="nearest", aspect="auto")
    _cells(axes, judged, font)
    small = font * (1.0 if all(name.count("\n") < 2 for name in names) else 0.7)
    axes.set_xticks(range(classes), names, fontsize=small, rotation=90 if classes > 2 else 0)
    axes.set_yticks(range(classes), names, fontsize=small)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.spines[:].set_visible(False)
    if classes > 20 and (worst := judged.confusions(6)):
        parts = [f"{clip(t, 24)} → {clip(p, 24)} ({n})" for t, p, n in worst]
        lines = "      ".join(parts[:3]) + "\n" + "      ".join(parts[3:])
        drawn.supxlabel(f"most frequent mistakes, true → predicted:\n{lines}", fontsize=10, color="#333333")
    axes.set_title(_headline(judged, title), loc="left", fontsize=11)
    _recalls(drawn.add_subplot(grid[1], sharey=axes), judged, font)
    save(drawn, target)


def _headline(judged: Judgement, title: str) -> str:
    head = f"{title}: " if title else ""
    return f"{head}{judged.top1:.2%} of {judged.count:,} images right"


def _colours(confusion: Tensor) -> np.ndarray:
    """RGB `[classes, classes, 3]`: white for none, towards blue on the diagonal and red off it."""
    shares = (confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)).numpy()[..., None]
    right = np.eye(len(shares), dtype=bool)[..., None]
    # A square root lifts the rare mistakes out of the white; the commonest one is red, but not when it is rare too.
    largest = max(float(np.where(right, 0, shares).max()), 0.1)
    strength = np.where(right, shares, np.sqrt(shares / largest))
    tint = np.where(right, _rgb(BLUE), _rgb(RED))
    return 1 - strength * (1 - tint)


def _rgb(colour: str) -> np.ndarray:
    from matplotlib.colors import to_rgb

    return np.array(to_rgb(colour))


def _cells(axes: Any, judged: Judgement, font: float) -> None:
    classes = len(judged.class_names)
    if classes > 20:
        step = 10
        for line in range(step, classes, step):
            axes.axhline(line - 0.5, color="#ececec", linewidth=0.5)
            axes.axvline(line - 0.5, color="#ececec", linewidth=0.5)
        return
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    totals = judged.confusion.sum(dim=1).clamp(min=1)
    for row, column in judged.confusion.nonzero().tolist():
        count = int(judged.confusion[row, column])
        dark = row == column and count / int(totals[row]) > 0.5
        axes.text(
            column, row, f"{count:,}", ha="center", va="center", fontsize=font * (0.9 if count < 10_000 else 0.7),
            color="white" if dark else "#333333",
        )  # fmt: skip


def _recalls(axes: Any, judged: Judgement, font: float) -> None:
    """The accuracy of each class, as bars beside the rows, and in numbers beside these."""
    recalls = [value if value is not None else math.nan for value in judged.per_class.values()]
    axes.barh(range(len(recalls)), np.nan_to_num(recalls), color=PALE, height=0.8)
    for row, value in enumerate(recalls):
        text = "no image" if math.isnan(value) else f"{value:.0%}" if len(recalls) > 20 else f"{value:.1%}"
        axes.text(1.06, row, text, va="center", fontsize=font * 0.9, color="#333333")
    axes.set_xlim(0, 2)
    axes.set_xticks([])
    axes.tick_params(which="both", left=False, labelleft=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("accuracy")


# --- reliability diagram ----------------------------------------------------------------------------------------------


def reliability_diagram(calibration: Calibration, target: Path, title: str = "") -> None:
    """Accuracy against confidence, before and after temperature scaling, over a histogram of the confidences.

    The accuracies of a calibrated classifier lie on the diagonal. Whiskers are 95 % intervals (Wilson): a bin with few
    images says little, however far it is off.
    """
    drawn = figure(9.6, 5.2)
    grid = drawn.add_gridspec(2, 2, height_ratios=[3.2, 1], hspace=0.02)
    panels = [
        ("as trained", calibration.before),
        (f"temperature {calibration.temperature:.3g}, cross-fitted", calibration.after),
    ]
    top = max(int(judged.reliability.counts.max()) for _, judged in panels)
    for column, (name, judged) in enumerate(panels):
        axes = drawn.add_subplot(grid[0, column])
        _gaps(axes, judged)
        axes.set_title(f"{name}: ECE {judged.ece:.2%}, NLL {judged.nll:.3f}", loc="left", fontsize=10)
        axes.tick_params(labelbottom=False)
        below = drawn.add_subplot(grid[1, column], sharex=axes)
        _histogram(below, judged, top)
        if column == 0:
            axes.set_ylabel("share that is right")
            below.set_ylabel("images")
            drawn.legend(
                *axes.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside lower center", ncols=3
            )
    drawn.suptitle(_headline(calibration.before, title), x=0.01, ha="left", fontsize=11)
    save(drawn, target)


def _gaps(axes: Any, judged: Judgement) -> None:
    bins = judged.reliability
    held = bins.counts > 0
    n, confidence, accuracy = (x[held].double().numpy() for x in (bins.counts, bins.confidence, bins.accuracy))
    middle = (torch.arange(BINS)[held].numpy() + 0.5) / BINS
    width = 0.92 / BINS
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.bar(middle, np.minimum(accuracy, confidence), width, color=PALE)
    gap = confidence - accuracy
    axes.bar(middle, gap.clip(min=0), width, bottom=accuracy, color=RED, alpha=0.45, label="too sure")
    axes.bar(middle, (-gap).clip(min=0), width, bottom=confidence, color=GREEN, alpha=0.45, label="not sure enough")
    low, high = wilson(accuracy, n)
    whiskers = [accuracy - low, high - accuracy]
    axes.errorbar(middle, accuracy, whiskers, fmt="o", color=BLUE, markersize=4, linewidth=1, label="accuracy, 95 %")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    plain(axes)


def _histogram(axes: Any, judged: Judgement, top: int) -> None:
    counts = judged.reliability.counts.numpy()
    axes.bar((np.arange(BINS) + 0.5) / BINS, counts, 0.92 / BINS, color=BLUE)
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylim(0, top * 2)
    axes.set_yticks([t for t in (0, 10, 100, 1000, 10_000, 100_000) if t <= top] or [0, top])
    axes.yaxis.set_major_formatter(counted)
    axes.minorticks_off()
    axes.set_xlabel("confidence")
    plain(axes)


def wilson(share: np.ndarray, n: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share of `n` (Wilson 1927), which stays within 0..1 where `share` is 0 or 1."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return np.minimum(middle - half, share), np.maximum(middle + half, share)


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
    lines = 1 + max((name.count("\n") for name in names), default=0)
    drawn = figure(1.75 * columns, (1.95 + 0.3 * lines) * rows + 0.4)
    p = logits.double().softmax(dim=1)
    grid = np.atleast_1d(drawn.subplots(rows, columns)).reshape(-1)
    for axes in grid:
        axes.set_axis_off()
    for axes, image, row, label in zip(grid, images, p, labels.tolist()):
        show(axes, image)
        predicted = int(row.argmax())
        below = f"is {names[int(label)]} ({percent(row[int(label)])})"
        pad = 3 + 11 * (below.count("\n") + 1)
        axes.set_title(f"{names[predicted]} ({percent(row[predicted])})", fontsize=9, color=RED, pad=pad)
        axes.text(0.5, 1.02, below, transform=axes.transAxes, ha="center", va="bottom", fontsize=8, color="#333333")
    head = f"{title}: most confident mistakes" if title else "most confident mistakes"
    head += " (predicted in red, the true class below)" if len(images) else ": none"
    drawn.suptitle(head, x=0.01, ha="left", fontsize=11)
    save(drawn, target)


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
