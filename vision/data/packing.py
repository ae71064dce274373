"""Writing images into shards, shard by shard, so that work that was cut short goes on where it stopped."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...core import shards as core
from ...core.errors import UserError
from ...core.files import written_whole
from ...core.training.run.machine import usable_cores
from ...core.work import progress
from .collection import Collection, Images
from .images import Decoding
from .packed import FILES, INDEX, KIND, REMARKS, Shard
from .scan import Record, look


def write_shards(
    collection: Collection, folder: Path, rows: int, skip: bool, decoding: Decoding, about: dict[str, Any]
) -> dict[str, int]:
    """Writes the images of all sides; goes on where an earlier call for the same ones stopped.

    Args:
        collection: the images.
        folder: to write.
        rows: images of a shard.
        skip: leave out what cannot be read.
        decoding: how each image is decoded once, to see that it can be.
        about: for the manifest.

    Returns:
        Images left out, of each side.

    Raises:
        UserError: an image cannot be read, or the folder cannot be written.
    """
    identity = _identity(collection, rows)
    start = {side: {"shards": [], "over": 0, "skipped": 0} for side in collection.sides}
    with core.begin(folder, identity, {"sides": start}) as done:
        return {} if done is None else _write_sides(collection, folder, rows, skip, decoding, done, about)


def _write_sides(
    collection: Collection, folder: Path, rows: int, skip: bool, decoding: Decoding, done: dict[str, Any],
    about: dict[str, Any],
) -> dict[str, int]:  # fmt: skip
    for side, images in collection.sides.items():
        state = done["sides"][side]
        with progress(f"writing {side} images", len(images) - state["over"], "images") as advance:
            for first in range(state["over"], len(images), rows):
                part = images.select(np.arange(first, min(first + rows, len(images))))
                found = _contents(part, decoding, skip, advance)
                with core.writing(folder):
                    shard = _write(folder, f"{side}-{len(state['shards']):05d}", found)
                state["shards"].append(list(shard))
                state["over"], state["skipped"] = first + len(part), state["skipped"] + len(part) - len(found)
                core.note(folder, done)
    content = {
        "identity": done["identity"], "classes": collection.classes, "numbered": collection.numbered,
        "mirror": collection.mirror, "labelled": collection.labelled, "about": about,
        "sides": {side: state["shards"] for side, state in done["sides"].items()},
    }  # fmt: skip
    core.finish(folder, KIND, content)
    return {side: state["skipped"] for side, state in done["sides"].items()}


def _identity(collection: Collection, rows: int) -> str:
    found = hashlib.sha256(repr((rows, collection.classes)).encode())
    for side, images in collection.sides.items():
        for index, (name, label) in enumerate(zip(images.names, images.labels.tolist(), strict=True)):
            found.update(repr((side, name, label, images.key(index))).encode())
        if images.array is not None:
            found.update(images.array[images.rows].tobytes())
    return found.hexdigest()[:24]


def _contents(images: Images, decoding: Decoding, skip: bool, advance: Any) -> list[tuple[str, int, bytes, Record]]:
    """(name, label, file, record) of the images that can be read."""

    def one(index: int) -> tuple[str, int, bytes, Record]:
        name = images.names[index]
        try:
            content = _file(images, index)
        except OSError as error:
            return name, 0, b"", Record(problem=f"cannot be read ({error.strerror})")
        return name, int(images.labels[index]), content, look(content, name, decoding, None)[0]

    found = []
    with ThreadPoolExecutor(min(32, usable_cores())) as pool:
        for entry in pool.map(one, range(len(images))):
            advance(1)
            if not entry[3].problem:
                found.append(entry)
            elif not skip:
                raise UserError(
                    f"'{entry[0]}' {entry[3].problem}; mend or remove it, or leave such images out: --on_error skip."
                )
    return found


def _file(images: Images, index: int) -> bytes:
    """The file of an image; PNG of one that lies in an array."""
    if images.array is not None:
        file = io.BytesIO()
        Image.fromarray(images.array[images.rows[index]]).save(file, "PNG")
        return file.getvalue()
    source = images.source(index)
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def _write(folder: Path, name: str, found: list[tuple[str, int, bytes, Record]]) -> Shard:
    index = np.zeros(len(found), INDEX)
    offset = 0
    for row, (_, label, content, record) in zip(index, found, strict=True):
        bits = sum(1 << bit for bit, word in enumerate(REMARKS) if word in record.remarks)
        values = (
            offset, len(content), zlib.crc32(content), label, record.width, record.height, record.peak, record.white,
            record.mode.encode(), record.format.encode(), bits, record.digest.encode(),
        )  # fmt: skip
        for field, value in zip(INDEX.names or (), values, strict=True):
            row[field] = value
        offset += len(content)
    file = io.BytesIO()
    np.save(file, index)
    parts = [
        b"".join(content for _, _, content, _ in found), file.getvalue(),
        json.dumps({"names": [name for name, *_ in found]}).encode(),
    ]  # fmt: skip
    for ending, content in zip(FILES, parts, strict=True):
        with core.writing(folder), written_whole(folder / f"{name}.{ending}") as part:
            part.write_bytes(content)
    return Shard(name, len(found), [len(part) for part in parts], [zlib.crc32(part) for part in parts])
