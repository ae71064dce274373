"""Pretraining of the sequence model on FASTA: data and task of `triune protein pretrain`."""

from __future__ import annotations

import glob
import itertools
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from ..core import checkpoint
from ..core.errors import UserError
from ..core.training.module import Loss, TrainingModule
from ..core.training.optimizers import OptimizerConfig
from ..core.training.schedules import ScheduleConfig
from . import alphabet
from .alignment import read_sequences
from .sequence import SIZES, SequenceConfig, SequenceModel, esm_tokens, esm_transformer, mask_tokens

POOL = 64
"""Batches among which sequences are sorted by length: little padding, and still a random order."""
MULTIPLE = 32
"""Widths of batches are multiples of this, so that a compiled model sees few shapes."""


class SequenceData(lightning.LightningDataModule):
    """Protein sequences from FASTA files, masked for training as a language model.

    A batch is a dict of int64 tensors `[batch, tokens]`: `tokens`, ESM-2's numbers with <cls> and <eos>, 15 % of the
    residues masked; `targets`, what stood there, -100 elsewhere. Order, crops and masks depend on (seed, position) only,
    so that a resumed run continues exactly; those of the validation set are always the same.

    The validation set is a part of the distinct sequences chosen by their content. Relatives of it may be in training: its
    loss says how well training goes, not how well the model does on new families.

    Args:
        files: FASTA files or globs of such (.gz too).
        val_fraction: part of the distinct sequences to hold out.
        context: residues of a crop; longer sequences are cropped at random.
        batch_size: sequences of a batch on one device.
        seed: chooses order, crops and masks.
    """

    def __init__(
        self,
        files: list[str] | str,
        val_fraction: float = 0.05,
        context: int = 256,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction is {val_fraction}, but must be between 0 and 1, such as 0.05.")
        for name, value, least in (("context", context, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                raise UserError(f"data.{name} is {value}, but must be at least {least}.")
        self.files = [files] if isinstance(files, str) else files
        self.val_fraction, self.context, self.batch_size, self.seed = val_fraction, context, batch_size, seed
        self.sides: dict[str, list[np.ndarray]] = {}
        self.duplicates = 0

    def setup(self, stage: str | None = None) -> None:
        """Read the files. Raises UserError for what is wrong with them, or when a side has too few sequences."""
        if self.sides:
            return
        paths = [path for name in self.files for path in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]
        if not paths:
            raise UserError(f"data.files {', '.join(self.files)} match no file.")
        records = [record for path in paths for record in read_sequences(path)]
        distinct = dict.fromkeys(record.letters for record in records)
        self.duplicates = len(records) - len(distinct)
        sides: dict[str, list[np.ndarray]] = {"train": [], "val": []}
        for letters in distinct:
            held_out = zlib.crc32(letters.encode()) < self.val_fraction * 2**32
            sides["val" if held_out else "train"].append(alphabet.encode(letters))
        if len(sides["train"]) < self.batch_size or not sides["val"]:
            raise UserError(
                f"The files hold {len(sides['train']):,} sequences for training and {len(sides['val']):,} for validation,"
                f" fewer than one batch of {self.batch_size} and one; give more or change --data.batch_size or"
                " --data.val_fraction."
            )
        self.sides = sides

    def describe(self) -> str:
        """One line about the data, after `setup()`."""
        return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in self.figures().items())

    def figures(self) -> dict[str, Any]:
        """Sequences and residues of both sides, and the duplicates that were left out."""
        counts = {f"sequences_{side}": len(chains) for side, chains in self.sides.items()}
        counts |= {f"residues_{side}": sum(map(len, chains)) for side, chains in self.sides.items()}
        return counts | {"duplicates": self.duplicates}

    def train_dataloader(self) -> _Batches:
        return _Batches(self, "train")

    def val_dataloader(self) -> _Batches:
        return _Batches(self, "val")

    def test_dataloader(self) -> _Batches:
        return self.val_dataloader()

    def ranks(self) -> tuple[int, int]:
        """Rank and number of processes that see different data."""
        strategy = (self.trainer and self.trainer.distributed_sampler_kwargs) or {}
        return strategy.get("rank", 0), strategy.get("num_replicas", 1)

    def consumed(self) -> int:
        """Batches that went into the weights so far: the trainer's own count, which every checkpoint holds."""
        trainer: Any = self.trainer
        return 0 if trainer is None else trainer.fit_loop.epoch_loop.batch_progress.total.processed

    def batch(self, chains: list[np.ndarray], generator: torch.Generator) -> dict[str, Tensor]:
        """Crop, pad and mask some chains."""
        width = min(self.context, max(map(len, chains)))
        width = min(self.context, -(-(width + 2) // MULTIPLE) * MULTIPLE - 2) if width < self.context else width
        tokens = torch.full((len(chains), width), alphabet.PAD)
        for row, chain in enumerate(chains):
            first = int(torch.randint(max(1, len(chain) - width + 1), (), generator=generator))
            crop = chain[first : first + width]
            tokens[row, : len(crop)] = torch.from_numpy(crop.astype(np.int64))
        inputs, targets = mask_tokens(esm_tokens(tokens), generator)
        return {"tokens": inputs, "targets": targets}


class _Batches:
    """Batches of one side; training goes on behind what the trainer has consumed when it asks for the first one."""

    def __init__(self, data: SequenceData, side: str) -> None:
        self.data, self.chains, self.train = data, data.sides[side], side == "train"
        self.rank, self.world = data.ranks()

    def __len__(self) -> int:
        """Batches of an epoch; whole ones in training, and in validation also the last."""
        batch = self.data.batch_size * self.world
        return len(self.chains) // batch if self.train else -(-len(self.chains) // batch)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if not self.train or self.data.trainer is None:
            yield from map(self._batch, range(len(self)))
        else:
            yield from map(self._batch, itertools.count(self.data.consumed()))

    def _batch(self, position: int) -> dict[str, Tensor]:
        epoch, index = divmod(position, len(self))
        order = self._order(epoch)
        size = self.data.batch_size
        first = (index * self.world + self.rank) * size
        chosen = order[first : first + size]
        chosen = chosen if len(chosen) else order[:1]  # a rank without chains repeats one rather than stop alone
        generator = torch.Generator().manual_seed(hash((self.data.seed, self.train, position, self.rank)) % 2**63)
        return self.data.batch([self.chains[i] for i in chosen], generator)

    def _order(self, epoch: int) -> np.ndarray:
        """Chains of an epoch: random, sorted by length within pools, the batches in random order again."""
        lengths = np.array([len(chain) for chain in self.chains])
        if not self.train:
            return np.argsort(lengths, kind="stable")
        generator = np.random.default_rng([self.data.seed, epoch])
        batch = self.data.batch_size * self.world
        order = generator.permutation(len(lengths))[: len(self) * batch]
        pools = [
            part[np.argsort(lengths[part], kind="stable")]
            for part in np.split(order, range(POOL * batch, len(order), POOL * batch))
        ]
        batches = np.concatenate(pools).reshape(-1, batch)
        return generator.permutation(batches).ravel()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is the trainer's count."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class PretrainTask(TrainingModule):
    """A masked language model of protein sequences, in the shape of ESM-2.

    Args:
        size: tiny, 1M, 8M, 35M, 150M, 650M, 3B or 15B.
        optimizer: optimizer and learning rates.
        schedule: how the learning rate moves.
        ema: decay of an average of the weights that is judged and exported in their place, for example 0.999.
        compile: compile the blocks; worth its minute of waiting on a GPU.
    """

    unit = "res"
    loss_unit = "nats per masked residue"

    def __init__(
        self,
        size: str = "1M",
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 (never changed; the CLI shows its fields)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        ema: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(optimizer, schedule, ema, compile)
        self.size = size
        self.config = SequenceConfig(transformer=esm_transformer(size))

    def build_model(self, data: Any) -> SequenceModel:
        return SequenceModel(self.config)

    def loss(self, batch: dict[str, Tensor]) -> Loss:
        """Cross-entropy in nats over the masked residues."""
        assert isinstance(self.model, SequenceModel)
        return Loss(*self.model.loss(batch["tokens"], batch["targets"]))

    def slots(self, batch: dict[str, Tensor]) -> int:
        return batch["tokens"].numel()

    def compute_metrics(self) -> dict[str, float | Tensor]:
        """exp(loss): among how many residues the model hesitates."""
        if self.evaluated is None:
            return {}
        return {"perplexity": (self.evaluated.total / self.evaluated.count).exp()}

    def describe(self) -> str:
        """One line about the model."""
        depth, dim, heads = SIZES[self.size]
        return f"ESM-2 shape: {depth} layers x {dim}, {heads} heads"

    def export(self, folder: Path) -> None:
        """Write the model for `SequenceModel.from_pretrained`."""
        checkpoint.save(folder, "SequenceModel", {"model": self.config.to_dict()}, self.export_state())

    def next_steps(self, run: Any) -> list[str]:
        """Commands to type after training."""
        return [f"triune protein contacts SEQUENCES.fasta --run {shlex.quote(str(run))}"]
