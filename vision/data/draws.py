"""Random changes of a training batch that are those of the global batch, whatever part of it a process holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from ..preprocessing import Preprocessing
from . import augment
from .augment import AugmentConfig, change_both, erase, mix

T = TypeVar("T")
DRAWS = {"the random changes of images": augment.VERSION}
"""See `ResumableData.draws`."""


class Draws:
    """A random generator for a part of a batch: it draws for the whole batch, and returns what falls on the part.

    The methods are those of `np.random.Generator` that augmentation calls; the last axis of `size` is the batch.

    Args:
        generator: draws for all.
        whole: images of the global batch.
        slots: places in it of the images here, int64 `[batch]`.
    """

    def __init__(self, generator: np.random.Generator, whole: int, slots: np.ndarray) -> None:
        self._generator, self._whole, self._slots = generator, whole, slots

    def _size(self, size: int | tuple[int, ...]) -> tuple[int, ...]:
        return (*(size[:-1] if isinstance(size, tuple) else ()), self._whole)

    def random(self, size: int | tuple[int, ...]) -> np.ndarray:
        return self._generator.random(self._size(size))[..., self._slots]

    def integers(self, low: int, high: int, size: int | tuple[int, ...]) -> np.ndarray:
        return self._generator.integers(low, high, self._size(size))[..., self._slots]

    def rows(self, low: int, high: int, batch: int, columns: int) -> np.ndarray:
        """Whole numbers `[batch, columns]`."""
        return self._generator.integers(low, high, (self._whole, columns))[self._slots]

    def uniform(self, low: float, high: float, size: int | tuple[int, ...]) -> np.ndarray:
        return self._generator.uniform(low, high, self._size(size))[..., self._slots]

    def beta(self, a: float, b: float, size: int | tuple[int, ...]) -> np.ndarray:
        return self._generator.beta(a, b, self._size(size))[..., self._slots]

    def choice(self, values: Any, size: int | tuple[int, ...]) -> np.ndarray:
        return self._generator.choice(values, self._size(size))[..., self._slots]

    def each(self, batch: int, draw: Callable[[np.random.Generator], T]) -> list[T]:
        """One draw for each image, made one after the other; `batch` is the number of images here."""
        drawn = [draw(self._generator) for _ in range(self._whole)]
        return [drawn[slot] for slot in self._slots.tolist()]


def augmented(
    batch: dict[str, Any], config: AugmentConfig, preprocessing: Preprocessing, key: list[int], own: int, whole: int,
    mirror: bool, cropped: bool, classes: int,
) -> dict[str, Any]:  # fmt: skip
    """Changes the images of a training batch at random, normalises and mixes them, on their device.

    Args:
        batch: as `InMemory` and `FromFiles` make it, perhaps with `masks` that move with the images; its `slot` says
            which part of the global batch it is. With several processes and mixing its first image is only there to be
            mixed into the second.
        key: of all random draws.
        own: images of this process.
        whole: images of the global batch.
        mirror, cropped: see `change_pixels`.
        classes: of the labels.
    """
    batch = dict(batch)
    del batch["position"]
    slots = (batch.pop("slot") + np.arange(len(batch["images"]))) % whole
    generator = np.random.default_rng(key)
    rng: Any = generator if own == whole else Draws(generator, whole, slots)
    changed, masks = change_both(batch["images"], batch.get("masks"), config, rng, mirror, cropped)
    images = preprocessing.normalise(changed)
    if masks is not None:
        batch["masks"] = masks
    if config.erasing:
        images = erase(images, config.erasing, rng)
    if not config.mixes:
        return batch | {"images": images}
    images, labels = mix(images, batch["labels"], classes, config, rng)
    return {**batch, "index": batch["index"][-own:], "images": images[-own:], "labels": labels[-own:]}


def as_precise(batch: dict[str, Any], trainer: Any) -> dict[str, Any]:
    """In float64 for --trainer.precision 64-true; Lightning saw to it before the images were floats."""
    double = bool(trainer) and str(trainer.precision) == "64-true"
    floats = {n: v for n, v in batch.items() if double and isinstance(v, Tensor) and v.is_floating_point()}
    return batch | {name: value.double() for name, value in floats.items()}
