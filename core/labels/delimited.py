"""Tables whose cells are separated by one character: CSV, TSV, with semicolons or bars."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ..errors import UserError
from ..files import check_regular, few, most_unpacked
from ..work import progress
from .columns import OnError, Table, find_columns, kind_of_name
from .rows import encoding_of

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
BLOCK = 1 << 15
"""Rows that are handled together."""
MOST_CELL = 64 << 20
"""Longest cell, in characters."""
KEPT = 1 << 16
"""Different cells of a column that are kept once, however often they stand there."""


class Unquoted(Exception):
    """The quotes of a file are letters of its cells."""


def read(path: Path, columns: list[str], on_error: OnError | None) -> Table:
    """Reads columns of a table; see `table.read_table`."""
    try:
        return _read(path, columns, on_error, csv.QUOTE_MINIMAL)
    except Unquoted:
        table = _read(path, columns, on_error, csv.QUOTE_NONE)
        table.notes.append("its quotes are read as letters, because they do not enclose cells")
        return table


def _read(path: Path, columns: list[str], on_error: OnError | None, quoting: Any) -> Table:
    with _opened(path) as (text, raw), cells_of(MOST_CELL):
        start = text.readline(MOST_CELL)
        while start and not start.strip("\r\n"):
            start = text.readline(MOST_CELL)
        _check_binary(path, start)
        said = re.fullmatch(r"sep=([,;\t|])\s*", start)  # a line of Excel's
        start = text.readline(MOST_CELL) if said else start
        separator, notes = (said[1], []) if said else _separator(path, start, columns)
        lines = _Lines(path, start, text)
        reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
        try:
            header = [name.strip().strip("\ufeff") for name in next(reader)]
        except csv.Error as error:
            raise UserError(f"The first line of '{path}' cannot be read ({error}); mend it.") from None
        places = find_columns(path, columns, header)
        kept = [Cells() for _ in places]
        rows = _Rows(path, header, separator, on_error, quoting, lines)
        size = path.stat().st_size
        with progress(f"Reading {path.name}", size, "MB", 1e6) as advance:
            done = 0
            for block in rows.blocks(reader):
                for column, cells in zip(kept, _picked(block, places), strict=True):
                    column.add(cells)
                now = raw.tell()
                advance(now - done)
                done = now
        notes += rows.notes()
    found = dict(zip(columns, (column.cells for column in kept), strict=True))
    return Table(path, found, rows.lines_left(), header, notes)


def _picked(block: list[list[str]], places: list[int]) -> list[list[str]]:
    return [[row[place] for row in block] for place in places]


class Cells:
    """The cells of a column; equal ones are one object as long as there are few different ones."""

    def __init__(self) -> None:
        self.cells: list[Any] = []
        self._kept: dict[str, str | None] | None = {"": None}

    def add(self, cells: list[str]) -> None:
        kept = self._kept
        if kept is None:
            self.cells += [cell or None for cell in cells]
            return
        for cell in set(cells):
            kept.setdefault(cell, cell)
        self.cells += map(kept.__getitem__, cells)
        if len(kept) > KEPT:
            self._kept = None


class _Lines:
    """The lines of a file behind its first, which is known already; counts them."""

    def __init__(self, path: Path, start: str, text: IO[str]) -> None:
        self._path, self._start, self._text = path, start, text

    def __iter__(self) -> Iterator[str]:
        yield self._start
        for line in self._text:
            if "\0" in line:
                raise UserError(
                    f"'{self._path}' is no text: a line holds a NUL character, as binary and damaged files do; remove"
                    " it, or restore the file."
                )
            yield line


class _Rows:
    """The rows of a file that have as many cells as its header, in blocks, and what became of the others."""

    def __init__(
        self, path: Path, header: list[str], separator: str, on_error: OnError | None, quoting: int, lines: _Lines
    ) -> None:
        self.path, self.width, self.separator = path, len(header), separator
        self.on_error, self.quoting = on_error, quoting
        self.count, self.blank, self.out = 0, 0, list[int]()
        self.lines = lines

    def blocks(self, reader: Any) -> Iterator[list[list[str]]]:
        while True:
            block, stopped = list[list[str]](), None
            try:
                block.extend(islice(reader, BLOCK))  # keeps what came before an error
            except csv.Error as error:
                stopped = error
            except UnicodeDecodeError as error:
                raise _not_text(self.path, error, f" near row {self.count + len(block) + 1:,}") from None
            if good := self._good(block):
                yield good
            if stopped is not None:
                self._stop(stopped)
            if not block:
                return

    def _good(self, block: list[list[str]]) -> list[list[str]]:
        if set(map(len, block)) - {self.width}:
            full = [row for row in block if row]
            self.blank += len(block) - len(full)
            odd = [i for i, row in enumerate(full) if len(row) != self.width]
            for i in odd:
                self._refuse(self.count + i + 1, full[i])
            self.out += [self.count + i + 1 for i in odd]
            self.count += len(full)
            block = [row for row in full if len(row) == self.width]
        else:
            self.count += len(block)
        # A quote that opens a cell and is no quote at all swallows lines up to the next one.
        doubtful = self.separator == "\t" and self.quoting != csv.QUOTE_NONE
        if doubtful and any("\t" in cell and "\n" in cell for row in block for cell in row):
            raise Unquoted
        return block

    def _refuse(self, number: int, row: list[str]) -> None:
        more = "more" if len(row) > self.width else "fewer"
        known = SEPARATORS[self.separator]
        error = UserError(
            f"Row {number:,} of '{self.path}' has {len(row)} cells, {more} than the {self.width} of the first line "
            f"(separated by {known}); mend the row, or put quotes around cells that hold {known}."
        )
        if self.on_error is None:
            raise error
        self.on_error(error)

    def _stop(self, error: csv.Error) -> None:
        if self.separator == "\t":
            raise Unquoted
        if "field limit" in str(error):
            why, then = f"a cell of more than {MOST_CELL / 1e6:,.0f} million characters", "look for a missing quote"
        else:
            why, then = f"a quote that is not closed, or more behind one ({error})", "write quotes in a cell twice"
        raise UserError(f"Row {self.count + 1:,} of '{self.path}' has {why}; {then}.") from None

    def notes(self) -> list[str]:
        found = []
        if self.blank:
            found.append(f"{self.blank:,} blank lines are no rows")
        if self.out:
            found.append(f"{len(self.out):,} damaged rows are left out")
        return found

    def lines_left(self) -> Sequence[int]:
        if not self.out:
            return range(1, self.count + 1)
        out = set(self.out)
        return [i for i in range(1, self.count + 1) if i not in out]


@contextmanager
def cells_of(most: int) -> Iterator[None]:
    """Lets Python's tables have cells of so many characters, and puts its limit back."""
    before = csv.field_size_limit(most)
    try:
        yield
    finally:
        csv.field_size_limit(before)


class _Bounded(io.RawIOBase):
    """A packed file that may not unpack to more than a number of bytes."""

    def __init__(self, packed: IO[bytes], most: int, path: Path) -> None:
        self._packed, self._left, self._path = packed, most, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._packed.read(len(buffer))
        self._left -= len(part)
        if self._left < 0:
            raise UserError(f"'{self._path}' unpacks to more than its size allows; it is damaged or not what it seems.")
        buffer[: len(part)] = part
        return len(part)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[str], IO[bytes]]]:
    """The text of a file, and the file whose position says how much of it is read."""
    try:
        with check_regular(path).open("rb") as raw:
            packed = path.suffix.lower() == ".gz"
            content: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            encoding, mark = encoding_of(content.read(4))
            content.seek(mark)
            if packed:
                content = io.BufferedReader(_Bounded(content, most_unpacked(path), path), 1 << 20)
            yield io.TextIOWrapper(content, encoding, newline=""), raw
    except UnicodeDecodeError as error:
        raise _not_text(path, error, "") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"'{path}' cannot be read ({error}); write it again.") from None


def _not_text(path: Path, error: UnicodeDecodeError, near: str) -> UserError:
    byte = error.object[error.start]
    return UserError(
        f"'{path}' is not {error.encoding.upper()} text{near}: byte 0x{byte:02x}; save it as UTF-8, for example with "
        "iconv -f latin1 -t utf-8."
    )


def _check_binary(path: Path, start: str) -> None:
    if "\0" in start:
        raise UserError(
            f"'{path}' is no text: its first line holds a NUL character, as binary files and UTF-16 without a "
            "byte-order mark do; save it as UTF-8."
        )
    if start.startswith(("PAR1", "PK\x03\x04")):
        what = "Parquet (.parquet)" if start.startswith("PAR1") else "a spreadsheet or a zip archive"
        raise UserError(f"'{path}' is {what}, not text; rename it, or save it as CSV.")


def _separator(path: Path, start: str, columns: list[str]) -> tuple[str, list[str]]:
    """The separator of the first line: the one that gives the columns asked for, else the one that gives most cells."""
    cells: dict[str, list[str]] = {}
    for separator in SEPARATORS:
        try:
            cells[separator] = [name.strip().strip("\ufeff") for name in next(csv.reader([start], delimiter=separator))]
        except csv.Error:
            cells[separator] = []
    usual = "\t" if kind_of_name(path) in (".tsv", ".tab") else "|" if kind_of_name(path) == ".psv" else ","
    order = sorted(SEPARATORS, key=lambda s: (-_fits(cells[s], columns), -len(cells[s]), s != usual))
    chosen = order[0]
    fitting = [s for s in SEPARATORS if len(cells[s]) > 1 and _fits(cells[s], columns) == len(columns)]
    notes = []
    if chosen != usual and len(cells[chosen]) > 1:
        notes.append(f"its cells are separated by {SEPARATORS[chosen]}")
    elif len(fitting) > 1:
        notes.append(f"its cells are taken as separated by {SEPARATORS[chosen]}, though {SEPARATORS[fitting[1]]} fit")
    if len(set(cells[chosen]) - {""}) < len([name for name in cells[chosen] if name]):
        names = [name for name, count in Counter(cells[chosen]).items() if count > 1 and name]
        notes.append(f"several columns are called {few(names)}")
    return chosen, notes


def _fits(cells: list[str], columns: list[str]) -> int:
    return sum(column in cells for column in columns)
