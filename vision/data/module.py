"""Lightning data module for images: a folder (or nothing) in, batches of pixels and labels out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ...core.errors import UserError
from ...core.training.data import ResumableData
from .batches import FromFiles, InMemory
from .collection import SIDES, Side
from .draws import DRAWS, as_precise, augmented
from .found import FoundImages
from .loader import Batches, InOrder, Shuffled
from .trained import Trained, resolved


class ImageData(FoundImages, ResumableData):
    """Labelled images. Left without `root`: scikit-learn's 1,797 handwritten digits, which are on every machine.

    A batch is a dict: `images` float32 `[batch, channels, height, width]`, normalised; `labels` int64 `[batch]`, -100
    for the entries that only fill up the last validation batch, or float32 `[batch, classes]` after Mixup or CutMix;
    `index` int64 `[batch]`, the number of each image in its side (see `names`).

    Every image is decoded once before the first step. What cannot be read stops the run with a list, or is left out
    and counted; no other image takes its place. An image whose pixels are also in validation or test is never trained
    on.

    Arguments and attributes are those of `FoundImages`.
    """

    PATHS = ("root", "val_root", "test_root", "cache")

    def continue_as(self, trained: Trained) -> None:
        """Prepares for scoring a trained model on its own or other images: call it before `setup`.

        Raises:
            UserError: other channels were chosen.
        """
        if self.channels not in (None, trained.channels):
            raise UserError(f"data.channels is {self.channels}, but the model reads {trained.channels}; leave it out.")
        self._trained, self._adopted = trained, True
        self.channels, self.statistics = trained.channels, "auto"
        self.image_size = self.image_size or trained.image_size
        self.preprocessing = dataclasses.replace(trained.preprocessing, **self._chosen)

    # -- from files to sides ------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Fills the cache; Lightning calls this in one process of each machine before `setup` in all of them."""
        self.setup()

    @property
    def _verb(self) -> str:
        """What Lightning does: fit, validate, test or predict; empty outside of it."""
        return str(self.trainer.state.fn.value) if self.trainer is not None and self.trainer.state.fn else ""

    @property
    def trained(self) -> Trained:
        """What a model that is trained on these images needs to know of them later; after `setup`."""
        return Trained(
            self._keys, self._numbered, self.labels, self.image_size, self.channels, self.preprocessing,
            resolved(self.root), self._content,
        )  # fmt: skip

    @property
    def scores(self) -> bool:
        """Whether a trained model is scored, rather than one trained."""
        return self._trained is not None

    def held_out(self) -> list[str]:
        """See `DataModule`: names of images and of their classes."""
        images = self._images["val"]
        return [f"{name}\0{self.labels[label]}" for name, label in zip(images.names, images.labels.tolist())]

    def describe(self) -> str:
        """One line about the data, after `setup()`."""
        f = self.figures()
        words = {"train": "to train", "val": "to validate", "test": "to test"}
        counts = [f"{f[f'images_{side}']:,} {words[side]} on" for side in SIDES if side in self._images]
        total = ", ".join(counts[:-1]) + f" and {counts[-1]}" if len(counts) > 1 else counts[0]
        parts = [f"{self.classes:,} classes", total, f"{f['image_size']} pixels"]
        parts += [f"{f[name]:,} {name}" for name in ("skipped", "duplicates", "leaked") if f[name]]
        return " ".join([f"{f['data']}: {', '.join([*parts, self._mirroring()])}.", *self.notes, *self._remarks()])

    def _mirroring(self) -> str:
        signs = "the classes are characters, numbers or directions"
        if self._flips:
            return "mirrored at random" + ("" if self._mirror else f" (data.augment.flip), though {signs}")
        return "not mirrored" + ("" if self._mirror else f" ({signs})")

    @property
    def mirrors(self) -> bool:
        """Whether a mirrored image is still of its class; after `setup`."""
        return self._mirror

    @property
    def _flips(self) -> bool:
        return self._mirror if self.augment.flip is None else self.augment.flip

    def _remarks(self) -> list[str]:
        """What a person should know of how training reads the images."""
        found, crop = [], self.preprocessing.crop_pct
        if self.augment.crop != "resized" and crop < 1:
            found.append(
                f"Training sees the central {crop**2:.0%} of each image, as validation does (crop_pct {crop:g}); "
                "--data.augment.crop resized uses all of it."
            )
        if self.batch < self.batch_size:
            found.append(f"A batch has all {self.batch:,} training images of a device, fewer than --data.batch_size.")
        return found

    def train_dataloader(self) -> Batches:
        """Batches of training; each iteration is one epoch, or what is left of it after a resume.

        Raises:
            UserError: there are fewer images than devices.
        """
        count, (rank, world) = len(self._images["train"]), self.ranks()
        if not self.batch:
            raise UserError(f"There are {count:,} training images, but {world} devices need at least one each.")
        more = self.augment.repeats, self.augment.mixes
        order = Shuffled(count, self.batch, rank, world, self.seed, *more, position=self.position)
        return Batches(self._source("train"), order, self._workers, self.pin)

    @property
    def batch(self) -> int:
        """Images of a training batch on one device: `batch_size`, or all there are where these are fewer."""
        return min(self.batch_size, len(self._images["train"]) // self.ranks()[1])

    def val_dataloader(self) -> Batches:
        """Batches that hold every validation image once."""
        return self._in_order("val")

    def test_dataloader(self) -> Batches:
        """Batches that hold every test image once; of validation if there is no test."""
        return self._in_order(self.scored)

    def predict_dataloader(self) -> Batches:
        """The batches of `test_dataloader`."""
        return self.test_dataloader()

    def _in_order(self, side: Side) -> Batches:
        order = InOrder(len(self._images[side]), self.batch_size, *self.ranks())
        return Batches(self._source(side), order, self._workers, self.pin)

    def _source(self, side: Side) -> InMemory | FromFiles:
        images = self._images[side]
        if side in self._pixels:
            return InMemory(self._pixels[side], images.labels)
        min_area = self.augment.min_area if side == "train" and self.augment.crop == "resized" else None
        return FromFiles(
            images, self.image_size, self.channels, self.preprocessing, min_area, self.seed,
            self.batch * self.ranks()[1],
        )  # fmt: skip

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int = 0) -> dict[str, Any]:
        """On the device: change the images at random (training only), normalise, mix."""
        if (position := batch.get("position")) is None:
            return as_precise(batch | {"images": self.preprocessing.normalise(batch["images"])}, self.trainer)
        cropped = self.augment.crop == "resized" and not self._pixels
        batch = augmented(
            batch, self.augment, self.preprocessing, [self.seed, 1, 0, position], self.batch,
            self.batch * self.ranks()[1], self._mirror, cropped, self.classes,
        )  # fmt: skip
        return as_precise(batch, self.trainer)

    @property
    def _workers(self) -> int:
        return 0 if self._pixels else self.loader_workers(most=8, without_gpu=True)

    def names_of(self, taken: np.ndarray) -> list[str]:
        """Files, or the names that an archive or a data set gives its images."""
        return [self.names["train"][index] for index in taken.tolist()]

    def learned(self) -> Iterable[str | bytes]:
        """See `ResumableData`: images and their classes."""
        return [*self._digests, self._images["train"].labels.tobytes()]

    def draws(self) -> Mapping[str, int]:
        """See `ResumableData`."""
        return DRAWS

    def order_settings(self) -> dict[str, Any]:
        """See `ResumableData`."""
        return {
            "images": len(self._images["train"]), "batch_size": self.batch, "devices": self.ranks()[1],
            "seed": self.seed, "repeats": self.augment.repeats,
        }  # fmt: skip
