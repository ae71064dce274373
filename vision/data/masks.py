"""Masks beside the images of a training: those of a table's rows, and batches with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.labels.masks import Mask
from ...core.losses import IGNORED
from ...core.work import progress
from ..masks import NEAREST, as_target, fitted, over_image, planes, size_of
from ..positions import Grid
from ..preprocessing import Preprocessing
from .batches import FromFiles
from .loader import Draw


class Masks:
    """The masks of a table's rows at the size of the model's images.

    Args:
        masks: of all rows.
        images: their images.
        preprocessing, size: how images are fitted.
        classes: how many there are; None for numbers.
    """

    def __init__(
        self, masks: Sequence[Mask], images: Sequence[str], preprocessing: Preprocessing, size: Grid,
        classes: int | None,
    ) -> None:  # fmt: skip
        self._masks, self._images, self._preprocessing, self.size = masks, images, preprocessing, size
        self.classes = classes
        self._kept: dict[int, np.ndarray] = {}

    def remember(self, rows: np.ndarray) -> None:
        """Keeps the fitted masks of rows in memory; of classes in 1 or 2 bytes a pixel, of numbers in 4."""
        with progress("Fitting masks", len(rows), "masks") as advance:
            for row in rows.tolist():
                found = self._fitted(row)
                if self.classes is not None:
                    gone = 255 if self.classes < 255 else 65535
                    found = np.where(found == IGNORED, gone, found).astype(np.uint8 if gone == 255 else np.uint16)
                self._kept[row] = found
                advance(1)

    def _fitted(self, row: int) -> np.ndarray:
        return fitted(self._masks[row], Path(self._images[row]), self._preprocessing, self.size)

    def __getitem__(self, row: int) -> Tensor:
        """Labels of a row, float32 `[height, width]`, NaN without one."""
        found = self._kept[row] if row in self._kept else self._fitted(row)
        gone = {"u": 255 if found.dtype == np.uint8 else 65535}.get(found.dtype.kind, IGNORED)
        values = found.astype(np.float32)
        return torch.from_numpy(values if self.classes is None else np.where(found == gone, np.float32("nan"), values))

    def boxed(self, row: int, box: tuple[int, int, int, int]) -> Tensor:
        """The same of a part of the image: left, top, right, bottom in its pixels."""
        if self._masks[row].empty:
            return torch.full(self.size, float("nan"))
        height, width = self.size
        image = over_image(self._masks[row], Path(self._images[row]))
        values = torch.from_numpy(np.array(image.resize((width, height), NEAREST, box=box), np.float32))
        return values.masked_fill(values == IGNORED, float("nan")) if self.classes is not None else values

    def image_size(self, row: int) -> tuple[int, int]:
        """(width, height) of the image of a row."""
        return size_of(Path(self._images[row]))

    def of_patches(self, rows: np.ndarray, patch: Grid) -> list[np.ndarray]:
        """The label of each patch of rows; see `as_target`."""
        return [as_target(self[row], patch, self.classes) for row in rows.tolist()]


class WithMasks:
    """Batches of images, whose labels are rows, with `masks` `[batch, 2, height, width]`; see `planes`. Those of
    classes are int32, so that no precision of the training rounds them.
    """

    def __init__(self, source: Any, masks: Masks) -> None:
        self._source, self._masks = source, masks

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        batch = self._source[draw]
        rows = batch.pop("labels").clamp(min=-1)
        found = torch.full((len(rows), *self._masks.size), float("nan"))
        for place, row in enumerate(rows.tolist()):
            if row >= 0:
                found[place] = self._one(row, draw, place)
        pair = planes(found)
        return batch | {"masks": pair if self._masks.classes is None else pair.int(), "index": rows}

    def _one(self, row: int, draw: Draw, place: int) -> Tensor:
        cut = isinstance(self._source, FromFiles) and self._source.crops and draw.position is not None
        if not cut:
            return self._masks[row]
        box = self._source.box(self._masks.image_size(row), draw.position, draw.slot + place)
        return self._masks[row] if box is None else self._masks.boxed(row, box)
