"""Read the structure database of ProMod3 (Debian package `promod3-data`): 21,119 chains, each with a sequence profile.

`structure_db.dat`, little endian: a header of 77 bytes; the number of chains; for each the id, the chain's name, the
offset of its residues, their number, the first residue's number and a shift; then eight vectors over all residues, each
with its count in front. Read are three of them: the sequence, the positions of N, CA, C and O, and the sequence
profile. The last, a profile made from *similar structures*, would tell a model the answer and is not read.

Layout found by comparison with ProMod3 3.2.1 (Studer et al. 2021).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ....core.errors import UserError
from ....core.files import check_regular, parsing
from ...read.alphabet import AMINO_ACIDS, TABLE, UNKNOWN
from ...read.structure import imputed_cbeta
from ..store import Entry

MAGIC, VERSION = 1234, 2
HEADER = 77
# What stands for a residue in each vector: dtype and numbers.
VECTORS: dict[str, tuple[str, int]] = {
    "sequence": ("<u1", 1),
    "positions": ("<u2", 12),
    "angles": ("<i2", 2),
    "accessibility": ("<u2", 1),
    "depth": ("<u2", 1),
    "dssp": ("<u1", 1),
    "profile": ("<u2", 20),
}


class _Chain(NamedTuple):
    name: str
    offset: int
    length: int


def read_promod3(file: str | Path) -> Iterator[Entry]:
    """Yields the chains of a `structure_db.dat`, named entry_chain_first-residue.

    Raises:
        UserError: the file cannot be read or has another layout.
    """
    with parsing(file, "a structure database of ProMod3"):
        content = np.memmap(check_regular(file), np.uint8, "r").data
    chains, vectors = _layout(file, content)
    for chain in chains:
        yield _entry(chain, vectors)


def _layout(file: str | Path, content: memoryview) -> tuple[list[_Chain], dict[str, np.ndarray]]:
    wrong = UserError(
        f"'{file}' is no structure database of ProMod3 3; give structure_db.dat of Debian's package promod3-data."
    )
    if len(content) < HEADER + 8 or struct.unpack_from("<II", content, 0) != (MAGIC, VERSION):
        raise wrong
    at = HEADER
    try:
        (count,) = struct.unpack_from("<Q", content, at)
        at += 8
        chains = []
        for _ in range(count):
            entry, at = _string(content, at)
            chain, at = _string(content, at)
            offset, length, first = struct.unpack_from("<IHH", content, at)
            at += 8 + 12
            chains.append(_Chain(f"{entry}_{chain}_{first}", offset, length))
        vectors = {}
        for name, (dtype, width) in VECTORS.items():
            (residues,) = struct.unpack_from("<Q", content, at)
            at += 8
            vectors[name] = np.frombuffer(content, dtype, residues * width, at).reshape(residues, width)
            at += vectors[name].nbytes
    except (struct.error, ValueError, OverflowError):
        raise wrong from None
    residues = {len(vector) for vector in vectors.values()}
    if len(residues) != 1 or any(chain.offset + chain.length > max(residues) for chain in chains):
        raise wrong
    return chains, vectors


def _string(content: memoryview, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<I", content, at)
    if length > 100:
        raise ValueError(length)
    return content[at + 4 : at + 4 + length].tobytes().decode("ascii"), at + 4 + length


def _entry(chain: _Chain, vectors: dict[str, np.ndarray]) -> Entry:
    here = slice(chain.offset, chain.offset + chain.length)
    backbone = vectors["positions"][here].reshape(-1, 4, 3)[:, :3].astype(np.float32) / 100
    return Entry(
        name=chain.name,
        tokens=np.minimum(TABLE[vectors["sequence"][here, 0]], UNKNOWN),
        positions=np.arange(chain.length),
        cb=imputed_cbeta(backbone),
        profile=vectors["profile"][here].astype(np.float32) / 10_000,
    )


assert VECTORS["profile"][1] == len(AMINO_ACIDS)
