"""Lightning data module for protein chains with known structure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import UserError
from ...core.training.data import ResumableData
from .crops import VERSION, Crops
from .loader import Batches, ChainsByLength, ShuffledChains
from .store import ChainSet, builtin_set, open_set


class ProteinData(ResumableData):
    """Chains with their Cβ positions, profiles and alignments, as batches of crops; see `Crops` for what a batch holds.

    Training visits every chain once per epoch, in an order and with a crop and rows that (seed, epoch) determine.
    Validation scores whole chains, filled up to a multiple of 32 residues, in batches of about as many residue pairs.

    Args:
        folder: a set made by `triune protein prepare`. Left out: a few hundred small chains that come with the package.
        crop: residues of a training example; longer chains are cut, shorter ones filled up.
        batch_size: training examples of a batch on one device.
        msa_rows: rows of the alignment, the chain itself among them; 0 for none.
        only: names of chains to train on and to validate on, both: to see whether a model can learn them by heart.
        max_length: longest chain that is validated whole; longer ones are cut.
        seed: of the order, the crops and the rows.
        workers: processes that prepare batches. Left out: 2 beside a GPU on a machine of more than two cores, else 0.

    Attributes (after `setup`):
        chains: the `ChainSet`.
    """

    def __init__(
        self,
        folder: str | None = None,
        crop: int = 128,
        batch_size: int = 8,
        msa_rows: int = 0,
        only: list[str] | None = None,
        max_length: int = 1024,
        seed: int = 0,
        workers: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("crop", crop, 16),
            ("batch_size", batch_size, 1),
            ("msa_rows", msa_rows, 0),
            ("max_length", max_length, 16),
            ("seed", seed, 0),
            ("workers", workers or 0, 0),
        ):
            if value < least:
                raise UserError(f"data.{name} is {value}, but must be at least {least}.")
        self.folder, self.crop, self.batch_size, self.msa_rows = folder, crop, batch_size, msa_rows
        self.only, self.max_length, self.seed, self.workers = only, max_length, seed, workers
        self.chains: ChainSet | None = None
        self._sides: dict[str, np.ndarray] = {}

    def setup(self, stage: str | None = None) -> None:
        """Map the set; a second call does nothing.

        Raises:
            UserError: the folder is no prepared set, has no training or validation chain, or no alignment where rows
                are asked for.
        """
        if self.chains is not None:
            return
        chains = builtin_set() if self.folder is None else open_set(self.folder)
        if self.only is not None:
            self._sides = dict.fromkeys(("train", "val", "test"), chains.named(self.only))
        else:
            self._sides = {side: chains.of(side) for side in ("train", "val", "test")}
        what = f"'{self.folder}'" if self.folder else "the built-in set"
        for side in ("train", "val"):
            if not len(self._sides[side]):
                raise UserError(f"{what} has no {side} chain; prepare it with more structures or a larger --val.")
        if self.msa_rows and not chains.rows.any():
            raise UserError(
                f"{what} has no alignments; leave --data.msa_rows at 0, or prepare a set with --alignments DIR."
            )
        self.chains = chains

    def describe(self) -> str:
        """One line about the data, after `setup()`."""
        f = self.figures()
        return (
            f"{f.get('train_chains', 0):,} chains to train and {f.get('val_chains', 0):,} to validate on, up to "
            f"{f['longest']:,} residues, {f['with_profile']:,} with a profile, {f['with_alignment']:,} with an "
            f"alignment ({f['folder']})"
        )

    def figures(self) -> dict[str, Any]:
        """Chains and residues of the sides, after `setup()`."""
        chains = self._set()
        lengths = chains.lengths
        sides = {f"{side}_chains": len(numbers) for side, numbers in self._sides.items()}
        train = self._sides["train"]
        return {
            **sides,
            "train_residues": int(lengths[train].sum()),
            "longest": int(lengths.max()),
            "with_profile": int(chains.has_profile.sum()),
            "with_alignment": int((chains.rows > 0).sum()),
            "source": chains.about.get("source", ""),
            "folder": str(Path(self.folder)) if self.folder else "built in",
        }

    def inputs(self) -> dict[str, Any]:
        """What the training chains have beside their sequence, after `setup()`: the share of them with a profile, and
        rows.
        """
        has_profile = self._set().has_profile[self._sides["train"]]
        return {"profiles": round(float(has_profile.mean()), 4), "msa_rows": self.msa_rows}

    # -- batches ------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Batches:
        """Returns the batches of training; each iteration is one epoch, or what is left of it after a resume.

        Raises:
            UserError: the chains do not fill one batch.
        """
        numbers, (rank, world) = self._sides["train"], self.ranks()
        if len(numbers) < self.batch_size * world:
            devices = f" on {world} devices" if world > 1 else ""
            raise UserError(
                f"there are {len(numbers)} training chains, fewer than one batch of {self.batch_size}{devices}; "
                "lower --data.batch_size."
            )
        order = ShuffledChains(numbers, self.crop, self.batch_size, rank, world, self.seed, self.position)
        return Batches(self._crops(), order, self.loader_workers(most=2), self.pin)

    def val_dataloader(self) -> Batches:
        """Returns batches that hold every validation chain once."""
        return self._whole("val")

    def test_dataloader(self) -> Batches:
        """Returns batches that hold every test chain once; the validation chains if the set has no test chains."""
        return self._whole("test" if len(self._sides["test"]) else "val")

    def _whole(self, side: str) -> Batches:
        numbers, (rank, world) = self._sides[side], self.ranks()
        lengths = np.minimum(self._set().lengths[numbers], self.max_length)
        order = ChainsByLength(numbers, lengths, self.batch_size * self.crop**2, rank=rank, world=world)
        return Batches(self._crops(), order, 0, self.pin)

    def _crops(self) -> Crops:
        return Crops(self._set(), self.msa_rows, self.seed)

    def _set(self) -> ChainSet:
        assert self.chains is not None, "batches before setup()"
        return self.chains

    def names_of(self, taken: np.ndarray) -> list[str]:
        """Chains."""
        return self._set().names[taken].tolist()

    def held_out(self) -> list[str]:
        """See `DataModule`: names and lengths of chains."""
        chains, val = self._set(), self._sides["val"]
        return [f"{name}\0{length}" for name, length in zip(chains.names[val], chains.lengths[val])]

    def learned(self) -> Iterator[bytes]:
        """See `ResumableData`: names, residues, profiles and coordinates of chains."""
        chains = self._set()
        for chain in self._sides["train"]:
            here = slice(int(chains.start[chain]), int(chains.start[chain + 1]))
            yield str(chains.names[chain]).encode("utf-8", "surrogatepass")
            for name in ("tokens", "positions", "profile", "cb"):
                yield np.ascontiguousarray(chains.arrays[name][here]).tobytes()

    def draws(self) -> dict[str, int]:
        """See `ResumableData`."""
        return {"the crops of chains and the rows of their alignments": VERSION}

    def order_settings(self) -> dict[str, Any]:
        """See `ResumableData`."""
        return {
            "chains": len(self._sides["train"]),
            "crop": self.crop,
            "batch_size": self.batch_size,
            "msa_rows": self.msa_rows,
            "devices": self.ranks()[1],
            "seed": self.seed,
        }
