"""Where labelled images come from: a folder, an archive, arrays or a named data set, all as one `Collection`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from ...core.errors import UserError
from .images import EXTENSIONS

Side = str
SIDES: tuple[Side, ...] = ("train", "val", "test")
_SIDE_OF: dict[str, Side] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
LAYOUT = "give it one folder for each class (cats/…, dogs/…), or train/ and val/ folders that hold those"


class Encoded(Protocol):
    """Image files by number, wherever they lie; picklable, so that workers can read them."""

    def __getitem__(self, index: int) -> str | bytes:
        """A path, or the content of a file."""
        ...

    def key(self, index: int) -> tuple[str, int, int] | None:
        """(identity, size, modification time in ns), which change when the content does; None if unknown."""
        ...


class Paths:
    """Files on disk."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __getitem__(self, index: int) -> str:
        return self.paths[index]

    def key(self, index: int) -> tuple[str, int, int] | None:
        try:
            status = os.stat(self.paths[index])
        except OSError:
            return None
        return os.path.abspath(self.paths[index]), status.st_size, status.st_mtime_ns


@dataclass
class Images:
    """One side of a collection: `names` and `labels` [images] of either files or an array.

    Args:
        names: what messages and tables call each image.
        labels: int64 [images], index into the classes.
        encoded: files to decode; or
        array: uint8 [images, height, width] or [images, height, width, 3].
        rows: which entries of `encoded` or `array` these are.
    """

    names: list[str]
    labels: np.ndarray
    encoded: Encoded | None = None
    array: np.ndarray | None = None
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        if not len(self.rows) and len(self.labels):
            self.rows = np.arange(len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: np.ndarray) -> Images:
        """Some of these images, in the order of `index` (numbers, int64)."""
        names = [self.names[i] for i in index]
        return Images(names, self.labels[index], self.encoded, self.array, self.rows[index])

    def source(self, index: int) -> str | bytes:
        """Path or content of a file to decode."""
        assert self.encoded is not None
        return self.encoded[int(self.rows[index])]

    def key(self, index: int) -> tuple[str, int, int] | None:
        """See `Encoded.key`."""
        return None if self.encoded is None else self.encoded.key(int(self.rows[index]))


@dataclass
class Collection:
    """Labelled images, by side; `train` is always there.

    Args:
        classes: their names.
        sides: images for training and, where the source has them, validation and test.
        mirror: whether a mirrored image is still of its class (not so for digits).
        ignored: files that are no images by their name.
        empty: class folders without an image, as "side/class".
    """

    classes: list[str]
    sides: dict[Side, Images]
    mirror: bool = True
    ignored: int = 0
    empty: list[str] = field(default_factory=list)


def find(
    root: str | None, val_root: str | None, test_root: str | None, dataset: str | None, labels: list[str] | None,
    cache: Path,
) -> Collection:  # fmt: skip
    """All images that the settings of `ImageData` name. Nothing is decoded yet, archives are extracted into `cache`.

    Raises:
        UserError: nothing there, no classes, or classes that differ between the sides.
    """
    from . import arrays

    if dataset is not None:
        collection = arrays.named(dataset, root, cache)
    elif root is None:
        collection = arrays.digits()
    else:
        collection = _at(Path(root).expanduser(), cache, "data.root")
    for side, other in (("val", val_root), ("test", test_root)):
        if other is not None:
            found = _at(Path(other).expanduser(), cache, f"data.{side}_root")
            collection.sides[side] = _align(found, collection.classes, f"data.{side}_root")
            collection.ignored += found.ignored
    if labels is not None:
        if len(labels) != len(collection.classes):
            raise UserError(f"data.labels names {len(labels)} classes, but the data have {len(collection.classes)}.")
        collection.classes = list(labels)
    return collection


def _at(path: Path, cache: Path, option: str) -> Collection:
    """The collection at a path: archive, shards, Parquet, IDX files or class folders."""
    from . import archives, arrays

    if not path.exists():
        raise UserError(f"{option} '{path}' does not exist.")
    if archives.is_shards(path):
        return archives.shards(path)
    if archives.is_archive(path):
        path = archives.extract(path, cache)
    if (path / "dataset_info.json").exists() or path.suffix == ".parquet" or any(path.glob("*.parquet")):
        from . import rows

        return rows.parquet(path)
    if not path.is_dir():
        raise UserError(
            f"{option} '{path}' is a file, but must be a folder, an archive (.tar.gz, .zip) or Parquet: {LAYOUT}."
        )
    if arrays.idx_files(path):
        return arrays.idx(path)
    return folders(path)


def folders(root: Path) -> Collection:
    """Class folders, or `train/`, `val/`, `test/` folders of them (torchvision's ImageFolder layout).

    Raises:
        UserError: no class folders, or classes that differ between the sides.
    """
    root = _descend(root)
    sides: dict[Side, Path] = {}
    inner = _subfolders(root)
    if any(_SIDE_OF.get(folder.name.lower()) == "train" for folder in inner):
        strange = [folder.name for folder in inner if folder.name.lower() not in _SIDE_OF]
        if strange:
            raise UserError(
                f"'{root}' holds a training folder and also {_some(strange)}: keep only train, val and test in it."
            )
        sides = {_SIDE_OF[folder.name.lower()]: folder for folder in inner}
    parts = {side: _class_folders(folder) for side, folder in (sides or {"train": root}).items()}
    collection = parts.pop("train")
    for side, part in parts.items():
        collection.sides[side] = _align(part, collection.classes, str(sides[side]))
        collection.ignored += part.ignored
    return collection


def _descend(folder: Path) -> Path:
    """Pass through folders that hold nothing but one folder of folders, as archives often do."""
    while True:
        inner = _subfolders(folder)
        if len(inner) != 1 or not _subfolders(inner[0]) or any(_is_image(p.name) for p in folder.iterdir()):
            return folder
        folder = inner[0]


def _class_folders(root: Path) -> Collection:
    classes = _subfolders(root)
    if not classes:
        loose = sum(_is_image(path.name) for path in root.iterdir())
        held = f"{loose:,} images but no class folders" if loose else "no class folders"
        raise UserError(f"'{root}' holds {held}: {LAYOUT}.")
    names: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    ignored = 0
    for label, folder in enumerate(classes):
        found, others = _walk(folder)
        names += found
        labels += [label] * len(found)
        ignored += others
        if not found:
            empty.append(str(folder))
    images = Images(names, np.array(labels, dtype=np.int64), Paths(names))
    return Collection([folder.name for folder in classes], {"train": images}, ignored=ignored, empty=empty)


def _walk(folder: Path) -> tuple[list[str], int]:
    """Image files at any depth in sorted order, and the number of others; linked folders are followed once."""
    found: list[str] = []
    others = 0
    visited: set[str] = set()
    for path, inner, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        inner[:] = sorted(name for name in inner if not name.startswith(".") and real not in visited)
        if real in visited:
            continue
        visited.add(real)
        for name in sorted(files):
            if _is_image(name):
                found.append(os.path.join(path, name))
            elif not name.startswith("."):
                others += 1
    return found, others


def _align(part: Collection, classes: list[str], where: str) -> Images:
    """The images of a side, with labels by the classes of the training side."""
    unknown = sorted(set(part.classes) - set(classes))
    missing = sorted(set(classes) - set(part.classes))
    if unknown or missing:
        texts = [f"has {_some(unknown)} that training lacks"] * bool(unknown) + [f"lacks {_some(missing)}"] * bool(
            missing
        )
        raise UserError(
            f"The classes of training and of '{where}' differ: the latter {' and '.join(texts)}; use the same class "
            "folders in both (an empty one is allowed for validation and test)."
        )
    images = part.sides["train"]
    images.labels = np.array([classes.index(name) for name in part.classes], dtype=np.int64)[images.labels]
    return images


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))


def _is_image(name: str) -> bool:
    # "._cat.jpg" is what macOS leaves beside "cat.jpg"
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + rest
