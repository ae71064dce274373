"""The pictures of a judgement: confusion matrix, reliability diagram, figures by label, predicted against true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..canvas import BLUE, GREY, PALE, RED, clip, figure, fitted, literal, plain, save
from .confusion import confusion_matrix
from .diagram import reliability_diagram
from .judgement import Judgement, Scatter

MOST_BARS = 40
"""Labels of one picture."""
MOST_POINTS = 3000
"""Points of one scatter plot."""
MOST_SCATTERS = 12
"""Targets of one picture."""


def draw(judged: Judgement, folder: Path, prefix: str = "", unit: str = "examples") -> list[Path]:
    """Draws what a judgement has into PNG files of a folder, and returns these.

    Args:
        judged: with intervals; the figures of a training's epoch have nothing to draw.
        folder: must exist.
        prefix: before the names of the files.
        unit: what was judged, such as "images".
    """
    if judged.parts:
        words = [file_word(name) for name in judged.parts]
        words = [f"{word}_{i}" if words.count(word) > 1 else word for i, word in enumerate(words)]
        drawn = (draw(part, folder, f"{prefix}{word}_", unit) for word, part in zip(words, judged.parts.values()))
        return [picture for some in drawn for picture in some]
    pictures = []

    def target(name: str) -> Path:
        pictures.append(folder / f"{prefix}{name}.png")
        return pictures[-1]

    if judged.confusion is not None:
        confusion_matrix(judged.confusion, target("confusion"), headline(judged, unit), unit)
    if judged.panels:
        reliability_diagram(judged.panels, target("reliability"), headline(judged, unit), unit)
    if any("average_precision" in row or "f1" in row for row in judged.per_class):
        class_bars(judged, target("classes"), headline(judged, unit), unit)
    if judged.scatters:
        scatters(judged, target("predicted"), headline(judged, unit))
    return pictures


def file_word(name: str) -> str:
    """A column's name as part of a file's name: letters and digits as they are, anything else as an underscore."""
    return "".join(c if c.isalnum() else "_" for c in name)[:60]


def headline(judged: Judgement, unit: str) -> str:
    """The first figure and how many examples it is of."""
    name, value = next(iter(judged.metrics.items()))
    if name == "accuracy":
        return f"{value:.2%} of {judged.count:,} {unit} right"
    return f"{name.replace('_', ' ')} {value:.3f}, of {judged.count:,} {unit}"


def class_bars(judged: Judgement, target: Path, title: str, unit: str) -> None:
    """F1 and average precision of each class or label, the lowest first, beside the average precision of guessing (the
    share of examples that have it).
    """
    rows = sorted(judged.per_class, key=lambda row: _first(row, "average_precision", "f1", default=-1.0))
    held = [row for row in rows if row.get("f1") is not None or row.get("average_precision") is not None]
    note = f"; the {MOST_BARS} lowest of {len(held)}" if len(held) > MOST_BARS else ""
    rows = held[:MOST_BARS]
    drawn = figure(8.4, 1.5 + 0.36 * max(len(rows), 2))
    axes, y = drawn.add_subplot(), np.arange(len(rows))
    if any(row.get("average_precision") is not None for row in rows):
        axes.barh(y - 0.2, _column(rows, "average_precision"), 0.38, color=BLUE, label="average precision")
    axes.barh(y + 0.2, _column(rows, "f1"), 0.38, color=PALE, label="F1")
    total = judged.count
    chance = [row.get("positive", row["count"]) / (row["count"] if "positive" in row else total) for row in rows]
    axes.plot(chance, y - 0.2, "|", color=RED, markersize=9, markeredgewidth=2, label="share of examples (guessing)")
    for place, row in enumerate(rows):
        best = max(_first(row, "average_precision", default=0.0), _first(row, "f1", default=0.0))
        axes.text(min(best, 1) + 0.012, place, f"n = {row.get('positive', row['count']):,}", va="center", fontsize=8)
    names = fitted([row["name"] for row in rows], 30, 1)
    axes.set_yticks(y, names, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xticks(np.linspace(0, 1, 6))
    plain(axes)
    axes.grid(axis="y", visible=False)
    axes.set_title(f"{title}{note}", loc="left", fontsize=11)
    drawn.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    save(drawn, target)


def _first(row: dict[str, Any], *names: str, default: float) -> float:
    """The first of these figures that the row has."""
    return next((row[name] for name in names if row.get(name) is not None), default)


def _column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [_first(row, name, default=0.0) for row in rows]


def scatters(judged: Judgement, target: Path, title: str) -> None:
    """Predicted against true numbers of each target with their 90 % intervals, and what is left, by the prediction."""
    shown = judged.scatters[:MOST_SCATTERS]
    drawn = figure(9.6, 0.6 + 4.2 * len(shown))
    rows = {row["name"]: row for row in judged.per_class}
    grid = drawn.subplots(len(shown), 2, squeeze=False)
    for (left, right), scatter in zip(grid, shown):
        _against_true(left, scatter, rows.get(scatter.name, {}))
        _residuals(right, scatter)
    more = f"; the first {len(shown)} of {len(judged.scatters)} targets" * (len(judged.scatters) > len(shown))
    drawn.suptitle(f"{title}{more}", x=0.01, ha="left", fontsize=11)
    save(drawn, target)


def _against_true(axes: Any, scatter: Scatter, row: dict[str, Any]) -> None:
    chosen = _some(len(scatter.true))
    true, value = scatter.true[chosen], scatter.value[chosen]
    if scatter.low is not None and scatter.high is not None:
        low, high = scatter.low[chosen], scatter.high[chosen]
        outside = (true < low) | (true > high)
        for miss, colour in ((~outside, PALE), (outside, RED)):
            # Few enough to be told apart.
            whiskers = np.abs(np.stack([(value - low)[miss], (high - value)[miss]]))
            axes.errorbar(
                true[miss], value[miss], whiskers, fmt="none", ecolor=colour, elinewidth=0.6,
                alpha=min(1.0, 12 / len(chosen) ** 0.5), zorder=1,
            )  # fmt: skip
    size = float(np.clip(400 / len(chosen), 3, 20))
    axes.scatter(true, value, s=size, color=BLUE, alpha=min(1.0, 20 / len(chosen) ** 0.5), linewidths=0, zorder=2)
    ends = [float(min(true.min(), value.min())), float(max(true.max(), value.max()))]
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    axes.set_xlabel(f"true {clip(scatter.name, 40)}")
    axes.set_ylabel(f"predicted {clip(scatter.name, 40)}")
    parts = [f"R² {row['r2']:.3f}"] if row.get("r2") is not None else []
    if row.get("mae") is not None:
        parts.append(f"MAE {row['mae']:.4g}")
    covered = row.get("coverage_calibrated", row.get("coverage"))
    if covered is not None:
        parts.append(f"90 % intervals hold {covered:.1%}")
    axes.set_title(", ".join(parts) or literal(scatter.name), loc="left", fontsize=10)
    plain(axes)


def _residuals(axes: Any, scatter: Scatter) -> None:
    chosen = _some(len(scatter.true))
    value, left = scatter.value[chosen], (scatter.true - scatter.value)[chosen]
    size = float(np.clip(400 / len(chosen), 3, 20))
    axes.scatter(value, left, s=size, color=BLUE, alpha=min(1.0, 20 / len(chosen) ** 0.5), linewidths=0)
    axes.axhline(0, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlabel(f"predicted {clip(scatter.name, 40)}")
    axes.set_ylabel("true less predicted")
    axes.set_title(f"mean {left.mean():.3g}, standard deviation {left.std():.3g}", loc="left", fontsize=10)
    axes.locator_params(axis="x", nbins=6)  # long numbers of a narrow range would touch each other
    plain(axes)


def _some(count: int) -> np.ndarray:
    """Numbers of at most `MOST_POINTS` examples, always the same ones."""
    return np.sort(np.random.default_rng(0).permutation(count)[:MOST_POINTS])
