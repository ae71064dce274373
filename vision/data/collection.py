"""What a source of labelled images is for the rest of the room: a `Collection` of `Images`, whatever it was read from.

One file reads each kind of source (`folders`, `archives`, `shards`, `arrays`, `rows`), and `find` chooses among them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from .images import Decoding

Side = str
SIDES: tuple[Side, ...] = ("train", "val", "test")
_SIDE_OF: dict[str, Side] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def side_of(name: str) -> Side | None:
    """The side that a folder, a split or the start of a file is called after; None for another name."""
    return _SIDE_OF.get(name.lower())


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
    """One side of a collection: `names` and `labels` `[images]` of either files or an array.

    Args:
        names: what messages and tables call each image.
        labels: int64 `[images]`, index into the classes.
        encoded: files to decode; or
        array: uint8 `[images, height, width]` or `[images, height, width, 3]`.
        rows: which entries of `encoded` or `array` these are.
        decoding: how files are decoded where there is a choice.
    """

    names: list[str]
    labels: np.ndarray
    encoded: Encoded | None = None
    array: np.ndarray | None = None
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    decoding: Decoding = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        if not len(self.rows) and len(self.labels):
            self.rows = np.arange(len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: np.ndarray) -> Images:
        """Some of these images, in the order of `index` (numbers, int64)."""
        names = [self.names[i] for i in index]
        return replace(self, names=names, labels=self.labels[index], rows=self.rows[index])

    def source(self, index: int) -> str | bytes:
        """Path or content of a file to decode."""
        assert self.encoded is not None
        return self.encoded[int(self.rows[index])]

    def prepare(self, indices: np.ndarray) -> None:
        """Has the files of some images fetched together, where they lie in a store."""
        if (fetch := getattr(self.encoded, "prepare", None)) is not None:
            fetch(self.rows[indices])

    def key(self, index: int) -> tuple[str, int, int] | None:
        """See `Encoded.key`."""
        return None if self.encoded is None else self.encoded.key(int(self.rows[index]))


@dataclass
class Collection:
    """Labelled images, by side.

    Args:
        classes: what the source calls its classes: names of folders, texts of a column, or numbers.
        sides: images for training and, where the source has them, validation and test. Only a source that is named for
            scoring may lack `train`.
        keys: the same before other names were given to them; empty until `find` returns.
        numbered: the source numbers its classes, so that the order of `classes` is the order of these numbers; else
            they are known by their names, and the order is that of the strings.
        mirror: whether a mirrored image is still of its class; None if nothing but the names of the classes can tell.
        others: files that are no images by their name, counted by ending.
        empty: class folders without an image.
        notes: sentences about what was left out, and which of two readings was taken.
        labelled: whether the labels are numbers of classes; else they are rows of a table.
    """

    classes: list[str]
    sides: dict[Side, Images]
    numbered: bool = False
    mirror: bool | None = None
    others: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    labelled: bool = True
    keys: list[str] = field(default_factory=list)
