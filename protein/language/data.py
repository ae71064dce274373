"""Protein sequences of FASTA files as masked batches, to train a language model on."""

from __future__ import annotations

import glob
import zlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core import masking
from ...core.errors import UserError
from ...core.files import few
from ...core.losses import IGNORED
from ...core.training import by_length
from ...core.training.by_length import PooledByLength, SequencesByLength
from ...core.training.data import Batches, Draw, InOrder, ResumableData, Shuffled
from ..data.store import builtin_set
from ..read import alphabet
from ..read.complexes import spans
from ..read.inputs import read_sequences
from .model import PAD, esm_tokens, mask_tokens

VERSION = 1
"""Of the crops that `Masked` draws; see the core's versions.py."""
MULTIPLE = 32
"""Widths of batches are multiples of this, so that a compiled model sees few shapes."""


class SequenceData(ResumableData):
    """Protein sequences from FASTA files, masked for training as a language model.

    A batch is a dict of int64 tensors `[batch, tokens]`: `tokens`, ESM-2's numbers with <cls> and <eos>, 15 % of the
    residues masked; `targets`, what stood there, -100 elsewhere. Order, crops and masks depend on (seed, position)
    only, so that a resumed run continues exactly; crops and masks of the validation set are always the same, whatever
    its batches.

    The validation set is a part of the distinct sequences chosen by their content. Relatives of it may be in training:
    its loss says how well training goes, not how well the model does on new families.

    Args:
        files: FASTA files or globs of such (.gz too). Left out: the few hundred small chains that come with the
            package, enough to try the command, far too few for a language model.
        val_fraction: part of the distinct sequences to hold out; the built-in chains have a split of their own.
        context: residues of a crop; longer sequences are cropped at random.
        batch_size: sequences of a batch on one device.
        seed: chooses order, crops and masks.
        workers: processes that prepare batches. Left out: 1 beside a GPU on a machine of more than two cores, else 0.

    Attributes (after `setup`):
        sides: the sequences of `train` and `val`, numbers of `alphabet`.
        names: those of the sequences of `train`.
    """

    def __init__(
        self,
        files: list[str] | str | None = None,
        val_fraction: float = 0.05,
        context: int = 256,
        batch_size: int = 32,
        seed: int = 0,
        workers: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction is {val_fraction}, but must be between 0 and 1, such as 0.05.")
        for name, value, least in (
            ("context", context, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("workers", workers or 0, 0),
        ):
            if value < least:
                raise UserError(f"data.{name} is {value}, but must be at least {least}.")
        self.files = [files] if isinstance(files, str) else files
        self.val_fraction, self.context, self.batch_size = val_fraction, context, batch_size
        self.seed, self.workers = seed, workers
        self.sides: dict[str, list[np.ndarray]] = {}
        self.names: list[str] = []
        self.duplicates = 0
        self.problems: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        """Reads the files; a sequence that is none is left out, and said so.

        Raises:
            UserError: a file cannot be read, or a side has too few sequences.
        """
        if self.sides:
            return
        sides = self._builtin() if self.files is None else self._read(self.files)
        if len(sides["train"]) < self.batch_size or not sides["val"]:
            left_out = f"; left out: {self.problems[0]}" if self.problems else ""
            raise UserError(
                f"The files hold {len(sides['train']):,} sequences for training and {len(sides['val']):,} for "
                f"validation, fewer than one batch of {self.batch_size} and one; give more or change "
                f"--data.batch_size or --data.val_fraction{left_out}."
            )
        self.sides = sides

    def _builtin(self) -> dict[str, list[np.ndarray]]:
        chains = builtin_set()
        tokens = chains.arrays["tokens"]
        self.names = chains.names[chains.of("train")].tolist()
        return {
            side: [tokens[chains.start[chain] : chains.start[chain + 1]] for chain in chains.of(side)]
            for side in ("train", "val")
        }

    def _read(self, files: list[str]) -> dict[str, list[np.ndarray]]:
        paths = [path for name in files for path in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]
        if not paths:
            raise UserError(f"data.files is {few(files)}, but no file matches; give FASTA files.")
        problems: list[str] = []
        records = [
            record for path in paths for record in read_sequences(path, on_error=lambda e: problems.append(str(e)))
        ]
        # The chains of a complex are proteins of their own.
        chains = {
            record.letters[span]: record.name
            for record in records
            for span in spans(record.chains, len(record.letters))
        }
        count = sum(max(len(record.chains), 1) for record in records)
        self.duplicates, self.problems = count - len(chains), problems
        distinct: dict[str, np.ndarray] = {}
        for letters, name in chains.items():
            tokens = alphabet.encode(letters)
            try:
                alphabet.check_protein(tokens, f"the sequence '{name}'")
                distinct[letters] = tokens
            except UserError as error:
                problems.append(str(error))
        sides: dict[str, list[np.ndarray]] = {"train": [], "val": []}
        for letters, tokens in distinct.items():
            held_out = zlib.crc32(letters.encode()) < self.val_fraction * 2**32
            sides["val" if held_out else "train"].append(tokens)
            self.names += [] if held_out else [chains[letters]]
        return sides

    def describe(self) -> str:
        """One line about the data, after `setup()`."""
        f = self.figures()
        left_out = [f"{self.duplicates:,} duplicates left out"] if self.duplicates else []
        if self.problems:
            left_out.append(f"{len(self.problems):,} left out, the first: {self.problems[0]}")
        return ", ".join(
            [
                f"{f['sequences_train']:,} sequences to train and {f['sequences_val']:,} to validate on",
                f"{f['residues_train']:,} residues",
                *left_out,
                "built in" if self.files is None else " ".join(self.files),
            ]
        )

    def figures(self) -> dict[str, Any]:
        """Sequences and residues of both sides, and the duplicates that were left out."""
        counts = {f"sequences_{side}": len(chains) for side, chains in self.sides.items()}
        counts |= {f"residues_{side}": sum(map(len, chains)) for side, chains in self.sides.items()}
        return counts | {"duplicates": self.duplicates}

    def train_dataloader(self) -> Batches:
        """Returns the batches of training; each iteration is one epoch, or what is left of it after a resume."""
        lengths = np.array([len(chain) for chain in self.sides["train"]])
        order = PooledByLength(lengths, self.batch_size, *self.ranks(), self.seed, self.position)
        return self._batches("train", order, self.loader_workers(most=1))

    def val_dataloader(self) -> Batches:
        """Returns batches that hold every validation sequence once."""
        lengths = np.array([len(chain) for chain in self.sides["val"]])
        return self._batches("val", SequencesByLength(lengths, self.batch_size, *self.ranks()), 0)

    def test_dataloader(self) -> Batches:
        """The validation set; there is no third one."""
        return self.val_dataloader()

    def _batches(self, side: str, order: Shuffled | InOrder, workers: int) -> Batches:
        return Batches(Masked(self.sides[side], self.context, self.seed), order, workers, self.pin)

    def names_of(self, taken: np.ndarray) -> list[str]:
        """Sequences, as their file names them."""
        return [self.names[index] for index in taken.tolist()]

    def held_out(self) -> list[bytes]:
        """See `DataModule`: sequences."""
        return [chain.tobytes() for chain in self.sides["val"]]

    def learned(self) -> list[bytes]:
        """See `ResumableData`: sequences."""
        return [chain.tobytes() for chain in self.sides["train"]]

    def draws(self) -> dict[str, int]:
        """See `ResumableData`."""
        order = {"the order of batches by length": by_length.VERSION}
        return order | {"the crops of sequences": VERSION, "the hidden residues": masking.VERSION}

    def order_settings(self) -> dict[str, Any]:
        """See `ResumableData`."""
        return {
            "sequences": len(self.sides["train"]),
            "context": self.context,
            "batch_size": self.batch_size,
            "devices": self.ranks()[1],
            "seed": self.seed,
        }


class Masked:
    """Batches of some sequences, cropped, masked and filled up: `masked[draw]`.

    A slot of the draw that holds no sequence becomes <cls> <eos> without targets.

    Args:
        chains: numbers of `alphabet`, uint8 `[residues]` each.
        context: residues of a crop.
        seed: with the sequence and, in training, the position, it determines crop and mask.
    """

    def __init__(self, chains: list[np.ndarray], context: int, seed: int) -> None:
        self.chains, self.context, self.seed = chains, context, seed

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        rows = [self._row(int(index), draw.position) for index in draw.indices]
        width = -(-max(len(tokens) for tokens, _ in rows) // MULTIPLE) * MULTIPLE
        width = min(width, self.context + 2)
        inputs, targets = (
            torch.stack([F.pad(part, (0, width - len(part)), value=fill) for part in parts])
            for parts, fill in zip(zip(*rows), (PAD, IGNORED))
        )
        return {"tokens": inputs, "targets": targets}

    def _row(self, index: int, position: int | None) -> tuple[Tensor, Tensor]:
        """Tokens and targets of one sequence, `[tokens]`."""
        chain = self.chains[index] if index >= 0 else np.empty(0, dtype=np.uint8)
        key = (self.seed, 1, max(index, 0)) if position is None else (self.seed, 0, index, position)
        random = np.random.default_rng(key)
        first = int(random.integers(max(1, len(chain) - self.context + 1)))
        crop = torch.from_numpy(chain[first : first + self.context].astype(np.int64))
        generator = torch.Generator().manual_seed(int(random.integers(2**63)))
        tokens, targets = mask_tokens(esm_tokens(crop[None]), generator)
        return tokens[0], targets[0]
