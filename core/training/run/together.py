"""The curves of several runs in one picture: a row for each figure, by step and by what was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...canvas import BLUE, GREEN, RED, figure, fitted, plain, save
from .compare import Run
from .plot import smooth
from .progress import short

COLOURS = (BLUE, RED, GREEN, "#b77a10", "#7b4fa3", "#6d737a", "#2aa4c8", "#a8577e", "#6b8f23", "#444444")
MOST_FIGURES = 8
"""Figures of a validation that are drawn."""


def points(run: Run, name: str, along: str) -> tuple[list[float], list[float]]:
    """A column of metrics.csv over another, where both have finite numbers."""
    found = []
    for row in run.rows:
        if row.get(name) and row.get(along):
            x, y = float(row[along]), float(row[name])
            found += [(x, y)] if math.isfinite(x) and math.isfinite(y) else []
    return [x for x, _ in found], [y for _, y in found]


def draw(runs: Sequence[Run], target: Path) -> bool:
    """Writes the PNG; returns False, and writes nothing, where no run has a curve."""
    names = dict.fromkeys(name for run in runs for row in run.rows[-1:] for name in row)
    metrics = [name for name in names if name.startswith("val_") and name != "val_loss"]
    drawn = [
        name for name in ("loss", "val_loss", *metrics[:MOST_FIGURES])
        if any(len(points(run, name, "step")[0]) > 1 for run in runs)
    ]  # fmt: skip
    if not drawn:
        return False
    units = {str(run.summary.get("unit") or "units") for run in runs}
    seen = f"{units.pop()} seen" if len(units) == 1 else "units seen"
    picture = figure(11, 0.6 + 2.9 * len(drawn))
    grid = picture.subplots(len(drawn), 2, squeeze=False)
    for axes, name in zip(grid, drawn):
        for panel, along, label in zip(axes, ("step", "units"), ("optimizer steps", seen)):
            _panel(panel, runs, name, along, label)
    handles, labels = [], fitted([run.name for run in runs], 40, 1)
    for number in range(len(runs)):
        handles += grid[0, 0].plot([], [], color=COLOURS[number % len(COLOURS)], linestyle=_style(number))
    picture.legend(handles, labels, frameon=False, loc="outside upper left", ncols=min(4, len(runs)), fontsize=9)
    save(picture, target)
    return True


def _style(number: int) -> Any:
    return "-" if number < len(COLOURS) else "--"


def _panel(axes: Any, runs: Sequence[Run], name: str, along: str, label: str) -> None:
    from matplotlib.ticker import FuncFormatter

    rows = 0
    for number, run in enumerate(runs):
        x, y = points(run, name, along)
        if not x:
            continue
        rows, colour = max(rows, len(x)), COLOURS[number % len(COLOURS)]
        if name == "loss":
            axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.25)
            axes.plot(x, smooth(y, len(y) / 50), color=colour, linewidth=1.5, linestyle=_style(number))
        else:
            axes.plot(x, y, color=colour, linewidth=1.5, marker="o", markersize=3, linestyle=_style(number))
    if name == "loss" and rows > 200:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.set_xlabel(label, fontsize=9)
    title = "training loss" if name == "loss" else f"validation {name[4:].replace('_', ' ')}"
    axes.set_title(title, loc="left", fontsize=10)
    plain(axes)
