"""One column whose cells are lists of labels, coded as a column of 0 and 1 for each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UserError, nearest
from ..files import few
from .cells import Texts, natural, shown, text_of, texts_of
from .classes import finder, note_alike
from .guess import KIND, parsed_list, separator_of, too_many
from .quantities import code_columns
from .wanted import Wanted

MOST_LABELS = 20_000
"""Different labels; each is a column of the coded values."""


def code_sets(wanted: Wanted, texts: Texts | None) -> tuple[np.ndarray, list[str]]:
    """The labels of each row, float32 `[rows, labels]` of 0 and 1 with NaN where the cell is missing, and their names.

    An empty cell is missing; an empty list says that the row has none of the labels.
    """
    column = wanted.columns[0]
    texts = texts or texts_of(wanted.cells(column))
    if texts is None:
        raise too_many(wanted, column)
    words = {text_of(cell).lower() for cell in texts.cells}
    if words <= {"", "0", "1", "true", "false"} and (wanted.names is None or len(wanted.names) == 1):
        return code_columns(wanted)
    sets = _sets(wanted, texts)
    counts: Counter[str] = Counter()
    for labels, count in zip(sets, texts.counts(), strict=True):
        for label in dict.fromkeys(labels or ()):
            counts[label] += int(count)
    if wanted.names is not None:
        names = list(wanted.names)
        of = _given(wanted, texts, sets)
    else:
        names = sorted(counts, key=natural)
        _check(wanted, texts, sets, counts)
        code = {name: i for i, name in enumerate(names)}
        of = [None if labels is None else [code[label] for label in labels] for labels in sets]
    table = np.zeros((len(sets), len(names)), np.float32)
    for row, labels in zip(table, of, strict=True):
        if labels is None:
            row[:] = np.nan
        else:
            row[labels] = 1
    return table[texts.codes], names


def _sets(wanted: Wanted, texts: Texts) -> list[list[str] | None]:
    """The labels of each different cell; None where it is missing."""
    column = wanted.columns[0]
    there = [cell for cell in texts.cells if isinstance(cell, str) and not wanted.gone(cell)]
    spelt = bool(there) and all(cell.strip().startswith("[") for cell in there)
    separator = "" if spelt or not there else separator_of(wanted, texts, 0)
    found: list[list[str] | None] = []
    for i, cell in enumerate(texts.cells):
        if wanted.gone(cell):
            found.append(None)
            continue
        parts: Sequence[Any] | None
        if isinstance(cell, tuple):
            parts = cell
        elif spelt:
            parts = parsed_list(cell.strip())
        elif isinstance(cell, str):
            parts = [part for part in (cell.split(separator) if separator else [cell]) if part.strip()]
        else:
            parts = [cell]
        if parts is None or any(part is None or isinstance(part, (tuple, list, dict)) for part in parts):
            wanted.skip(wanted.refuse(column, texts.first(i), 'a list of labels, such as ["a", "b"]', "mend the cell"))
            found.append(None)
            continue
        if not parts and isinstance(cell, str) and not spelt:
            raise wanted.refuse(column, texts.first(i), f"labels joined by {separator}", "mend it, or leave it empty")
        if any(isinstance(part, float) and part != round(part) for part in parts if part == part):
            raise wanted.refuse(
                column, texts.first(i), "a list of labels, which numbers that are not whole are not",
                f"name a column for each number, or say {KIND} tag where each token has one",
            )  # fmt: skip
        labels = [text_of(part) for part in parts]
        if "" in labels:
            raise wanted.refuse(column, texts.first(i), "a list of labels that are not empty", "mend the cell")
        found.append(labels)
    empty = sum(int(n) for labels, n in zip(found, texts.counts(), strict=True) if labels is None)
    if empty:
        wanted.note(f"empty cells of '{column}', which count as not labelled ([] says that a row has none of the "
                    f"labels): {empty:,}")  # fmt: skip
    return found


def _check(wanted: Wanted, texts: Texts, sets: list[list[str] | None], counts: Counter[str]) -> None:
    column, path = wanted.columns[0], wanted.table.path
    rows = sum(int(n) for labels, n in zip(sets, texts.counts(), strict=True) if labels is not None)
    if len(counts) > MOST_LABELS:
        raise UserError(f"'{column}' of '{path}' has {len(counts):,} labels, but at most {MOST_LABELS:,} are learned; "
                        "name another column.")  # fmt: skip
    if not rows:
        return
    if len({frozenset(labels) for labels in sets if labels is not None}) == 1:
        raise UserError(
            f"'{column}' of '{path}' has the same labels in all {rows:,} rows that have it, but must differ for "
            f"something to be learned; name another column, or say {KIND} for another reading."
        )
    for name, count in counts.items():
        if count == rows:
            wanted.note(f"{shown(name)} is a label of all rows, from which nothing can be learned")
    if single := [name for name in sorted(counts, key=natural) if counts[name] == 1]:
        wanted.note(f"{few([shown(name) for name in single])} of '{column}' stands in one row alone")
    note_alike(wanted, counts, "labels")


def _given(wanted: Wanted, texts: Texts, sets: list[list[str] | None]) -> list[list[int] | None]:
    """The labels of a trained model that each different cell names."""
    column, names = wanted.columns[0], list(wanted.names or ())
    find, found, unseen = finder(names), list[list[int] | None](), Counter[str]()
    for i, labels in enumerate(sets):
        if labels is None:
            found.append(None)
            continue
        codes = [find(label) for label in labels]
        for label, code in zip(labels, codes, strict=True):
            if code is None and not wanted.ignore:
                raise wanted.refuse(
                    column, texts.first(i),
                    f"labels of the model, which lacks {shown(label)}{nearest(label, names)}: {few(names, 12)}",
                    "mend the cell",
                )  # fmt: skip
            if code is None:
                unseen[label] += int((texts.codes == i).sum())
        found.append([code for code in codes if code is not None])
    if unseen:
        wanted.note(f"{few([shown(name) for name in unseen])} in {unseen.total():,} places are no labels of the model, "
                    "and are left out")  # fmt: skip
    return found
