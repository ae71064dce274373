"""A look at every image before training: header, full decoding and a hash of its pixels, remembered between runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ...core.training.run.machine import usable_cores
from ...core.work import progress
from .collection import Images
from .images import FORMAT_OF, UnreadableImage, decode, open_image

VERSION = 1
"""Of what is remembered; raised when decoding or the record changes."""


@dataclass(frozen=True)
class Record:
    """What one image is.

    Args:
        width, height: in pixels, as stored (before the EXIF orientation).
        mode: Pillow's name, such as L, RGB, P, I;16.
        format: Pillow's name, such as JPEG.
        digest: hash of the decoded pixels, equal for equal pictures in different files.
        problem: why it cannot be decoded; empty if it can.
        remarks: what is odd about it.
    """

    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    digest: str = ""
    problem: str = ""
    remarks: tuple[str, ...] = ()


def look(source: str | bytes, name: str) -> Record:
    """Decode one image. Never raises for what is wrong with it."""
    try:
        image, name = open_image(source, name)
        width, height = image.size
        mode, kind = image.mode, image.format or ""
        remarks = _remarks(name, kind, mode, width, height, bool(getattr(image, "is_animated", False)))
        pixels = np.asarray(decode(image, name))
    except UnreadableImage as error:
        return Record(problem=error.reason)
    except Exception as error:
        return Record(problem=f"is damaged ({error})")
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.tobytes())
    return Record(width, height, mode, kind, digest.hexdigest(), "", remarks)


def _remarks(name: str, kind: str, mode: str, width: int, height: int, animated: bool) -> tuple[str, ...]:
    promised = FORMAT_OF.get(Path(name).suffix.lower())
    tests = {
        "named otherwise": promised is not None and kind not in (promised, "MPO"),
        "animated": animated,
        "16 bits": mode == "I" or mode.startswith("I;16"),
        "float": mode == "F",
        "transparent": mode in ("RGBA", "LA", "PA"),
        "CMYK": mode == "CMYK",
        "longer than 1:5": max(width, height) > 5 * min(width, height),
        "below 16 pixels": min(width, height) < 16,
    }
    return tuple(remark for remark, applies in tests.items() if applies)


def scan(images: Images, cache: Path, label: str) -> list[Record]:
    """Look at all files of a side, in parallel, with a progress bar; files known by (path, size, time) are not read."""
    if images.array is not None:
        return [_array_record(images.array[row]) for row in images.rows]
    records: list[Record | None] = [None] * len(images)
    keys = [images.key(index) for index in range(len(images))]
    with _Memory(cache) as memory:
        known = memory.recall(keys)
        missing = []
        for index, key in enumerate(keys):
            if key in known:
                records[index] = known[key]
            else:
                missing.append(index)

        def one(index: int) -> Record:
            try:
                return look(images.source(index), images.names[index])
            except OSError as error:
                return Record(problem=f"cannot be read ({error.strerror})")

        with ThreadPoolExecutor(min(32, usable_cores())) as pool, progress(label, len(missing), "images") as advance:
            for index, record in zip(missing, pool.map(one, missing, chunksize=1)):
                records[index] = record
                memory.add(keys[index], record)
                advance(1)
    return [record for record in records if record is not None]


def _array_record(pixels: np.ndarray) -> Record:
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()
    return Record(pixels.shape[1], pixels.shape[0], "L" if pixels.ndim == 2 else "RGB", "array", digest)


class _Memory:
    """Records of files that were looked at, in a small database; a cache that cannot be used is no error."""

    def __init__(self, cache: Path) -> None:
        self._path = cache / "images" / f"seen-{VERSION}.sqlite"
        self._new: list[tuple[str, int, int, str]] = []
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> _Memory:
        with contextlib.suppress(OSError, sqlite3.Error):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._path, timeout=10)
            self._database.execute(
                "create table if not exists seen (path text primary key, size integer, time integer, record text)"
            )
        return self

    def recall(self, keys: list[tuple[str, int, int] | None]) -> dict[tuple[str, int, int] | None, Record]:
        found: dict[tuple[str, int, int] | None, Record] = {}
        if self._database is None:
            return found
        with contextlib.suppress(sqlite3.Error, ValueError, TypeError):
            wanted = [key for key in keys if key is not None]
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                marks = ",".join("?" * len(part))
                query = f"select path, size, time, record from seen where path in ({marks})"
                for path, size, changed, record in self._database.execute(query, [key[0] for key in part]):
                    values = json.loads(record)
                    found[path, size, changed] = Record(**values | {"remarks": tuple(values["remarks"])})
        return found

    def add(self, key: tuple[str, int, int] | None, record: Record) -> None:
        if key is not None and not record.problem:  # what is broken may be mended without a trace
            self._new.append((*key, json.dumps(asdict(record))))
        if len(self._new) >= 5000:
            self._write()

    def _write(self) -> None:
        if self._database is not None and self._new:
            with contextlib.suppress(sqlite3.Error), self._database:
                self._database.executemany("insert or replace into seen values (?, ?, ?, ?)", self._new)
        self._new.clear()

    def __exit__(self, *_: object) -> None:
        self._write()
        if self._database is not None:
            self._database.close()
