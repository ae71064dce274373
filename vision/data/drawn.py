"""Which rows of a table a training draws, and the targets of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core.labelled.table import FromTable, drawn
from ...core.training.data import Draw, Source
from .loader import Shuffled


class Balanced(Shuffled):
    """The order of training with classes that are drawn equally often."""

    def __init__(self, classes: np.ndarray, *options: Any, **more: Any) -> None:
        super().__init__(*options, **more)
        self._classes = classes

    def permutation(self, epoch: int) -> np.ndarray:
        return drawn(np.random.default_rng([self._seed, epoch]), self._count, self._classes)


class WithTargets:
    """Batches of images, whose labels are rows, with the targets of these rows."""

    def __init__(self, source: Source, data: FromTable) -> None:
        self._source, self._data = source, data

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        batch = self._source[draw]
        rows = batch.pop("labels").clamp(min=-1)
        return batch | {"targets": self._data.targets(rows.numpy()), "index": rows}
