"""What a model gets of each row of a table, kept in little memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from ..work import blocks
from .reader import TokenReader
from .rows import Rows

BLOCK = 1 << 12
"""Rows that are read together."""


class Samples:
    """Samples by row. Those that are tokens alone lie side by side in the smallest integers that hold them, because an
    array of its own takes a hundred bytes beside its numbers.

    Args:
        reader: whose samples they are.
    """

    def __init__(self, reader: TokenReader) -> None:
        self._reader = reader
        self._flat: list[np.ndarray] | None = []  # of each block
        self._ends: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []
        self._others: list[list[Any]] = []

    @property
    def sizes(self) -> np.ndarray:
        """What batches are put together by, int64 `[rows]`."""
        self._sizes = [np.concatenate([*self._sizes, np.zeros(0, np.int64)])]
        return self._sizes[0]

    def add(self, samples: list[Any]) -> None:
        """Keeps the samples of the next rows: `BLOCK` of them, or the last."""
        reader = self._reader
        self._sizes.append(np.fromiter(map(reader.size, samples), np.int64, len(samples)))
        tokens = [reader.tokens_of(sample) for sample in samples]
        if any(each is None for each in tokens):
            self._flat, self._others = None, [*self._others, samples]
            return
        assert self._flat is not None, "either all samples are tokens, or none is"
        flat = np.concatenate(tokens)  # type: ignore[arg-type]
        self._flat.append(flat.astype(np.min_scalar_type(int(flat.max(initial=0)))))
        self._ends.append(np.cumsum(np.fromiter(map(len, tokens), np.int64, len(tokens))))  # type: ignore[arg-type]

    def __getitem__(self, row: int) -> Any:
        block, place = divmod(int(row), BLOCK)
        if self._flat is None:
            return self._others[block][place]
        ends = self._ends[block]
        start = ends[place - 1] if place else 0
        return self._reader.of_tokens(self._flat[block][start : ends[place]].astype(np.int64))


class _Names(Sequence[str]):
    """How messages call some rows; each is made when it is asked for."""

    def __init__(self, rows: Rows, start: int, count: int) -> None:
        self._rows, self._start, self._count = rows, start, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        if place >= self._count:
            raise IndexError(place)
        return self._rows.name(self._start + place)


def read_all(
    reader: TokenReader, rows: Rows, check: Callable[[Rows, list[Any], int], None]
) -> tuple[Samples, dict[int, UserError]]:
    """Reads the inputs of all rows; returns the samples, and what is wrong with rows, whose samples are empty.

    Args:
        reader: of the inputs.
        rows: of the table.
        check: may put errors in the places of samples of some rows, given the first of them.
    """
    kept, wrong = Samples(reader), dict[int, UserError]()
    for span in blocks(f"Reading the {reader.what}s of {rows.table.path.name}", len(rows), "rows", BLOCK):
        cells, start = rows.inputs[span], span.start
        found = reader.read(cells, _Names(rows, start, len(cells)), rows.table.path.parent)
        check(rows, found, start)
        wrong |= {start + i: each for i, each in enumerate(found) if isinstance(each, UserError)}
        kept.add([reader.empty() if isinstance(each, UserError) else each for each in found])
    return kept, wrong
