"""Reads the columns of a table that are asked for: CSV and its relatives, JSON lines, Parquet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from ..files import check_regular, few

DELIMITED = (".csv", ".tsv", ".tab", ".psv", ".txt")
ROWS = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
OTHERS = {".xlsx": "a spreadsheet", ".xls": "a spreadsheet", ".ods": "a spreadsheet"}

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


def is_table(path: str | Path) -> bool:
    """Whether the name of a file is that of a table; .txt and .json may be something else and are none here."""
    ending = kind_of_name(path)
    return ending in (*DELIMITED, *ROWS, *PARQUET) and ending not in (".txt", ".json")


def kind_of_name(path: str | Path) -> str:
    """The ending of a name in lower case, without .gz."""
    name = Path(path).name.lower()
    return Path(name.removesuffix(".gz")).suffix


def read_table(path: str | Path, columns: Sequence[str] = (), on_error: OnError | None = None) -> Table:
    """Reads columns of a table.

    Args:
        path: CSV, TSV or another file with one separator (, ; tab |, taken from the first line), JSON lines or a JSON
            array of objects, all possibly with .gz behind, or Parquet.
        columns: their names; none reads the names of all columns, and counts the rows.
        on_error: called with what is wrong with one row, which is then left out; left out, it is raised.

    Raises:
        UserError: the file cannot be read, holds no rows, lacks a column or has it twice; a row is damaged.
    """
    path, ending = check_regular(path), kind_of_name(path)
    if doubled := sorted({name for name in columns if list(columns).count(name) > 1}):
        raise UserError(f"The column '{doubled[0]}' is asked for twice; name each column once.")
    if what := OTHERS.get(ending):
        raise UserError(f"'{path}' is {what}, but must be CSV, TSV, JSON lines or Parquet; save it as CSV.")
    if not path.stat().st_size:
        raise UserError(f"'{path}' is empty; give a table whose first line names its columns.")
    if ending in DELIMITED:
        from .delimited import read
    elif ending in ROWS:
        from .typed import read_rows as read
    elif ending in PARQUET:
        from .typed import read_parquet as read
    else:
        raise UserError(
            f"'{path}' ends in '{ending}', but must end in one of {', '.join((*DELIMITED, *ROWS, *PARQUET))} "
            "(.gz may stand behind); rename it."
        )
    table = read(path, list(columns), on_error)
    if not len(table):
        raise UserError(f"'{path}' holds no rows, only {few(table.names) or 'nothing'}; give a table with rows.")
    return table


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
            raise UserError(
                f"'{path}' has no column '{column}'{nearest(column, [n for n in names if n])}; its columns are {there}."
            )
        if len(places) > 1:
            raise UserError(
                f"'{path}' has {len(places)} columns that are called '{column}'; rename all but one in its first line."
            )
        found.append(places[0])
    return found
