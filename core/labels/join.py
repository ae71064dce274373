"""Names meet the rows of a table by key, never by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import UserError, nearest
from ..files import few
from .cells import shown, text_of
from .columns import Table


@dataclass(frozen=True)
class Joined:
    """Which row of a table belongs to each name.

    Args:
        rows: int64 `[names]`, -1 for a name that the table lacks.
        notes: what has no counterpart.
    """

    rows: np.ndarray
    notes: list[str] = field(default_factory=list)

    @property
    def found(self) -> np.ndarray:
        """Bool `[names]`: whether the table has the name."""
        return self.rows >= 0


def join(names: Sequence[str], table: Table, key_column: str, where: str = "the inputs") -> Joined:
    """Finds the row of each name in a table.

    Names and keys are equal when they are so without the spaces around them and in one Unicode form.

    Args:
        names: of the inputs, such as the records of a FASTA file.
        table: with the column of the keys.
        key_column: its name.
        where: what messages call the inputs.

    Raises:
        UserError: a name or a key stands there twice, a key is empty, or no name is a key.
    """
    keys = [text_of(cell) for cell in table.columns[key_column]]
    of: dict[str, int] = {}
    for row, key in enumerate(keys):
        if not key:
            raise UserError(f"'{key_column}' in {table.where(row)} is empty, but must name an input; mend the row.")
        if key in of:
            raise UserError(
                f"'{key_column}' of '{table.path}' is {shown(key)} in row {table.lines[of[key]]:,} and in row "
                f"{table.lines[row]:,}, but each must be another; leave out one of them."
            )
        of[key] = row
    wanted = [text_of(name) for name in names]
    if len(set(wanted)) < len(wanted):
        seen = set[str]()
        twice = next(name for name in wanted if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise UserError(f"{shown(twice)} is the name of two of {where}, but each needs one of its own; rename one.")
    rows = np.array([of.get(name, -1) for name in wanted], np.int64)
    if len(wanted) and not (rows >= 0).any():
        raise UserError(
            f"'{key_column}' of '{table.path}' holds no name of {where}: they are called {_some(wanted)}, the keys are "
            f"{_some(keys)}; name the column that holds their names."
        )
    notes = []
    if lacking := [name for name, row in zip(wanted, rows, strict=True) if row < 0]:
        notes.append(
            f"{len(lacking):,} of {len(wanted):,} of {where} have no row in '{table.path}': {_some(lacking)}"
            f"{nearest(lacking[0], keys[:10_000])}"
        )
    if unused := len(keys) - int((rows >= 0).sum()):
        left = set(wanted)
        notes.append(
            f"{unused:,} of {len(keys):,} rows of '{table.path}' belong to none of {where}: "
            f"{_some([key for key in keys if key not in left])}"
        )
    return Joined(rows, notes)


def _some(names: Sequence[str]) -> str:
    return few([shown(name) for name in names], 3)
