"""What was asked of the columns of a table, and the sentences that come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from .cells import refuse_cell
from .columns import Table

MOST_SAID = 3
"""Cells with a mistake that are named; the others are counted."""


class Raw(NamedTuple):
    """What stands in the file of a mask, which has a label for each pixel of an image.

    Args:
        values: `[height, width]`, whole numbers of 8 or 16 bits, or floating-point ones.
        palette: the file gives each number a colour, so that the numbers are names.
        lossy: its compression changes values.
    """

    values: np.ndarray
    palette: bool = False
    lossy: bool = False


class MaskFiles(NamedTuple):
    """How a task reads masks.

    Args:
        named: whether a cell is the name of one.
        read: a file. Raises UserError.
        called: names of the values, by the text of each; empty where they are called by their numbers.
    """

    named: Callable[[str], bool]
    read: Callable[[Path], Raw]
    called: Mapping[str, str] = MappingProxyType({})


@dataclass
class Wanted:
    """The arguments of `infer`, and the notes that are taken on the way."""

    table: Table
    columns: list[str]
    names: list[str] | None = None
    order: Sequence[str] | None = None
    missing: frozenset[str] = frozenset()
    numbers: bool | None = None
    ignore: bool = False
    apart: bool = False
    masks: MaskFiles | None = None
    parts_of: Sequence[int] | None = None
    notes: list[str] = field(default_factory=list)
    skipped: int = 0

    def cells(self, column: str) -> list[Any]:
        """The cells of a column."""
        return self.table.columns[column]

    def note(self, text: str) -> None:
        """Keeps a note."""
        self.notes.append(text)

    def line(self, row: int) -> int:
        """What messages call a row."""
        return self.table.lines[row]

    def refuse(self, column: str, row: int, must: str, then: str, cell: Any = None) -> UserError:
        """The mistake of one cell, as a sentence."""
        shown = self.cells(column)[row] if cell is None else cell
        return refuse_cell(self.table.path, column, self.line(row), shown, must, then)

    def skip(self, error: UserError) -> None:
        """Keeps the mistake of a cell, which then counts as missing, as a note; raises it where none may be skipped."""
        if not self.ignore:
            raise error
        self.skipped += 1
        if self.skipped <= MOST_SAID:
            self.note(f"missing because of a mistake: {str(error).rstrip('.')}")

    def gone(self, cell: Any) -> bool:
        """Whether a cell of texts is missing: empty, or a text that was said to mean it."""
        return cell is None or (isinstance(cell, str) and (not cell.strip() or cell.strip() in self.missing))
