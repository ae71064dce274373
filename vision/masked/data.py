"""Images without labels: all that lie below a folder, whatever its folders mean, with the noise that hides patches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.errors import UserError
from ...core.labels.cells import same
from ...core.shards import is_shards as is_packed
from ...core.stores import is_url
from ..data import archives, arrays, shards
from ..data.collection import Collection, Images, Paths, Side, side_of
from ..data.find import Where, at, find, side_in
from ..data.folders import descend, folders, is_image, walk
from ..data.mirrors import mirrors
from ..data.module import ImageData

VERSION = 1
"""Of the noise that hides patches; see the core's versions.py."""
NONE = -1
"""The label of an image whose class is not known."""


class PlainImages(ImageData):
    """Images to train on without labels. Left without `root`: scikit-learn's handwritten digits.

    Of a folder all images at any depth are used; those of a folder `val` or `test` beside a folder `train` are held
    out. Class folders may be there and are not needed: labels are used only to judge what was learned, by a linear
    probe.

    A batch is a dict: `images` float32 `[batch, channels, height, width]`, normalised; `noise` float32 `[batch,
    patches]` in [0, 1), which decides what is hidden; `labels` and `index` int64 `[batch]` as in `ImageData`. Order,
    changes and noise depend on (seed, position) only, so that a resumed run continues exactly; the noise of the
    validation images is always the same.

    Args:
        **others: see `ImageData`, of which labels, and augment.mixup and cutmix, have no place here.

    Attributes:
        patches: of an image; the model says it before the first batch.
    """

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        if self._where.labels is not None:
            raise UserError("data.labels is given, but nothing is named in a training without labels; leave it out.")
        if self.augment.mixes:
            raise UserError(
                "data.augment.mixup and cutmix mix classes, which images here need not have; set them to 0."
            )
        self.patches = 0

    def find(self, scored: Side | None, cache: Path) -> Collection:
        other = {"val": self.val_root, "test": self.test_root}.get(scored or "")
        if other is not None:
            found = _at(other, cache, f"data.{scored}_root")
            return _bare(replace(found, sides={str(scored): side_in(found, str(scored), f"'{other}'")}))
        return find_all(self._where, cache)

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if len(self._images.get("train", "xx")) < 2:
            raise UserError("There is one training image only; give a folder with more of them.")

    def describe(self) -> str:
        f = self.figures()
        words = {"train": "to train", "val": "to validate", "test": "to test"}
        counts = ", ".join(f"{len(images):,} {words[side]} on" for side, images in self._images.items())
        parts = [f"images {counts}", f"{f['image_size']} pixels"]
        parts += [f"{f[name]:,} {name}" for name in ("skipped", "duplicates", "leaked") if f[name]]
        known = int((self._images["train"].labels >= 0).sum()) if "train" in self._images else 0
        parts.append(f"{known:,} of them with one of {self.classes:,} classes, for the probe" if known else "no labels")
        return " ".join([f"{f['data']}: {', '.join([*parts, self._mirroring()])}.", *self.notes, *self._remarks()])

    def held_out(self) -> list[str]:
        """See `DataModule`: names of images, whose classes count for nothing."""
        return list(self._images["val"].names)

    def learned(self) -> Iterable[str | bytes]:
        """See `ResumableData`: images, whose classes count for nothing."""
        return self._digests

    def draws(self) -> Mapping[str, int]:
        """See `ResumableData`."""
        return {**super().draws(), "the hidden patches": VERSION}

    def labelled(self, side: Side, most: int) -> np.ndarray:
        """Up to `most` images of a side with a class, drawn by the seed: int64 `[images]`, their numbers."""
        known = np.flatnonzero(self._images[side].labels >= 0) if side in self._images else np.zeros(0, np.int64)
        return np.random.default_rng([self.seed, 5]).permutation(known)[:most]

    def labels_of(self, side: Side, rows: np.ndarray) -> torch.Tensor:
        """The classes of images of a side, int64 `[images]`."""
        return torch.from_numpy(self._images[side].labels[rows])

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int = 0) -> dict[str, Any]:
        position, index = batch.get("position"), batch["index"]
        if not self.patches:
            raise UserError("PlainImages needs a model that hides patches; train it with `triune vision pretrain`.")
        if position is None:
            rows = [np.random.default_rng([self.seed, 4, max(i, 0)]).random(self.patches) for i in index.tolist()]
            noise = np.stack(rows)
        else:
            whole, first = self.batch * self.ranks()[1], batch["slot"]
            noise = noise_at(self.seed, position, whole, self.patches)[first : first + len(index)]
        found = super().on_after_batch_transfer(batch, dataloader_idx)
        return found | {"noise": torch.from_numpy(noise.astype(np.float32)).to(found["images"].device)}


def noise_at(seed: int, position: int, whole: int, patches: int) -> np.ndarray:
    """What decides which patches of the global training batch at a position are hidden, float64 `[whole, patches]`."""
    return np.random.default_rng([seed, 3, 0, position]).random((whole, patches))


def find_all(where: Where, cache: Path) -> Collection:
    """All images that the settings name, whether they have classes or not; those without have the label -1.

    Raises:
        UserError: nothing is there, or nothing that can be read.
    """
    plain = replace(where, val_root=None, test_root=None, labels=None)
    named = where.dataset is not None or where.root is None
    collection = find(plain, cache) if named else _at(str(where.root), cache, "data.root")
    for side, other in (("val", where.val_root), ("test", where.test_root)):
        if other is not None:
            found = _at(other, cache, f"data.{side}_root")
            images = side_in(found, side, f"data.{side}_root '{other}'")
            images.labels = _joined([found.classes[i] if i >= 0 else "" for i in images.labels], collection.classes)
            collection.sides[side] = images
            collection.others += found.others
    if "train" not in collection.sides:
        raise UserError(
            f"'{where.dataset or where.root}' holds no training images, only a {' and a '.join(collection.sides)} side;"
            " give the folder that holds train/ as --data.root."
        )
    return _bare(collection)


def _bare(collection: Collection) -> Collection:
    """The collection as one whose classes need not be there."""
    collection.labelled, collection.empty = False, []
    collection.keys = list(collection.classes)
    if collection.mirror is None:
        collection.mirror = mirrors(collection.classes) if collection.classes else True
    return collection


def _joined(texts: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """The class of each text, int64 `[images]`; -1 for a text that is none."""
    of = {same(name): i for i, name in enumerate(classes)}
    return np.array([of.get(same(text), NONE) for text in texts], dtype=np.int64)


def _at(name: str, cache: Path, option: str) -> Collection:
    """The collection at a path: a folder of whatever shape, or what `at` knows."""
    path = Path(name).expanduser()
    if not is_url(name) and path.exists() and not shards.is_shards(path) and not is_packed(path):
        if archives.is_archive(path):
            path = archives.extract(path, cache)
        if path.is_dir() and not _of_many(path):
            return _folder(path)
    return at(name, cache, option)


def _of_many(folder: Path) -> bool:
    """Whether a folder holds files of many images each, which say themselves what is what."""
    rows = (folder / "dataset_info.json").exists() or any(folder.glob("*.parquet"))
    return rows or bool(arrays.idx_files(folder))


def _folder(root: Path) -> Collection:
    """All images below a folder."""
    names, others = walk(root)
    if not names:
        raise UserError(f"'{root}' holds no images at any depth; give a folder of image files.")
    try:
        known = folders(root)
    except UserError:  # no class folders
        known = Collection([], {})
    label_of = {name: int(label) for images in known.sides.values() for name, label in zip(images.names, images.labels)}
    side = {name: side for side, images in known.sides.items() for name in images.names} | _by_folder(root, names)
    collection = Collection(known.classes, {}, mirror=known.mirror, others=others)
    for wanted in ("train", "val", "test"):
        some = [name for name in names if side.get(name, "train") == wanted]
        if some:
            labels = np.array([label_of.get(name, NONE) for name in some], dtype=np.int64)
            collection.sides[wanted] = Images(some, labels, Paths(some))
    return collection


def _by_folder(root: Path, names: Sequence[str]) -> dict[str, Side]:
    """The side of each image below a folder val/ or test/ that stands beside train/."""
    top = descend(root)
    sides = {path: side for path in top.iterdir() if path.is_dir() and (side := side_of(path.name))}
    held = {path: side for path, side in sides.items() if side != "train"}
    if "train" not in sides.values():
        return {}
    found = {}
    for path, side in held.items():
        start = str(path) + os.sep
        found |= {name: side for name in names if name.startswith(start)}
    return found if any(is_image(name) and name not in found for name in names) else {}
