"""A contact sheet: images in rows, what is said of each above it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import UserError
from ..core.files import few

MOST_ROWS, MOST_COLUMNS = 12, 8
"""Of images that are drawn."""


class Picture(NamedTuple):
    """One image of a row: its file, what stands above it, and whether that is set apart."""

    path: Path
    words: str
    marked: bool = False


def refuse_others(files: Sequence[Path], folder: Path) -> None:
    """Raises UserError where no name of vectors is that of an image file in `folder`."""
    if not any(file.is_file() for file in files):
        raise UserError(
            f"--sheet draws images, but {few([str(file) for file in files])} is no file; say where the names of the"
            f" vectors start from with --images FOLDER ('{folder}' was taken)."
        )


def contact_sheet(rows: Sequence[Sequence[Picture]], title: str, target: Path) -> None:
    """Draws the first `MOST_ROWS` rows, of each the first `MOST_COLUMNS` images; the place of a file that is not there,
    or cannot be read, stays empty and says so.
    """
    from ..core.canvas import GREY, RED, figure, save
    from .data.images import read_image
    from .evaluate.plots import show

    rows = [row[:MOST_COLUMNS] for row in rows[:MOST_ROWS]]
    width = max(map(len, rows), default=1)
    drawn = figure(1.8 * max(width, 3), 2.15 * max(len(rows), 1) + 0.5)
    grid: Any = drawn.subplots(max(len(rows), 1), width, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, row in zip(grid, rows):
        for axes, picture in zip(line, row):
            axes.set_title(picture.words, fontsize=8, color=RED if picture.marked else "black")
            try:
                show(axes, read_image(picture.path, 3, str(picture.path)))
            except UserError:
                axes.text(0.5, 0.5, "no image", ha="center", va="center", color=GREY, transform=axes.transAxes)
    drawn.suptitle(title, x=0.01, ha="left", fontsize=10)
    save(drawn, target)
