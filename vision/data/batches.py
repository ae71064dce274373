"""Batches of pixels: from one array in memory, or from files that are decoded as they are needed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...core.losses import IGNORED
from ...core.training.run.machine import usable_cores
from ...core.work import progress
from ..preprocessing import Preprocessing, resampling, to_tensor
from .augment import random_box
from .collection import Images
from .images import read_image
from .scan import Kept

if TYPE_CHECKING:
    from .loader import Draw


class InMemory:
    """Batches out of one tensor, all images at once.

    A batch holds `images` uint8 `[batch, channels, height, width]`, `labels` int64 `[batch]` (-100 where the batch is
    only filled up), `index` int64 `[batch]` into the side (-1 there), and in training the `position` of the batch
    and the `slot` of its first image in the global batch.
    """

    def __init__(self, pixels: Tensor, labels: np.ndarray) -> None:
        self.pixels, self.labels = pixels, torch.from_numpy(labels)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index = torch.from_numpy(np.maximum(draw.indices, 0))
        return _batch(draw, self.pixels[index], self.labels[index])


class FromFiles:
    """Batches out of files, decoded here (or in the worker this was copied to).

    Args:
        images: the files.
        size: (height, width) to fit them to.
        preprocessing: how validation images are fitted.
        min_area: training images are cropped at random to at least this part of their area; None: as in validation.
        seed: with the position of the batch and the place of an image in it, it determines every crop.
        whole: images of the global batch.
    """

    def __init__(
        self, images: Images, size: tuple[int, int], channels: int, preprocessing: Preprocessing,
        min_area: float | None, seed: int, whole: int,
    ) -> None:  # fmt: skip
        self._images, self._size, self._channels = images, size, channels
        self._preprocessing, self._min_area = preprocessing, min_area
        self.crops = min_area is not None
        self._seed, self._whole = seed, whole

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        pixels = torch.zeros(len(draw.indices), self._channels, *self._size, dtype=torch.uint8)
        self._images.prepare(draw.indices[draw.indices >= 0])
        for place, index in enumerate(draw.indices):
            if index >= 0:
                pixels[place] = to_tensor(self._read(int(index), draw.position, draw.slot + place))
        labels = torch.from_numpy(self._images.labels[np.maximum(draw.indices, 0)])
        return _batch(draw, pixels, labels)

    def _read(self, index: int, position: int | None, slot: int) -> Image.Image:
        image = load(self._images, index, self._channels)
        box = self.box(image.size, position, slot)
        if box is None:
            return self._preprocessing.fit(image, self._size)
        height, width = self._size
        return image.resize((width, height), resampling(self._preprocessing.interpolation), box=box)

    def box(self, size: tuple[int, int], position: int | None, slot: int) -> tuple[int, int, int, int] | None:
        """The part of an image of (width, height) that a training batch sees: left, top, right, bottom; None where it
        is fitted as in validation.
        """
        if position is None or self._min_area is None:
            return None
        rng = np.random.default_rng([self._seed, 2, position, slot % self._whole])
        return random_box(*size, self._min_area, rng)


def _batch(draw: Draw, pixels: Tensor, labels: Tensor) -> dict[str, Any]:
    index = torch.from_numpy(draw.indices.astype(np.int64))
    batch: dict[str, Any] = {"images": pixels, "labels": labels.masked_fill(index < 0, IGNORED), "index": index}
    return batch if draw.position is None else batch | {"position": draw.position, "slot": draw.slot}


def load(images: Images, index: int, channels: int) -> Image.Image:
    """Decodes one image of a side: mode L or RGB. Raises UnreadableImage."""
    if images.array is None:
        return read_image(images.source(index), channels, images.names[index], images.decoding)
    return Image.fromarray(images.array[images.rows[index]]).convert("L" if channels == 1 else "RGB")


def pixels_in_memory(
    images: Images, size: tuple[int, int], channels: int, preprocessing: Preprocessing, cache: Path, label: str,
    kept: Kept,
) -> Tensor:  # fmt: skip
    """All images of a side fitted to `size`: uint8 `[images, channels, height, width]`.

    They come from the cache if it knows them, out of `kept` (which is emptied) if `scan` has decoded them just now,
    and else from the files.
    """
    if images.array is not None and images.array.shape[1:3] == size and preprocessing.crop_pct == 1:
        grey = images.array.ndim == 3
        if grey or channels == 3:
            array = images.array[images.rows]
            planes = array[:, None] if grey else array.transpose(0, 3, 1, 2)
            pixels = torch.from_numpy(np.ascontiguousarray(planes))
            return pixels.expand(-1, channels, -1, -1).contiguous()
    known = _cached(images, size, channels, preprocessing, cache)
    shape = (len(images), channels, *size)
    if known is not None and known.is_file():
        try:
            array = np.load(known)
            if array.shape == shape and array.dtype == np.uint8:
                return torch.from_numpy(array)
        except (OSError, ValueError, EOFError):
            pass  # damaged: made anew
    pixels = torch.empty(shape, dtype=torch.uint8)

    missing = []
    for index, row in enumerate(images.rows.tolist()):
        if (found := kept.pop((id(images.encoded), row), None)) is not None:
            pixels[index] = torch.from_numpy(found)
        else:
            missing.append(index)

    def one(index: int) -> None:
        pixels[index] = preprocessing.pixels(load(images, index, channels), size)

    with ThreadPoolExecutor(min(32, usable_cores())) as pool, progress(label, len(missing), "images") as advance:
        for _ in pool.map(one, missing):
            advance(1)
    if known is not None:
        _remember(pixels.numpy(), known)
    return pixels


def _cached(
    images: Images, size: tuple[int, int], channels: int, preprocessing: Preprocessing, cache: Path
) -> Path | None:
    """Where the pixels of these files are kept; None if they cannot be told from changed ones."""
    keys: list[Any] = [images.key(index) for index in range(len(images))]
    if None in keys:
        return None
    fit = [size, channels, preprocessing.interpolation, preprocessing.crop_pct, preprocessing.resize]
    fit += [images.decoding.grey_bits] if images.decoding.grey_bits != 16 else []
    return cache / "images" / f"{hashlib.sha256(json.dumps([2, fit, keys]).encode()).hexdigest()[:24]}.npy"


def _remember(array: np.ndarray, path: Path) -> None:
    """Writes the cache, unless it would fill the disk. One that cannot be written only costs time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if array.nbytes > shutil.disk_usage(path.parent).free / 4:
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".pixels-", delete=False) as file:
            try:
                np.save(file, array)
                os.replace(file.name, path)
            finally:
                Path(file.name).unlink(missing_ok=True)


def channel_statistics(pixels: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 `[images, channels, height, width]`, for pixels in [0,
    1].
    """
    mean, square = torch.zeros(pixels.shape[1], dtype=torch.float64), torch.zeros(pixels.shape[1], dtype=torch.float64)
    for part in pixels.split(max(1, (1 << 24) // pixels[0].numel())):
        values = part.float() / 255
        mean += values.mean((2, 3)).double().sum(0)
        square += values.square().mean((2, 3)).double().sum(0)
    mean, square = mean / len(pixels), square / len(pixels)
    std = (square - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)  # images of one colour have none
    return [round(v, 5) for v in mean.tolist()], [round(v, 5) for v in std.tolist()]


def common_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """(height, width) if all images have it."""
    return sizes[0] if len(set(sizes)) == 1 else None
