"""Images in shards: encoded files one behind the other, with an index of what each of them is.

    manifest.json          classes, shards with their sizes and checksums, what was done before
    train-00000.images     the files, one behind the other
    train-00000.index.npy  for each its place, size, checksum, label and what decoding it once has shown
    train-00000.names.json what each is called

`vision/data/packing.py` writes such a folder.
"""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...core import shards as core
from ...core.errors import UserError
from ...core.files import parse_json, parsing, read_bytes
from ...core.stores import Remote
from .collection import Collection, Images, Side
from .scan import Record

KIND = "vision"
INDEX = np.dtype(
    [
        ("offset", "<i8"), ("size", "<i8"), ("sum", "<u4"), ("label", "<i4"), ("width", "<i4"), ("height", "<i4"),
        ("peak", "<i4"), ("white", "<i4"), ("mode", "S12"), ("format", "S12"), ("remarks", "<u4"), ("digest", "S32"),
    ]
)  # fmt: skip
"""One row for each image; `remarks` has a bit for each of `REMARKS`."""
REMARKS = (
    "named otherwise",
    "animated",
    "16 bits",
    "float",
    "transparent",
    "CMYK",
    "longer than 1:5",
    "below 16 pixels",
)


class Shard(NamedTuple):
    """One shard, as the manifest has it: sizes in bytes and CRC-32 of its three files."""

    name: str
    images: int
    sizes: list[int]
    sums: list[int]


FILES = ("images", "index.npy", "names.json")


class Packed:
    """The images of one side by number, each read with one system call and compared with its checksum."""

    def __init__(self, folder: core.Folder, identity: str, shards: list[Shard]) -> None:
        self._folder, self._identity, self._shards = folder, identity, shards
        self._ends = np.cumsum([shard.images for shard in shards])
        parts = [np.load(io.BytesIO(_sound(folder, shard, 1)), allow_pickle=False) for shard in shards]
        if any(part.dtype != INDEX or len(part) != shard.images for part, shard in zip(parts, shards, strict=True)):
            raise UserError(f"An index in '{folder}' is not as its manifest says; write the shards again.")
        self.index = np.concatenate(parts) if parts else np.zeros(0, INDEX)
        self._open: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # every worker opens the files itself

    def __del__(self) -> None:
        for file in getattr(self, "_open", {}).values():
            os.close(file)

    def __getitem__(self, index: int) -> bytes:
        row, shard = self.index[index], int(np.searchsorted(self._ends, index, side="right"))
        first, size = int(row["offset"]), int(row["size"])
        if self._folder.in_store:
            file = self._folder.file(self._name(shard))
            assert isinstance(file, Remote)
            content = self._folder.cache.read(file, first, size)
        else:
            content = os.pread(self._file(shard), size, first)
        if zlib.crc32(content) != row["sum"]:
            raise core.altered(self._folder.where(self._name(shard)))
        return content

    def prepare(self, rows: np.ndarray) -> None:
        """Has what some images need of a store fetched together."""
        if self._folder.in_store:
            shards = np.searchsorted(self._ends, rows, side="right").tolist()
            files = [self._folder.file(self._name(shard)) for shard in shards]
            parts = zip(files, self.index[rows]["offset"].tolist(), self.index[rows]["size"].tolist(), strict=True)
            self._folder.cache.prepare(part for part in parts if isinstance(part[0], Remote))  # type: ignore[misc]

    def key(self, index: int) -> tuple[str, int, int] | None:
        row = self.index[index]
        return f"{self._identity}:{index}", int(row["size"]), int(row["sum"])

    def record(self, index: int) -> Record:
        """What decoding an image has shown when it was packed."""
        row = self.index[index]
        remarks = tuple(word for bit, word in enumerate(REMARKS) if int(row["remarks"]) >> bit & 1)
        return Record(
            int(row["width"]), int(row["height"]), row["mode"].decode(), row["format"].decode(), row["digest"].decode(),
            "", remarks, int(row["peak"]), int(row["white"]),
        )  # fmt: skip

    def _name(self, shard: int) -> str:
        return f"{self._shards[shard].name}.images"

    def _file(self, shard: int) -> int:
        if shard not in self._open:
            try:
                self._open[shard] = os.open(self._folder.local(self._name(shard)), os.O_RDONLY)
            except OSError as error:
                raise UserError(
                    f"The shard '{self._folder.where(self._name(shard))}' cannot be read ({error.strerror})."
                ) from None
        return self._open[shard]


def read_shards(folder: core.Folder | Path) -> tuple[dict[str, Any], dict[Side, list[Shard]]]:
    """The manifest of a folder, and its shards by side, whose files are there and as long as it says.

    Raises:
        UserError: something is missing, cut short, or not what the manifest says.
    """
    folder = core.as_folder(folder)
    content = core.read_manifest(folder, KIND)
    sides = {side: [Shard(*entry) for entry in entries] for side, entries in content["sides"].items()}
    for shard in (shard for shards in sides.values() for shard in shards):
        for name, size in zip(FILES, shard.sizes, strict=True):
            folder.check_size(f"{shard.name}.{name}", size)
    return content, sides


def _sound(folder: core.Folder, shard: Shard, number: int) -> bytes:
    """The content of a file of a shard, by its number in `FILES`. Raises UserError when it is not the manifest's."""
    file = f"{shard.name}.{FILES[number]}"
    content = read_bytes(folder.local(file), shard.sizes[number])
    if zlib.crc32(content) != shard.sums[number]:
        raise core.altered(folder.where(file))
    return content


def packed(folder: core.Folder | Path) -> Collection:
    """The images of a folder of shards. Raises UserError as `read_shards` does."""
    folder = core.as_folder(folder)
    content, shards = read_shards(folder)
    sides: dict[Side, Images] = {}
    for side, several in shards.items():
        encoded = Packed(folder, f"{content['identity']}:{side}", several)
        names = []
        for shard in several:
            where = folder.where(f"{shard.name}.{FILES[2]}")
            with parsing(where, "names of images"):
                names += parse_json(_sound(folder, shard, 2), where)["names"]
        sides[side] = Images(names, encoded.index["label"].astype(np.int64), encoded)
    return Collection(content["classes"], sides, content["numbered"], content["mirror"], labelled=content["labelled"])


def check_shards(folder: core.Folder | Path) -> dict[Side, int]:
    """Reads all of a folder of shards, compares it with its manifest, and returns the images of each side.

    Raises:
        UserError: the first thing that is not as the manifest says.
    """
    folder = core.as_folder(folder)
    _, sides = read_shards(folder)
    for shard in (shard for shards in sides.values() for shard in shards):
        for name, wanted in zip(FILES, shard.sums, strict=True):
            file, found = f"{shard.name}.{name}", 0
            with folder.local(file).open("rb") as opened:
                while block := opened.read(1 << 24):
                    found = zlib.crc32(block, found)
            if found != wanted:
                raise core.altered(folder.where(file))
    return {side: sum(shard.images for shard in shards) for side, shards in sides.items()}
