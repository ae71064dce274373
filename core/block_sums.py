"""Checksums of the blocks of a shard, with which what is read of it is compared each time. No torch.

A shard of tokens or residues is read in short runs, which a checksum of the whole file cannot verify. Beside it lies
`NAME.sums`, uint32 `[blocks]` of the low byte first: the CRC-32 of each `BLOCK` bytes of its content; the manifest has
the CRC-32 of these. A run is read together with the rest of its blocks.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from .errors import UserError
from .files import read_bytes
from .shards import Folder, altered
from .stores import Remote

BLOCK = 1 << 14
"""Bytes of a block."""
SUMS = np.dtype("<u4")
KEPT = 64
"""Shards whose checksums a reader keeps: of shards of 268 MB these are 4 MB."""


class Content(NamedTuple):
    """What is verified of a shard.

    Args:
        file: the name of its file in the folder.
        begin: bytes before the content.
        size: bytes of the content.
        sums: the name of the file with the checksums.
        sum: the CRC-32 of these, from the manifest; None for shards of before, which are not verified.
    """

    file: str
    begin: int
    size: int
    sums: str
    sum: int | None


def block_sums(pieces: Iterable[bytes]) -> np.ndarray:
    """CRC-32 of each `BLOCK` bytes of a content that comes in pieces: uint32 `[blocks]`."""
    found, left = [], b""
    for piece in pieces:
        left += piece
        whole = len(left) // BLOCK * BLOCK
        found += [zlib.crc32(left[at : at + BLOCK]) for at in range(0, whole, BLOCK)]
        left = left[whole:]
    return np.array([*found, *([zlib.crc32(left)] if left else [])], dtype=SUMS)


def span(content: Content, first: int, size: int) -> tuple[int, int]:
    """The first byte and the number of bytes of the whole blocks that hold some bytes of a content."""
    begin = first // BLOCK * BLOCK
    return begin, min(-(-(first + size) // BLOCK) * BLOCK, content.size) - begin


class Verified:
    """Reads runs of bytes of the shards of several folders."""

    def __init__(self) -> None:
        self._tables: OrderedDict[tuple[int, str], np.ndarray] = OrderedDict()

    def read(self, folder: Folder, content: Content, first: int, size: int, get: Callable[[int, int], bytes]) -> bytes:
        """`size` bytes of a shard's content from `first` on.

        Args:
            folder: of the shard.
            content: what the manifest says of it.
            first: counted from the beginning of the content.
            size: at least 1.
            get: reads bytes of the file, given the first one and how many.

        Raises:
            UserError: they are not those that were written.
        """
        if content.sum is None:
            return self._long(folder, content, get(content.begin + first, size), size)
        begin, count = span(content, first, size)
        wanted = self._table(folder, content, content.sum)[begin // BLOCK : -(-(begin + count) // BLOCK)].tolist()
        for again in (False, True):
            found = self._long(folder, content, get(content.begin + begin, count), count)
            if [zlib.crc32(found[at : at + BLOCK]) for at in range(0, count, BLOCK)] == wanted:
                return found[first - begin : first - begin + size]
            file = folder.file(content.file)
            if again or not isinstance(file, Remote):
                break
            folder.cache.forget(file, content.begin + begin, count)  # it may be the copy that was damaged
        raise altered(folder.where(content.file))

    @staticmethod
    def _long(folder: Folder, content: Content, found: bytes, size: int) -> bytes:
        if len(found) != size:
            raise UserError(
                f"The shard '{folder.where(content.file)}' was cut short while it was read; start again when complete."
            )
        return found

    def _table(self, folder: Folder, content: Content, sum: int) -> np.ndarray:
        key = id(folder), content.sums
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key]
        table = read_sums(folder, content, sum)
        if len(self._tables) >= KEPT:
            self._tables.popitem(last=False)
        self._tables[key] = table
        return table


def sums_size(size: int) -> int:
    """Bytes of the checksums of a content of so many bytes."""
    return SUMS.itemsize * -(-size // BLOCK)


def read_sums(folder: Folder, content: Content, sum: int) -> np.ndarray:
    """The checksums of the blocks of a shard, uint32 `[blocks]`.

    Raises:
        UserError: they are missing, or not those with this CRC-32.
    """
    found = read_bytes(folder.local(content.sums), sums_size(content.size))
    if zlib.crc32(found) != sum:
        raise altered(folder.where(content.sums))
    return np.frombuffer(found, SUMS)
