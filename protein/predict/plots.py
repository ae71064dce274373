"""The picture of a contact map: what was predicted below the diagonal, what is known above it."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ...core.files import write_atomic

BLUE, RED, GREY, PALE, BAND = "#1f4e8c", "#d1495b", "#8fa3b8", "#eceff2", "#f6f6f6"
"""Found contacts, wrong predictions, missed contacts, unresolved residues, pairs too close in sequence to count."""

NEAREST = 6
"""Pairs closer than this in sequence are not drawn: they are in contact or not by the chain alone."""


def contact_map(
    target: Path, contacts: np.ndarray, title: str, caption: str = "", truth: np.ndarray | None = None
) -> None:
    """Write a PNG of a prediction.

    Below the diagonal lie the probabilities, row i and column j being residues. Above it, with `truth`, the known
    contacts: dark those among the L most probable pairs (at least 6 apart, L being the number of resolved residues),
    grey the others, and red the probable pairs that are none. Without `truth` both sides show the probabilities.

    Args:
        target: the file.
        contacts: probabilities `[residues, residues]`.
        title: the name of the chain.
        caption: what stands small below the title, at most two lines.
        truth: int `[residues, residues]`: 1 contact, 0 none, -1 unknown.
    """
    from matplotlib.colors import LinearSegmentedColormap

    residues = len(contacts)
    drawn, axes, beside = _square(legend=truth is not None)
    i, j = np.indices(contacts.shape)
    near = abs(i - j) < NEAREST
    shown = np.ma.masked_array(contacts, mask=near if truth is None else near | (j > i))
    colours = LinearSegmentedColormap.from_list(
        "p", [(0, "#ffffff"), (0.2, "#bcd2ea"), (0.5, "#4a86c5"), (1, "#0b2c5c")]
    )
    edges = (0.5, residues + 0.5, residues + 0.5, 0.5)
    options: dict[str, Any] = {"extent": edges, "interpolation": "nearest", "interpolation_stage": "data"}
    axes.set_facecolor(BAND)
    image = axes.imshow(shown, cmap=colours, vmin=0, vmax=1, **options)
    entries, counted = [], 0
    if truth is not None:
        length = int((truth >= 0).any(1).sum())
        cells, entries, counted = known_cells(contacts, truth, length)
        cells[near | (j < i)] = 0  # transparent
        axes.imshow(cells, **options)
    axes.plot([0.5, residues + 0.5], [0.5, residues + 0.5], color="#b0b0b0", linewidth=0.6)
    drawn.colorbar(image, cax=beside).set_label("predicted probability of a contact (Cβ–Cβ < 8 Å)", fontsize=9)
    _labels(axes, title, caption, residues)
    if truth is not None:
        _legend(drawn, entries, counted)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks
        drawn.savefig(content, format="png", dpi=min(600, max(200, residues / 5)), bbox_inches="tight", pad_inches=0.15)
    write_atomic(target, content.getvalue())


def _square(legend: bool) -> tuple[Any, Any, Any]:
    """An empty figure that needs no display, with axes for the map and for its colour bar, laid out in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, bottom = 7.2, 1.15 if legend else 0.55
    left, side, above = 0.7, 5.5, 0.75
    height = bottom + side + above
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    beside = figure.add_axes(((left + side + 0.15) / width, (bottom + 0.5) / height, 0.14 / width, (side - 1) / height))
    return figure, axes, beside


def known_cells(contacts: np.ndarray, truth: np.ndarray, count: int) -> tuple[np.ndarray, list[tuple[str, str]], int]:
    """Colours `[residues, residues, 4]` of the known side, the entries of the legend (colour, text), and how many of
    the `count` most probable pairs there are."""
    from matplotlib.colors import to_rgba

    predicted = _most_probable(contacts, truth, count)
    contact = truth == 1
    kinds = [
        (PALE, truth < 0, "unresolved"),
        (GREY, contact & ~predicted, "contact, missed"),
        (RED, ~contact & predicted, "no contact, but predicted"),
        (BLUE, contact & predicted, "contact, predicted"),
    ]
    cells = np.ones((*truth.shape, 4))
    for colour, where, _ in kinds:
        cells[where] = to_rgba(colour)
    upper = np.triu(np.ones(truth.shape, dtype=bool), NEAREST)
    entries = [(colour, text) for colour, where, text in reversed(kinds) if (where & upper).any()]
    return cells, entries, int(predicted.sum())


def _most_probable(contacts: np.ndarray, truth: np.ndarray, count: int) -> np.ndarray:
    """Mark the `count` most probable pairs whose truth is known, bool `[residues, residues]`, upper triangle."""
    i, j = np.triu_indices(len(contacts), NEAREST)
    known = truth[i, j] >= 0
    i, j = i[known], j[known]
    best = np.argsort(-contacts[i, j], kind="stable")[:count]
    marked = np.zeros(contacts.shape, dtype=bool)
    marked[i[best], j[best]] = True
    return marked


def _labels(axes: Any, title: str, caption: str, residues: int) -> None:
    name = title if len(title) <= 50 else f"{title[:32]}…{title[-16:]}"
    above = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    lines = caption.splitlines()
    for number, line in enumerate(reversed(lines)):
        axes.annotate(line, (0, 1), (0, 5 + 12 * number), fontsize=8.5, color="#555555", **above)
    bold = {"fontsize": 12, "fontweight": "bold"}
    axes.annotate(name.replace("$", r"\$"), (0, 1), (0, 8 + 12 * len(lines)), **bold, **above)
    axes.set_xlabel("residue", fontsize=9)
    axes.set_ylabel("residue", fontsize=9)
    step = next(
        step for step in (5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000) if residues / step <= 10 or step == 2000
    )
    ticks = [1, *range(step, residues + 1, step)]
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    for each in axes.figure.axes:
        each.tick_params(labelsize=8, width=0.6)
        for spine in each.spines.values():
            spine.set_linewidth(0.6)


def _legend(figure: Any, entries: list[tuple[str, str]], counted: int) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour, edgecolor="#cccccc", linewidth=0.4, label=text) for colour, text in entries]
    about = f"below the diagonal: prediction; above: the structure, and the {counted} most probable pairs"
    figure.legend(
        handles=handles, title=about, loc="lower left", bbox_to_anchor=(0.05, 0), ncols=len(handles), fontsize=8.5,
        title_fontsize=8.5,
        frameon=False, handlelength=1.2, columnspacing=1.6,
    )  # fmt: skip
