"""What cells mean: numbers, the words for a missing one, and the text by which a class is known."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UserError

BLOCK = 1 << 16
"""Cells that are looked at together, so that equal ones are read once and memory stays bounded."""
MISSING = frozenset(["", "na", "n/a", "#n/a", "nan", "null", "none", "-", "--", "?"])
"""Cells of a column of numbers that are missing ones, in lower case."""
MOST_VALUES = 200_000
"""Different texts of a column of classes; more are names or sentences."""
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
COMMA = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?|[+-]?[0-9]*,[0-9]+|[+-]?[0-9]{1,3}([ '’_][0-9]{3})+")
UNIT = re.compile(r"[<>~≈]?\s*[+-]?[0-9]+(?:[.,][0-9]+)?\s*([^\W\d_]{1,6}(?:/[^\W\d_]+)?|[%°µ€$£]\w*)")
DATE = re.compile(
    r"([0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.]([0-9]{4}|[0-9]{2}))"
    r"([ T][0-9]{1,2}:[0-9]{2}.*)?|[0-9]{1,2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?"
)
LARGEST = 1e30
"""Numbers are learned in 32 bits, which end at 3.4e38, and their squares are added up."""
CODE = re.compile(r"[+-]?0[0-9]+")
"""Numbers with a zero in front, such as 007: codes, which are no quantities."""
DIGITS, LEADING = frozenset("0123456789.eE+-\n"), re.compile(r"^[+-]?0[0-9]", re.MULTILINE)
YES_NO = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}


def natural(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts as people count: "2" before "10", "class 2" before "class 10"."""
    parts = re.split(r"([0-9]+)", name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts if part]


def same(name: str) -> str:
    """A name in the form in which names are compared (Unicode NFC: systems differ in how they write "é")."""
    return unicodedata.normalize("NFC", name)


def loose(name: str) -> str:
    """A name without what the eye does not see, or hardly: case, width, spaces and invisible characters."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) != "Cf")


def shown(cell: Any, most: int = 60) -> str:
    """A cell for a message: in quotes, on one line, cut where it is long."""
    text = repr(cell) if not isinstance(cell, str) else f"'{' '.join(cell.split())}'" if cell.strip() else repr(cell)
    return text if len(text) <= most else f"{text[: most - 2]}…{text[-1] if text[-1] in chr(39) + ']' else ''}"


def clipped(name: str, most: int = 40) -> str:
    """The beginning of a name, for a message that lists several."""
    return name if len(name) <= most else name[: most - 1] + "…"


def plain(cell: Any) -> Any:
    """A cell of a typed table as the text that stands for it in a CSV file; whole numbers have no point."""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, int):
        return str(cell)
    if isinstance(cell, float):
        return figure(cell)
    return cell


def figure(value: float) -> str:
    """A number as the name of a class: 1.0 is "1"."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return "" if math.isnan(value) else repr(value)


def text_of(cell: Any) -> str:
    """The text by which a cell is known, as a class or as a key: without spaces around it, in one Unicode form."""
    cell = plain(cell)
    return "" if cell is None else same(str(cell).strip())


def number(cell: Any) -> float | None:
    """The number of a cell, NaN for a missing one, None for what is no number; infinite ones as they are."""
    if cell is None:
        return math.nan
    if isinstance(cell, bool):
        return None
    if isinstance(cell, (int, float)):
        try:
            return float(cell)
        except OverflowError:
            return math.inf
    if not isinstance(cell, str):
        return None
    text = cell.strip()
    if NUMBER.fullmatch(text):
        return float(text)
    if text.lower() in MISSING:
        return math.nan
    return math.copysign(math.inf, -1 if text[0] == "-" else 1) if INFINITE.fullmatch(text) else None


def blocks(cells: Sequence[Any]) -> Iterable[tuple[int, Sequence[Any]]]:
    """The cells in parts: where each begins, and the cells."""
    for start in range(0, len(cells), BLOCK):
        yield start, cells[start : start + BLOCK]


@dataclass
class Numbers:
    """A column read as numbers.

    values: float64 `[rows]`, NaN where a cell is missing or no number.
    words: how often each text that is no number stands for a missing one.
    bad: the first row that holds something else, or None; `bad_count` how many do, `bad_cells` some different ones.
    infinite: the first row with an infinite number, or None.
    codes: whether a number has a zero in front, as in 007.
    """

    values: np.ndarray
    words: Counter[str] = field(default_factory=Counter)
    bad: int | None = None
    bad_count: int = 0
    bad_cells: dict[str, int] = field(default_factory=dict)
    infinite: int | None = None
    codes: bool = False

    @property
    def present(self) -> np.ndarray:
        """The numbers that are there."""
        return self.values[~np.isnan(self.values)]


def _plain_numbers(block: Sequence[Any]) -> np.ndarray | None:
    """The numbers of texts that are all spelt with digits, points, signs and exponents, read at once; else None."""
    try:
        joined = "\n".join(block)
        if set(joined) - DIGITS or LEADING.search(joined):
            return None
        return np.array(list(map(float, block)), float)
    except (TypeError, ValueError):  # a cell that is no text, or no number
        return None


def numbers_of(cells: Sequence[Any]) -> Numbers:
    """Reads a column as numbers; nothing is refused here. Lists are no numbers."""
    found = Numbers(np.full(len(cells), np.nan))
    for start, block in blocks(cells):
        if (quick := _plain_numbers(block)) is not None:
            found.values[start : start + len(block)] = quick
            if found.infinite is None and np.isinf(quick).any():
                found.infinite = start + int(np.isinf(quick).argmax())
            continue
        kinds = set(map(type, block)) - {type(None), str, int, float}
        if kinds:  # bool, which is equal to a number as a key, and lists, which are no keys
            block = [str(c) if isinstance(c, list) else ("true" if c else "false") if isinstance(c, bool) else c
                     for c in block]  # fmt: skip
        read = {cell: number(cell) for cell in dict.fromkeys(block)}
        values = np.array([np.nan if v is None else v for v in map(read.__getitem__, block)], float)
        found.values[start : start + len(block)] = values
        odd = {cell for cell, value in read.items() if value is None}
        if odd:
            rows = [i for i, cell in enumerate(block) if cell in odd]
            found.bad_count += len(rows)
            found.bad = start + rows[0] if found.bad is None else found.bad
            for i in rows:
                if len(found.bad_cells) >= 1000:
                    break
                found.bad_cells.setdefault(block[i], start + i)
        words = {c for c, v in read.items() if isinstance(c, str) and c.strip() and v is not None and math.isnan(v)}
        if words:
            found.words.update(cell.strip() for cell in block if cell in words)
        if found.infinite is None and np.isinf(values).any():
            found.infinite = start + int(np.isinf(values).argmax())
        found.codes = found.codes or any(isinstance(c, str) and CODE.fullmatch(c.strip()) for c in read)
    return found


@dataclass
class Texts:
    """A column as codes of its different cells.

    cells: the different cells, in the order in which they first stand there; None is one of them.
    codes: int32 `[rows]`, index into `cells`.
    """

    cells: list[Any]
    codes: np.ndarray

    def counts(self) -> np.ndarray:
        """How many rows hold each cell."""
        return np.bincount(self.codes, minlength=len(self.cells))

    def first(self, cell: int) -> int:
        """The first row that holds the cell of this code."""
        return int((self.codes == cell).argmax())


def texts_of(cells: Sequence[Any], most: int = MOST_VALUES) -> Texts | None:
    """Reads a column as codes of its different cells; None where more than `most` differ. Lists become tuples."""
    types = set(map(type, cells)) - {type(None)}
    mixed = len(types & {bool, int, float}) + (str in types) > 1  # True, 1 and 1.0 are one key
    seen: dict[Any, int] = {}
    codes = np.empty(len(cells), np.int32)
    for start, block in blocks(cells):
        if list in types:
            block = [frozen(cell) for cell in block]
        if mixed:
            block = [plain(cell) for cell in block]
        for cell in dict.fromkeys(block):
            seen.setdefault(cell, len(seen))
        if len(seen) > most:
            return None
        codes[start : start + len(block)] = np.fromiter(map(seen.__getitem__, block), np.int32, len(block))
    return Texts(list(seen), codes)


def frozen(cell: Any) -> Any:
    """A list, and lists in it, as a tuple, which can be a key."""
    return tuple(map(frozen, cell)) if isinstance(cell, list) else cell


def refuse_cell(path: Any, column: str, line: int, cell: Any, must: str, then: str) -> UserError:
    """The mistake of one cell, as a sentence."""
    return UserError(f"'{column}' in row {line:,} of '{path}' is {shown(cell)}, but must be {must}; {then}.")
