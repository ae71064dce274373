"""Pictures of what a masked autoencoder paints."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...core.canvas import figure, save
from ..evaluate.plots import show
from ..preprocessing import Preprocessing

GREY = 0.75
"""Brightness of what is hidden."""


def reconstructions(
    images: Tensor, seen: Tensor, painted: Tensor, preprocessing: Preprocessing, target: Path, title: str, note: str
) -> None:
    """Writes a PNG with a column for each image: as it is, as the encoder sees it, as the decoder completes it.

    Args:
        images: float `[batch, channels, height, width]`, normalised, as are the following.
        seen: with NaN for what is hidden.
        painted: completed.
        preprocessing: that normalised them.
        target: the PNG.
        title: put before the headline.
        note: further words.
    """
    rows = [("image", images), ("seen", seen), ("painted", painted)]
    drawn = figure(max(1.3 * len(images), 6), 4.4)
    grid = drawn.subplots(3, len(images), squeeze=False)
    for axes_row, (name, pictures) in zip(grid, rows):
        for column, (axes, picture) in enumerate(zip(axes_row, _pixels(pictures, preprocessing))):
            show(axes, picture)
            if column == 0:
                axes.text(-0.08, 0.5, name, transform=axes.transAxes, ha="right", va="center", rotation=90, fontsize=9)
    drawn.suptitle(f"{title}: {note}", x=0.01, ha="left", fontsize=10)
    save(drawn, target)


def _pixels(images: Tensor, preprocessing: Preprocessing) -> list:
    """Arrays `[height, width]` or `[height, width, channels]` in 0..1."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    pixels = (images.float().cpu() * std + mean).clamp(0, 1).nan_to_num(GREY)
    return [picture.permute(1, 2, 0).squeeze(-1).numpy() for picture in pixels]
