"""Writing shards of tokens, shard by shard, so that work that was cut short goes on where it stopped; checking them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...core import shards as core
from ...core.block_sums import BLOCK as SUMMED
from ...core.block_sums import block_sums, read_sums
from ...core.files import written_whole
from ...core.work import progress
from ..tokenizer import Tokenizer
from .shards import HEADER, KIND, TOKENIZER, Manifest, Shard, content_of, read_manifest
from .split import SIDES, Side, Sides
from .tokens import GROUP, TokenWriter, encode_group, groups, steps

BLOCK = 1 << 22
"""Numbers that are compared with their checksum at once."""


def write_shards(sides: Sides, tokenizer: Tokenizer, folder: Path, size: int, about: dict[str, Any]) -> Manifest:
    """Tokenises both sides into `folder`; goes on where an earlier call for the same texts stopped.

    Args:
        size: tokens of a shard; the last part of text of each goes beyond it.
        about: what was done to the texts, for the manifest.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    identity = f"{sides.fingerprint[:24]}-{tokenizer.fingerprint[:24]}-{size}"
    start = {"shards": [], "groups": 0, "document": [False, False, 0], "over": False}
    with core.begin(folder, identity, {"sides": dict.fromkeys(SIDES, start)}) as done:
        if done is not None:
            _write(sides, tokenizer, folder, size, done, about)
    return read_manifest(folder)


def _write(
    sides: Sides, tokenizer: Tokenizer, folder: Path, size: int, done: dict[str, Any], about: dict[str, Any]
) -> None:
    with core.writing(folder):
        tokenizer.save(folder / TOKENIZER)
    for side in SIDES:
        _write_side(sides, side, tokenizer, folder, size, done)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32).str
    content: dict[str, Any] = {
        "identity": done["identity"], "tokenizer": tokenizer.fingerprint, "dtype": dtype, "about": about,
        "sides": {side: done["sides"][side]["shards"] for side in SIDES},
    }  # fmt: skip
    core.finish(folder, KIND, content)


def _write_side(sides: Sides, side: Side, tokenizer: Tokenizer, folder: Path, size: int, done: dict[str, Any]) -> None:
    state = done["sides"][side]
    if state["over"]:
        return
    pieces = (piece for piece in sides if piece.side == side)
    several = groups(steps(pieces, tokenizer), min(GROUP, max(1, size)))
    with progress(f"tokenising {side}", sides.bytes, "MB", 1e6) as advance:
        left: Any = _from(several, state["groups"], advance)
        group = next(left, None)
        while group is not None or not state["shards"]:
            name = f"{side}-{len(state['shards']):05d}"
            with core.writing(folder), TokenWriter(folder, name, tokenizer) as writer:
                writer.document = tuple(state["document"])
                # What holds no text, but the end of one, belongs to the shard before.
                while group is not None and (
                    writer.counts()["tokens"] < size or not any(step.part.text for step in group)
                ):
                    for step, ids in zip(group, encode_group(group, tokenizer), strict=True):
                        writer.add(step, ids)
                        advance(len(step.part.text))
                    state["groups"], group = state["groups"] + 1, next(left, None)
                files, counts = writer.finish(), writer.counts()
            sums = [files[f"{name}.{what}.npy"][1] for what in ("tokens", "starts")]
            with core.writing(folder):
                sums.append(_write_sums(folder, name))
            state["shards"].append(list(Shard(name, sums=sums, **counts)))
            state["document"] = list(writer.document)
            core.note(folder, done)
    state["over"] = True
    core.note(folder, done)


def _write_sums(folder: Path, name: str) -> int:
    """Writes the checksums of the blocks of a shard's tokens; returns the CRC-32 of these."""
    with (folder / f"{name}.tokens.npy").open("rb") as file:
        file.seek(HEADER)
        sums = block_sums(iter(lambda: file.read(SUMMED << 8), b""))
    with written_whole(folder / f"{name}.sums") as part:
        part.write_bytes(sums.tobytes())
    return zlib.crc32(sums.tobytes())


def _from(several: Iterator[Any], count: int, advance: Any) -> Iterator[Any]:
    """The groups behind the first `count`, which were written before."""
    for number, group in enumerate(several):
        if number >= count:
            yield group
        else:
            advance(sum(len(step.part.text) for step in group))


def check_shards(folder: core.Folder) -> Manifest:
    """Reads all of a folder of shards, and compares it with its manifest.

    Raises:
        UserError: the first thing that is not as the manifest says.
    """
    manifest = read_manifest(folder)
    manifest.load_tokenizer()
    every = [shard for shards in manifest.sides.values() for shard in shards]
    with progress("checking", sum(shard.tokens for shard in every), "tokens") as advance:
        for shard in every:
            for what, wanted in zip(("tokens", "starts"), shard.sums):
                file = f"{shard.name}.{what}.npy"
                if _sum(folder.local(file)) != wanted:
                    raise core.altered(folder.where(file))
            content = content_of(shard, np.dtype(manifest.dtype))
            if content.sum is not None:
                read_sums(folder, content, content.sum)
            advance(shard.tokens)
    return manifest


def _sum(file: Path) -> int | None:
    """The checksum of the numbers of a `.npy` file; None where it is none."""
    try:
        array = np.load(file, mmap_mode="r") if file.stat().st_size > 128 else np.load(file)
        found = 0
        for start in range(0, len(array), BLOCK):
            found = zlib.crc32(array[start : start + BLOCK].tobytes(), found)
        return found
    except (OSError, ValueError, EOFError):
        return None
