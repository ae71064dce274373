"""Tables with a column of texts, read in pieces: Parquet files, and what the package datasets saves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.files import check_regular, few, parsing, read_json
from ...core.labels.rows import Row

TOGETHER = 256
"""Rows of a Parquet file that are decoded at once."""


def arrow(file: Path | str) -> Any:
    """The package pyarrow. Raises UserError that names `file` where it is missing."""
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"'{file}' needs pyarrow; install it with pip install 'triune[datasets]'.") from error
    return pyarrow


def parquet_rows(file: Path, column: str) -> Iterator[Row]:
    """The rows of one column, a few hundred at a time; at most one row group of the file is in memory.

    Raises:
        UserError: it is no Parquet file, or has no such column.
    """
    arrow(file)
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]

    with parsing(file, "Parquet"):
        # Without reading the next row groups ahead.
        table = parquet.ParquetFile(check_regular(file), buffer_size=1 << 20, pre_buffer=False)
    check_column(file, table.schema_arrow.names, column)
    yield from _rows(file, table.iter_batches(TOGETHER, columns=[column]), column, "Parquet")


def arrow_rows(file: Path, column: str) -> Iterator[Row]:
    """The rows of one column of a file in Arrow's stream format, which is mapped from disk.

    Raises:
        UserError: it is no such file, or has no such column.
    """
    pa = arrow(file)
    with parsing(file, "Arrow"):
        table = pa.ipc.open_stream(pa.memory_map(str(check_regular(file))))
    check_column(file, table.schema.names, column)
    number = table.schema.names.index(column)
    pieces = (
        pa.record_batch([batch.column(number).slice(first, TOGETHER)], [column])
        for batch in table
        for first in range(0, batch.num_rows, TOGETHER)
    )
    yield from _rows(file, pieces, column, "Arrow")


def _rows(file: Path, batches: Iterator[Any], column: str, kind: str) -> Iterator[Row]:
    number = 0
    while True:
        with parsing(file, kind):
            batch = next(batches, None)
            texts = [] if batch is None else batch.column(0).to_pylist()
        if batch is None:
            return
        for text in texts:
            yield Row(f"{file}:{number}", {column: "" if text is None else text})
            number += 1


def check_column(file: Path | str, names: list[str], column: str) -> None:
    """Raises UserError where a table has no such column."""
    if column not in names:
        raise UserError(
            f"'{file}' has no column '{column}'; its columns are: {few(names, 8)}; choose one with --data.text_field."
        )


# -- what `datasets` saves --------------------------------------------------------------------------------------------


def saved_set(folder: Path) -> str:
    """What a folder is that `save_to_disk` of the package datasets wrote, in words; else an empty string."""
    if (folder / "dataset_dict.json").is_file():
        return "several splits of the package datasets"
    one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return "a data set of the package datasets" if one else ""


def saved_files(folder: Path) -> dict[str, list[Path]]:
    """The Arrow files of each split of a folder for which `saved_set` has words; a single one is called train.

    Raises:
        UserError: a file of the set is damaged, missing, or names others outside of it.
    """
    names = ["."]
    if (folder / "dataset_dict.json").is_file():
        names = read_json(folder / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or not names:
            raise UserError(f"'{folder / 'dataset_dict.json'}' names no splits; save the data set again.")
    splits: dict[str, list[Path]] = {}
    for name in map(str, names):
        _inside(folder, name)
        state = read_json(folder / name / "state.json")
        entries = state.get("_data_files")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"'{folder / name / 'state.json'}' names no files; save the data set again.")
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise UserError(f"'{folder / name}' keeps an order of its own; save `flatten_indices()` of it.")
        files = [str(entry.get("filename")) for entry in entries]
        splits["train" if name == "." else name] = [folder / name / _inside(folder / name, file) for file in files]
    return splits


def _inside(folder: Path, name: str) -> str:
    if Path(name).name != name and name != ".":
        raise UserError(f"A file of '{folder}' names '{json.dumps(name)}', which lies outside of it; save it again.")
    return name
