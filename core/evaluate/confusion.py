"""The picture of a confusion matrix."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..canvas import BLUE, PALE, RED, figure, fitted, save
from .judgement import Confusion


def confusion_matrix(judged: Confusion, target: Path, title: str = "", unit: str = "examples") -> None:
    """True classes in rows, predicted ones in columns, each row in shares; what is right blue, what is wrong red.

    The accuracy of each class stands beside its row. Up to 20 classes the cells hold numbers of examples; with more,
    the most frequent mistakes are written below.
    """
    classes = len(judged.names)
    side = min(13.0, max(3.6, 2.6 + 0.42 * classes))
    font = max(4.5, min(10.0, 0.8 * 72 * (side - 1.5) / classes))
    names = fitted(judged.names, 24, 3 if classes <= 20 else 1)
    drawn = figure(side + 2.2, side + (0.5 if classes > 20 else 0.0))
    grid = drawn.add_gridspec(1, 2, width_ratios=[classes, max(classes * 0.22, 0.9)], wspace=0.01)
    axes = drawn.add_subplot(grid[0])
    axes.imshow(_colours(judged.counts), interpolation="nearest", aspect="auto")
    _cells(axes, judged, font)
    small = font * (1.0 if all(name.count("\n") < 2 for name in names) else 0.7)
    axes.set_xticks(range(classes), names, fontsize=small, rotation=90 if classes > 2 else 0)
    axes.set_yticks(range(classes), names, fontsize=small)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.spines[:].set_visible(False)
    if classes > 20 and (worst := judged.mistakes(6)):
        short = dict(zip(judged.names, names))
        parts = [f"{short[t]} → {short[p]} ({n})" for t, p, n in worst]
        lines = "      ".join(parts[:3]) + "\n" + "      ".join(parts[3:])
        drawn.supxlabel(f"most frequent mistakes, true → predicted:\n{lines}", fontsize=10, color="#333333")
    axes.set_title(title or headline(judged, unit), loc="left", fontsize=11)
    _recalls(drawn.add_subplot(grid[1], sharey=axes), judged, font, unit)
    save(drawn, target)


def headline(judged: Confusion, unit: str, title: str = "") -> str:
    """The accuracy, and how many examples it is of."""
    head = f"{title}: " if title else ""
    return f"{head}{judged.accuracy:.2%} of {judged.total:,} {unit} right"


def _colours(counts: np.ndarray) -> np.ndarray:
    """RGB `[classes, classes, 3]`: white for none, towards blue on the diagonal and red off it."""
    shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[..., None]
    right = np.eye(len(shares), dtype=bool)[..., None]
    # A square root lifts the rare mistakes out of the white; the commonest one is red, but not when it is rare too.
    largest = max(float(np.where(right, 0, shares).max()), 0.1)
    strength = np.where(right, shares, np.sqrt(shares / largest))
    tint = np.where(right, _rgb(BLUE), _rgb(RED))
    return 1 - strength * (1 - tint)


def _rgb(colour: str) -> np.ndarray:
    from matplotlib.colors import to_rgb

    return np.array(to_rgb(colour))


def _cells(axes: Any, judged: Confusion, font: float) -> None:
    classes = len(judged.names)
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
    totals = np.maximum(judged.counts.sum(axis=1), 1)
    for row, column in np.argwhere(judged.counts).tolist():
        count = int(judged.counts[row, column])
        dark = row == column and count / int(totals[row]) > 0.5
        axes.text(
            column, row, f"{count:,}", ha="center", va="center", fontsize=font * (0.9 if count < 10_000 else 0.7),
            color="white" if dark else "#333333",
        )  # fmt: skip


def _recalls(axes: Any, judged: Confusion, font: float, unit: str) -> None:
    """The accuracy of each class, as bars beside the rows, and in numbers beside these."""
    recalls = [value if value is not None else math.nan for value in judged.recalls]
    axes.barh(range(len(recalls)), np.nan_to_num(recalls), color=PALE, height=0.8)
    for row, value in enumerate(recalls):
        text = f"no {unit}" if math.isnan(value) else f"{value:.0%}" if len(recalls) > 20 else f"{value:.1%}"
        axes.text(1.06, row, text, va="center", fontsize=font * 0.9, color="#333333")
    axes.set_xlim(0, 2)
    axes.set_xticks([])
    axes.tick_params(which="both", left=False, labelleft=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("accuracy")
