"""Pretraining of the sequence model on FASTA: data and task of `triune protein pretrain`."""

from __future__ import annotations

import glob
import shlex
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.adapt.lora import LoRAConfig
from ...core.checkpoints import native as checkpoint
from ...core.checkpoints.family import Pretrained
from ...core.errors import UserError
from ...core.losses import IGNORED
from ...core.training.data import Batches, Draw, InOrder, ResumableData, Shuffled
from ...core.training.module import Loss, TrainingModule
from ...core.training.optimizers import OptimizerConfig
from ...core.training.schedules import ScheduleConfig
from ...core.training.tuning import FreezeConfig, Start, refuse_contradictions
from ..data.store import ChainSet, builtin_set, open_set
from ..pair.task import precision_lines, read_start
from ..read import alphabet
from ..read.alignment import read_sequences
from .contact_head import HEAD
from .head_fit import chains_for_head, fit_head, judge_head
from .model import PAD, SIZES, SequenceConfig, SequenceModel, esm_tokens, esm_transformer, mask_tokens

POOL = 64
"""Batches among which sequences are sorted by length: little padding, and still a random order."""
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
        workers: processes that prepare batches; 0 prepares them in the training process.

    Attributes (after `setup`):
        sides: the sequences of `train` and `val`, numbers of `alphabet`.
    """

    def __init__(
        self,
        files: list[str] | str | None = None,
        val_fraction: float = 0.05,
        context: int = 256,
        batch_size: int = 32,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction is {val_fraction}, but must be between 0 and 1, such as 0.05.")
        for name, value, least in (
            ("context", context, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("workers", workers, 0),
        ):
            if value < least:
                raise UserError(f"data.{name} is {value}, but must be at least {least}.")
        self.files = [files] if isinstance(files, str) else files
        self.val_fraction, self.context, self.batch_size = val_fraction, context, batch_size
        self.seed, self.workers = seed, workers
        self.sides: dict[str, list[np.ndarray]] = {}
        self.duplicates = 0
        self.problems: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        """Read the files; a sequence that is none is left out, and said so.

        Raises:
            UserError: a file cannot be read, or a side has too few sequences.
        """
        if self.sides:
            return
        sides = _builtin_sides() if self.files is None else self._read(self.files)
        if len(sides["train"]) < self.batch_size or not sides["val"]:
            left_out = f"; left out: {self.problems[0]}" if self.problems else ""
            raise UserError(
                f"The files hold {len(sides['train']):,} sequences for training and {len(sides['val']):,} for "
                f"validation, fewer than one batch of {self.batch_size} and one; give more or change "
                f"--data.batch_size or --data.val_fraction{left_out}."
            )
        self.sides = sides

    def _read(self, files: list[str]) -> dict[str, list[np.ndarray]]:
        paths = [path for name in files for path in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]
        if not paths:
            raise UserError(f"data.files {', '.join(files)} match no file.")
        problems: list[str] = []
        records = [
            record for path in paths for record in read_sequences(path, on_error=lambda e: problems.append(str(e)))
        ]
        distinct = dict.fromkeys(record.letters for record in records)
        self.duplicates, self.problems = len(records) - len(distinct), problems
        sides: dict[str, list[np.ndarray]] = {"train": [], "val": []}
        for letters in distinct:
            held_out = zlib.crc32(letters.encode()) < self.val_fraction * 2**32
            sides["val" if held_out else "train"].append(alphabet.encode(letters))
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
        """Return the batches of training; each iteration is one epoch, or what is left of it after a resume."""
        lengths = np.array([len(chain) for chain in self.sides["train"]])
        order = Pooled(lengths, self.batch_size, *self.ranks(), self.seed, self.position)
        return self._batches("train", order, self.workers)

    def val_dataloader(self) -> Batches:
        """Return batches that hold every validation sequence once."""
        lengths = np.array([len(chain) for chain in self.sides["val"]])
        return self._batches("val", ByLength(lengths, self.batch_size, *self.ranks()), 0)

    def test_dataloader(self) -> Batches:
        """The validation set; there is no third one."""
        return self.val_dataloader()

    def _batches(self, side: str, order: Shuffled | InOrder, workers: int) -> Batches:
        return Batches(Masked(self.sides[side], self.context, self.seed), order, workers, self.pin)

    def order_settings(self) -> dict[str, Any]:
        """See `ResumableData`."""
        return {
            "sequences": len(self.sides["train"]),
            "context": self.context,
            "batch_size": self.batch_size,
            "devices": self.ranks()[1],
            "seed": self.seed,
        }


def _builtin_sides() -> dict[str, list[np.ndarray]]:
    chains = builtin_set()
    tokens = chains.arrays["tokens"]
    return {
        side: [tokens[chains.start[chain] : chains.start[chain + 1]] for chain in chains.of(side)]
        for side in ("train", "val")
    }


class Pooled(Shuffled):
    """The order of training: random, sorted by length within pools of batches, the batches in random order again.

    Args:
        lengths: of the sequences.
        options: as for the core's `Shuffled`.
    """

    def __init__(self, lengths: np.ndarray, *options: Any) -> None:
        super().__init__(len(lengths), *options)
        self._lengths = lengths

    def permutation(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self._seed, epoch])
        batch = self._batch_size * self._world
        order = generator.permutation(self._count)[: len(self) * batch]
        pools = [
            part[np.argsort(self._lengths[part], kind="stable")]
            for part in np.split(order, range(POOL * batch, len(order), POOL * batch))
        ]
        return generator.permutation(np.concatenate(pools).reshape(-1, batch)).ravel()


class ByLength(InOrder):
    """The order of validation: each sequence once, with those of about its length. Arguments as for `Pooled`."""

    def __init__(self, lengths: np.ndarray, *options: Any) -> None:
        super().__init__(len(lengths), *options)
        self._sorted = np.argsort(lengths, kind="stable")

    def __iter__(self) -> Iterator[Draw]:
        for position, indices in super().__iter__():
            yield Draw(position, np.where(indices < 0, -1, self._sorted[indices]))


class Masked:
    """Batches of some sequences, cropped, masked and filled up: `masked[draw]`.

    A slot of the draw that holds no sequence becomes <cls> <eos> without targets.

    Args:
        chains: numbers of `alphabet`, uint8 [residues] each.
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


class PretrainTask(TrainingModule):
    """A masked language model of protein sequences, in the shape of ESM-2, and a contact head on its attention.

    After training, the head, a logistic regression (Rao et al. 2020), is fitted on 20 chains of known structure, and
    judged on others.

    Args:
        size: tiny, 1M, 8M, 35M, 150M, 650M, 3B or 15B.
        structures: a set made by `triune protein prepare`, whose training chains the contact head is fitted on, and
            whose validation chains judge it. Left out: the chains that come with the package.
        optimizer: optimizer and learning rates.
        schedule: how the learning rate moves.
        ema: decay of an average of the weights that is judged and exported in their place, for example 0.999.
        compile: compile the blocks; worth its minute of waiting on a GPU.
        pretrained: a checkpoint to go on with: a file or folder of fair-esm, a folder or hub name of Hugging Face, a
            run. Its config is used in place of `size`; its contact head is fitted anew.
        lora: train low-rank factors beside the linear layers instead of the weights.
        freeze: which blocks do not train, or not at first.
    """

    unit = "masked res"
    loss_unit = "nats per masked residue"

    def __init__(
        self,
        size: str = "1M",
        structures: str | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 (never changed; the CLI shows its fields)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        ema: float | None = None,
        compile: bool = False,
        pretrained: str | None = None,
        lora: LoRAConfig | None = None,
        freeze: FreezeConfig | None = None,
    ) -> None:
        super().__init__(optimizer, schedule, ema, compile, pretrained, lora, freeze)
        self.size, self.structures = size, structures
        self.fitted: dict[str, Any] = {}  # the contact head and how many chains made it; no part of what is trained
        self.config = SequenceConfig(transformer=esm_transformer(size))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._structures()  # a mistake in them should not be found after hours of training

    def build_model(self, data: Any) -> SequenceModel:
        return SequenceModel(self.config)

    def _structures(self) -> tuple[ChainSet, np.ndarray, np.ndarray]:
        """The set of `structures`, and what `chains_for_head` chooses of it."""
        chains = builtin_set() if self.structures is None else open_set(self.structures)
        return chains, *chains_for_head(chains)

    def load_pretrained(self, source: str) -> Pretrained:
        from .checkpoints.pretrained import load

        return replace(load(source), companion=None)

    def read_start(self, folder: Path) -> Start:
        return read_start(folder)

    def adapt_model(self, start: Start, data: Any) -> SequenceModel:
        """The checkpoint's model as it is."""
        assert isinstance(start.model, SequenceModel)
        shape = start.model.config.transformer
        found = {"size": next((s for s, n in SIZES.items() if n == (shape.depth, shape.dim, shape.heads)), "another")}
        refuse_contradictions(PretrainTask, {"size": self.size}, found, start.source)
        self.config = start.model.config
        return start.model

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
        c = self.config.transformer
        return f"{'ESM-2 shape: ' if self.tuning is None else ''}{c.depth} layers x {c.dim}, {c.heads} heads"

    def figures(self, run: Any) -> dict[str, Any]:
        """Fit the contact head to the weights just judged; its precision on the held-out chains with known
        structure.
        """
        chains, fitted_on, judged_by = self._structures()
        model = SequenceModel(self.config)
        checkpoint.load_state(model, self.export_state(), "the trained model")
        model = model.eval().to(self.trainer.strategy.root_device)
        head = fit_head(model, chains, fitted_on)
        self.fitted = {"head": head, "on": len(fitted_on), "by": len(judged_by)}
        return {f"val_{name}": value for name, value in judge_head(model, head, chains, judged_by).items()}

    def table(self, figures: dict[str, Any]) -> str:
        """The loss, and the precision of the contact head."""
        known = "built-in chains" if self.structures is None else f"chains of {self.structures}"
        lines = [f"val_loss {figures['val_loss']:.4f}  val_perplexity {figures['val_perplexity']:.2f}"]
        lines.append(
            f"contact head fitted on {self.fitted['on']} {known}, judged by {self.fitted['by']} held-out ones:"
        )
        if not self.fitted["head"].weight.any():
            lines[-1] = (
                f"no attention head tells contacts of {self.fitted['on']} {known} yet, so the contact head is empty:"
            )
        return "\n".join([*lines, *precision_lines(figures)])

    def export(self, folder: Path) -> None:
        """Write the model for `SequenceModel.from_pretrained`, and its contact head into a folder of its own."""
        checkpoint.save(folder, "SequenceModel", {"model": self.config.to_dict()}, self.export_state())
        if self.fitted:
            self.fitted["head"].save_pretrained(folder / HEAD)

    def next_steps(self, run: Any) -> list[str]:
        """Commands to type after training."""
        quoted = shlex.quote(str(run))
        return [f"triune protein validate {quoted}", f"triune protein contacts SEQUENCES.fasta --run {quoted}"]
