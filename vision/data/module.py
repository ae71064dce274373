"""Lightning data module for images: a folder (or nothing) in, batches of pixels and labels out."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.training.data import ResumableData
from ...core.training.run.machine import default_workers
from ...core.work import cache_folder
from ..preprocessing import IMAGENET, Interpolation, Preprocessing
from .augment import AugmentConfig, change_pixels, erase, mix
from .batches import FromFiles, InMemory, channel_statistics, common_size, load, pixels_in_memory
from .collection import SIDES, Collection, Images, Side, find
from .loader import Batches, InOrder, Shuffled
from .scan import Record, scan
from .split import check_classes, count_copies, drop_unreadable, hold_out

SMALL_SIDE = 64
"""Images of up to this many pixels a side are trained on as they are, and cropped at random from these pixels."""
MEMORY = 4.0
"""GB of pixels that are kept in memory unless told otherwise."""


class ImageData(ResumableData):
    """Labelled images. Left without `root`: scikit-learn's 1,797 handwritten digits, which are on every machine.

    A batch is a dict: `images` float32 [batch, channels, height, width], normalised; `labels` int64 [batch], -100 for
    the entries that only fill up the last validation batch, or float32 [batch, classes] after Mixup or CutMix; `index`
    int64 [batch], the number of each image in its side (see `names`).

    Every image is decoded once before the first step. What cannot be read stops the run with a list, or is left out and
    counted; no other image takes its place. An image whose pixels are also in validation or test is never trained on.

    Args:
        root: a folder with one folder for each class, or with train/, val/ and test/ folders of these; a .tar.gz or
            .zip of such a folder; a folder of IDX files (MNIST), Parquet files or WebDataset shards. With `dataset`:
            where that is kept.
        val_root: the same for validation. Left out: root's own val/, else a part of the training images is held out.
        test_root: the same for `test`. Left out: root's own test/, else the validation images.
        dataset: a set that torchvision downloads: CIFAR10, CIFAR100, MNIST, FashionMNIST, Flowers102 or OxfordIIITPet;
            or hf:owner/name from the Hugging Face hub.
        labels: names of the classes, where the data only have numbers.
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
    """

    def __init__(
        self,
        root: str | None = None,
        val_root: str | None = None,
        test_root: str | None = None,
        dataset: str | None = None,
        labels: list[str] | None = None,
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
        memory: float = MEMORY,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction must lie between 0 and 1 (such as 0.1), not {val_fraction}.")
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers or 0, 0), ("seed", seed, 0)):
            if value < least:
                raise UserError(f"data.{name} must be at least {least}, not {value}.")
        if channels not in (None, 1, 3):
            raise UserError(f"data.channels is {channels}, but must be 1 (grey) or 3 (colour).")
        sides = [image_size] if isinstance(image_size, int) else list(image_size or [1])
        if len(sides) > 2 or min(sides) < 1:
            raise UserError(
                f"data.image_size is {image_size}, but must be a positive number or two (height and width)."
            )
        self.root, self.val_root, self.test_root, self.dataset = root, val_root, test_root, dataset
        self.val_fraction, self.on_error, self.seed = val_fraction, on_error, seed
        self.image_size: Any = image_size
        self.channels: Any = channels
        self.labels: Any = labels
        self.batch_size, self.workers, self.memory, self.cache = batch_size, workers, memory, cache
        self.augment = augment or AugmentConfig()
        self.statistics = statistics
        chosen: dict[str, Any] = {"interpolation": interpolation, "crop_pct": crop_pct, "resize": resize}
        self._chosen = {name: value for name, value in chosen.items() if value is not None}
        self.preprocessing = Preprocessing(**self._chosen)
        self._adopted = False
        self.classes = self.skipped = self.duplicates = self.leaked = 0
        self.names: dict[Side, list[str]] = {}
        self._images: dict[Side, Images] = {}
        self._pixels: dict[Side, Tensor] = {}
        self._mirror = True

    def adopt(self, preprocessing: Preprocessing, size: tuple[int, int], channels: int, source: str) -> str:
        """Make images as a pretrained model saw them, but for what was chosen here; call it before `setup`.

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

    # -- from files to sides ------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Fill the cache; Lightning calls this in one process of each machine before `setup` in all of them."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Find, check, split and (if they fit) decode the images; a second call does nothing.

        Raises:
            UserError: for every mistake in the files or settings, with what to do about it.
        """
        if self._images:
            return
        cache = cache_folder(self.cache)
        collection = find(self.root, self.val_root, self.test_root, self.dataset, self.labels, cache)
        check_classes(collection)
        records = {side: scan(images, cache, f"checking {side} images") for side, images in collection.sides.items()}
        self.skipped = drop_unreadable(collection, records, self.on_error)
        check_classes(collection)
        self._separate(collection, records)
        self._choose_shape(records)
        self._images, self._mirror = collection.sides, collection.mirror
        self.labels, self.classes = collection.classes, len(collection.classes)
        self.names = {side: images.names for side, images in collection.sides.items()}
        if self._fits_in_memory():
            self._pixels = {
                side: pixels_in_memory(
                    images, self.image_size, self.channels, self.preprocessing, cache, f"reading {side} images"
                )
                for side, images in collection.sides.items()
            }
        self._choose_statistics()

    def _separate(self, collection: Collection, records: dict[Side, list[Record]]) -> None:
        """Hold out validation images if there are none, and take from training what another side also has."""
        digests = {side: [record.digest for record in found] for side, found in records.items()}
        others = {digest for side in digests if side != "train" for digest in digests[side]}
        clean = np.array([digest not in others for digest in digests["train"]], dtype=bool)
        self.leaked = int((~clean).sum())
        self._keep(collection, records, "train", np.flatnonzero(clean))
        train = [record.digest for record in records["train"]]
        self.duplicates = count_copies(train) + count_copies(digests.get("val", []))
        if "val" not in collection.sides:
            held = hold_out(train, collection.sides["train"].labels, self.val_fraction, self.seed)
            whole, known = collection.sides["train"], records["train"]
            collection.sides["val"], records["val"] = whole, known
            self._keep(collection, records, "val", np.flatnonzero(held))
            self._keep(collection, records, "train", np.flatnonzero(~held))
        check_classes(collection)

    @staticmethod
    def _keep(collection: Collection, records: dict[Side, list[Record]], side: Side, index: np.ndarray) -> None:
        collection.sides[side] = collection.sides[side].select(index)
        records[side] = [records[side][i] for i in index]

    def _choose_shape(self, records: dict[Side, list[Record]]) -> None:
        known = [record for found in records.values() for record in found]
        self.image_size, self.channels = chosen_shape(known, self.image_size, self.channels)

    def _fits_in_memory(self) -> bool:
        height, width = self.image_size
        total = sum(len(images) for images in self._images.values()) * self.channels * height * width
        from_files = self.augment.crop == "resized" and max(height, width) > SMALL_SIDE
        return not from_files and total <= self.memory * 1e9

    def _choose_statistics(self) -> None:
        if self._adopted and self.statistics == "auto":
            return
        mean, std = [0.5], [0.5]
        if self.statistics == "auto" and self._pixels:
            mean, std = channel_statistics(self._pixels["train"])
        elif self.statistics != "half" and self.channels == 3:
            mean, std = IMAGENET
        self.preprocessing = dataclasses.replace(self.preprocessing, mean=list(mean), std=list(std))

    def check_labels(self, labels: list[str], where: str) -> None:
        """Compare the classes with those of a model.

        Raises:
            UserError: they differ.
        """
        if len(labels) != self.classes:
            raise UserError(
                f"The data have {self.classes} classes, but {where} was trained on {len(labels)}: {_few(labels)}."
            )
        wrong = [(a, b) for a, b in zip(labels, self.labels) if a != b]
        if wrong:
            raise UserError(
                f"The data's classes are not those of {where}: '{wrong[0][1]}' stands where '{wrong[0][0]}' was"
                f"{f', and {len(wrong) - 1} more differ' if len(wrong) > 1 else ''}; rename the class folders."
            )

    def counts(self, side: Side) -> list[int]:
        """Images of each class on a side."""
        return np.bincount(self._images[side].labels, minlength=self.classes).tolist()

    def arrays(self, side: Side) -> tuple[Tensor, Tensor] | None:
        """Pixels uint8 [images, channels, height, width] and labels int64 [images] of a side, if they are in memory."""
        return (self._pixels[side], torch.from_numpy(self._images[side].labels)) if side in self._pixels else None

    def picture(self, side: Side, index: int) -> Tensor:
        """One image of a side as the model sees it in validation, uint8 [channels, height, width]."""
        if side in self._pixels:
            return self._pixels[side][index]
        return self.preprocessing.pixels(load(self._images[side], index, self.channels), self.image_size)

    def describe(self) -> str:
        """One line about the data, after `setup()`."""
        f = self.figures()
        words = {"train": "to train", "val": "to validate", "test": "to test"}
        counts = [f"{f[f'images_{side}']:,} {words[side]} on" for side in SIDES if side in self._images]
        parts = [
            f"{self.classes:,} classes",
            ", ".join(counts[:-1]) + f" and {counts[-1]}",
            f"{f['image_size']} pixels",
        ]
        parts += [f"{f[name]:,} {name}" for name in ("skipped", "duplicates", "leaked") if f[name]]
        return f"{f['data']}: {', '.join(parts)}"

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

    # -- batches ------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Batches:
        """Batches of training; each iteration is one epoch, or what is left of it after a resume.

        Raises:
            UserError: the images do not fill one batch.
        """
        count, (rank, world) = len(self._images["train"]), self.ranks()
        if count < self.batch_size * world:
            devices = f" on {world} devices" if world > 1 else ""
            raise UserError(
                f"There are {count:,} training images, fewer than one batch of {self.batch_size:,}{devices}: "
                f"lower --data.batch_size to {count // world:,} or less."
            )
        order = Shuffled(count, self.batch_size, rank, world, self.seed, self.augment.repeats, position=self.position)
        return Batches(self._source("train"), order, self._workers, self.pin)

    def val_dataloader(self) -> Batches:
        """Batches that hold every validation image once."""
        return self._in_order("val")

    def test_dataloader(self) -> Batches:
        """Batches that hold every test image once; of validation if there is no test."""
        return self._in_order("test" if "test" in self._images else "val")

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
            images, self.image_size, self.channels, self.preprocessing, min_area, self.seed, self.ranks()[0]
        )

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int = 0) -> dict[str, Any]:
        """On the device: change the images at random (training only), normalise, mix."""
        batch = dict(batch)
        position = batch.pop("position", None)
        if position is None:
            return batch | {"images": self.preprocessing.normalise(batch["images"])}
        config, rank = self.augment, self.ranks()[0]
        rng = np.random.default_rng([self.seed, 1, rank, position])
        cropped = config.crop == "resized" and not self._pixels
        images = change_pixels(batch["images"], config, rng, self._mirror, cropped)
        images = self.preprocessing.normalise(images)
        if config.erasing:
            images = erase(images, config.erasing, rng)
        if config.mixes:
            batch["images"], batch["labels"] = mix(images, batch["labels"], self.classes, config, rng)
            return batch
        return batch | {"images": images}

    @property
    def _workers(self) -> int:
        if self._pixels:
            return 0
        return default_workers(self.ranks()[1]) if self.workers is None else self.workers

    def order_settings(self) -> dict[str, Any]:
        """See `ResumableData`."""
        return {
            "images": len(self._images["train"]),
            "batch_size": self.batch_size,
            "devices": self.ranks()[1],
            "seed": self.seed,
            "repeats": self.augment.repeats,
        }


def chosen_shape(
    known: list[Record], image_size: int | list[int] | tuple[int, ...] | None, channels: int | None
) -> tuple[tuple[int, int], int]:
    """(height, width) and channels of training: what is given, else what suits readable images; see `ImageData`."""
    if image_size is None:
        common = common_size([(record.height, record.width) for record in known])
        image_size = common if common and max(common) <= SMALL_SIDE else 224
    sides = [image_size] if isinstance(image_size, int) else list(image_size)
    if channels is None:
        grey = all(record.mode in ("1", "L", "LA", "I", "F") or record.mode.startswith("I;16") for record in known)
        channels = 1 if grey else 3
    return (sides[0], sides[-1]), channels


def _few(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
