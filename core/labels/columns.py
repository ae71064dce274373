"""Columns of a table in memory, and which of a file are meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from ..files import few

OnError = Callable[[UserError], None]


@dataclass(frozen=True)
class Table:
    """Columns of a table.

    Args:
        path: the file.
        columns: those that were asked for, all equally long. Cells of CSV files are texts as they stand there; None is
            an empty cell. JSON and Parquet bring numbers, bools and lists too.
        lines: what messages call each row: the number of the row, from 1, without the header; the line of JSON lines.
        names: all columns of the file.
        notes: which of several readings was taken.
    """

    path: Path
    columns: dict[str, list[Any]]
    lines: Sequence[int]
    names: list[str]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """How a message calls a row."""
        return f"row {self.lines[row]:,} of '{self.path}'"

    def beside(self, name: str) -> Path:
        """The path that a cell names: one that is not absolute lies beside the table."""
        return self.path.parent / Path(name).expanduser()

    def take(self, rows: Sequence[int]) -> Table:
        """The same table with these rows alone, in this order."""
        columns = {name: [cells[i] for i in rows] for name, cells in self.columns.items()}
        return Table(self.path, columns, [self.lines[i] for i in rows], self.names, self.notes)


def kind_of_name(path: str | Path) -> str:
    """The ending of a name in lower case, without .gz."""
    name = Path(path).name.lower()
    return Path(name.removesuffix(".gz")).suffix


def find_columns(path: Path, columns: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where the columns stand among `names`.

    Raises:
        UserError: one is not there, or stands there twice.
    """
    found = []
    for column in columns:
        places = [i for i, name in enumerate(names) if name == column]
        if not places:
            there = few([f"'{name}'" for name in names], 12) or "none"
            cased = next((name for name in names if name.casefold() == column.strip().casefold()), None)
            hint = nearest(column, [n for n in names if n]) if cased is None else f" (did you mean '{cased}'?)"
            raise UserError(f"'{path}' has no column '{column}'{hint}; its columns are {there}.")
        if len(places) > 1:
            raise UserError(
                f"'{path}' has {len(places)} columns that are called '{column}'; rename all but one in its first line."
            )
        found.append(places[0])
    return found
