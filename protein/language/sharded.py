"""Protein sequences in shards: their residues one behind the other, read with one system call each.

    manifest.json             shards with their sizes and checksums, what was done before
    train-00000.residues      numbers of `alphabet`, one byte each
    train-00000.ends.npy      where each sequence ends, int64 `[sequences]`
    train-00000.names.txt     what each is called, by line
    train-00000.sums          checksums of the blocks of the residues, with which what is read is compared each time

`protein/language/sharding.py` writes such a folder.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ...core import shards as core
from ...core.block_sums import Content, Verified, span
from ...core.errors import UserError
from ...core.files import parsing, read_bytes
from ...core.stores import Remote

KIND = "protein"
FILES = ("residues", "ends.npy", "names.txt", "sums")
Side = Literal["train", "val"]
SIDES: tuple[Side, ...] = ("train", "val")
BLOCK = 1 << 24


class Shard(NamedTuple):
    """One shard, as the manifest has it: sizes in bytes and CRC-32 of its files, which were three before."""

    name: str
    sequences: int
    residues: int
    sizes: list[int]
    sums: list[int]

    @property
    def content(self) -> Content:
        """The residues, as bytes that are compared with their checksums when they are read."""
        known = self.sums[3] if len(self.sums) > 3 else None
        return Content(f"{self.name}.residues", 0, self.residues, f"{self.name}.sums", known)


def read_shards(folder: core.Folder) -> tuple[dict[str, Any], dict[Side, list[Shard]]]:
    """The manifest of a folder, and its shards by side, whose files are there and as long as it says.

    Raises:
        UserError: something is missing, cut short, or not what the manifest says.
    """
    content = core.read_manifest(folder, KIND)
    sides: dict[Side, list[Shard]] = {side: [Shard(*entry) for entry in content["sides"][side]] for side in SIDES}
    for shard in (shard for shards in sides.values() for shard in shards):
        for name, size in zip(FILES, shard.sizes):
            folder.check_size(f"{shard.name}.{name}", size)
    return content, sides


class Packed:
    """The sequences of one side by number, uint8 `[residues]` each; it stands where a list of them may.

    Args:
        folder: of shards.
        shards: of the side.

    Raises:
        UserError: an index is not what the manifest says.
    """

    def __init__(self, folder: core.Folder, shards: list[Shard]) -> None:
        self._folder, self._shards = folder, shards
        self._last = np.cumsum([shard.sequences for shard in shards])
        self._ends = [self._index(shard) for shard in shards]
        self.lengths = np.concatenate([np.diff(ends, prepend=0) for ends in self._ends] or [np.zeros(0, np.int64)])
        self._open: dict[int, int] = {}
        self._verified = Verified()

    def _index(self, shard: Shard) -> np.ndarray:
        file = self._folder.local(f"{shard.name}.ends.npy")
        with parsing(file, "the index of a shard"):
            content = read_bytes(file, shard.sizes[1])
            if zlib.crc32(content) != shard.sums[1]:
                raise core.altered(self._folder.where(f"{shard.name}.ends.npy"))
            ends = np.load(io.BytesIO(content), allow_pickle=False)
        sound = ends.dtype == np.int64 and ends.shape == (shard.sequences,) and (np.diff(ends, prepend=0) > 0).all()
        if not sound or (len(ends) and ends[-1] != shard.residues):
            raise core.altered(self._folder.where(f"{shard.name}.ends.npy"))
        return ends

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # every worker opens the files itself

    def __del__(self) -> None:
        for file in getattr(self, "_open", {}).values():
            os.close(file)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[number] for number in range(len(self)))

    def _place(self, index: int) -> tuple[int, int, int]:
        """Shard, first byte and number of bytes of a sequence."""
        shard = int(np.searchsorted(self._last, index, side="right"))
        row, ends = index - int(self._last[shard]) + self._shards[shard].sequences, self._ends[shard]
        first = int(ends[row - 1]) if row else 0
        return shard, first, int(ends[row]) - first

    def __getitem__(self, index: int) -> np.ndarray:
        shard, first, size = self._place(index)
        content = self._shards[shard].content
        return np.frombuffer(
            self._verified.read(self._folder, content, first, size, partial(self._bytes, shard)), np.uint8
        )

    def _bytes(self, shard: int, first: int, size: int) -> bytes:
        file = self._folder.file(self._shards[shard].content.file)
        if isinstance(file, Remote):
            return self._folder.cache.read(file, first, size)
        return os.pread(self._file(shard, file), size, first)

    def prepare(self, numbers: list[int]) -> None:
        """Has the residues of some sequences fetched together, where they lie in a store."""
        if self._folder.in_store:
            parts = []
            for number in numbers:
                shard, first, size = self._place(number)
                content = self._shards[shard].content
                parts.append((self._folder.file(content.file), *span(content, first, size)))
            self._folder.cache.prepare(part for part in parts if isinstance(part[0], Remote))

    def _file(self, shard: int, path: Path) -> int:
        if shard not in self._open:
            try:
                self._open[shard] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"The shard '{path}' cannot be read ({error.strerror}); put it back.") from None
        return self._open[shard]

    def names(self, numbers: list[int]) -> list[str]:
        """What some sequences are called."""
        found: dict[int, list[str]] = {}
        named = []
        for number in numbers:
            shard = int(np.searchsorted(self._last, number, side="right"))
            if shard not in found:
                file = self._folder.local(f"{self._shards[shard].name}.names.txt")
                found[shard] = read_bytes(file, self._shards[shard].sizes[2]).decode("utf-8", "replace").split("\n")
            named.append(found[shard][number - int(self._last[shard]) + self._shards[shard].sequences])
        return named


def check_shards(folder: core.Folder) -> dict[Side, list[Shard]]:
    """Reads all of a folder of shards, compares it with its manifest, and returns the shards of each side.

    Raises:
        UserError: the first thing that is not as the manifest says.
    """
    _, sides = read_shards(folder)
    for shard in (shard for shards in sides.values() for shard in shards):
        for name, wanted in zip(FILES, shard.sums):
            file, found = f"{shard.name}.{name}", 0
            with folder.local(file).open("rb") as opened:
                while block := opened.read(BLOCK):
                    found = zlib.crc32(block, found)
            if found != wanted:
                raise core.altered(folder.where(file))
    return sides


def described(sides: dict[Side, list[Shard]]) -> str:
    """What shards hold, in words."""
    parts = []
    for side, shards in sides.items():
        sequences, residues = sum(s.sequences for s in shards), sum(s.residues for s in shards)
        several = f"{len(shards):,} shard{'s' * (len(shards) != 1)}"
        parts.append(f"{side} {residues:,} residues of {sequences:,} sequences in {several}")
    return "; ".join(parts)
