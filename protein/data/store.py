"""A set of chains for training: sequence, Cβ positions, profile and alignment, as flat arrays that are mapped from
disk.

A folder holds

    chains.tsv     one line per chain: name, split, cluster, length, alignment rows, Neff, whether it has a profile,
                   identity of its closest relative in training (held-out chains; 0 for none)
    tokens         uint8 `[residues]`, numbers of `alphabet`
    positions      int32 `[residues]`, position along the protein
    cb             float32 `[residues, 3]`, Cβ in ångström, NaN where unresolved
    profile        uint8 `[residues, 20]`, frequency times 255
    cells          uint8 [cells], alignments one after the other, each `[rows, length]`: the number of the letter in the
                   lower five bits, the residues inserted before it (at most 7) in the upper three
    meta.json      format, source and sizes

with all chains one behind the other.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ...core.errors import UserError, nearest
from ...core.files import parsing, read_json, read_table
from ..read.alphabet import AMINO_ACIDS, TABLE, UNKNOWN
from ..read.structure import imputed_cbeta

FORMAT = 1
BUILTIN = Path(__file__).parents[1] / "builtin" / "chains.npz"
SPLITS = ("train", "val", "test")
COLUMNS = ["name", "split", "cluster", "length", "rows", "neff", "profile", "relative"]
LAYOUT: dict[str, tuple[str, tuple[int, ...]]] = {
    "tokens": ("<u1", ()),
    "positions": ("<i4", ()),
    "cb": ("<f4", (3,)),
    "profile": ("<u1", (len(AMINO_ACIDS),)),
    "cells": ("<u1", ()),
}
TOKEN_BITS = 5
MOST_INSERTED = 7


class Entry(NamedTuple):
    """One chain.

    Args:
        name: unique in the set.
        tokens: uint8 `[residues]`.
        positions: int `[residues]`.
        cb: float32 `[residues, 3]`, NaN where unresolved.
        profile: float `[residues, 20]` or None.
        msa: uint8 `[rows, residues]`, the first row the chain itself; or None.
        deletions: uint8 `[rows, residues]`.
        neff: of the whole alignment; NaN without one.
    """

    name: str
    tokens: np.ndarray
    positions: np.ndarray
    cb: np.ndarray
    profile: np.ndarray | None = None
    msa: np.ndarray | None = None
    deletions: np.ndarray | None = None
    neff: float = float("nan")


@dataclass(frozen=True)
class ChainSet:
    """Chains by number; arrays as in the module's description.

    Args:
        names, split, cluster: str `[chains]`.
        start: int64 `[chains + 1]`, where the residues of each chain start.
        rows: int32 `[chains]`, rows of the alignment, 0 without one.
        cell_start: int64 `[chains + 1]`, where the cells of each alignment start.
        neff: float32 `[chains]`.
        has_profile: bool `[chains]`.
        relative: float32 `[chains]`, identity of the closest relative in training; 0 for none and for training chains.
        arrays: by the names in `LAYOUT`.
        about: source and licence, for printing.
        origin: function and arguments that open the set again, in another process.
    """

    names: np.ndarray
    split: np.ndarray
    cluster: np.ndarray
    start: np.ndarray
    rows: np.ndarray
    cell_start: np.ndarray
    neff: np.ndarray
    has_profile: np.ndarray
    relative: np.ndarray
    arrays: Mapping[str, np.ndarray]
    about: dict[str, Any]
    origin: tuple[Callable[..., ChainSet], tuple[Any, ...]]

    def __reduce__(self) -> tuple[Callable[..., ChainSet], tuple[Any, ...]]:
        # Pickling a map would copy the set.
        return self.origin

    def __len__(self) -> int:
        return len(self.names)

    @property
    def lengths(self) -> np.ndarray:
        """Residues of each chain, int64 `[chains]`."""
        return np.diff(self.start)

    def of(self, split: str) -> np.ndarray:
        """Returns the numbers of the chains of a split."""
        return np.flatnonzero(self.split == split)

    def named(self, names: list[str]) -> np.ndarray:
        """Returns the numbers of chains.

        Raises:
            UserError: a name is not in the set.
        """
        known = {name: number for number, name in enumerate(self.names.tolist())}
        if missing := [name for name in names if name not in known]:
            raise UserError(
                f"the set has no chain named {', '.join(missing[:5])}{nearest(missing[0], known)}; its {len(self):,} "
                f"chains have names such as {', '.join(self.names[:3].tolist())} (a prepared set lists them in "
                "chains.tsv)."
            )
        return np.array([known[name] for name in names])

    def alignment(self, chain: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns letters and insertions uint8 `[rows, residues]` of a chain's alignment, or None."""
        if not self.rows[chain]:
            return None
        cells = self.arrays["cells"][self.cell_start[chain] : self.cell_start[chain + 1]].reshape(self.rows[chain], -1)
        return cells & ((1 << TOKEN_BITS) - 1), cells >> TOKEN_BITS


def open_set(folder: str | Path) -> ChainSet:
    """Map a set from the folder that `triune protein prepare` made.

    Raises:
        UserError: it is no such folder, or it is damaged.
    """
    folder = Path(folder)
    try:
        about, rows = read_json(folder / "meta.json"), read_table(folder / "chains.tsv", COLUMNS)
    except UserError as error:
        made = "make one with `triune protein prepare OUT --structures DIR`."
        raise UserError(f"'{folder}' is no prepared set of chains: {str(error).rstrip('.')}; {made}") from None
    if about.get("format") != FORMAT:
        raise UserError(f"'{folder}' has format {about.get('format')}, this version reads {FORMAT}; prepare it again.")
    with parsing(folder, "a prepared set of chains"):
        return _mapped(folder, about, rows)


def _mapped(folder: Path, about: dict[str, Any], rows: list[dict[str, str]]) -> ChainSet:
    """The set of a folder whose two tables were read. Raises UserError when the arrays do not fit them."""

    def column(name: str, dtype: Any) -> np.ndarray:
        return np.array([row[name] for row in rows]).astype(dtype)

    lengths, depths = column("length", np.int64), column("rows", np.int64)
    split, residues = column("split", str), int(lengths.sum())
    if (lengths < 1).any() or (depths < 0).any() or not set(split.tolist()) <= set(SPLITS):
        raise UserError(f"'{folder / 'chains.tsv'}' has a length, a depth or a split that cannot be; prepare it again.")
    sizes = dict.fromkeys(LAYOUT, residues) | {"cells": int((lengths * depths).sum())}
    arrays = {}
    for name, (dtype, shape) in LAYOUT.items():
        file, expected = folder / name, sizes[name] * math.prod(shape) * np.dtype(dtype).itemsize
        if not file.is_file() or not file.stat().st_size == expected == about["sizes"][name]:
            raise UserError(f"'{file}' should hold {expected:,} bytes; the set is damaged, prepare it again.")
        mapped = np.memmap(file, dtype, "r") if expected else np.empty(0, dtype)
        # A plain array over the same memory: indexing `np.memmap` itself costs ten times as much.
        arrays[name] = np.asarray(mapped).reshape(-1, *shape)
    if residues and arrays["tokens"].max() > UNKNOWN:
        raise UserError(f"'{folder / 'tokens'}' holds numbers that stand for no residue; prepare the set again.")
    return ChainSet(
        names=column("name", str),
        split=split,
        cluster=column("cluster", str),
        start=_starts(lengths),
        rows=depths,
        cell_start=_starts(lengths * depths),
        neff=column("neff", np.float32),
        has_profile=column("profile", np.int64) > 0,
        relative=column("relative", np.float32),
        arrays=arrays,
        about=about,
        origin=(open_set, (folder,)),
    )


def builtin_set() -> ChainSet:
    """Returns the chains that come with the package (see `builtin/README.md`): small, with profile, without
    alignments.
    """
    with np.load(BUILTIN) as file:
        data = {name: file[name] for name in file.files}
    lengths = data["length"].astype(np.int64)
    chains, residues = len(lengths), int(lengths.sum())
    # Steps from atom to atom, which compress better than positions.
    backbone = data["steps"].reshape(-1, 3).astype(np.int64).cumsum(0).reshape(residues, 3, 3) / 100
    arrays = {
        "tokens": TABLE[data["sequence"]],
        "positions": np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        "cb": imputed_cbeta(backbone.astype(np.float32)),
        "profile": data["profile"],
        "cells": np.empty(0, dtype=np.uint8),
    }
    return ChainSet(
        names=data["name"],
        split=data["split"],
        cluster=data["name"],
        start=_starts(lengths),
        rows=np.zeros(chains, dtype=np.int64),
        cell_start=np.zeros(chains + 1, dtype=np.int64),
        neff=np.full(chains, np.nan, dtype=np.float32),
        has_profile=np.ones(chains, dtype=bool),
        relative=np.zeros(chains, dtype=np.float32),
        arrays=arrays,
        about={"source": "Debian promod3-data (Apache-2.0), PDB coordinates (CC0)"},
        origin=(builtin_set, ()),
    )


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


class Writer:
    """Writes a set chain by chain; `finish` writes what makes the folder valid, last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []

    @cached_property
    def _files(self) -> dict[str, BinaryIO]:
        return {name: (self.folder / name).open("wb") for name in LAYOUT}

    def add(self, entry: Entry) -> None:
        """Appends a chain."""
        length = len(entry.tokens)
        profile = np.zeros((length, len(AMINO_ACIDS))) if entry.profile is None else entry.profile
        parts = {
            "tokens": entry.tokens,
            "positions": entry.positions,
            "cb": entry.cb,
            "profile": np.rint(np.asarray(profile) * 255).clip(0, 255),
        }
        if entry.msa is not None:
            deletions = 0 if entry.deletions is None else np.minimum(entry.deletions, MOST_INSERTED)
            parts["cells"] = entry.msa | (np.asarray(deletions, dtype=np.uint8) << TOKEN_BITS)
        for name, part in parts.items():
            self._files[name].write(np.ascontiguousarray(part, dtype=LAYOUT[name][0]).tobytes())
        self.rows.append(
            {
                "name": entry.name,
                "split": "train",
                "cluster": entry.name,
                "length": length,
                "rows": 0 if entry.msa is None else len(entry.msa),
                "neff": f"{entry.neff:.4f}",
                "profile": int(entry.profile is not None),
                "relative": 0,
            }
        )

    def finish(self, about: dict[str, Any]) -> None:
        """Closes the arrays and writes the table and `meta.json`."""
        sizes = {}
        for name, file in self._files.items():
            file.close()
            sizes[name] = (self.folder / name).stat().st_size
        with (self.folder / "chains.tsv").open("w", encoding="utf-8", newline="") as table:
            writer: csv.DictWriter[str] = csv.DictWriter(table, COLUMNS, delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        meta = {"format": FORMAT, **about, "sizes": sizes}
        (self.folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")

    def close(self) -> None:
        """Closes the arrays without finishing."""
        for file in vars(self).get("_files", {}).values():
            file.close()
