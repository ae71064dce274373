"""Writing protein sequences into shards, shard by shard, so that work that was cut short goes on where it stopped."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...core import shards as core
from ...core.block_sums import block_sums
from ...core.errors import UserError
from ...core.files import written_whole
from ...core.work import progress
from .sequences import Distinct, Protein, is_held_out
from .sharded import FILES, KIND, SIDES, Shard


def write_shards(source: Distinct, folder: Path, rows: int, fraction: float, about: dict[str, Any]) -> None:
    """Writes the sequences of both sides; goes on where an earlier call for the same ones stopped.

    Args:
        source: the sequences, which are read once for each side, and once before to know them.
        folder: to write.
        rows: residues of a shard; the last sequence of each goes beyond it.
        fraction: part of the sequences to hold out.
        about: for the manifest.

    Raises:
        UserError: a side has no sequence, or the folder holds something else or cannot be written.
    """
    every, counts = hashlib.sha256(repr((rows, fraction)).encode()), dict.fromkeys(SIDES, 0)
    for protein in source:
        every.update(protein.letters.encode() + b"\n" + protein.name.encode() + b"\n")
        counts["val" if is_held_out(protein.letters, fraction) else "train"] += 1
    for side, count in counts.items():
        if not count:
            left_out = f"; left out: {source.problems[0]}" if source.problems else ""
            raise UserError(f"No sequence is left for the {side} side; give more, or change --val_fraction{left_out}.")
    start = {"shards": [], "sequences": 0, "over": False}
    identity = every.hexdigest()[:24]
    with core.begin(folder, identity, {"sides": dict.fromkeys(SIDES, start)}) as done:
        if done is None:
            return
        for side in SIDES:
            wanted = (p for p in source if is_held_out(p.letters, fraction) == (side == "val"))
            _write_side(wanted, folder, side, counts[side], rows, done)
        left = {"duplicates": source.duplicates, "left_out": len(source.problems)}
        content = {"identity": identity, "about": about | left}
        core.finish(folder, KIND, content | {"sides": {side: done["sides"][side]["shards"] for side in SIDES}})


def _write_side(
    proteins: Iterator[Protein], folder: Path, side: str, count: int, rows: int, done: dict[str, Any]
) -> None:
    state, part, size = done["sides"][side], list[Protein](), 0
    if state["over"]:
        return

    def flush() -> None:
        with core.writing(folder):
            state["shards"].append(list(_write(folder, f"{side}-{len(state['shards']):05d}", part)))
        state["sequences"] += len(part)
        core.note(folder, done)

    before = state["sequences"]
    with progress(f"writing {side}", count, "sequences") as advance:
        for number, protein in enumerate(proteins):
            advance(1)
            if number < before:
                continue
            part.append(protein)
            size += len(protein.tokens)
            if size >= rows:
                flush()
                part, size = [], 0
        if part:
            flush()
    state["over"] = True
    core.note(folder, done)


def _write(folder: Path, name: str, proteins: list[Protein]) -> Shard:
    index = io.BytesIO()
    np.save(index, np.cumsum([len(protein.tokens) for protein in proteins], dtype=np.int64))
    residues = b"".join(protein.tokens.tobytes() for protein in proteins)
    names = "\n".join(" ".join(protein.name.split()) for protein in proteins).encode()
    parts = [residues, index.getvalue(), names, block_sums([residues]).tobytes()]
    for ending, content in zip(FILES, parts, strict=True):
        with written_whole(folder / f"{name}.{ending}") as part:
            part.write_bytes(content)
    return Shard(name, len(proteins), len(residues), [len(p) for p in parts], [zlib.crc32(p) for p in parts])
