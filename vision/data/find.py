"""Finds labelled images: recognises what a path or a name is, has it read, and brings the sides together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import UserError
from ...core.files import few
from ...core.labels.columns import Table
from ...core.shards import Folder
from ...core.shards import is_shards as is_packed
from ...core.stores import Cache, is_url
from . import archives, arrays, folders, mirrors, names, rows, shards
from .collection import Collection, Images, Side
from .packed import packed

Labels = Sequence[str] | Mapping[Any, str]


@dataclass(frozen=True)
class Where:
    """The settings of `ImageData` that say which images there are."""

    root: str | None = None
    val_root: str | None = None
    test_root: str | None = None
    dataset: str | None = None
    labels: Labels | None = None


def find(where: Where, cache: Path) -> Collection:
    """All images that the settings name. Nothing is decoded yet, archives are extracted into `cache`.

    Raises:
        UserError: nothing there, no classes or no training images, or classes that training lacks.
    """
    root, dataset = where.root, where.dataset
    if dataset is not None:
        hub = dataset.removeprefix("hf:")
        collection = rows.hub(hub) if hub != dataset else arrays.named(dataset, root, cache)
    elif root is None:
        collection = arrays.digits()
    else:
        collection = at(root, cache, "data.root")
    if "train" not in collection.sides:
        raise UserError(
            f"'{dataset or root}' holds no training images, only a {' and a '.join(collection.sides)} side: give the "
            "folder that holds train/ as --data.root, or score these with `triune vision test RUN --data.test_root`."
        )
    for side, other in (("val", where.val_root), ("test", where.test_root)):
        if other is not None:
            add_side(collection, side, at(other, cache, f"data.{side}_root"), f"data.{side}_root '{other}'")
    collection.keys = list(collection.classes)
    if where.labels is not None:
        collection.classes = names.given(where.labels, collection.classes, collection.numbered)
    if collection.mirror is None:
        collection.mirror = mirrors.mirrors(collection.classes)
    for side in ("val", "test"):
        note_missing(collection, side)
    return collection


def at(name: str, cache: Path, option: str) -> Collection:
    """The collection at a path, or of shards at a URL: archive, shards, Parquet, IDX files or class folders.

    Raises:
        UserError: nothing is there, or nothing that can be read.
    """
    if is_url(name):
        if not is_packed(name):
            raise UserError(f"{option} '{name}' holds no manifest.json; of stores only `triune vision shard` is read.")
        return packed(Folder(name, Cache.of(str(cache))))
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(f"{option} '{path}' does not exist{_where(path)}; give a folder or an archive.")
    if is_packed(path):
        return packed(Folder(path))
    if shards.is_shards(path):
        return shards.shards(path)
    if archives.is_archive(path):
        path = archives.extract(path, cache)
    if (path / "dataset_info.json").exists() or path.suffix == ".parquet" or any(path.glob("*.parquet")):
        return rows.parquet(path)
    if not path.is_dir():
        raise UserError(
            f"{option} '{path}' is a file, but must be a folder, an archive (.tar.gz, .zip) or Parquet: "
            f"{folders.LAYOUT}."
        )
    if arrays.idx_files(path):
        return arrays.idx(path)
    return folders.folders(path)


def _where(path: Path) -> str:
    return "" if path.is_absolute() else f" in '{Path.cwd()}'"


def add_side(collection: Collection, side: Side, found: Collection, where: str) -> None:
    """Makes the images that were found for one side a side of the collection, whose classes they are joined to by name.

    Raises:
        UserError: they have a class that the collection lacks, or several sides of which none is this one.
    """
    images = side_in(found, side, where)
    count = len(collection.classes)
    plain = found.classes == [str(i) for i in range(len(found.classes))]
    if not (collection.numbered and found.numbered and plain and len(found.classes) <= count):  # else numbers are keys
        texts = [found.classes[label] for label in images.labels]
        images.labels = names.join(texts, collection.classes, where)
    collection.sides[side] = images
    collection.others += found.others
    collection.notes += found.notes


def side_in(found: Collection, side: Side, where: str) -> Images:
    """The images meant by a folder that was named for one side: all, or those of its own folder of that side."""
    if side in found.sides:
        if len(found.sides) > 1:
            found.notes.append(f"Of {where} the {side} side is used.")
        return found.sides[side]
    if len(found.sides) > 1:
        raise UserError(
            f"{where} holds {' and '.join(found.sides)} sides, but none for {side}: name the folder of one of them."
        )
    return next(iter(found.sides.values()))


def table_of_folders(root: Path, input: str, target: str) -> Table:
    """The images of class folders as a table of two columns: paths, and the names of their folders. Of a folder with
    several sides its test side.

    Raises:
        UserError: there are no class folders.
    """
    if not root.is_dir():
        raise UserError(f"data.test_root is '{root}', but must be a folder with one folder of images for each class.")
    found = folders.folders(root)
    images = side_in(found, "test", f"data.test_root '{root}'")
    paths = [str(Path(str(images.source(row))).absolute()) for row in range(len(images))]
    classes: list[Any] = [found.classes[label] for label in images.labels]
    return Table(root, {input: paths, target: classes}, range(1, len(paths) + 1), [input, target], found.notes)


def note_missing(collection: Collection, side: Side) -> None:
    """Says which classes validation or test has no image of; training has all."""
    images = collection.sides.get(side)
    if images is None or not len(images):
        return
    counts = np.bincount(images.labels, minlength=len(collection.classes))
    missing = [f"'{name}'" for name, count in zip(collection.classes, counts) if not count]
    if missing:
        collection.notes.append(f"There is no {'validation' if side == 'val' else side} image of {few(missing)}.")
