"""Tokenise a corpus once: a cache of token arrays, keyed by content, that is opened as memory maps.

A cache entry is a folder of four `.npy` files (token numbers and the offsets at which documents start, for each side)
and a `meta.json` with their sizes and checksums, which is written last. Every file appears whole or not at all, so two
processes may build the same entry at the same time, and an entry that is damaged is built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ...core.errors import UserError
from ...core.files import umask, write_atomic
from ...core.work import progress
from ..tokenizer import Part, Tokenizer
from .split import SIDES, Piece, Side, Sides

FORMAT = 1
# Characters handed to the tokenizer at once: enough for all cores, little enough for memory.
GROUP = 4 << 20


@dataclass(frozen=True)
class TokenArray:
    """One side of a corpus, as it lies in the cache.

    Args:
        folder: the cache entry.
        side: "train" or "val".
        tokens: number of tokens.
        documents: number of documents.
        bytes: UTF-8 bytes of the text.
        first_bytes: those of them that belong to the first token of a document, which nothing predicts.
    """

    folder: Path
    side: Side
    tokens: int
    documents: int
    bytes: int
    first_bytes: int

    def open(self) -> tuple[np.ndarray, np.ndarray]:
        """Map the tokens `[tokens]` and the offsets at which documents start [documents]."""
        return _map(self.folder / f"{self.side}.tokens.npy"), _map(self.folder / f"{self.side}.starts.npy")


def documents_at(borders: Any, at: np.ndarray) -> np.ndarray:
    """The number of the document of each place int64 `[rows, tokens]`; `borders` are what `open` returns."""
    if isinstance(borders, np.ndarray):
        return np.searchsorted(borders, at, side="right") - 1
    return borders.documents(at)


def make_tokenizer(kind: str, vocab_size: int, sides: Sides, cache: Path) -> Tokenizer:
    """Returns the tokenizer called `kind`: "bytes", "characters", "bpe" or a path.

    A BPE is trained on the training side only and kept in the cache. The characters are those of both sides: which
    characters exist says nothing about the held-out text that a model could exploit.
    """
    if kind == "bytes":
        return Tokenizer.bytes()
    if kind == "characters":
        return Tokenizer.characters(block for piece in sides for block in piece.blocks)
    if kind != "bpe":
        return Tokenizer.load(kind)
    folder = cache / "tokenizers" / _key("bpe", vocab_size, sides.fingerprint)
    with contextlib.suppress(UserError):
        return Tokenizer.load(folder / "tokenizer.json")
    with progress(f"training a BPE of {vocab_size} tokens", sides.bytes, "MB", 1e6) as advance:
        tokenizer = Tokenizer.train_bpe(_training_texts(sides, advance), vocab_size)
    with _writing(cache):
        tokenizer.save(folder)
    return tokenizer


def _training_texts(sides: Sides, advance: Callable[[int], None]) -> Iterator[Iterator[str]]:
    for piece in sides:
        if piece.side == "train":
            yield _counted(piece.blocks, advance)


def _counted(blocks: Iterable[str], advance: Callable[[int], None]) -> Iterator[str]:
    for block in blocks:
        advance(len(block))
        yield block


def tokenise(sides: Sides, tokenizer: Tokenizer, cache: Path) -> dict[Side, TokenArray]:
    """Returns both sides as token arrays: from the cache if it knows this content, else tokenised now.

    Raises:
        UserError: the cache folder cannot be written, or a text holds a character the tokenizer does not know.
    """
    # Where only the end-of-text token stands behind a text, the key is that of older entries, which stay valid.
    usual = not tokenizer.beginning and tokenizer.ending in ([], [tokenizer.eos_id])
    around = [] if usual else [tokenizer.beginning, tokenizer.ending]
    key = _key(FORMAT, sides.fingerprint, tokenizer.fingerprint, tokenizer.eos_id, *around)
    folder = cache / "tokens" / key
    if (known := _load(folder)) is not None:
        return known
    with _writing(cache):
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            writers = {side: stack.enter_context(TokenWriter(folder, side, tokenizer)) for side in SIDES}
            with progress("tokenising", sides.bytes, "MB", 1e6) as advance:
                for group in groups(steps(sides, tokenizer)):
                    for step, ids in zip(group, encode_group(group, tokenizer), strict=True):
                        writers[step.side].add(step, ids)
                        advance(len(step.part.text))
            files = {name: entry for writer in writers.values() for name, entry in writer.finish().items()}
        counts = {side: writers[side].counts() for side in SIDES}
        write_atomic(folder / "meta.json", json.dumps({"files": files, "sides": counts}, indent=1).encode())
    return {side: TokenArray(folder, side, **counts[side]) for side in SIDES}


class _Step(NamedTuple):
    """A part of a document, or what stands behind its last one: an empty part, and whether the document ends there."""

    side: Side
    name: str
    part: Part
    last: bool = False
    ends: bool = False


def steps(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[_Step]:
    """The parts of texts, for the tokenizer, with what stands behind the last of each."""
    for side, name, blocks, ends in pieces:
        for part in tokenizer.parts(blocks):
            yield _Step(side, name, part)
        yield _Step(side, name, Part(""), True, ends)


def groups(steps: Iterable[_Step], most: int = 0) -> Iterator[list[_Step]]:
    """Parts that go through the tokenizer together: of about `most` characters, or `GROUP`."""
    most = most or GROUP
    group: list[_Step] = []
    characters = 0
    for step in steps:
        group.append(step)
        characters += len(step.part.text)
        if characters >= most or len(group) >= 1024:
            yield group
            group, characters = [], 0
    if group:
        yield group


def encode_group(group: list[_Step], tokenizer: Tokenizer) -> list[np.ndarray]:
    """The tokens of each part of a group. Raises UserError that names the text that has none."""
    try:
        return list(tokenizer.encode_parts([step.part for step in group]))
    except UserError:
        for step in group:
            try:
                list(tokenizer.encode_parts([step.part]))
            except UserError as error:
                raise UserError(f"{step.name}: {error}") from None
        raise


class TokenWriter:
    """Streams one side, or a shard of it, into temporary `.npy` files; `finish` gives them their names.

    Args:
        folder: where they go.
        side: how their names begin.
        tokenizer: whose numbers are written.
    """

    def __init__(self, folder: Path, side: str, tokenizer: Tokenizer) -> None:
        self._folder = folder
        self._side = side
        self._tokenizer = tokenizer
        self._dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        self._starts: list[int] = []
        self._tokens = self._bytes = self._first_bytes = self._checksum = 0
        # Of the document at hand: whether it has text, whether it has tokens, bytes that do not count yet.
        self._inside, self._begun, self._unwritten = False, False, 0

    def __enter__(self) -> TokenWriter:
        descriptor, self._temporary = tempfile.mkstemp(dir=self._folder, prefix=f".{self._side}-")
        self._file = os.fdopen(descriptor, "wb")
        _header(self._file, self._dtype, 0)
        return self

    @property
    def document(self) -> tuple[bool, bool, int]:
        """What is known of the document at hand, for the writer of the next shard."""
        return self._inside, self._begun, self._unwritten

    @document.setter
    def document(self, known: tuple[bool, bool, int]) -> None:
        self._inside, self._begun, self._unwritten = known

    def add(self, step: _Step, ids: np.ndarray) -> None:
        """Writes a part of a document; those of one document follow each other."""
        if step.part.text:
            self._write(ids if self._inside else [*self._tokenizer.beginning, *ids])
            self._inside, self._unwritten = True, self._unwritten + len(step.part.text.encode())
        if step.last:
            self._write(self._tokenizer.ending if step.ends and self._inside else [])
            # A text of which the tokenizer makes nothing does not count.
            self._bytes += self._unwritten if self._begun else 0
            self._inside, self._begun, self._unwritten = False, False, 0

    def _write(self, ids: np.ndarray | list[int]) -> None:
        if not len(ids):
            return
        if not self._begun:
            self._starts.append(self._tokens)
            self._first_bytes += len(self._tokenizer.token_bytes(int(ids[0])))
            self._begun = True
        content = np.asarray(ids, dtype=np.int64).astype(self._dtype).tobytes()
        self._checksum = zlib.crc32(content, self._checksum)
        self._file.write(content)
        self._tokens += len(ids)

    def finish(self) -> dict[str, list[Any]]:
        """Puts the files in place; returns the length and checksum of each."""
        self._file.seek(0)
        _header(self._file, self._dtype, self._tokens)
        self._file.close()
        os.chmod(self._temporary, 0o666 & ~umask())  # a temporary file is private, what it becomes is not
        os.replace(self._temporary, self._folder / f"{self._side}.tokens.npy")
        starts = np.array(self._starts, dtype=np.int64)
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=f".{self._side}-", delete=False) as file:
            np.save(file, starts)
        os.chmod(file.name, 0o666 & ~umask())
        os.replace(file.name, self._folder / f"{self._side}.starts.npy")
        return {
            f"{self._side}.tokens.npy": [self._tokens, self._checksum],
            f"{self._side}.starts.npy": [len(starts), zlib.crc32(starts.tobytes())],
        }

    def counts(self) -> dict[str, int]:
        return {
            "tokens": self._tokens,
            "documents": len(self._starts),
            "bytes": self._bytes,
            "first_bytes": self._first_bytes,
        }

    def __exit__(self, *_: object) -> None:
        self._file.close()
        Path(self._temporary).unlink(missing_ok=True)


def _header(file: BinaryIO, dtype: np.dtype, count: int) -> None:
    """Writes a `.npy` header; numpy leaves room for the length to grow, so it is equally long for every `count`."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def _map(file: Path) -> np.ndarray:
    array = np.load(file, mmap_mode="r") if file.stat().st_size > 128 else np.load(file)
    # A plain array over the same memory: indexing `np.memmap` itself costs ten times as much.
    return np.asarray(array)


def _load(folder: Path) -> dict[Side, TokenArray] | None:
    """Returns a cache entry if it is there and undamaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        sound = all(_is_sound(folder / name, *entry) for name, entry in meta["files"].items())
        if sound and len(meta["files"]) == 2 * len(SIDES):
            return {side: TokenArray(folder, side, **meta["sides"][side]) for side in SIDES}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError):
        pass
    print(f"the token cache '{folder}' is damaged: building it again", file=sys.stderr)
    return None


def _is_sound(file: Path, length: int, checksum: int) -> bool:
    array = _map(file)
    found = 0
    for start in range(0, len(array), GROUP):
        found = zlib.crc32(array[start : start + GROUP].tobytes(), found)
    return array.ndim == 1 and len(array) == length and found == checksum


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


@contextlib.contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The cache folder '{cache}' cannot be written ({error.strerror}); choose another with --data.cache."
        ) from error
