"""The picture of all substitutions: a row for each amino acid, a column for each site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...core import canvas

ORDER = "GAVLIMFYWPCSTNQDEKRH"
"""Amino acids with like ones beside each other: small, aliphatic, aromatic, special, polar, acid, basic."""
COLUMNS = 100
"""Sites of one row of panels."""
MOST_SITES = 3000
"""Of one picture, whose height a file cannot have beyond."""


def heat_map(
    target: Path, odds: np.ndarray, letters: Sequence[str], numbers: Sequence[int], title: str, caption: str
) -> None:
    """Writes a PNG: blue where the model prefers the mutant, red where it prefers the wild type, which has a dot.

    Args:
        target: the file.
        odds: log-odds `[sites, 20]`, columns in the order of `AMINO_ACIDS`; the colours end at the 98th percentile of
            their size.
        letters: of the wild type at each site.
        numbers: of the sites.
        title, caption: above the picture.
    """
    from ..read.alphabet import AMINO_ACIDS

    if len(odds) > MOST_SITES:
        caption += f" (the first {MOST_SITES:,} of {len(odds):,} sites)"
        odds = odds[:MOST_SITES]
    rows = [odds[start : start + COLUMNS] for start in range(0, len(odds), COLUMNS)]
    width = max(5.0, 1.6 + 0.11 * min(len(odds), COLUMNS))
    drawn = canvas.figure(width, 1.2 + 2.6 * len(rows))
    end = max(float(np.percentile(np.abs(odds), 98)), 1e-3)
    panels = drawn.subplots(len(rows), 1, squeeze=False)[:, 0]
    image, order = None, [AMINO_ACIDS.index(letter) for letter in ORDER]
    for number, (axes, part) in enumerate(zip(panels, rows)):
        here = slice(number * COLUMNS, number * COLUMNS + len(part))
        image = axes.imshow(part[:, order].T, cmap="RdBu", vmin=-end, vmax=end, aspect="auto", interpolation="nearest")
        known = [(x, ORDER.index(letter)) for x, letter in enumerate(letters[here]) if letter in ORDER]
        axes.scatter(*zip(*known), s=5, color="#222222", linewidths=0)
        step = max(1, -(-min(len(odds), COLUMNS) // 20))
        shown = range(0, len(part), step)
        axes.set_xticks(list(shown), [f"{letters[here][i]}{numbers[here][i]}" for i in shown], rotation=90, fontsize=7)
        axes.set_yticks(range(len(ORDER)), list(ORDER), fontsize=6)
        axes.set_xlim(-0.5, min(len(odds), COLUMNS) - 0.5)
        axes.tick_params(width=0.5, length=2)
    bar = drawn.colorbar(image, ax=list(panels), fraction=0.025, pad=0.015)
    bar.set_label("log p(mutant) − log p(wild type), nats", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    drawn.suptitle(f"{canvas.clip(title, 60)}\n{caption}", fontsize=9)
    canvas.save(drawn, target)
