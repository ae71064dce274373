"""The images that options name: found, looked at, split and, where they fit, decoded; nothing here trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.work import cache_folder
from ..preprocessing import Interpolation, Preprocessing
from .augment import AugmentConfig
from .batches import load
from .collection import SIDES, Collection, Images, Side
from .find import Where, find
from .gather import Settings, colour_note, gather
from .images import MAX_PIXELS
from .options import check_options
from .trained import Trained, resolved

MEMORY = 4.0
"""GB of pixels that are kept in memory unless told otherwise."""


class FoundImages:
    """Labelled images. Left without `root`: scikit-learn's 1,797 handwritten digits, which are on every machine.

    Args:
        root: a folder with one folder for each class, or with train/, val/ and test/ folders of these; a .tar.gz or
            .zip of such a folder; a folder of IDX files (MNIST), Parquet files or WebDataset shards. With `dataset`:
            where that is kept.
        val_root: the same for validation. Left out: root's own val/, else a part of the training images is held out.
        test_root: the same for `test`. Left out: root's own test/, else the validation images.
        dataset: a set that torchvision downloads: CIFAR10, CIFAR100, MNIST, FashionMNIST, Flowers102 or OxfordIIITPet;
            or hf:owner/name from the Hugging Face hub.
        labels: names of the classes: a mapping from what the data call them, {"0": "zero", "10": "ten"}; or a list, in
            the order of their numbers.
        val_fraction: the part of each class to hold out when no validation images are given.
        on_error: `stop` before the first step when an image cannot be read, or `skip` such images and count them.
        image_size: pixels, or height and width. Left out: that of the images if all are alike and small, else 224.
            (This and what follows is left to --model.pretrained where one is given.)
        channels: 1 grey or 3 colour. Left out: as the images are.
        batch_size: images of a batch on one device.
        augment: random changes of training images.
        statistics: mean and std for normalising: `auto` takes those of a pretrained model, else computes them on the
            training images if these are in memory (else imagenet); `imagenet`; or `half` (pixels in [-1, 1]).
        interpolation: how images are resized: bilinear, bicubic, lanczos or nearest. Left out: bicubic.
        crop_pct: part of the resized image that the centre crop of validation keeps. Left out: 1.
        resize: `crop` keeps the aspect ratio and takes the centre; `squash` distorts the image to the size. Left out:
            crop.
        seed: chooses what is held out, the order of training and every random change.
        workers: processes that decode files. Left out: by the machine; none for images in memory.
        max_megapixels: larger images cannot be read; a file of a few kB can claim any size.
        memory: images are kept in memory, decoded, up to this many GB of pixels. Random crops (augment.crop `resized`)
            of images above 64 pixels a side are cut out of the files instead, which are then decoded for each batch.
        cache: folder for decoded pixels and downloads. Left out: $TRIUNE_CACHE, or triune in the user's cache folder.

    Attributes (after `setup`):
        labels: names of the classes; `classes` is their number.
        image_size, channels: (height, width) and number of channels of `images`.
        preprocessing: how an image file becomes an input, to be stored with the model.
        names: for each side (train, val, test) the names of its images.
        skipped: images left out because they cannot be read.
        duplicates: copies of other images within training and validation.
        leaked: training images left out because validation or test has the same pixels.
        digests: hashes of the content of the images of each side.
        notes: sentences about what was left out, and how something was read that can be read in two ways.
    """

    def __init__(
        self,
        root: str | None = None,
        val_root: str | None = None,
        test_root: str | None = None,
        dataset: str | None = None,
        labels: dict[str, str] | list[str] | None = None,
        val_fraction: float = 0.1,
        on_error: Literal["stop", "skip"] = "stop",
        image_size: int | list[int] | None = None,
        channels: int | None = None,
        batch_size: int = 64,
        augment: AugmentConfig | None = None,
        statistics: Literal["auto", "imagenet", "half"] = "auto",
        interpolation: Interpolation | None = None,
        crop_pct: float | None = None,
        resize: Literal["crop", "squash"] | None = None,
        seed: int = 0,
        workers: int | None = None,
        max_megapixels: float = MAX_PIXELS / 1e6,
        memory: float = MEMORY,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        self.root, self.val_root, self.test_root, self.dataset = root, val_root, test_root, dataset
        self.val_fraction, self.on_error, self.seed = val_fraction, on_error, seed
        self.image_size: Any = image_size
        self.channels: Any = channels
        self.labels: Any = labels
        self.batch_size, self.workers, self.memory, self.cache = batch_size, workers, memory, cache
        self.max_megapixels = max_megapixels
        self.augment = augment or AugmentConfig()
        self.statistics = statistics
        self._where = Where(root, val_root, test_root, dataset, labels)
        chosen: dict[str, Any] = {"interpolation": interpolation, "crop_pct": crop_pct, "resize": resize}
        self._chosen = {name: value for name, value in chosen.items() if value is not None}
        check_options(self)
        self.preprocessing = Preprocessing(**self._chosen)
        self._adopted, self._content, self._numbered, self._digests = False, "", False, []
        self._trained: Trained | None = None
        self._keys: list[str] | None = None
        self.notes: list[str] = []
        self.classes = self.skipped = self.duplicates = self.leaked = 0
        self.names: dict[Side, list[str]] = {}
        self._images: dict[Side, Images] = {}
        self._pixels: dict[Side, Any] = {}
        self.digests: dict[Side, list[str]] = {}
        self._mirror = True

    def adopt(self, preprocessing: Preprocessing, size: tuple[int, int], channels: int, source: str) -> str:
        """Makes images as a pretrained model saw them, but for what was chosen here; call it before `setup`.

        Args:
            preprocessing: of the model.
            size: height and width of its images.
            channels: of its images.
            source: its name.

        Returns:
            What was taken over, in words.

        Raises:
            UserError: other channels were chosen.
        """
        if self.channels not in (None, channels):
            raise UserError(
                f"data.channels is {self.channels}, but '{source}' reads images of {channels}; leave it out."
            )
        self.channels, self._adopted = channels, True
        own = dataclasses.replace(preprocessing, size=None)
        self.preprocessing = dataclasses.replace(own, **self._chosen)
        taken = [f"{name} {getattr(own, name)}" for name in ("interpolation", "resize") if name not in self._chosen]
        taken += [f"crop {own.crop_pct:g}"] if "crop_pct" not in self._chosen else []
        if self.image_size is None:
            self.image_size = size
            taken.insert(0, f"{size[0]}×{size[1]} pixels")
        if self.statistics == "auto":
            taken += [f"{name} {', '.join(f'{v:.3g}' for v in getattr(own, name))}" for name in ("mean", "std")]
        return "its " + ", ".join(taken) if taken else ""

    @property
    def _verb(self) -> str:
        """What they are found for: fit, validate, test or predict; empty outside of a training."""
        return ""

    def setup(self, stage: str | None = None) -> None:
        """Finds, checks, splits and (if they fit) decodes the images; a second call does nothing.

        Raises:
            UserError: for every mistake in the files or settings, with what to do about it.
        """
        if self._images:
            return
        cache, trained = cache_folder(self.cache), self._trained
        side = {"validate": "val", "test": "test", "predict": "test"}.get(self._verb)
        collection = self.find(side if trained else None, cache)

        def changed(content: str) -> None:
            if trained is not None and side is not None:
                trained.changed(self.root, side, content, collection.notes)

        found = gather(collection, self._settings(), cache, changed)
        (self.image_size, self.channels), self.preprocessing = found.shape, found.preprocessing
        self._pixels, self._content, self._digests = found.pixels, found.content, found.learned
        self.digests = {side: [record.digest for record in records] for side, records in found.records.items()}
        self.skipped, self.leaked, self.duplicates = found.skipped, found.leaked, found.duplicates
        self._images, self._mirror, self.notes = collection.sides, bool(collection.mirror), collection.notes
        self.labels, self.classes, self._keys = collection.classes, len(collection.classes), collection.keys
        self.names = {side: images.names for side, images in collection.sides.items()}
        self._numbered = collection.numbered
        if trained is not None and side is not None:
            self._keys = trained.classes
            self.notes += colour_note(found.records[side if side == "val" else self.scored], self.channels)

    def find(self, scored: Side | None, cache: Path) -> Collection:
        """The images that the settings name; where a trained model is scored, those of the side to be `scored`."""
        if self._trained is None or scored is None:
            return find(self._where, cache)
        alone = scored == "test" or resolved(self.root) != self._trained.root
        return self._trained.find(self._where, scored, alone, cache)

    def _settings(self) -> Settings:
        return Settings(
            image_size=self.image_size, channels=self.channels, preprocessing=self.preprocessing,
            bits=self.preprocessing.grey_bits if self._trained else None,
            from_files=self.augment.crop == "resized", fitted=self._adopted and self.statistics == "auto",
            memory=self.memory, max_pixels=round(self.max_megapixels * 1e6), on_error=self.on_error,
            val_fraction=self.val_fraction, seed=self.seed, statistics=self.statistics,
        )  # fmt: skip

    @property
    def scored(self) -> Side:
        """The side that `test` scores: validation if there is no test side."""
        return "test" if "test" in self._images else "val"

    def counts(self, side: Side) -> list[int]:
        """Images of each class on a side."""
        return np.bincount(self._images[side].labels, minlength=self.classes).tolist()

    def arrays(self, side: Side) -> tuple[Tensor, Tensor] | None:
        """Pixels uint8 `[images, channels, height, width]` and labels int64 `[images]` of a side, if they are in
        memory.
        """
        return (self._pixels[side], torch.from_numpy(self._images[side].labels)) if side in self._pixels else None

    def decode(self, side: Side) -> None:
        """Reads the pixels of a side, where they are kept in memory and were not read before."""
        if callable(read := self._pixels.get(side)):
            self._pixels[side] = read()

    def picture(self, side: Side, index: int) -> Tensor:
        """One image of a side as the model sees it in validation, uint8 `[channels, height, width]`; after
        `decode`.
        """
        if side in self._pixels:
            return self._pixels[side][index]
        return self.preprocessing.pixels(load(self._images[side], index, self.channels), self.image_size)

    def figures(self) -> dict[str, Any]:
        """Images of each side, classes, size, and what was left out, after `setup()`."""
        height, width = self.image_size
        return {
            "data": self.dataset or self.root or "scikit-learn's digits",
            **{f"images_{side}": len(self._images[side]) for side in SIDES if side in self._images},
            "classes": self.classes,
            "image_size": f"{height}×{width}×{self.channels}",
            "skipped": self.skipped,
            "duplicates": self.duplicates,
            "leaked": self.leaked,
        }
