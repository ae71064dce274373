"""A Vision Transformer with a head for any labels, and what reads its images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checkpoints.saved import SavedModel
from ..core.errors import UserError
from ..core.labelled.model import OWN, LabelledConfig, LabelledModel, Tokens
from ..core.labelled.reader import Reader
from .data.images import Decoding, read_image
from .masks import labels_of
from .model import VisionTransformer, VisionTransformerConfig


class ImagePredictor(LabelledModel, SavedModel, config=LabelledConfig):
    """Images `[batch, channels, height, width]`, normalised -> outputs of a head."""

    TRUNKS = (VisionTransformer,)

    @staticmethod
    def bare(trunk: Any) -> Any:
        trunk.head = nn.Identity()
        trunk.config = replace(trunk.config, classes=0, labels=[])
        return trunk

    @staticmethod
    def width(trunk: Any, pool: str | None) -> int:
        return trunk.config.width if pool == OWN else trunk.config.transformer.dim

    def tokens(self, batch: dict[str, Tensor]) -> Tokens:
        trunk: Any = self.trunk
        vectors = trunk.tokens(batch["images"])
        valid = vectors.new_ones(vectors.shape[:2], dtype=torch.bool)
        read = valid.clone()
        read[:, : trunk.config.prefix] = False
        return Tokens(vectors, valid, read)

    def own_pool(self, tokens: Tokens) -> Tensor:
        trunk: Any = self.trunk
        return trunk.pre_logits(trunk.pooled(tokens.vectors))


class ImageReader(Reader):
    """Image files, made as the validation of a training made them.

    Args:
        config: of the model that reads them.
        max_pixels: larger images are refused.
    """

    what = "image"
    parts = "patches"
    between = None

    def __init__(self, config: VisionTransformerConfig, max_pixels: int = 80_000_000) -> None:
        super().__init__()
        self.config = config
        self.decoding = Decoding(max_pixels, config.preprocessing.grey_bits)

    def accept(self, megapixels: float) -> None:
        """Reads images of up to so many megapixels from now on."""
        self.decoding = replace(self.decoding, max_pixels=round(megapixels * 1e6))

    def one(self, cell: str, name: str, beside: Path) -> Tensor:
        if not cell.strip():
            raise UserError(f"{name} names no image; fill it.")
        path = beside / Path(cell).expanduser()
        image = read_image(path, self.config.channels, str(path), self.decoding)
        return self.config.preprocessing.pixels(image, self.config.input_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.config.grid(*self.config.input_size)

    def whole(self, cell: str, sample: Tensor) -> int:
        """Patches of an image."""
        return math.prod(self.grid)

    def places(self, sample: Tensor) -> np.ndarray:
        return np.arange(math.prod(self.grid)) + self.config.prefix

    def labels(self, found: Any, cell: str, beside: Path) -> np.ndarray:
        """The label of each patch, of a `Mask`."""
        config = self.config
        image = beside / Path(cell).expanduser()
        return labels_of(found, image, config.preprocessing, config.input_size, config.patch)

    def arranged(self, values: list[Any], sample: Tensor) -> list[Any]:
        """A list of rows."""
        columns = self.grid[1]
        return [values[start : start + columns] for start in range(0, len(values), columns)]

    def plain(self, cell: str, sample: Tensor) -> np.ndarray:
        """The image averaged down to at most 16 x 16 pixels."""
        height, width = (min(16, side) for side in sample.shape[-2:])
        return F.adaptive_avg_pool2d(sample.float(), (height, width)).flatten().numpy()

    def settings(self) -> str:
        return f"{super().settings()} {asdict(self.config.preprocessing)} {self.config.size}"

    def batch(self, samples: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"images": self.config.preprocessing.normalise(torch.stack(list(samples)))}
