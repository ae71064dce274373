"""The rows of a table as a task learns, scores or answers them: inputs, targets, and the side of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UserError, nearest
from ..files import few
from ..heads.base import HeadSpec
from ..labels.cells import shown
from ..labels.guess import cells_of
from ..labels.split import Split, split, strata
from ..labels.table import Table, read_table
from ..labels.targets import Target, infer
from ..labels.wanted import MaskFiles

SIDES = ("train", "val", "test")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table mean what.

    Args:
        table: the file.
        input: column of what the model reads.
        target: columns of what it learns; empty where nothing is to be scored.
        kind: of the head, or of the head of each column; None takes what the cells call for.
        order: the classes of an ordinal target from the lowest to the highest, where they are no numbers.
        missing: texts that stand for a missing target.
        split: column that says train, val or test.
        group: column of what must not be on two sides.
        stratify: each side has the classes in the same parts.
        val_fraction, test_fraction: parts that are held out where `split` does not say which.
        seed: of the split.
        skip: rows that cannot be used are left out and counted, rather than an error.
        words: labels of tokens are those of words, with spaces between them.
        masks: labels of tokens are masks, in files that this reads.
    """

    table: str
    input: str
    target: tuple[str, ...] = ()
    kind: str | Mapping[str, str] | None = None
    order: tuple[str, ...] | None = None
    missing: tuple[str, ...] = ()
    split: str | None = None
    group: str | None = None
    stratify: bool = True
    val_fraction: float = 0.1
    test_fraction: float = 0.0
    seed: int = 0
    skip: bool = False
    words: bool = False
    masks: MaskFiles | None = None


@dataclass
class Rows:
    """Rows with an input and a target.

    Args:
        table: their table, in their order.
        inputs: what the model reads of each.
        target: what it learns of each.
        sides: rows of each side, int64.
        notes: what was decided or left out, each a sentence without its full stop.
    """

    table: Table
    inputs: list[str]
    target: Target
    sides: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.inputs)

    def name(self, row: int) -> str:
        """How a message calls a row."""
        return self.table.where(row)


Resolve = Callable[[Table, list[str], list[str]], list[str]]
"""Makes inputs of the cells of a table, such as sequences of names; may add notes."""


def read_rows(
    columns: Columns,
    spec: HeadSpec | None = None,
    scored: str = "",
    resolve: Resolve | None = None,
    table: Table | None = None,
) -> Rows:
    """Reads a table and splits it.

    Args:
        columns: what is what.
        spec: the head of a trained model that is to be scored; None for a training.
        scored: the side that all rows are, for a table that was not trained on; empty: they are split.
        resolve: what makes inputs of the cells; None where they are the inputs.
        table: with these columns, in the place of the file.

    Raises:
        UserError: the table, or a row of it where `columns.skip` is false, cannot be used.
    """
    notes: list[str] = []
    table = _checked(columns, _read(columns, notes, scored) if table is None else table, notes)
    target = _coded(columns, table, spec)
    notes += [target.said.rstrip("."), *target.notes, *table.notes]
    if (without := target.missing).any():
        notes.append(f"{int(without.sum()):,} rows without a target are left out")
        keep = np.flatnonzero(~without)
        if not len(keep):
            raise UserError(f"All targets of '{table.path}' ({few(columns.target)}) are missing; name another column.")
        table, target = table.take(keep.tolist()), target.take(keep)
    inputs = [str(cell) for cell in table.columns[columns.input]]
    if resolve is not None:
        inputs = resolve(table, inputs, notes)
    sides = _sides(columns, table, target, inputs, scored)
    notes += getattr(sides, "notes", [])
    if spec is None and not scored:
        notes += _untaught(target, sides["train"])
    return Rows(table, inputs, target, dict(sides), notes)


def _untaught(target: Target, train: np.ndarray) -> list[str]:
    """A note for each column with classes or labels that only rows outside of training have."""
    found = []
    for part in target.parts or (target,):
        if cells_of(part.kind) == "regress" or part.numbers or part.masked:
            continue
        everywhere, taught = _present(part), _present(part.take(train))
        if only := [shown(name) for name, there, known in zip(part.names, everywhere, taught) if there and not known]:
            found.append(
                f"WARNING: no training row has {few(only)} of '{part.columns[0]}', so that it cannot be learned"
            )
    return found


def _present(target: Target) -> np.ndarray:
    """Whether a row has each class or label, bool `[names]`."""
    if isinstance(target.values, list) or target.values.ndim == 1:
        codes = np.concatenate([*target.values, np.zeros(0, np.int64)]) if target.per_token else target.values
        return np.isin(np.arange(len(target.names)), codes)
    return (target.values == 1).any(0)


def _coded(columns: Columns, table: Table, spec: HeadSpec | None) -> Target:
    """The targets of a table, coded as the cells call for or, of a trained model, as those of its training."""
    kind, names, layouts, numbers = columns.kind, None, None, None
    if spec is not None and spec.parts:
        layouts = spec.training["layout"]
        if unknown := [name for name in columns.target if name not in layouts]:
            raise UserError(
                f"data.target is {few(unknown)}{nearest(unknown[0], layouts)}, but the model was trained on "
                f"{few(spec.names)}; name some of these columns."
            )
        kind = {name: part.kind for name, part in spec.parts.items()}
        names = {
            name: None if cells_of(part.kind) == "regress" else list(part.names) for name, part in spec.parts.items()
        }
    elif spec is not None:
        kind, numbers = spec.kind, bool(spec.options.get("numbers")) if spec.kind == "tag" else None
        if cells_of(kind) == "regress" and list(columns.target) != list(spec.names):
            raise UserError(
                f"data.target is {few(columns.target)}, but the model was trained on {few(spec.names)}; name these "
                "columns."
            )
        names = list(spec.names) if cells_of(kind) != "regress" else None
    parts_of = None
    if kind is None and spec is None and columns.masks is None and len(columns.target) == 1:
        parts_of = _Parts(table.columns[columns.input], columns.words)
    return infer(
        table, columns.target, kind, names, order=columns.order, missing=columns.missing, numbers=numbers,
        apart=columns.words, on_unseen="ignore" if columns.skip else "error", layouts=layouts,
        masks=columns.masks, parts_of=parts_of,
    )  # fmt: skip


class _Parts(Sequence[int]):
    """How many words or letters each text has; counted as far as somebody asks."""

    def __init__(self, cells: Sequence[Any], words: bool) -> None:
        self._cells, self._words = cells, words

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, row: Any) -> Any:
        text = str(self._cells[row])
        return len(text.split() if self._words else text.strip())


def _read(columns: Columns, notes: list[str], scored: str) -> Table:
    """The columns that are needed of a file."""
    wanted = [columns.input, *columns.target]
    if not scored:
        wanted += [name for name in (columns.split, columns.group) if name is not None]
    if columns.input in columns.target:
        raise UserError(f"data.input and data.target are both '{columns.input}'; name two columns.")
    problems: list[UserError] = []
    table = read_table(columns.table, list(dict.fromkeys(wanted)), problems.append if columns.skip else None)
    if problems:
        notes.append(f"{len(problems):,} damaged rows are left out, the first: {str(problems[0]).rstrip('.')}")
    return table


def _checked(columns: Columns, table: Table, notes: list[str]) -> Table:
    """The table without rows that have no input."""
    cells = table.columns[columns.input]
    empty = [row for row, cell in enumerate(cells) if cell is None or str(cell).strip() == ""]
    if empty and not columns.skip:
        more = f" and {len(empty) - 1:,} more" if len(empty) > 1 else ""
        raise UserError(
            f"'{columns.input}' is empty in {table.where(empty[0])}{more}, but must hold an input; fill it, or leave "
            "such rows out with --data.on_error skip."
        )
    if empty:
        notes.append(f"{len(empty):,} rows without an input are left out")
        without = set(empty)
        table = table.take([row for row in range(len(table)) if row not in without])
        if not len(table):
            raise UserError(f"'{columns.input}' is empty in all rows of '{table.path}'; name another column.")
    cells = table.columns[columns.input]
    for row, cell in enumerate(cells if {list, dict} & set(map(type, cells)) else ()):
        if columns.words and isinstance(cell, list):
            table.columns[columns.input][row] = _sentence(cell, f"'{columns.input}' in {table.where(row)}")
        elif isinstance(cell, list | dict):
            raise UserError(f"'{columns.input}' is a {type(cell).__name__} in {table.where(row)}, but must be a text.")
    return table


def _sentence(words: list[Any], where: str) -> str:
    """A list of words as a text. Raises UserError for one that would not be a word of it."""
    for word in words:
        if not isinstance(word, str) or len(word.split()) != 1:
            raise UserError(f"{where} has {word!r} in its list, but must have words without spaces; mend it.")
    return " ".join(words)


def _sides(
    columns: Columns, table: Table, target: Target, inputs: Sequence[str], scored: str
) -> Split | dict[str, Any]:
    if scored:
        return {scored: np.arange(len(table))}
    return split(
        len(table),
        column=None if columns.split is None else table.columns[columns.split],
        groups=None if columns.group is None else table.columns[columns.group],
        labels=_strata(target) if columns.stratify else None,
        inputs=inputs,
        val_fraction=columns.val_fraction,
        test_fraction=columns.test_fraction,
        seed=columns.seed,
        rows=table.lines,
        where=f"'{table.path}'",
    )


def _strata(target: Target) -> np.ndarray | None:
    """Classes whose parts are kept on each side; of several columns those of the first that has some."""
    found = (strata(part.kind, part.values) for part in target.parts or (target,))
    return next((classes for classes in found if classes is not None), None)
