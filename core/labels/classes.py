"""Cells as classes: names by key, codes, and what looks alike."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import UserError, nearest
from ..files import few
from .cells import MISSING, Numbers, Texts, figure, loose, natural, number, same, shown, text_of
from .guess import KIND, MOST_STEPS, too_many
from .wanted import Wanted

IGNORED = -100
"""Marks a missing target, as `core.losses.IGNORED` does."""
MOST_ORDERED = 1000
"""Steps of a scale."""


def code_classes(wanted: Wanted, kind: str, read: Numbers | None, texts: Texts | None) -> tuple[np.ndarray, list[str]]:
    """The codes of one column, int64 `[rows]` with -100 where missing, and the names of the classes."""
    column = wanted.columns[0]
    if texts is None:
        raise too_many(wanted, column)
    if any(isinstance(cell, tuple) for cell in texts.cells):
        row = texts.first(next(i for i, cell in enumerate(texts.cells) if isinstance(cell, tuple)))
        raise wanted.refuse(column, row, "one class", f"say {KIND} multilabel for lists of labels, or tag")
    of, names = _given(wanted, texts) if wanted.names is not None else _found(wanted, kind, read, texts)
    return np.array(of, np.int64)[texts.codes], names


def _found(wanted: Wanted, kind: str, read: Numbers | None, texts: Texts) -> tuple[list[int], list[str]]:
    """The class of each different cell, and the classes of the table."""
    column = wanted.columns[0]
    numeric = _are_numbers(wanted, texts) and not (read is not None and read.codes)
    keys = [_key(wanted, cell, numeric) for cell in texts.cells]
    counts, rows = Counter[str](), texts.counts()
    for key, count in zip(keys, rows, strict=True):
        if key is not None:
            counts[key] += int(count)
    if not counts:
        return [IGNORED] * len(keys), []
    if len(counts) == 1:
        raise UserError(
            f"'{column}' of '{wanted.table.path}' is {shown(next(iter(counts)))} in all {counts.total():,} rows that "
            "have it, but must differ for something to be learned; name another column."
        )
    _refuse_ids(wanted, kind, counts, numeric)
    if kind == "ordinal":
        names = _in_order(wanted, counts, numeric)
    else:
        names = sorted(counts, key=(lambda name: (float(name),)) if numeric else natural)  # type: ignore[arg-type,return-value]
    _notes(wanted, texts, keys, counts, numeric)
    code = {name: i for i, name in enumerate(names)}
    return [IGNORED if key is None else code[key] for key in keys], names


def _are_numbers(wanted: Wanted, texts: Texts) -> bool:
    """Whether all cells are numbers, but for words of missing ones."""
    read = [number(cell) for cell in texts.cells if not wanted.gone(cell)]
    return None not in read and any(value == value for value in read if value is not None)


def _key(wanted: Wanted, cell: object, numeric: bool) -> str | None:
    if wanted.gone(cell):
        return None
    if numeric:
        return figure(number(cell) or 0.0) or None
    key = text_of(cell)
    return key.lower() if key.lower() in ("true", "false") else key or None


def _refuse_ids(wanted: Wanted, kind: str, counts: Counter[str], numeric: bool) -> None:
    column, rows = wanted.columns[0], counts.total()
    path = wanted.table.path
    if kind == "ordinal" and len(counts) > MOST_ORDERED:
        raise UserError(
            f"'{column}' of '{path}' has {len(counts):,} steps, but an ordinal target has at most {MOST_ORDERED:,}; "
            f"say {KIND} regress."
        )
    if len(counts) == rows > 2 and not (numeric and rows <= MOST_STEPS):
        raise UserError(
            f"'{column}' of '{path}' is another text in each of its {rows:,} rows, as names and sentences are, so no "
            f"class has two examples; name another column{f', or say {KIND} regress' if numeric else ''}."
        )
    if rows >= 20 and rows < 1.5 * len(counts):
        raise UserError(
            f"'{column}' of '{path}' has {len(counts):,} classes in {rows:,} rows, too few to learn one from; name "
            f"another column{f', or say {KIND} regress' if numeric else ''}."
        )


def _in_order(wanted: Wanted, counts: Counter[str], numeric: bool) -> list[str]:
    column = wanted.columns[0]
    if wanted.order is None:
        if not numeric:
            raise UserError(
                f"'{column}' of '{wanted.table.path}' holds texts, whose order nobody can know "
                f"({few(sorted(counts, key=natural))}); give it from the lowest to the highest, as --data.order "
                """'["LOW", "HIGH"]', or write numbers."""
            )
        names = sorted(counts, key=float)
        values = [float(name) for name in names]
        if all(value.is_integer() for value in values) and values[-1] - values[0] > len(values) - 1:
            wanted.note(f"whole numbers between {names[0]} and {names[-1]} that never occur are no steps of '{column}'")
        return names
    names = [_key(wanted, name, numeric and number(name) is not None) or "" for name in wanted.order]
    if doubled := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(f"The order of '{column}' names {shown(doubled[0])} twice; name each class once.")
    if unknown := [name for name in counts if name not in names]:
        raise UserError(
            f"The order of '{column}' lacks {shown(unknown[0])}{nearest(unknown[0], names)}, which "
            f"{counts[unknown[0]]:,} rows of '{wanted.table.path}' hold; name all its classes."
        )
    if unseen := [name for name in names if name not in counts]:
        wanted.note(f"{few([shown(name) for name in unseen])} of the order of '{column}' never occurs")
    return names


def _notes(wanted: Wanted, texts: Texts, keys: Sequence[str | None], counts: Counter[str], numeric: bool) -> None:
    """What was joined, what was kept apart, and which classes have one row."""
    column, rows = wanted.columns[0], texts.counts()
    stripped = joined = lost = 0
    words = Counter[str]()
    for cell, key, count in zip(texts.cells, keys, rows, strict=True):
        if not isinstance(cell, str):
            continue
        stripped += int(count) * (cell != cell.strip() and key is not None)
        joined += int(count) * (not numeric and key is not None and cell.strip() not in (key, ""))
        lost += int(count) * (key is None and bool(cell.strip()))
        if not numeric and key is not None and key.lower() in MISSING:
            words[key] += int(count)
    if stripped:
        wanted.note(f"cells of '{column}' with spaces around them, which do not count: {stripped:,}")
    if joined:
        wanted.note(f"cells of '{column}' in another form (Unicode, or case of true and false), which are the same "
                    f"classes: {joined:,}")  # fmt: skip
    if lost:
        wanted.note(f"cells of '{column}' that hold a word for a missing value, and count as missing: {lost:,}")
    for word, count in words.items():
        wanted.note(f"{shown(word)} is a class of '{column}' ({count:,} rows); --data.missing {word} makes it missing")
    if numeric and any(isinstance(cell, str) and "." in cell for cell in texts.cells):
        wanted.note(f"classes of '{column}' are known by their numbers: 1.0 is 1")
    note_alike(wanted, counts)
    if single := [name for name, count in counts.items() if count == 1]:
        have = "has" if len(single) == 1 else "have"
        wanted.note(f"{few([shown(name) for name in sorted(single, key=natural)])} of '{column}' {have} one row alone")


def note_alike(wanted: Wanted, names: Iterable[str], what: str = "classes") -> None:
    """Notes the names that differ in case, spaces or what cannot be seen alone."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        alike[loose(name)].append(name)
    for found in alike.values():
        if len(found) > 1:
            which = few([shown(name) for name in found])
            wanted.note(f"{which} look alike, and are different {what} of '{wanted.columns[0]}'")


# -- the classes of a trained model -----------------------------------------------------------------------------------


def finder(names: Sequence[str]) -> Finder:
    """Finds classes by key; see `Finder`."""
    return Finder(names)


class Finder:
    """Which class of a model a cell names: by its text, else by its number (1.0 is 1), else as true or false."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._of = {same(name.strip()): i for i, name in enumerate(names)}
        if len(self._of) < len(self.names):
            raise UserError("Two classes of the model have the same name; rename one of them.")

    def __call__(self, cell: object) -> int | None:
        """The number of the class; None where there is none."""
        key = text_of(cell)
        if (code := self._of.get(key)) is not None:
            return code
        value = number(cell)
        if value is not None and value == value and (code := self._of.get(figure(value))) is not None:
            return code
        return self._of.get(key.lower()) if key.lower() in ("true", "false") else None


def _given(wanted: Wanted, texts: Texts) -> tuple[list[int], list[str]]:
    """The class of each different cell among those of a trained model."""
    column, names = wanted.columns[0], wanted.names or []
    find, of, unseen = finder(names), list[int](), Counter[str]()
    counts = texts.counts()
    numeric = all(number(name) is not None for name in names)
    for i, cell in enumerate(texts.cells):
        code = None if wanted.gone(cell) else find(cell)
        if code is not None or wanted.gone(cell):
            of.append(IGNORED if code is None else code)
            continue
        value = number(cell)
        if numeric and value is not None and value != value:  # NA in a column of numbers
            of.append(IGNORED)
            continue
        if not wanted.ignore:
            key = text_of(cell)
            raise wanted.refuse(
                column, texts.first(i), f"a class of the model{nearest(key, names)}: {few(list(names), 12)}",
                "mend the cell, or leave it empty",
            )  # fmt: skip
        unseen[text_of(cell)] += int(counts[i])
        of.append(IGNORED)
    if unseen:
        wanted.note(f"{unseen.total():,} rows hold labels that the model does not know "
                    f"({few([shown(name) for name in unseen])}), and count as missing")  # fmt: skip
    absent = [name for i, name in enumerate(names) if i not in set(of)]
    if absent:
        wanted.note(f"the table has no row of {len(absent)} of the model's {len(names)} classes ({few(absent)})")
    return of, list(names)
