"""The reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..canvas import BLUE, GREEN, GREY, PALE, RED, counted, figure, plain, save
from .judgement import Panel


def reliability_diagram(panels: Sequence[Panel], target: Path, title: str = "", unit: str = "examples") -> None:
    """Accuracy against confidence, as trained and calibrated, over a histogram of the confidences.

    The accuracies of a calibrated classifier lie on the diagonal. Whiskers are 95 % intervals (Wilson): a bin with few
    examples says little, however far it is off.
    """
    drawn = figure(0.6 + 4.5 * len(panels), 5.2)
    grid = drawn.add_gridspec(2, len(panels), height_ratios=[3.2, 1], hspace=0.02)
    top = max(int(panel.bins.counts.max()) for panel in panels)
    for column, panel in enumerate(panels):
        axes = drawn.add_subplot(grid[0, column])
        _gaps(axes, panel)
        axes.set_title(f"{panel.title}: ECE {panel.bins.error:.2%}, NLL {panel.nll:.3f}", loc="left", fontsize=10)
        axes.tick_params(labelbottom=False)
        below = drawn.add_subplot(grid[1, column], sharex=axes)
        _histogram(below, panel, top)
        if column == 0:
            axes.set_ylabel(panel.share)
            counts = panel.counted or unit
            below.set_ylabel(counts, fontsize=7 if len(counts) > 12 else None)  # the axis is short
            drawn.legend(
                *axes.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside lower center", ncols=3
            )
    drawn.suptitle(title, x=0.01, ha="left", fontsize=11)
    save(drawn, target)


def _gaps(axes: Any, panel: Panel) -> None:
    bins = panel.bins
    held = bins.counts > 0
    n, confidence, accuracy = (x[held].double().numpy() for x in (bins.counts, bins.confidence, bins.accuracy))
    number = len(bins.counts)
    middle, width = (np.flatnonzero(held.numpy()) + 0.5) / number, 0.92 / number
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.bar(middle, np.minimum(accuracy, confidence), width, color=PALE)
    gap = confidence - accuracy
    axes.bar(middle, gap.clip(min=0), width, bottom=accuracy, color=RED, alpha=0.45, label="too sure")
    axes.bar(middle, (-gap).clip(min=0), width, bottom=confidence, color=GREEN, alpha=0.45, label="not sure enough")
    low, high = wilson(accuracy, n)
    whiskers = [accuracy - low, high - accuracy]
    axes.errorbar(
        middle, accuracy, whiskers, fmt="o", color=BLUE, markersize=4, linewidth=1, label=f"{panel.point}, 95 %"
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    plain(axes)


def _histogram(axes: Any, panel: Panel, top: int) -> None:
    counts = panel.bins.counts.numpy()
    axes.bar((np.arange(len(counts)) + 0.5) / len(counts), counts, 0.92 / len(counts), color=BLUE)
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylim(0, top * 2)
    axes.set_yticks([t for t in (0, 10, 100, 1000, 10_000, 100_000) if t <= top] or [0, top])
    axes.yaxis.set_major_formatter(counted)
    axes.minorticks_off()
    axes.set_xlabel(panel.probability)
    plain(axes)


def wilson(share: np.ndarray, n: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share of `n` (Wilson 1927), which stays within 0..1 where `share` is 0 or 1."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return np.minimum(middle - half, share), np.maximum(middle + half, share)
