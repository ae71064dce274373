"""Labels of the parts of images: masks, with a label for each pixel, and grids of labels that cover an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, nearest
from ..files import few
from ..work import progress
from .cells import natural, number, shown, text_of
from .classes import IGNORED, finder
from .guess import KIND, MOST_STEPS, parsed_list
from .wanted import Raw, Wanted

BORDER = 255
"""The value that says "no label" in masks of 8 bits, unless 0 is the only other one."""
LEVELS = 1 << 16
"""Values of a whole number in a mask."""


@dataclass(frozen=True)
class Mask:
    """The labels of one image, read when they are asked for.

    Args:
        grid: labels of the cells of a grid that covers the image, `[rows, columns]`, coded; None for a file.
        path: of a file.
        read: reads it.
        codes: of the values `0..65535` of a file, int64; empty for numbers.
        gone: numbers of a file that are missing ones.
        empty: no part has a label.
    """

    grid: np.ndarray | None = None
    path: Path | None = None
    read: Callable[[Path], Raw] | None = None
    codes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    gone: tuple[float, ...] = ()
    empty: bool = False

    @property
    def numbers(self) -> bool:
        """Whether its labels are numbers, not classes."""
        return not len(self.codes) if self.grid is None else self.grid.dtype.kind == "f"

    def labels(self) -> np.ndarray:
        """int64 `[height, width]` with -100, or float64 with NaN, where there is no label."""
        if self.grid is not None:
            return self.grid
        assert self.path is not None and self.read is not None
        values = self.read(self.path).values
        if len(self.codes):
            return self.codes[values]
        return np.where(np.isfinite(values) & ~np.isin(values, self.gone), values.astype(np.float64), np.nan)


@dataclass
class _Seen:
    """What the cells of a column hold: a file or a grid of keys for each row, how often each value occurs, which values
    each file holds, and the least and largest number of each.
    """

    files: dict[int, Path] = field(default_factory=dict)
    grids: dict[int, list[list[Any]]] = field(default_factory=dict)
    values: np.ndarray = field(default_factory=lambda: np.zeros(LEVELS, np.int64))
    held: dict[int, np.ndarray] = field(default_factory=dict)
    spans: dict[int, tuple[float, float]] = field(default_factory=dict)
    keys: Counter[Any] = field(default_factory=Counter)
    fractions: bool = False
    palette: bool = False
    lossy: int | None = None


def are_masks(wanted: Wanted) -> bool:
    """Whether all cells that say something name masks, or are lists of lists."""
    if wanted.masks is None:
        return False
    there = [cell for cell in wanted.cells(wanted.columns[0]) if not wanted.gone(cell)]
    return bool(there) and all(
        (isinstance(cell, list) and any(isinstance(row, list) for row in cell))
        or (isinstance(cell, str) and (wanted.masks.named(cell.strip()) or cell.strip().startswith("[[")))
        for cell in there
    )  # fmt: skip


def code_masks(wanted: Wanted) -> tuple[list[Any], list[str], bool]:
    """The labels of each row, a `Mask`; the names of the classes (or of the column), and whether they are numbers."""
    assert wanted.masks is not None
    column, seen = wanted.columns[0], _Seen()
    cells = wanted.cells(column)
    with progress(f"Reading '{column}'", len(cells), "masks") as advance:
        for row, cell in enumerate(cells):
            try:
                _look(wanted, row, cell, seen)
            except UserError as error:
                wanted.skip(error)
            advance(1)
    if _are_numbers(wanted, seen):
        if wanted.masks.called:
            raise UserError(
                f"data.labels names classes, but '{column}' of '{wanted.table.path}' holds numbers; leave it out."
            )
        return _numbers(wanted, seen), [wanted.names[0] if wanted.names else column], True
    return *_classes(wanted, seen), False


def _look(wanted: Wanted, row: int, cell: Any, seen: _Seen) -> None:
    """Reads one cell. Raises UserError where it is no mask and no grid."""
    column = wanted.columns[0]
    assert wanted.masks is not None
    if wanted.gone(cell):
        return
    if isinstance(cell, str) and cell.strip().startswith("["):
        cell = parsed_list(cell.strip()) or cell
    if isinstance(cell, list):
        grid = _grid(wanted, row, cell)
        parts = Counter(_plain(part) for line in grid for part in line)
        seen.grids[row] = grid
        seen.keys += parts
        seen.fractions |= any(isinstance(part, float) and part == part and part != int(part) for part in parts)
        return
    if not isinstance(cell, str) or not wanted.masks.named(cell.strip()):
        raise wanted.refuse(
            column, row, "the file of a mask (such as masks/1.png, relative to the table) or a list of rows of labels",
            "mend the cell",
        )  # fmt: skip
    path = wanted.table.beside(cell.strip())
    if not path.is_file():
        raise UserError(
            f"'{path}' in {wanted.table.where(row)} is no file; masks are named relative to the table; mend the cell."
        )
    raw = wanted.masks.read(path)
    seen.files[row] = path
    if raw.values.dtype.kind == "f":
        real = raw.values[np.isfinite(raw.values)]
        seen.fractions |= bool((real != np.round(real)).any()) or bool(real.size and not 0 <= real.min() <= LEVELS - 1)
        counts = np.bincount(real.astype(np.int64).clip(0, LEVELS - 1))
    else:
        counts = np.bincount(raw.values.ravel())
    seen.values[: len(counts)] += counts
    gone = _missing_numbers(wanted)
    numbers = raw.values[np.isfinite(raw.values) & ~np.isin(raw.values, gone)] if gone else raw.values
    numbers = numbers[np.isfinite(numbers)]
    if numbers.size:
        seen.spans[row] = float(numbers.min()), float(numbers.max())
    seen.held[row] = np.flatnonzero(counts)
    seen.palette |= raw.palette
    if raw.lossy and seen.lossy is None:
        seen.lossy = row


def _grid(wanted: Wanted, row: int, cell: list[Any]) -> list[list[Any]]:
    """The rows of a grid. A list without lists in it is one of as many rows as columns."""
    column = wanted.columns[0]
    if cell and not any(isinstance(part, list) for part in cell):
        side = round(len(cell) ** 0.5)
        if side * side != len(cell):
            raise wanted.refuse(
                column, row, f"a list of rows, since {len(cell)} labels are no square", "write [[…], …]"
            )
        return [cell[start : start + side] for start in range(0, len(cell), side)]
    rows = cell
    if not rows or not all(isinstance(line, list) and line and len(line) == len(rows[0]) for line in rows):
        raise wanted.refuse(column, row, "a list of rows, each with as many labels", "mend the cell")
    if any(isinstance(part, (list, dict, tuple)) for line in rows for part in line):
        raise wanted.refuse(column, row, "a list of rows without lists in them", "write one label or number a part")
    return rows


def _plain(part: Any) -> Any:
    return str(part).lower() if isinstance(part, bool) else part


def _gone_values(wanted: Wanted, seen: _Seen) -> list[int]:
    """The numbers that mean "no label" in masks of classes, with a note."""
    column = wanted.columns[0]
    if wanted.missing:
        return [int(value) for word in wanted.missing if (value := number(word)) is not None and value.is_integer()]
    others = np.flatnonzero(seen.values)
    others = others[others != BORDER]
    assert wanted.masks is not None
    known = str(BORDER) in wanted.masks.called or (wanted.names is not None and str(BORDER) in wanted.names)
    if not seen.values[BORDER] or known:
        return []
    if others.tolist() == [0] and wanted.names is None:
        wanted.note(f"'{column}' holds 0 and 255 alone, which are two classes")
        return []
    share = seen.values[BORDER] / seen.values.sum()
    wanted.note(
        f"255 means no label in '{column}' ({share:.1%} of the pixels), as it mostly does; --data.missing says which "
        "value does"
    )
    return [BORDER]


def _are_numbers(wanted: Wanted, seen: _Seen) -> bool:
    column = wanted.columns[0]
    if wanted.numbers is not None:
        return wanted.numbers
    texts = [key for key in seen.keys if key is not None and key not in wanted.missing and number(key) is None]
    if texts or seen.palette:
        return False
    if seen.fractions:
        return True
    if wanted.masks is not None and wanted.masks.called:
        return False
    values = {int(value) for value in np.flatnonzero(seen.values)} | {
        int(key) for key in seen.keys if isinstance(key, int | float) and key == key
    }
    if len(values) > MOST_STEPS:
        raise UserError(
            f"'{column}' of '{wanted.table.path}' holds {len(values):,} different whole numbers, which may be classes "
            f"or quantities; say {KIND} tag:classes or tag:numbers."
        )
    wanted.note(f"the whole numbers of '{column}' are classes; {KIND} tag:numbers takes them as quantities")
    return False


def _numbers(wanted: Wanted, seen: _Seen) -> list[Any]:
    column = wanted.columns[0]
    gone = _missing_numbers(wanted)
    found: list[Any] = [Mask(grid=np.zeros((0, 0)), empty=True)] * len(wanted.table)
    low, high = np.inf, -np.inf
    for row, grid in seen.grids.items():
        try:
            cells = np.array([[_number(wanted, row, part) for part in line] for line in grid], np.float64)
        except UserError as error:
            wanted.skip(error)
            continue
        cells[np.isin(cells, gone)] = np.nan
        found[row] = Mask(grid=cells, empty=bool(np.isnan(cells).all()))
        if not found[row].empty:
            low, high = min(low, float(np.nanmin(cells))), max(high, float(np.nanmax(cells)))
    assert wanted.masks is not None
    for row, path in seen.files.items():
        found[row] = Mask(path=path, read=wanted.masks.read, gone=gone, empty=row not in seen.spans)
        least, most = seen.spans.get(row, (low, high))
        low, high = min(low, least), max(high, most)
    if low == high and wanted.names is None:
        raise UserError(
            f"'{column}' of '{wanted.table.path}' is {low:g} everywhere, but must differ for something to be learned; "
            "name another column."
        )
    return found


def _missing_numbers(wanted: Wanted) -> tuple[float, ...]:
    return tuple(value for word in wanted.missing if (value := number(word)) is not None)


def _number(wanted: Wanted, row: int, part: Any) -> float:
    if part is None or (isinstance(part, str) and part.strip() in wanted.missing):
        return float("nan")
    value = number(part)
    if value is None or np.isinf(value):
        raise wanted.refuse(wanted.columns[0], row, "rows of finite numbers", f"mend {shown(part)} in it")
    return value


def _classes(wanted: Wanted, seen: _Seen) -> tuple[list[Any], list[str]]:
    column = wanted.columns[0]
    if seen.fractions and seen.files and not seen.keys:
        raise UserError(
            f"'{column}' of '{wanted.table.path}' holds numbers that are not whole or not in 0..{LEVELS - 1}, "
            "which are no classes; leave out :classes."
        )
    if seen.lossy is not None:
        raise UserError(
            f"'{seen.files[seen.lossy]}' in {wanted.table.where(seen.lossy)} is a JPEG, whose compression changes the "
            "numbers of classes; save masks as PNG."
        )
    gone = _gone_values(wanted, seen)
    values = [value for value in np.flatnonzero(seen.values).tolist() if value not in gone]
    absent = {None, "", *wanted.missing, *map(str, gone)}
    keys = {key: text_of(key) for key in seen.keys if key == key and key not in absent and text_of(key) not in absent}
    known = sorted({*map(str, values), *keys.values()}, key=natural)
    called = _called(wanted, known)
    names = list(dict.fromkeys(called[key] for key in known)) if wanted.names is None else list(wanted.names)
    if wanted.names is None and len(names) < 2:
        what = f"is {shown(names[0])} everywhere" if names else "has no label anywhere"
        raise UserError(
            f"'{column}' of '{wanted.table.path}' {what}, but must differ for something to be learned; name another "
            "column."
        )
    find = finder(names)
    codes = np.full(LEVELS, IGNORED, np.int64)
    unseen: Counter[str] = Counter()
    for value in values:
        if (code := find(called[str(value)])) is not None:
            codes[value] = code
        else:
            _refuse_unseen(wanted, names, str(value), next(row for row, held in seen.held.items() if value in held))
            unseen[str(value)] += int(seen.values[value])
    of: dict[Any, int] = {}
    for key, text in keys.items():
        if (code := find(called[text])) is None:
            row = next(row for row, grid in seen.grids.items() if any(key in map(_plain, line) for line in grid))
            _refuse_unseen(wanted, names, text, row)
            unseen[text] += seen.keys[key]
        of[key] = IGNORED if code is None else code
    if unseen:
        wanted.note(f"{few([shown(k) for k in unseen])} at {unseen.total():,} places are no labels of the model, and "
                    "count as missing")  # fmt: skip
    return _coded(wanted, seen, codes, of), names


def _called(wanted: Wanted, known: Sequence[str]) -> dict[str, str]:
    """The name of each value. Raises UserError where some values have a name and one that is to be learned has none."""
    assert wanted.masks is not None
    called, column = wanted.masks.called, wanted.columns[0]
    if called and wanted.names is None:
        if lacking := [key for key in known if key not in called and key not in called.values()]:
            raise UserError(
                f"data.labels names {few(list(called))}, but '{column}' of '{wanted.table.path}' holds "
                f"{few(lacking)} too; name all values, or say by --data.missing which are no labels."
            )
        if absent := [key for key in called if key not in known]:
            which = few([f"{key} ({called[key]})" for key in absent])
            wanted.note(f"{which} of data.labels do not occur in '{column}'")
    return {key: called.get(key, key) for key in known}


def _coded(wanted: Wanted, seen: _Seen, codes: np.ndarray, of: dict[Any, int]) -> list[Any]:
    found: list[Any] = [Mask(grid=np.zeros((0, 0), np.int64), empty=True)] * len(wanted.table)
    assert wanted.masks is not None
    for row, grid in seen.grids.items():
        cells = np.array([[of.get(_plain(part), IGNORED) for part in line] for line in grid], np.int64)
        found[row] = Mask(grid=cells, empty=bool((cells == IGNORED).all()))
    for row, path in seen.files.items():
        empty = bool((codes[seen.held[row]] == IGNORED).all())
        found[row] = Mask(path=path, read=wanted.masks.read, codes=codes, empty=empty)
    return found


def _refuse_unseen(wanted: Wanted, names: Sequence[str], key: str, row: int) -> None:
    if not wanted.ignore:
        raise UserError(
            f"'{wanted.columns[0]}' in {wanted.table.where(row)} has the label {shown(key)}, which the model lacks"
            f"{nearest(key, names)}: {few(list(names), 12)}; mend it, or leave such labels out with --data.on_error "
            "skip."
        )
