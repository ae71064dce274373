"""Protein sequences of FASTA files as masked batches, to train a language model on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core import masking
from ...core.errors import UserError
from ...core.losses import IGNORED
from ...core.shards import Folder
from ...core.stores import Cache, is_url, local_path
from ...core.training import by_length
from ...core.training.by_length import PooledByLength, SequencesByLength
from ...core.training.data import Batches, Draw, InOrder, ResumableData, Shuffled
from ..data.store import builtin_set
from .model import PAD, esm_tokens, mask_tokens
from .sequences import Distinct, is_held_out, named_files
from .sharded import Packed, read_shards

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
        files: FASTA files, globs or URLs of such (.gz too). Left out: the few hundred small chains that come with the
            package, enough to try the command, far too few for a language model.
        val_fraction: part of the distinct sequences to hold out; the built-in chains have a split of their own.
        context: residues of a crop; longer sequences are cropped at random.
        batch_size: sequences of a batch on one device.
        seed: chooses order, crops and masks.
        workers: processes that prepare batches. Left out: 1 beside a GPU on a machine of more than two cores, else 0.
        shards: instead of `files`, a folder or the URL of one that `triune protein shard` wrote.
        cache: folder for files of stores (`s3://…` and other URLs). Left out: $TRIUNE_CACHE, or triune in the user's
            cache folder.
        cache_gb: 10⁹ bytes that it keeps of them. Left out: 20.

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
        shards: str | None = None,
        cache: str | None = None,
        cache_gb: float | None = None,
    ) -> None:
        super().__init__()
        if shards is not None and files is not None:
            raise UserError("data.shards is given together with data.files; give one of them.")
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
        self.shards, self.cache, self.cache_gb = shards, cache, cache_gb
        self.sides: dict[str, list[np.ndarray] | Packed] = {}
        self.identity = ""
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
        self._refuse_unused()
        if self.shards is not None:
            sides = self._read_shards(self.shards)
        else:
            sides = self._builtin() if self.files is None else self._read(self.files)
        if len(sides["train"]) < self.batch_size or not sides["val"]:
            left_out = f"; left out: {self.problems[0]}" if self.problems else ""
            raise UserError(
                f"The files hold {len(sides['train']):,} sequences for training and {len(sides['val']):,} for "
                f"validation, fewer than one batch of {self.batch_size} and one; give more or change "
                f"--data.batch_size or --data.val_fraction{left_out}."
            )
        self.sides = sides

    def _refuse_unused(self) -> None:
        names = [self.shards] if self.shards else self.files or []
        unused = {} if self.shards is None else {"val_fraction": "shards have sides already"}
        if not any(is_url(name) and local_path(name) is None for name in names):
            unused |= dict.fromkeys(("cache", "cache_gb"), "no file lies in a store (a URL such as s3://bucket/file)")
        for name, why in unused.items():
            if name in self.given and getattr(self, name) is not None:
                raise UserError(f"--data.{name} is given, but {why}; leave it out.")

    def _read_shards(self, name: str) -> dict[str, list[np.ndarray] | Packed]:
        folder = Folder(name, Cache.of(self.cache, self.cache_gb))
        content, shards = read_shards(folder)
        self.identity, self.duplicates = content["identity"], content["about"]["duplicates"]
        return {side: Packed(folder, several) for side, several in shards.items()}

    def _builtin(self) -> dict[str, list[np.ndarray] | Packed]:
        chains = builtin_set()
        tokens = chains.arrays["tokens"]
        self.names = chains.names[chains.of("train")].tolist()
        return {
            side: [tokens[chains.start[chain] : chains.start[chain + 1]] for chain in chains.of(side)]
            for side in ("train", "val")
        }

    def _read(self, files: list[str]) -> dict[str, list[np.ndarray] | Packed]:
        source = Distinct(named_files(files), Cache.of(self.cache, self.cache_gb))
        sides: dict[str, list[np.ndarray] | Packed] = {}
        train, val = sides["train"], sides["val"] = list[np.ndarray](), list[np.ndarray]()
        for protein in source:
            if is_held_out(protein.letters, self.val_fraction):
                val.append(protein.tokens)
            else:
                train.append(protein.tokens)
                self.names.append(protein.name)
        self.duplicates, self.problems = source.duplicates, source.problems
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
                self.shards or ("built in" if self.files is None else " ".join(self.files)),
            ]
        )

    def figures(self) -> dict[str, Any]:
        """Sequences and residues of both sides, and the duplicates that were left out."""
        counts = {f"sequences_{side}": len(chains) for side, chains in self.sides.items()}
        counts |= {f"residues_{side}": int(_lengths(chains).sum()) for side, chains in self.sides.items()}
        return counts | {"duplicates": self.duplicates}

    def train_dataloader(self) -> Batches:
        """Returns the batches of training; each iteration is one epoch, or what is left of it after a resume."""
        lengths = _lengths(self.sides["train"])
        order = PooledByLength(lengths, self.batch_size, *self.ranks(), self.seed, self.position)
        return self._batches("train", order, self.loader_workers(most=1))

    def val_dataloader(self) -> Batches:
        """Returns batches that hold every validation sequence once."""
        lengths = _lengths(self.sides["val"])
        return self._batches("val", SequencesByLength(lengths, self.batch_size, *self.ranks()), 0)

    def test_dataloader(self) -> Batches:
        """The validation set; there is no third one."""
        return self.val_dataloader()

    def _batches(self, side: str, order: Shuffled | InOrder, workers: int) -> Batches:
        return Batches(Masked(self.sides[side], self.context, self.seed), order, workers, self.pin)

    def names_of(self, taken: np.ndarray) -> list[str]:
        """Sequences, as their file names them."""
        train = self.sides["train"]
        return train.names(taken.tolist()) if isinstance(train, Packed) else [self.names[i] for i in taken.tolist()]

    def held_out(self) -> list[bytes]:
        """See `DataModule`: sequences."""
        return self._contents("val")

    def learned(self) -> list[bytes]:
        """See `ResumableData`: sequences."""
        return self._contents("train")

    def _contents(self, side: str) -> list[bytes]:
        """Each sequence of a side; of shards a hash of all, which need not be read for it."""
        chains = self.sides[side]
        return [f"{side} {self.identity}".encode()] if self.shards else [chain.tobytes() for chain in chains]

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


def _lengths(chains: list[np.ndarray] | Packed) -> np.ndarray:
    """Residues of each sequence, int64 `[sequences]`."""
    return chains.lengths if isinstance(chains, Packed) else np.array([len(chain) for chain in chains], np.int64)


class Masked:
    """Batches of some sequences, cropped, masked and filled up: `masked[draw]`.

    A slot of the draw that holds no sequence becomes <cls> <eos> without targets.

    Args:
        chains: numbers of `alphabet`, uint8 `[residues]` each.
        context: residues of a crop.
        seed: with the sequence and, in training, the position, it determines crop and mask.
    """

    def __init__(self, chains: list[np.ndarray] | Packed, context: int, seed: int) -> None:
        self.chains, self.context, self.seed = chains, context, seed

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        if isinstance(self.chains, Packed):
            self.chains.prepare(draw.indices[draw.indices >= 0].tolist())
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
