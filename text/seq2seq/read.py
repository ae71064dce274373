"""Pairs of texts from files: tables with two columns (.tsv, .csv) or rows of JSON (.jsonl, .json)."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...core.errors import UserError
from ...core.files import few
from ...core.labels.delimited import cells_of
from ...core.labels.rows import rows
from ..data.corpus import matching
from ..data.reading import read_text
from .rules import Pair

TABLES = {".tsv": "\t", ".csv": ","}
ROWS = (".jsonl", ".json", ".jsonl.gz")
LONGEST = sys.maxsize >> 1 if sys.maxsize > 1 << 31 else sys.maxsize
"""Characters of a cell; what a whole file may hold is the bound."""
NAMES = ("source", "target")
"""Columns, where no others are asked for."""


def read_pairs(files: Iterable[str], source: str, target: str) -> tuple[list[Pair], str]:
    """All pairs of some files, and a remark on how their columns were read.

    Args:
        files: paths or globs.
        source: name of the column of sources.
        target: that of targets.

    Raises:
        UserError: a file is missing or of another kind, lacks a column, or a row of it has no source or target.
    """
    found: list[Pair] = []
    bare: list[str] = []
    for file in (path for name in files for path in matching(name)):
        if file.is_dir():
            raise UserError(f"'{file}' is a folder; name its files of pairs, such as '{file}/*.tsv'.")
        if file.suffix in TABLES:
            with cells_of(LONGEST):
                header, pairs = _table(file, source, target)
                several = list(pairs)
            bare += [] if header else [str(file)]
        elif file.name.endswith(ROWS):
            several = _rows(file, source, target)
        else:
            raise UserError(
                f"'{file}' is no file of pairs; give .tsv or .csv with two columns, or .jsonl with the fields "
                f"{source} and {target}."
            )
        before = len(found)
        found += several
        if len(found) == before:
            raise UserError(f"'{file}' holds no pair; give a file with at least one.")
    return found, f"{few(bare)} without a header: the first column is the source" if bare else ""


def _table(file: Path, source: str, target: str) -> tuple[bool, Iterator[Pair]]:
    """Whether the table has a header, and its pairs."""
    delimiter = TABLES[file.suffix]
    # In a .tsv a quotation mark is a character like others, as tables of texts are commonly written.
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    table = csv.reader(_lines(read_text(file)), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        head = next((row for row in table if any(row)), [])
    except csv.Error as error:
        raise UserError(f"'{file}' cannot be read as a table ({error}); mend it, or give .jsonl.") from None
    if source in head and target in head:
        return True, _cells(file, table, head.index(source), head.index(target), len(head))
    if len(head) != 2:
        raise UserError(
            f"'{file}' has the columns {few(head)}, but must have {source} and {target}; name them with --data.source "
            "and --data.target, or give two columns without a header."
        )
    if (source, target) != NAMES and not {source, target} & set(head):
        raise UserError(
            f"'{file}' begins with {few(head)}, but must have the columns {source} and {target}, which are asked for;"
            " correct --data.source and --data.target, or leave both out for two columns without a header."
        )
    if source in head or target in head:
        raise UserError(
            f"'{file}' has the columns {few(head)}, of which one is {source if source in head else target}, but not "
            "the other; name both with --data.source and --data.target."
        )

    def cells() -> Iterator[Pair]:
        yield _pair(head, f"{file}:1")
        yield from _cells(file, table, 0, 1, 2)

    return False, cells()


def _lines(text: str) -> Iterator[str]:
    """Lines with their ends, as the reader of tables wants them; other separators than line ends are text."""
    for line in text.split("\n"):
        yield f"{line}\n"


def _cells(file: Path, table: Iterator[list[str]], source: int, target: int, columns: int) -> Iterator[Pair]:
    try:
        for number, row in enumerate(table, 2):
            if not any(row):
                continue
            if len(row) != columns:
                raise UserError(f"{file}:{number} has {len(row)} columns, but the first row has {columns}; mend it.")
            yield _pair((row[source], row[target]), f"{file}:{number}")
    except csv.Error as error:
        raise UserError(f"'{file}' cannot be read as a table ({error}); mend it, or give .jsonl.") from None


def _rows(file: Path, source: str, target: str) -> Iterator[Pair]:
    for where, value, error in rows(file):
        if error is not None:
            raise error
        if not isinstance(value, dict):
            raise UserError(f"{where} is a {type(value).__name__}, but must be an object with {source} and {target}.")
        for name in (source, target):
            if name not in value:
                raise UserError(
                    f"{where} has no {name} (it has {few(list(map(str, value)))}); name the fields with --data.source "
                    "and --data.target."
                )
            if not isinstance(value[name], str):
                raise UserError(f"{where}: {name} is {value[name]!r}, but must be text.")
        yield _pair((value[source], value[target]), where)


def _pair(cells: Iterable[str], where: str) -> Pair:
    pair = Pair(*cells)
    for name, text in zip(("source", "target"), pair, strict=True):
        if not text.strip():
            raise UserError(f"{where} has no {name}; give one, or remove the row.")
    return pair
