"""A look at every image before training: header, full decoding and a hash of its pixels, remembered between runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...core.training.run.machine import usable_cores
from ...core.work import progress
from .collection import Images
from .images import (
    FORMAT_OF,
    Decoding,
    UnreadableImage,
    decode,
    float_white,
    is_wide,
    open_image,
    own_white,
)  # fmt: skip

VERSION = 3
"""Of what is remembered; raised when decoding or the record changes."""
_FULL_RANGE = 1 << 14
"""A 16-bit grey image with such a value uses all 16 bits."""

Kept = dict[tuple[int, int], np.ndarray]
"""Pixels of images that were decoded on the way, by the number of their source (`id` of `Images.encoded`) and their row
in it."""


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
        peak: largest value of a 16-bit image, as far as it is known; of floats the value that is taken as white, 1 or
            255; 0 for other images.
        white: of 16-bit grey, the value that is white by the file itself; 0 if the file does not say it.
    """

    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    digest: str = ""
    problem: str = ""
    remarks: tuple[str, ...] = ()
    peak: int = 0
    white: int = 0

    @property
    def open_range(self) -> bool:
        """It is 16-bit grey whose range the whole data set has to tell."""
        return self.peak > 0 and not self.white and is_wide(self.mode)


Fit = Callable[[Image.Image], np.ndarray]
"""From a decoded image (mode RGB) to the pixels that are kept, uint8 [channels, height, width]."""


def look(source: str | bytes, name: str, decoding: Decoding, fit: Fit | None) -> tuple[Record, Any]:
    """The record of one image and, of one that can be decoded, what `fit` makes of it (else None).

    Never raises for what is wrong with it.
    """
    values, largest, opened = None, 0.0, None
    try:
        opened = open_image(source, name, decoding.max_pixels)
        image, name, white = opened.image, opened.name, opened.white
        width, height = image.size
        mode, kind = image.mode, image.format or ""
        deep = _deep_colour(image)
        remarks = _remarks(name, kind, mode, width, height, _animated(image), deep)
        if is_wide(mode):
            image.load()
            values = np.asarray(image)
        if mode == "F":
            image.load()
            largest = float(np.asarray(image).max())
        decoded = decode(opened, 3, decoding)
    except UnreadableImage as error:
        return Record(problem=error.reason), None
    except Exception as error:
        return Record(problem=f"is damaged ({error})"), None
    finally:
        if opened is not None:
            opened.image.close()
    pixels = np.asarray(decoded)
    peak = (int(pixels.max()) << 8 | 255) if deep else 0
    if mode == "F":
        peak = float_white(largest)
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.tobytes())
    if values is not None:
        peak, white = int(values.max()), own_white(values, white)
        if peak < _FULL_RANGE:  # in 8 bits, images of few bits would look alike
            digest.update(values.tobytes())
    record = Record(width, height, mode, kind, digest.hexdigest(), "", remarks, peak, white)
    return record, None if fit is None else fit(decoded)


def _animated(image: Image.Image) -> bool:
    """Whether there are further frames or layers; damaged ones say nothing about the first, which is read."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # decoders raise whatever a damaged file leads them into
        return False


def _deep_colour(image: Image.Image) -> bool:
    """Colour of 16 bits, of which Pillow keeps the upper 8."""
    tiles = getattr(image, "tile", None)
    return bool(tiles) and not is_wide(image.mode) and ";16" in str(tiles[0][3])


def _remarks(name: str, kind: str, mode: str, width: int, height: int, animated: bool, deep: bool) -> tuple[str, ...]:
    promised = FORMAT_OF.get(Path(name).suffix.lower())
    tests = {
        "named otherwise": promised is not None and kind not in (promised, "MPO"),
        "animated": animated,
        "16 bits": is_wide(mode) or deep,
        "float": mode == "F",
        "transparent": mode in ("RGBA", "LA", "PA"),
        "CMYK": mode == "CMYK",
        "longer than 1:5": max(width, height) > 5 * min(width, height),
        "below 16 pixels": min(width, height) < 16,
    }
    return tuple(remark for remark, applies in tests.items() if applies)


def scan(images: Images, cache: Path, label: str, fit: Fit | None = None, kept: Kept | None = None) -> list[Record]:
    """Looks at all files of a side, in parallel, with a progress bar; files known by (path, size, time) are not read.

    Args:
        images: the side.
        cache: folder where records are remembered.
        label: of the progress bar.
        fit: applied to each image that is decoded, whose result goes into `kept`.
        kept: see `Kept`.
    """
    if images.array is not None:
        return [_array_record(images.array[row]) for row in images.rows]
    if (known_record := getattr(images.encoded, "record", None)) is not None:
        return [_bounded(known_record(int(row)), images.decoding.max_pixels) for row in images.rows]
    records: list[Record | None] = [None] * len(images)
    keys = [images.key(index) for index in range(len(images))]
    with _Memory(cache) as memory:
        known = memory.recall(keys)
        missing = []
        for index, key in enumerate(keys):
            # A problem with the size depends on a setting, and is not remembered; a known file has none.
            if key in known and known[key].width * known[key].height <= images.decoding.max_pixels:
                records[index] = known[key]
            else:
                missing.append(index)

        def one(index: int) -> tuple[Record, Any]:
            try:
                return look(images.source(index), images.names[index], images.decoding, fit)
            except OSError as error:
                return Record(problem=f"cannot be read ({error.strerror})"), None

        with ThreadPoolExecutor(min(32, usable_cores())) as pool, progress(label, len(missing), "images") as advance:
            for index, (record, pixels) in zip(missing, pool.map(one, missing, chunksize=1)):
                records[index] = record
                memory.add(keys[index], record)
                if kept is not None and pixels is not None:
                    kept[id(images.encoded), int(images.rows[index])] = pixels
                advance(1)
    return [record for record in records if record is not None]


def _bounded(record: Record, most: int) -> Record:
    """A record that was made before, under the present bound on pixels."""
    if record.width * record.height <= most:
        return record
    return Record(problem=f"has {record.width * record.height / 1e6:.1f} megapixels, more than --data.max_megapixels")


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
