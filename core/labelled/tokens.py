"""Tables whose inputs are sequences of tokens: texts and proteins."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..losses import IGNORED
from ..training.by_length import PooledByLength, SequencesByLength
from ..training.data import Batches, Draw, ResumableData
from .reader import TokenReader
from .rows import Rows
from .samples import Samples, read_all
from .table import FromTable, drawn


class TokenOptions(ResumableData):
    """Options of batches of sequences.

    Args:
        context: tokens of an input that are read; of a longer one the first, which is said.
        batch_size: rows of a batch on one device.
        val_fraction: part of the rows to hold out for validation.
        on_error: stop at rows that cannot be used, or skip them; they are counted and named.
        seed: chooses what is held out and the order of training.
        workers: processes that prepare batches. Left out: 1 beside a GPU on a machine of more than two cores, else 0.
    """

    def __init__(
        self,
        context: int = 256,
        batch_size: int = 32,
        val_fraction: float = 0.1,
        on_error: str = "stop",
        seed: int = 0,
        workers: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction is {val_fraction}, but must lie between 0 and 1 (such as 0.1).")
        if on_error not in ("stop", "skip"):
            raise UserError(f"data.on_error is {on_error}, but must be stop or skip; choose one.")
        least = {
            "context": (context, 1),
            "batch_size": (batch_size, 1),
            "workers": (workers or 0, 0),
            "seed": (seed, 0),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise UserError(f"data.{name} is {value}, but must be at least {bound}; raise it.")
        self.context, self.batch_size, self.val_fraction = context, batch_size, val_fraction
        self.on_error, self.seed, self.workers = on_error, seed, workers


class TokenTable(FromTable, TokenOptions):
    """Sequences with labels from a table. A task says how a cell becomes tokens.

    A batch is a dict: `tokens` int64 `[batch, tokens]`, `valid` bool, True for real ones, `targets` as the head needs
    them, and `index` int64 `[batch]`, the row of each example, -1 for what only fills the batch up.
    """

    contents: Samples
    inputs: TokenReader

    @property
    def trained(self) -> dict[str, Any]:
        return super().trained | ({} if self.most is None else {"most": self.most})

    def continue_as(self, trained: dict[str, Any]) -> None:
        super().continue_as(trained)
        self.most = trained.get("most")
        if self.most is not None and self.context > self.most:
            if "context" in self.given:
                raise UserError(
                    f"data.context is {self.context:,} tokens, but the model has learned positions for "
                    f"{self.most:,}; give at most that."
                )
            self.context = self.most

    def reader(self, rows: Rows) -> TokenReader:
        """What makes tokens of a cell; `rows` are those of the table, for what is made of the training texts."""
        raise NotImplementedError(f"{type(self).__name__} must implement reader(rows).")

    def read_inputs(self, rows: Rows) -> dict[str, np.ndarray]:
        reader = self.inputs = self.reader(rows)
        self.parts = reader.parts
        self.contents, wrong = read_all(reader, rows, self._check_tags)
        rows.notes += reader.notes()
        if wrong and self.on_error == "stop":
            more = f" {len(wrong) - 1:,} more rows cannot be used." if len(wrong) > 1 else ""
            raise UserError(f"{wrong[min(wrong)]}{more} Mend them, or leave them out with --data.on_error skip.")
        if wrong:
            rows.notes.append(f"{len(wrong):,} rows are left out, the first: {str(wrong[min(wrong)]).rstrip('.')}")
        without = np.fromiter(wrong, np.int64, len(wrong))
        return {side: found[~np.isin(found, without)] for side, found in rows.sides.items()}

    def _check_tags(self, rows: Rows, encoded: list[Any], start: int) -> None:
        """Puts an error in the place of tokens that are not as many as their labels; `start` is the first row."""
        values = rows.target.values
        if not isinstance(values, list):
            return
        for row, found in enumerate(encoded, start):
            if isinstance(found, UserError) or not len(values[row]):
                continue
            whole = self.inputs.whole(rows.inputs[row], found)
            if len(values[row]) != whole:
                encoded[row - start] = UserError(
                    f"{rows.name(row)} has {len(values[row])} labels for {whole} {self.inputs.parts}, but must "
                    "have one for each."
                )

    @property
    def batch(self) -> int:
        """Rows of a training batch on one device: `batch_size`, or all there are where these are fewer."""
        return max(1, min(self.batch_size, len(self.side("train")) // self.ranks()[1]))

    def train_dataloader(self) -> Batches:
        """Batches of training; each iteration is one epoch, or what is left of it after a resume."""
        self.check_sides()
        order = _Order(
            self.classes_of_rows(), self._lengths("train"), self.batch, *self.ranks(), self.seed, self.position
        )
        return Batches(_Source(self, "train"), order, self.loader_workers(most=1), self.pin)

    def val_dataloader(self) -> Batches:
        """Batches that hold every validation row once."""
        self.check_sides()
        return self._in_order("val")

    def test_dataloader(self) -> Batches:
        """Batches that hold every test row once; of validation where there is no test."""
        return self._in_order(self.scored_side)

    def predict_dataloader(self) -> Batches:
        """The batches of `test_dataloader`."""
        return self.test_dataloader()

    def _in_order(self, side: str) -> Batches:
        order = SequencesByLength(self._lengths(side), self.batch_size, *self.ranks())
        return Batches(_Source(self, side), order, 0, self.pin)

    def _lengths(self, side: str) -> np.ndarray:
        return self.contents.sizes[self.side(side)]

    def token_targets(self, rows: np.ndarray, width: int) -> Tensor:
        """Targets of every token of rows, `[batch, width]`, of several columns `[batch, width, cells]`; missing where a
        token has none.
        """
        target = self._known.target
        shape = (len(rows), width, *([target.values[0].shape[1]] if target.parts else []))
        found = torch.full(shape, float("nan")) if target.numbers or target.parts else torch.full(shape, IGNORED)
        for slot, row in enumerate(rows.tolist()):
            if row < 0:
                continue
            places = torch.from_numpy(self.inputs.places(self.contents[row]))
            values = torch.from_numpy(np.asarray(target.values[row][: len(places)]))
            has = places[: len(values)] >= 0
            found[slot, places[: len(values)][has]] = values[has].to(found.dtype)
        return found


class _Order(PooledByLength):
    """As `PooledByLength`, of classes that are drawn equally often where they are given."""

    def __init__(self, classes: np.ndarray | None, *options: Any) -> None:
        super().__init__(*options)
        self._classes = classes

    def drawn(self, generator: np.random.Generator) -> np.ndarray:
        return drawn(generator, self._count, self._classes)


class _Source:
    """Batches of one side."""

    def __init__(self, data: TokenTable, side: str) -> None:
        self._rows, self._samples, self._inputs = data.side(side), data.contents, data.inputs
        tags = isinstance(data._known.target.values, list)
        self._targets = data.token_targets if tags else lambda rows, width: data.targets(rows)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        rows = np.where(draw.indices < 0, -1, self._rows[np.maximum(draw.indices, 0)])
        batch = self._inputs.batch([self._samples[row] if row >= 0 else self._inputs.empty() for row in rows])
        targets = self._targets(rows, batch["tokens"].shape[1])
        return batch | {"targets": targets, "index": torch.from_numpy(rows.astype(np.int64))}
