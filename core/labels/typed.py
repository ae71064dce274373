"""Tables whose cells have types: JSON lines, JSON arrays and Parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import check_regular, parsing
from ..work import progress
from .columns import OnError, Table, find_columns
from .delimited import Cells
from .rows import rows


def read_rows(path: Path, columns: list[str], on_error: OnError | None) -> Table:
    """Reads fields of JSON objects, one a line, or of one array; a field that a row lacks is an empty cell."""
    names: dict[str, None] = {}
    kept: list[list[Any]] = [[] for _ in columns]
    lines: list[int] = []
    out = 0
    size = path.stat().st_size
    with progress(f"Reading {path.name}", size, "MB", 1e6):
        for row in rows(path):
            try:
                cells = _fields(row, columns)
            except UserError as error:
                if on_error is None:
                    raise
                on_error(error)
                out += 1
                continue
            names.update(dict.fromkeys(row.value))
            for column, cell in zip(kept, cells, strict=True):
                column.append(cell)
            lines.append(int(row.where.rpartition(":")[2]))
    if lines or out:
        find_columns(path, columns, list(names))
    notes = [f"{out:,} damaged rows are left out"] if out else []
    numbers: Sequence[int] = range(1, len(lines) + 1) if lines == list(range(1, len(lines) + 1)) else lines
    return Table(path, dict(zip(columns, kept, strict=True)), numbers, list(names), notes)


def _fields(row: Any, columns: list[str]) -> list[Any]:
    if row.error:
        raise row.error
    if not isinstance(row.value, dict):
        raise UserError(f"{row.where} holds no JSON object but {type(row.value).__name__}; write one object a line.")
    return [_cell(row.value.get(column), column, row.where) for column in columns]


def _cell(cell: Any, column: str, where: str, depth: int = 0) -> Any:
    if isinstance(cell, dict) or (isinstance(cell, list) and depth > 1):
        what = "an object" if isinstance(cell, dict) else "a list of lists of lists"
        raise UserError(
            f"{where}: '{column}' holds {what}, but must be a text, a number, a bool or a list; flatten it."
        )
    if isinstance(cell, list):
        return [_cell(part, column, where, depth + 1) for part in cell]
    return None if cell == "" else cell


def read_parquet(path: Path, columns: list[str], on_error: OnError | None) -> Table:
    """Reads columns of a Parquet file. Texts, numbers, bools and lists of them are read; other types are refused."""
    try:
        from pyarrow import parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"'{path}' needs pyarrow; install it with pip install 'triune[datasets]'.") from error
    with parsing(path, "Parquet"):
        file = parquet.ParquetFile(check_regular(path))
        schema, count = file.schema_arrow, file.metadata.num_rows
        names = list(schema.names)
    find_columns(path, columns, names)
    for column in columns:
        _check_type(path, column, schema.field(column).type)
    kept = [Cells() for _ in columns]
    with progress(f"Reading {path.name}", count, "rows") as advance, parsing(path, "Parquet"):
        for batch in file.iter_batches(1 << 15, columns=columns):
            for column, place in zip(columns, kept, strict=True):
                cells = batch.column(batch.schema.get_field_index(column)).to_pylist()
                if cells and isinstance(next((c for c in cells if c is not None), None), str):
                    place.add(["" if cell is None else cell for cell in cells])
                else:
                    place.cells += [float(c) if isinstance(c, Decimal) else None if c == "" else c for c in cells]
            advance(batch.num_rows)
    doubled = [name for name, times in Counter(names).items() if times > 1]
    notes = [f"several columns are called {', '.join(doubled)}"] if doubled else []
    found = {name: place.cells for name, place in zip(columns, kept, strict=True)}
    return Table(path, found, range(1, count + 1), names, notes)


def _check_type(path: Path, column: str, kind: Any) -> None:
    from pyarrow import types  # pyright: ignore[reportMissingImports]

    inner, nested = kind, (types.is_dictionary, types.is_list, types.is_large_list, types.is_fixed_size_list)
    for _ in range(2):
        inner = inner.value_type if any(test(inner) for test in nested) else inner
    good = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    if not any(test(inner) for test in (*good, types.is_decimal, types.is_null)) and "string_view" not in str(inner):
        raise UserError(
            f"'{column}' of '{path}' has the type {kind}, but must hold texts, numbers, bools or lists of them; "
            "write it as text."
        )
