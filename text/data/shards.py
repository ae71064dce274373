"""Tokens in shards: a folder of random-access files with a manifest, read piece by piece in bounded memory.

    manifest.json             tokens, documents, bytes and checksums of each shard, the tokenizer, what was done before
    tokenizer/                the tokenizer that made the tokens
    train-00000.tokens.npy    token numbers, uint16 or uint32 `[tokens]`, one document behind the other
    train-00000.starts.npy    where documents start in this shard, int64 `[documents]`
    train-00000.sums          checksums of the blocks of the tokens, with which what is read is compared each time

The tokens of a side are those of its shards, one behind the other; a document may go on in the next shard.
`text/data/sharding.py` writes such a folder.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...core import shards as core
from ...core.block_sums import Content, Verified, span, sums_size
from ...core.errors import UserError
from ...core.stores import Remote
from ..tokenizer import Tokenizer
from .split import SIDES, Side

KIND, TOKENIZER = "text", "tokenizer"
HEADER = 128
"""Bytes before the numbers of a `.npy` file of one axis."""
OPEN = 256
"""Files that are open at once in a process."""
ADVISE = getattr(os, "posix_fadvise", None)
"""Tells the system what will be read; None where it takes no advice (macOS, Windows)."""


class Shard(NamedTuple):
    """One shard, as the manifest has it; `sums` are CRC-32 of the numbers in its three files (of before: two)."""

    name: str
    tokens: int
    documents: int
    bytes: int
    first_bytes: int
    sums: list[int]


@dataclass(frozen=True)
class Manifest:
    """A folder of shards, whose manifest was read."""

    folder: core.Folder
    tokenizer: str
    """The fingerprint of the tokenizer."""
    dtype: str
    identity: str
    """A hash of the texts, their sides and the tokenizer."""
    sides: dict[Side, list[Shard]]
    about: dict[str, Any]

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer in the folder. Raises UserError when it is not the one that made the tokens."""
        with self.folder.below(TOKENIZER) as place:
            found = Tokenizer.load(place)
        if found.fingerprint != self.tokenizer:
            raise UserError(
                f"'{self.folder.where(TOKENIZER)}' is not the tokenizer that made the tokens of '{self.folder}', as its"
                " manifest says; put that one back, or write the shards again."
            )
        return found


def read_manifest(folder: core.Folder | Path) -> Manifest:
    """Reads the manifest and looks whether all files are there and as long as it says.

    Raises:
        UserError: something is missing, cut short, or not what the manifest says.
    """
    folder = core.as_folder(folder)
    content = core.read_manifest(folder, KIND)
    sides: dict[Side, list[Shard]] = {side: [Shard(*entry) for entry in content["sides"][side]] for side in SIDES}
    found = Manifest(folder, content["tokenizer"], content["dtype"], content["identity"], sides, content["about"])
    for shard in (shard for shards in sides.values() for shard in shards):
        for file, size in _files(found, shard):
            folder.check_size(file, size)
    return found


def _files(manifest: Manifest, shard: Shard) -> list[tuple[str, int]]:
    """The files of a shard with their sizes in bytes."""
    size = np.dtype(manifest.dtype).itemsize * shard.tokens
    found = [(f"{shard.name}.tokens.npy", HEADER + size), (f"{shard.name}.starts.npy", HEADER + 8 * shard.documents)]
    return found + [(f"{shard.name}.sums", sums_size(size))] * (len(shard.sums) > 2)


def content_of(shard: Shard, dtype: np.dtype) -> Content:
    """The tokens of a shard, as bytes that are compared with their checksums when they are read."""
    name, known = shard.name, shard.sums[2] if len(shard.sums) > 2 else None
    return Content(f"{name}.tokens.npy", HEADER, shard.tokens * dtype.itemsize, f"{name}.sums", known)


class ShardedTokens:
    """One side of one or several folders of shards; it stands where a `TokenArray` may.

    Args:
        manifests: of the folders, in the order of their tokens.
        side: "train" or "val".
    """

    def __init__(self, manifests: Sequence[Manifest], side: Side) -> None:
        self.folder, self.side = manifests[0].folder, side
        self.shards = [(m.folder, np.dtype(m.dtype), shard) for m in manifests for shard in m.sides[side]]
        for name in ("tokens", "documents", "bytes", "first_bytes"):
            setattr(self, name, sum(getattr(shard, name) for _, _, shard in self.shards))

    tokens: int
    documents: int
    bytes: int
    first_bytes: int

    def open(self) -> tuple[Stream, Stream]:
        """What reads tokens, and the numbers of documents."""
        stream = Stream(self.shards)
        return stream, stream


class Stream:
    """The tokens of shards, one behind the other, read with one system call for each run of them.

    Nothing is mapped or kept, so that a process needs the same memory for any number of shards; the system's cache of
    files serves what was read before. Of shards in a store the parts that a batch needs are fetched together.
    """

    def __init__(self, shards: list[tuple[core.Folder, np.dtype, Shard]]) -> None:
        self._shards = shards
        self._ends = np.cumsum([shard.tokens for _, _, shard in shards])
        self._documents = np.cumsum([0, *(shard.documents for _, _, shard in shards)])
        self._open: OrderedDict[int, int] = OrderedDict()
        self._starts: dict[int, np.ndarray] = {}
        self._verified = Verified()
        self._told = ADVISE is not None or any(folder.in_store for folder, _, _ in shards)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __del__(self) -> None:
        for file in self._open.values():
            os.close(file)

    def __getitem__(self, at: np.ndarray) -> np.ndarray:
        """Tokens int64 `[rows, tokens]` at places of that shape; a row is a run, of which the end may repeat."""
        found = np.empty(at.shape, dtype=np.int64)
        self._prepare(at)
        for row, places in zip(found, at, strict=True):
            first, count = int(places[0]), int(places[-1]) - int(places[0]) + 1
            self._read(first, row[:count])
            row[count:] = row[count - 1]
        return found

    def documents(self, at: np.ndarray) -> np.ndarray:
        """The number of the document that each place belongs to, int64 like `at`; rows as above, but endless."""
        found = np.empty(at.shape, dtype=np.int64)
        last = len(self._shards) - 1
        for row, places in zip(found, at, strict=True):
            shards = np.minimum(np.searchsorted(self._ends, places[[0, -1]], side="right"), last)
            for shard in range(shards[0], shards[1] + 1):
                begin, end = self._begin(shard), self._ends[shard]
                here = slice(None) if shards[0] == shards[1] else (places >= begin) & ((places < end) | (shard == last))
                starts = self._starts_of(shard)
                inside = np.searchsorted(starts, places[here] - begin, side="right")
                row[here] = self._documents[shard] + inside - 1
        return found

    def _begin(self, shard: int) -> int:
        return int(self._ends[shard]) - self._shards[shard][2].tokens

    def _starts_of(self, shard: int) -> np.ndarray:
        if shard not in self._starts:
            folder, _, about = self._shards[shard]
            file = f"{about.name}.starts.npy"
            found = np.load(folder.local(file), mmap_mode="r") if about.documents else np.zeros(0, np.int64)
            if zlib.crc32(np.asarray(found).tobytes()) != about.sums[1]:
                raise core.altered(folder.where(file))
            self._starts[shard] = np.asarray(found)
        return self._starts[shard]

    def _runs(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Where tokens lie: shard, first token in it, number."""
        shard = int(np.searchsorted(self._ends, first, side="right"))
        while count > 0:
            begin = first - self._begin(shard)
            here = min(count, self._shards[shard][2].tokens - begin)
            yield shard, begin, here
            first, count, shard = first + here, count - here, shard + 1

    def _prepare(self, at: np.ndarray) -> None:
        """Has what a batch needs of stores fetched together, and a disk told of all of it before the first part is
        waited for.
        """
        wanted: dict[int, tuple[Any, list[Any]]] = {}
        for places in at if self._told else ():
            for shard, begin, count in self._runs(int(places[0]), int(places[-1]) - int(places[0]) + 1):
                folder, dtype, about = self._shards[shard]
                content = content_of(about, dtype)
                first, size = span(content, begin * dtype.itemsize, count * dtype.itemsize)
                if folder.in_store:
                    cache, parts = wanted.setdefault(id(folder.cache), (folder.cache, []))
                    parts.append((folder.file(content.file), HEADER + first, size))
                elif ADVISE is not None:
                    ADVISE(self._file(shard), HEADER + first, size, os.POSIX_FADV_WILLNEED)
        for cache, parts in wanted.values():
            cache.prepare(parts)

    def _read(self, first: int, into: np.ndarray) -> None:
        done = 0
        for shard, begin, count in self._runs(first, len(into)):
            folder, dtype, about = self._shards[shard]
            at, size = begin * dtype.itemsize, count * dtype.itemsize
            content = self._verified.read(folder, content_of(about, dtype), at, size, partial(self._bytes, shard))
            into[done : done + count] = np.frombuffer(content, dtype)
            done += count

    def _bytes(self, shard: int, first: int, size: int) -> bytes:
        folder, _, about = self._shards[shard]
        if not folder.in_store:
            return os.pread(self._file(shard), size, first)
        file = folder.file(f"{about.name}.tokens.npy")
        assert isinstance(file, Remote)
        return folder.cache.read(file, first, size)

    def _file(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= OPEN:
            os.close(self._open.popitem(last=False)[1])
        folder, _, about = self._shards[shard]
        try:
            self._open[shard] = os.open(folder.local(f"{about.name}.tokens.npy"), os.O_RDONLY)
        except OSError as error:
            raise UserError(
                f"The shard '{folder.where(about.name)}.tokens.npy' cannot be read ({error.strerror}); put it back."
            ) from None
        return self._open[shard]
