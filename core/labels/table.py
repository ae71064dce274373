"""Reads the columns of a table that are asked for: CSV and its relatives, JSON lines, Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..files import check_regular, few
from . import delimited, typed
from .columns import OnError, Table, kind_of_name

DELIMITED = (".csv", ".tsv", ".tab", ".psv", ".txt")
ROWS = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
OTHERS = {".xlsx": "a spreadsheet", ".xls": "a spreadsheet", ".ods": "a spreadsheet"}


def is_table(path: str | Path) -> bool:
    """Whether the name of a file is that of a table; .txt and .json may be something else and are none here."""
    ending = kind_of_name(path)
    return ending in (*DELIMITED, *ROWS, *PARQUET) and ending not in (".txt", ".json")


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
    readers = {DELIMITED: delimited.read, ROWS: typed.read_rows, PARQUET: typed.read_parquet}
    read = next((reader for endings, reader in readers.items() if ending in endings), None)
    if read is None:
        raise UserError(
            f"'{path}' ends in '{ending}', but must end in one of {', '.join((*DELIMITED, *ROWS, *PARQUET))} "
            "(.gz may stand behind); rename it."
        )
    table = read(path, list(columns), on_error)
    if not len(table):
        raise UserError(f"'{path}' holds no rows, only {few(table.names) or 'nothing'}; give a table with rows.")
    return table
