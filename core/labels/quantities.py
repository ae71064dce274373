"""Columns of numbers, and of yes and no, coded as arrays."""

from __future__ import annotations

import numpy as np

from ..errors import UserError, nearest
from ..files import few
from .cells import LARGEST, YES_NO, Numbers, figure, number, numbers_of, shown
from .guess import KIND, must_be_number
from .wanted import Wanted

COARSE = 0.01
"""Standard deviations that numbers of 32 bits may be apart, the width of what a model is taught by."""


def numbers_in(wanted: Wanted, column: str) -> np.ndarray:
    """The numbers of a column, float64 `[rows]`, NaN where missing. Raises UserError for anything else in it."""
    cells = wanted.cells(column)
    if wanted.missing:
        cells = [None if isinstance(cell, str) and wanted.gone(cell) else cell for cell in cells]
    read = numbers_of(cells)
    if read.bad is not None:
        for row in read.bad_cells.values():
            wanted.skip(wanted.refuse(column, row, *must_be_number(cells[row], f"or say {KIND} classify")))
        wanted.skipped += read.bad_count - len(read.bad_cells)
    if read.infinite is not None:
        for row in np.flatnonzero(np.isinf(read.values)).tolist():
            wanted.skip(wanted.refuse(column, row, "a finite number", "mend the cell, or leave it empty"))
        read.values[np.isinf(read.values)] = np.nan
    for row in np.flatnonzero(np.abs(read.values) > LARGEST).tolist():
        must = f"between {-LARGEST:g} and {LARGEST:g}"
        wanted.skip(wanted.refuse(column, row, must, "take another unit, mend the cell, or leave it empty"))
        read.values[row] = np.nan
    _note_words(wanted, column, read)
    return read.values


def _note_words(wanted: Wanted, column: str, read: Numbers) -> None:
    if read.words:
        words = few([shown(word) for word in sorted(read.words)])
        wanted.note(f"cells of '{column}' that are {words}, and count as missing: {read.words.total():,}")


def arranged(wanted: Wanted, columns: list[np.ndarray], kind: type) -> tuple[np.ndarray, list[str]]:
    """Columns beside each other, `[rows, targets]`, under the names of a trained model where there are any.

    They meet by key; the one column of a model with one target may be called anything. What the table lacks is NaN.
    """
    if wanted.names is None:
        return np.stack(columns, 1).astype(kind), list(wanted.columns)
    names = wanted.names
    if len(names) == 1 == len(columns):
        if names[0] != wanted.columns[0]:
            wanted.note(f"'{wanted.columns[0]}' of the table is what the model calls '{names[0]}'")
        return columns[0][:, None].astype(kind), list(names)
    if unknown := [name for name in wanted.columns if name not in names]:
        raise UserError(
            f"The model has no target '{unknown[0]}'{nearest(unknown[0], names)}, only {few(names, 12)}; name columns "
            "of the table that are called like them."
        )
    values = np.full((len(columns[0]), len(names)), np.nan, kind)
    for name, column in zip(wanted.columns, columns, strict=True):
        values[:, names.index(name)] = column
    if absent := [name for name in names if name not in wanted.columns]:
        wanted.note(f"the table has no column for {few(absent)} of the model")
    return values, list(names)


def code_numbers(wanted: Wanted) -> tuple[np.ndarray, list[str]]:
    """Columns of numbers, float64 `[rows, targets]`, and the names of the targets."""
    columns = [numbers_in(wanted, column) for column in wanted.columns]
    if wanted.names is None:
        for name, values in zip(wanted.columns, columns, strict=True):
            there = values[~np.isnan(values)]
            _check_spread(wanted, name, there)
    return arranged(wanted, columns, np.float64)


def _check_spread(wanted: Wanted, name: str, there: np.ndarray) -> None:
    if not len(there) and len(wanted.columns) > 1:
        raise UserError(f"'{name}' of '{wanted.table.path}' is missing in all rows; leave it out of the targets.")
    if len(there) and there.min() == there.max():
        raise UserError(
            f"'{name}' of '{wanted.table.path}' is {figure(float(there[0]))} in all {len(there):,} rows that have it, "
            "but must differ for something to be learned; name another column."
        )
    if not len(there):
        return
    what, most, spread = f"The numbers of '{name}' of '{wanted.table.path}'", float(np.abs(there).max()), there.std()
    if most < 1 / LARGEST:
        raise UserError(f"{what} are all smaller than {1 / LARGEST:g}; write them in a smaller unit.")
    if most * np.finfo(np.float32).eps / 2 > COARSE * spread:
        raise UserError(
            f"{what} differ by {spread:.3g} (their standard deviation) around {there.mean():.6g}, which numbers of 32 "
            "bits cannot tell apart; subtract that from all of them."
        )


def code_columns(wanted: Wanted) -> tuple[np.ndarray, list[str]]:
    """Columns of 0 and 1 (true and false, yes and no), float32 `[rows, labels]` with NaN where missing."""
    columns = [_yes_no(wanted, column) for column in wanted.columns]
    if wanted.names is None:
        constant = {}
        for name, values in zip(wanted.columns, columns, strict=True):
            there = values[~np.isnan(values)]
            if not len(there):
                raise UserError(
                    f"'{name}' of '{wanted.table.path}' is missing in all rows; leave it out of the targets."
                )
            if there.min() == there.max():
                constant[name] = there[0]
        if len(constant) == len(columns):
            raise UserError(
                f"All labels of '{wanted.table.path}' ({few(list(constant))}) are the same in all rows, but must "
                "differ for something to be learned; name other columns."
            )
        for name, value in constant.items():
            wanted.note(f"'{name}' is {figure(float(value))} in all rows, from which nothing can be learned")
    return arranged(wanted, columns, np.float32)


def _yes_no(wanted: Wanted, column: str) -> np.ndarray:
    cells = wanted.cells(column)
    of: dict[object, float] = {}
    for cell in {str(cell) if isinstance(cell, list) else cell for cell in cells} | {True, False}:
        value = number(cell)
        text = str(cell).strip().lower()
        if wanted.gone(cell) or (value is not None and value != value):
            of[cell] = np.nan
        elif text in YES_NO:
            of[cell] = YES_NO[text]
        elif value in (0.0, 1.0):
            of[cell] = float(value)
        else:
            row = next(i for i, c in enumerate(cells) if (str(c) if isinstance(c, list) else c) == cell)
            raise wanted.refuse(
                column, row, "0 or 1, true or false, or yes or no, as in all columns of labels",
                f"mend the cell or leave it empty, or say {KIND} regress for numbers",
            )  # fmt: skip
    return np.array([of[cell] for cell in cells], np.float32)
