"""Batches of chains: crops, subsampled alignments, padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..read.alphabet import AMINO_ACIDS, PAD
from .loader import Draw
from .store import ChainSet

VERSION = 1
"""Of the stretches and rows that `Crops` draws; see the core's versions.py."""


class Crops:
    """Batches of a set: `crops[draw]`.

    A chain that is longer than the batch is cut to a random stretch of it. A batch holds

        tokens          int64 `[batch, residues]`, numbers of `alphabet`, PAD behind the end
        mask            bool `[batch, residues]`, real residues
        residue_index   int64 `[batch, residues]`, positions along the protein
        cb              float32 `[batch, residues, 3]`, Cβ in ångström, 0 where unresolved
        resolved        bool `[batch, residues]`, has a Cβ
        profile         float32 `[batch, residues, 20]`, zeros where the chain has none
        has_profile     bool `[batch]`
        neff            float32 `[batch]`, of the whole alignment, NaN without one
        name            list of str, "" where there is no chain
        recycling       in training, list of float, one number in [0, 1) for all processes: how many passes are made

    and with `rows`, for chains without an alignment only the chain itself:

        msa             int64 `[batch, rows, residues]`, first the chain itself, then rows of its alignment; PAD beyond
        deletions       uint8 `[batch, rows, residues]`, residues inserted before, at most 7

    Args:
        chains: the set.
        rows: rows of `msa`; 0 for none.
        seed: with the position of the batch, and in validation with the chain, it determines stretch and rows.
    """

    def __init__(self, chains: ChainSet, rows: int = 0, seed: int = 0) -> None:
        self.chains, self.rows, self.seed = chains, rows, seed

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        batch = self._empty(len(draw.chains), draw.size)
        for slot, chain in enumerate(draw.chains.tolist()):
            if chain >= 0:
                key = (self.seed, 1, chain) if draw.position is None else (self.seed, 0, chain, draw.position)
                self._fill(batch, slot, chain, np.random.default_rng(key))
        names = [str(self.chains.names[chain]) if chain >= 0 else "" for chain in draw.chains.tolist()]
        batch["mask"] = batch["tokens"] != PAD
        found: dict[str, Any] = {name: torch.from_numpy(array) for name, array in batch.items()}
        found["name"] = names
        if draw.position is not None:
            share = float(np.random.default_rng((self.seed, 2, draw.position)).random())
            found["recycling"] = [share] * len(names)
        return found

    def _empty(self, batch: int, size: int) -> dict[str, np.ndarray]:
        arrays = {
            "tokens": np.full((batch, size), PAD, dtype=np.int64),
            "residue_index": np.zeros((batch, size), dtype=np.int64),
            "cb": np.zeros((batch, size, 3), dtype=np.float32),
            "resolved": np.zeros((batch, size), dtype=bool),
            "profile": np.zeros((batch, size, len(AMINO_ACIDS)), dtype=np.float32),
            "has_profile": np.zeros(batch, dtype=bool),
            "neff": np.full(batch, np.nan, dtype=np.float32),
        }
        if self.rows:
            arrays["msa"] = np.full((batch, self.rows, size), PAD, dtype=np.int64)
            arrays["deletions"] = np.zeros((batch, self.rows, size), dtype=np.uint8)
        return arrays

    def _fill(self, batch: dict[str, np.ndarray], slot: int, chain: int, rng: np.random.Generator) -> None:
        start, end = int(self.chains.start[chain]), int(self.chains.start[chain + 1])
        size = batch["tokens"].shape[1]
        first = int(rng.integers(max(end - start - size, 0) + 1))
        start += first
        end = min(end, start + size)
        here, filled = slice(start, end), slice(0, end - start)
        arrays = self.chains.arrays
        batch["tokens"][slot, filled] = arrays["tokens"][here]
        batch["residue_index"][slot, filled] = arrays["positions"][here]
        batch["profile"][slot, filled] = arrays["profile"][here].astype(np.float32) / 255
        batch["has_profile"][slot] = self.chains.has_profile[chain]
        batch["neff"][slot] = self.chains.neff[chain]
        cb = arrays["cb"][here]
        batch["resolved"][slot, filled] = resolved = ~np.isnan(cb[:, 0])
        batch["cb"][slot, filled] = np.where(resolved[:, None], cb, 0)
        if self.rows:
            self._fill_rows(batch, slot, chain, slice(first, first + end - start), rng)

    def _fill_rows(
        self, batch: dict[str, np.ndarray], slot: int, chain: int, columns: slice, rng: np.random.Generator
    ) -> None:
        width = columns.stop - columns.start
        batch["msa"][slot, 0, :width] = batch["tokens"][slot, :width]
        if (alignment := self.chains.alignment(chain)) is None:
            return
        letters, inserted = alignment
        others = len(letters) - 1
        if others > self.rows - 1:
            chosen = np.sort(rng.choice(others, self.rows - 1, replace=False)) + 1
        else:
            chosen = np.arange(1, others + 1)
        rows = np.concatenate([[0], chosen])
        batch["msa"][slot, : len(rows), :width] = letters[rows, columns]
        batch["deletions"][slot, : len(rows), :width] = inserted[rows, columns]
