"""The panels of a report as one PNG, fit for a paper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..core.canvas import BLUE, GREY, PALE, RED, clip, figure, plain, save
from ..core.subject import Square
from .report import Curves, Grid, Heads, Panel, Report, Tokens, ranks

MOST_LABELS = 40
"""Labels along an axis; of more, every n-th is written."""
COLOURS = (BLUE, RED, "#3d9a8b", "#e0a030", "#7b4fa3", GREY)


def draw(report: Report, target: Path) -> None:
    """Draws all panels of a report, heads side by side, below them the captions."""
    panels = report.panels
    heads = [panel for panel in panels if isinstance(panel, Heads)]
    others = [panel for panel in panels if not isinstance(panel, Heads)]
    rows = -(-len(heads) // 3) + len(others)
    sizes = [_height(panel) for panel in others]
    head_height = max([min(6.0, max(2.6, 0.16 * panel.values.shape[0] + 1.4)) for panel in heads], default=0)
    heights = [head_height] * (-(-len(heads) // 3)) + sizes
    drawn = figure(12.0, sum(heights))
    parts = np.atleast_1d(drawn.subfigures(rows, 1, height_ratios=heights))
    for number in range(0, len(heads), 3):
        some = heads[number : number + 3]
        axes = np.atleast_1d(parts[number // 3].subplots(1, 3))
        for one, panel in zip(axes, some):
            _heads(one, panel)
        for empty in axes[len(some) :]:
            empty.set_axis_off()
    for part, panel in zip(parts[-(-len(heads) // 3) :], others):
        if isinstance(panel, Curves):
            _curves(part.subplots(), panel)
        elif isinstance(panel, Grid):
            _grid(part.subplots(), panel)
        elif isinstance(panel, Square):
            _square(part.subplots(), panel)
        elif isinstance(panel, Tokens):
            _tokens(part, panel)
    save(drawn, target)


def _height(panel: Panel) -> float:
    if isinstance(panel, Grid):
        return min(9.0, max(3.0, 0.18 * len(panel.rows) + 1.8))
    if isinstance(panel, Square):
        return 7.5
    if isinstance(panel, Tokens) and panel.grid is None:
        return min(9.0, max(4.5, 0.1 * len(panel.names) + 2.5))
    return 4.2


def _heads(axes: Any, panel: Heads) -> None:
    values = panel.values.double().numpy()
    _map(axes, values, panel.signed, panel.unit)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    _whole(axes, values.shape)
    if panel.columns and not panel.columns[-1].isdigit():
        axes.set_xticks(range(len(panel.columns)), panel.columns, rotation=90)
    axes.set_title(panel.title, fontsize=10, loc="left")
    _below(axes, panel.caption, 46)


def _whole(axes: Any, shape: tuple[int, ...]) -> None:
    axes.set_yticks(range(0, shape[0], max(1, -(-shape[0] // 16))))
    axes.set_xticks(range(0, shape[1], max(1, -(-shape[1] // 12))))
    axes.tick_params(labelsize=7)


def _map(axes: Any, values: np.ndarray, signed: bool, unit: str, extent: Any = None) -> None:
    known = values[~np.isnan(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if signed:
        high = max(abs(low), abs(high), 1e-9)
        low = -high
    elif low >= 0:
        low = 0.0
    layer = axes.imshow(
        values, cmap="RdBu_r" if signed else "viridis", vmin=low, vmax=max(high, low + 1e-9), aspect="auto",
        interpolation="nearest", extent=extent,
    )  # fmt: skip
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(layer, ax=axes, fraction=0.05, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.ax.set_title(unit, fontsize=7, loc="right")
    bar.outline.set_visible(False)


def _below(axes: Any, caption: str, width: int) -> None:
    import textwrap

    if caption:
        axes.set_xlabel(
            f"{axes.get_xlabel()}\n" + "\n".join(textwrap.wrap(caption, width)), fontsize=8, color="#333333"
        )


def _curves(axes: Any, panel: Curves) -> None:
    plain(axes)
    if panel.band is not None:
        axes.fill_between(panel.x, *panel.band, color=PALE, alpha=0.5, linewidth=0, label="random, lowest to highest")
    for colour, (name, values) in zip(COLOURS * 3, panel.lines.items()):
        axes.plot(panel.x, values, color=colour, marker="o", markersize=3, linewidth=1.4, label=name)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.unit)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)
    _below(axes, panel.caption, 110)


def _grid(axes: Any, panel: Grid) -> None:
    _map(axes, panel.values.double().numpy(), True, panel.unit)
    _labels(axes, panel.columns)
    axes.set_yticks(range(0, len(panel.rows), max(1, -(-len(panel.rows) // 16))))
    axes.set_ylabel("layer")
    axes.set_title(panel.title, fontsize=10, loc="left")
    _below(axes, panel.caption, 110)


def _labels(axes: Any, names: list[str]) -> None:
    step = max(1, -(-len(names) // MOST_LABELS))
    shown = [clip(_visible(name), 14) for name in names]
    axes.set_xticks(range(0, len(names), step), shown[::step], rotation=90, fontsize=7)


def _visible(name: str) -> str:
    """A token with its line breaks and tabs written out."""
    return name.replace("\n", "⏎").replace("\t", "⇥") or "∅"


def _square(axes: Any, panel: Square) -> None:
    """Both maps by rank, since their units differ; circles are known contacts."""
    both = ranks(panel)
    axes.imshow(both, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    marks = np.array(panel.marks).reshape(-1, 2)
    for x, y in ((marks[:, 1], marks[:, 0]), (marks[:, 0], marks[:, 1])):
        axes.scatter(x, y, s=14, facecolors="none", edgecolors=RED, linewidths=0.7)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("residue")
    axes.set_ylabel("residue")
    _below(axes, panel.caption + ("; circles are contacts of the structure" if panel.marks else ""), 110)


def _tokens(part: Any, panel: Tokens) -> None:
    weights, effects = panel.weights.double().numpy(), panel.effects.double().numpy()
    if panel.grid is not None:
        patches = panel.grid[0] * panel.grid[1]
        axes = part.subplots(1, 3 if panel.image is not None else 2)
        if panel.image is not None:
            axes[0].imshow(panel.image.numpy().squeeze(), cmap="gray", interpolation="nearest")
            axes[0].set_axis_off()
        for one, values, title, unit in zip(
            axes[-2:], (weights[0], effects[0]), (f"weights, {panel.title}", "effects of hiding"), ("", panel.unit)
        ):
            _map(one, values[-patches:].reshape(panel.grid), bool(unit), unit)
            one.set_axis_off()
            one.set_title(title, fontsize=10, loc="left")
    else:
        axes = part.subplots(1, 2)
        for one, values, title, unit in zip(
            axes, (weights, effects), (f"weights, {panel.title}", "effects of hiding a token"), ("", panel.unit)
        ):
            _map(one, values, False, unit)
            _labels(one, panel.names)
            step = max(1, math.ceil(len(panel.places) / MOST_LABELS))
            one.set_yticks(
                range(0, len(panel.places), step), [clip(_visible(n), 14) for n in panel.places[::step]], fontsize=7
            )
            one.set_title(title, fontsize=10, loc="left")
            one.set_ylabel("place of the answer")
    part.supxlabel(panel.caption, fontsize=9, color="#333333")
