"""The options of a data module that reads a table, and what all of them make of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import few
from ..heads.base import HeadSpec
from ..labels.guess import cells_of, parsed_kinds
from ..labels.table import Table
from ..labels.targets import Target
from ..labels.wanted import MaskFiles
from ..losses import IGNORED
from ..training.data import ResumableData
from ..work import blocks
from .rows import SIDES, Columns, Rows, read_rows

VERSION = 1
"""Of `drawn` with classes; see the core's versions.py."""

MANY = 200_000
"""Validation rows that take minutes each time."""


class FromTable(ResumableData):
    """What the data modules of all tasks share that read inputs and labels from a table.

    Args:
        table: CSV, TSV, JSON lines or Parquet.
        input: the column of what the model reads.
        target: the column, or the columns (with commas between them), of what it learns.
        kind: classify, multilabel, regress, ordinal or tag (or tag:classes, tag:numbers), or those of some columns
            (label=classify,size=regress), which then have a head each; left out: what the cells call for, which is
            printed.
        order: the classes of an ordinal target from the lowest to the highest, where they are no numbers.
        missing: texts that stand for a missing target.
        split: a column that says train, val or test.
        group: a column of what must not be on two sides, such as a patient, a cluster of proteins or an author.
        stratify: each side has the classes in the same parts.
        test_fraction: part of the rows to hold out for `test`.
        balanced: draw the classes equally often in training.
        **others: of the inputs.
    """

    PATHS = ("table",)
    RECIPE = "table"
    parts = "tokens"
    """What of an input has a label each, for messages."""
    WORDS = False
    """Labels of tokens are those of words, with spaces between them."""
    MASKS: MaskFiles | None = None
    """Labels of tokens are masks, in files that this reads."""

    def __init__(
        self,
        table: str | None = None,
        input: str | None = None,
        target: str | list[str] | None = None,
        kind: dict[str, str] | str | None = None,
        order: list[str] | None = None,
        missing: list[str] | None = None,
        split: str | None = None,
        group: str | None = None,
        stratify: bool = True,
        test_fraction: float = 0.0,
        balanced: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        for name, value in (("table", table), ("input", input), ("target", target)):
            if not value:
                raise UserError(f"data.{name} is missing; a table needs --data.table, --data.input and --data.target.")
        targets = target.split(",") if isinstance(target, str) else list(target or ())
        if split is not None and group is not None:
            raise UserError("data.split and data.group are both given, but the split column decides alone; leave one.")
        self.table_options: dict[str, Any] = {
            "table": str(table), "input": str(input), "target": tuple(name.strip() for name in targets),
            "kind": parsed_kinds(kind),
            "order": None if order is None else tuple(order), "missing": tuple(missing or ()), "split": split,
            "group": group, "stratify": stratify, "test_fraction": test_fraction,
        }  # fmt: skip
        self.balanced = balanced
        self.rows: Rows | None = None
        self.spec: HeadSpec | None = None
        self._origin: dict[str, Any] | None = None
        self.most: int | None = None
        """Tokens of an input that a model's table of positions has rows for; None without such a table."""
        self.scored_side = "val"

    # --- what a task says --------------------------------------------------------------------------------------------

    def read_inputs(self, rows: Rows) -> dict[str, np.ndarray]:
        """Reads what the model gets of each row; returns the rows of each side that it could read, in the order of the
        batches.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement read_inputs(rows).")

    def resolve(self, table: Table, cells: list[str], notes: list[str]) -> list[str]:
        """Inputs of the cells of the input column; may add notes."""
        return cells

    def other_table(self) -> Table | None:
        """What a trained model is to be scored on in the place of a table, in its form and with its columns; None
        without.
        """
        return None

    # --- reading -----------------------------------------------------------------------------------------------------

    def continue_as(self, trained: dict[str, Any]) -> None:
        """Prepares for scoring a trained model: call it before `setup`.

        Args:
            trained: what `trained` gave at the training.
        """
        self._origin = trained
        self.spec = HeadSpec.from_dict(trained["head"])

    @property
    def trained(self) -> dict[str, Any]:
        """What a trained model must know of its data to be scored later; plain values."""
        assert self.spec is not None, "setup and build_model come first"
        table = str(Path(self.table_options["table"]).expanduser().absolute())
        return {"head": self.spec.to_dict(), "table": table, "content": self._content_of(self._known)}

    @staticmethod
    def _content_of(rows: Rows) -> str:
        """A hash of the inputs, in the order of the table."""
        digest = hashlib.blake2b(digest_size=16)
        for cell in rows.inputs:
            digest.update(cell.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()

    @property
    def scores(self) -> bool:
        """Whether a trained model is scored, rather than one trained."""
        return self._origin is not None

    @property
    def _known(self) -> Rows:
        assert self.rows is not None, "setup() comes first"
        return self.rows

    def setup(self, stage: str | None = None) -> None:
        """Reads the table and its inputs; a second call does nothing.

        Raises:
            UserError: for every mistake in them.
        """
        if self.rows is not None:
            return
        options: Any = self
        self.refuse_unused()
        columns = Columns(
            **self.table_options,
            val_fraction=options.val_fraction,
            seed=options.seed,
            skip=options.on_error == "skip",
            words=self.WORDS,
            masks=self.MASKS,
        )
        instead = self.other_table()
        columns = columns if instead is None else replace(columns, table=str(instead.path))
        other = instead is not None or self._is_other_table()
        verb = str(self.trainer.state.fn.value) if self.trainer is not None and self.trainer.state.fn else ""
        rows = read_rows(columns, self.spec, "test" if other else "", self.resolve, instead)
        if verb == "validate" and other:
            raise UserError(
                f"data.table '{columns.table}' is not the table that the model was trained on, which has no validation"
                " rows; score it with `test`."
            )
        if self._origin is not None and not other and self._origin.get("content") != self._content_of(rows):
            rows.notes.append(
                "The table is not what it was in training, so that rows which are scored may have been trained on"
            )
        rows.sides = self.read_inputs(rows)
        self.scored_side = "test" if "test" in rows.sides and len(rows.sides["test"]) else "val"
        if verb in ("test", "predict") and self.scored_side == "val":
            rows.notes.append(
                "There is no test set: these are the validation rows, which chose the weights; --data.table FILE scores"
                " others"
            )
        if not self._origin and (held := len(rows.sides.get("val", ()))) > MANY:
            rows.notes.append(f"Each validation scores {held:,} rows; --data.val_fraction 0.001 holds out fewer")
        self.rows = rows

    def refuse_unused(self) -> None:
        """Raises UserError for options that were given and change nothing."""
        for name in ("test_fraction", "stratify"):
            if name in self.given and self.table_options["split"] is not None:
                raise UserError(f"--data.{name} is given, but the column of --data.split decides; leave it out.")

    def _is_other_table(self) -> bool:
        if self._origin is None:
            return False
        return str(Path(self.table_options["table"]).expanduser().absolute()) != self._origin["table"]

    def side(self, name: str) -> np.ndarray:
        """Rows of a side, int64."""
        return self._known.sides.get(name, np.zeros(0, np.int64))

    def _cells(self, side: str) -> Iterator[str]:
        known, rows = self._known, self.side(side)
        columns = [(f"{name}=", known.table.columns[name]) for name in known.target.columns]
        for span in blocks(f"Hashing the {side} rows", len(rows)):
            for row in rows[span].tolist():
                yield "\0".join([known.inputs[row], *(f"{name}{cells[row]}" for name, cells in columns)])

    def held_out(self) -> list[str]:
        """See `DataModule`: inputs and cells of the targets."""
        return list(self._cells("val"))

    def learned(self) -> Iterable[str | bytes]:
        """See `ResumableData`: inputs and cells of the targets."""
        return self._cells("train")

    def draws(self) -> Mapping[str, int]:
        """See `ResumableData`."""
        return {**super().draws(), **({"classes that are equally likely": VERSION} if self.balanced else {})}

    def target_of(self, side: str) -> Target:
        """The targets of a side, in its order."""
        return self._known.target.take(self.side(side))

    def describe(self) -> str:
        """One line about the data, after `setup()`."""
        rows = self._known
        counts = ", ".join(f"{len(rows.sides[side]):,} {side}" for side in SIDES if side in rows.sides)
        return f"{rows.table.path}: {counts}. " + " ".join(f"{note[:1].upper()}{note[1:]}." for note in rows.notes)

    def names_of(self, taken: np.ndarray) -> list[str]:
        """Rows, as messages call them."""
        train = self.side("train")
        return [self._known.name(int(train[index])) for index in taken.tolist()]

    # --- targets of a batch ------------------------------------------------------------------------------------------

    def targets(self, rows: np.ndarray) -> Tensor:
        """Targets of rows, `[batch]` or `[batch, targets]`; those of row -1 are missing."""
        values = self._known.target.values
        assert isinstance(values, np.ndarray)
        found = torch.from_numpy(values[np.maximum(rows, 0)])
        absent = torch.from_numpy(rows < 0)
        if found.is_floating_point():
            return found.masked_fill(absent[:, None], float("nan")).float()
        return found.masked_fill(absent, IGNORED)

    def classes_of_rows(self) -> np.ndarray | None:
        """The class of each training row, for `balanced`. Raises UserError for a target without classes."""
        if not self.balanced:
            return None
        target = self.target_of("train")
        if cells_of(target.kind) not in ("classify", "ordinal"):
            raise UserError(f"data.balanced is true, but must be false for a target of kind {target.kind}.")
        return np.asarray(target.values)

    def check_sides(self) -> None:
        """Raises UserError where training or validation has no row."""
        for side, option in (("train", "more rows"), ("val", "more rows, or a larger --data.val_fraction")):
            if not self.scores and not len(self.side(side)):
                raise UserError(f"There is no {side} row left of '{self._known.table.path}'; give {option}.")

    def order_settings(self) -> dict[str, Any]:
        """See `ResumableData`."""
        options: Any = self
        target = self.target_of("train")
        return {
            "rows": len(self.side("train")), "targets": few(target.columns), "batch_size": options.batch,
            "devices": self.ranks()[1], "seed": options.seed, "balanced": self.balanced,
        }  # fmt: skip


def drawn(generator: np.random.Generator, count: int, classes: np.ndarray | None) -> np.ndarray:
    """What an epoch visits, int64 `[count]`: each example once, or examples whose classes are equally likely."""
    if classes is None:
        return generator.permutation(count)
    known, number, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    return generator.choice(count, count, p=1 / (len(known) * sizes[number]))
