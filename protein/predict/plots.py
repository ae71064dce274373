"""The picture of a contact map: what was predicted below the diagonal, what is known above it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core import canvas
from ..read.complexes import name_of, separations, spans

BLUE, RED, GREY, PALE, BAND = "#1f4e8c", "#d1495b", "#8fa3b8", "#eceff2", "#f6f6f6"
"""Found contacts, wrong predictions, missed contacts, unresolved residues, pairs too close in sequence to count."""

LINE = "#333333"
"""Between the chains of a complex."""

NEAREST = 6
"""Pairs closer than this in sequence are not drawn: they are in contact or not by the chain alone."""


PROBABILITY = "predicted probability of a contact (Cβ–Cβ < 8 Å)"


def contact_map(
    target: Path, contacts: np.ndarray, title: str, caption: str = "", truth: np.ndarray | None = None,
    chains: Sequence[int] = (), label: str = PROBABILITY,
) -> None:  # fmt: skip
    """Writes a PNG of a prediction.

    Below the diagonal lie the probabilities, row i and column j being residues. Above it, with `truth`, the known
    contacts: dark those among the L most probable pairs (at least 6 apart, L being the number of resolved residues),
    grey the others, and red the probable pairs that are none. Without `truth` both sides show the probabilities.
    The chains of a complex are parted by lines. Where no pair reaches 0.5, the colours end at the highest value, which
    the colour bar shows.

    Args:
        target: the file.
        contacts: probabilities or scores `[residues, residues]`; NaN is left empty.
        title: the name of the chain.
        caption: what stands small below the title, at most two lines.
        truth: int `[residues, residues]`: 1 contact, 0 none, -1 unknown.
        chains: lengths of the chains of a complex.
        label: of the colour bar.
    """
    from matplotlib.colors import LinearSegmentedColormap

    residues = len(contacts)
    drawn, axes, beside = _square(legend=truth is not None)
    i, j = np.indices(contacts.shape)
    near = separations(chains, residues).numpy() < NEAREST
    shown = np.ma.masked_array(contacts, mask=(near if truth is None else near | (j > i)) | np.isnan(contacts))
    colours = LinearSegmentedColormap.from_list(
        "p", [(0, "#ffffff"), (0.2, "#bcd2ea"), (0.5, "#4a86c5"), (1, "#0b2c5c")]
    )
    edges = (0.5, residues + 0.5, residues + 0.5, 0.5)
    options: dict[str, Any] = {"extent": edges, "interpolation": "nearest", "interpolation_stage": "data"}
    axes.set_facecolor(BAND)
    image = axes.imshow(shown, cmap=colours, vmin=0, vmax=highest(contacts[~near]), **options)
    entries, counted = [], 0
    if truth is not None:
        length = int((truth >= 0).any(1).sum())
        cells, entries, counted = known_cells(contacts, truth, length, chains)
        cells[near | (j < i)] = 0  # transparent
        axes.imshow(cells, **options)
    axes.plot([0.5, residues + 0.5], [0.5, residues + 0.5], color="#b0b0b0", linewidth=0.6)
    for boundary in np.cumsum(chains)[:-1].tolist():
        axes.axhline(boundary + 0.5, color=LINE, linewidth=0.8)
        axes.axvline(boundary + 0.5, color=LINE, linewidth=0.8)
    drawn.colorbar(image, cax=beside).set_label(label, fontsize=9)
    _labels(axes, title, caption)
    _ticks(axes, chains, residues)
    if truth is not None:
        _legend(drawn, entries, counted)
    canvas.save(drawn, target, dpi=min(600, max(200, residues / 5)), bbox_inches="tight", pad_inches=0.15)


def highest(values: np.ndarray) -> float:
    """Where the colours end: at 1 for probabilities that reach 0.5, else at the highest value, rounded up."""
    known = values[np.isfinite(values)]
    peak = float(known.max()) if known.size else 1.0
    if peak <= 0:
        return 1.0
    if 0.5 <= peak <= 1:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(peak))
    return math.ceil(peak / unit - 1e-9) * unit


def _square(legend: bool) -> tuple[Any, Any, Any]:
    """An empty figure that needs no display, with axes for the map and for its colour bar, laid out in inches."""
    width, bottom = 7.2, 1.15 if legend else 0.55
    left, side, above = 0.7, 5.5, 0.75
    height = bottom + side + above
    figure = canvas.figure(width, height, layout=None)
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    beside = figure.add_axes(((left + side + 0.15) / width, (bottom + 0.5) / height, 0.14 / width, (side - 1) / height))
    return figure, axes, beside


def known_cells(
    contacts: np.ndarray, truth: np.ndarray, count: int, chains: Sequence[int] = ()
) -> tuple[np.ndarray, list[tuple[str, str]], int]:
    """Colours `[residues, residues, 4]` of the known side, the entries of the legend (colour, text), and how many of
    the `count` most probable pairs there are."""
    from matplotlib.colors import to_rgba

    apart = np.triu(separations(chains, len(contacts)).numpy() >= NEAREST)
    predicted = _most_probable(contacts, truth, count, apart)
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
    entries = [(colour, text) for colour, where, text in reversed(kinds) if (where & apart).any()]
    return cells, entries, int(predicted.sum())


def _most_probable(contacts: np.ndarray, truth: np.ndarray, count: int, apart: np.ndarray) -> np.ndarray:
    """Marks the `count` most probable pairs of those in `apart` whose truth is known, bool `[residues, residues]`."""
    i, j = np.nonzero(apart & (truth >= 0) & ~np.isnan(contacts))
    best = np.argsort(-contacts[i, j], kind="stable")[:count]
    marked = np.zeros(contacts.shape, dtype=bool)
    marked[i[best], j[best]] = True
    return marked


def _labels(axes: Any, title: str, caption: str) -> None:
    name = title if len(title) <= 50 else f"{title[:32]}…{title[-16:]}"
    above = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    lines = caption.splitlines()
    for number, line in enumerate(reversed(lines)):
        axes.annotate(line, (0, 1), (0, 5 + 12 * number), fontsize=8.5, color="#555555", **above)
    bold = {"fontsize": 12, "fontweight": "bold"}
    axes.annotate(canvas.literal(name), (0, 1), (0, 8 + 12 * len(lines)), **bold, **above)
    axes.set_xlabel("residue", fontsize=9)
    axes.set_ylabel("residue", fontsize=9)


def _ticks(axes: Any, chains: Sequence[int], residues: int) -> None:
    """Numbers along both sides; in a complex those of each chain, with its letter."""
    steps = (5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000)
    step = next(step for step in steps if residues / step <= 10 or step == 2000)
    ticks, labels = [], []
    for number, span in enumerate(spans(chains, residues)):
        length = span.stop - span.start
        inside = [1, *(at for at in range(step, length + 1, step) if not chains or length - at > step / 3)]
        ticks += [span.start + at for at in inside]
        labels += [f"{name_of(number)}{at}" if chains else str(at) for at in inside]
    axes.set_xticks(ticks, labels, rotation=90 if len(chains) > 2 else 0)
    axes.set_yticks(ticks, labels)
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
