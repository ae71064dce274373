"""Which kind of head the cells of a target call for. What can be meant in two ways is refused, or said."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..errors import UserError
from ..files import few
from .cells import COMMA, DATE, UNIT, YES_NO, Numbers, Texts, number, numbers_of, shown, text_of, texts_of
from .wanted import Wanted

KINDS = ("classify", "multilabel", "regress", "ordinal", "tag")
READ_AS: dict[str, str] = {}
"""Kinds of heads from elsewhere, and the kind whose cells and coded values each has; `register` fills it."""
SEVERAL = "several"
"""Columns of different kinds, each with a head of its own."""
OF_TOKENS = {"tag": None, "tag:classes": False, "tag:numbers": True}
"""How the kind of tokens is said, and whether their labels are numbers; None lets the cells decide."""
KIND = "--data.kind"
"""The option that says the kind."""
MOST_STEPS = 20
"""Different whole numbers that are taken for classes; more are quantities."""
JOINED = 0.05
"""The part of the cells that must hold a separator of labels for the column to be taken as lists of them."""
SEPARATORS = "|;"


def guess_one(wanted: Wanted, read: Numbers | None) -> tuple[str, str, Texts | None]:
    """The kind of one column, why, and its coded texts where they were needed. `read` is None for lists."""
    column = wanted.columns[0]
    cells = wanted.cells(column)
    if read is None:
        return "multilabel", "its cells are lists", None
    present = sum(cell is not None for cell in cells)
    if not read.bad_count:
        return *_of_numbers(wanted, read), None
    if wanted.missing and not (rest := _without(wanted, read)).bad_count:
        return *_of_numbers(wanted, rest), None
    numbers = len(read.present)
    if numbers and read.bad_count < (present - sum(read.words.values())) / 2:
        assert read.bad is not None
        if wanted.ignore and (guessed := _of_numbers(wanted, read))[0] == "regress":
            return *guessed, None
        raise wanted.refuse(
            column, read.bad, *must_be_number(cells[read.bad], f"{KIND} classify takes all cells as classes")
        )
    texts = texts_of(cells)
    if texts is None:
        raise too_many(wanted, column)
    return *_of_texts(wanted, texts, read), texts


def _without(wanted: Wanted, read: Numbers) -> Numbers:
    """The same numbers, where the only texts among them are said to be missing ones."""
    if all(cell.strip() in wanted.missing for cell in read.bad_cells if isinstance(cell, str)):
        cells = wanted.cells(wanted.columns[0])
        return numbers_of([None if isinstance(c, str) and c.strip() in wanted.missing else c for c in cells])
    return read


def _of_numbers(wanted: Wanted, read: Numbers) -> tuple[str, str]:
    column = wanted.columns[0]
    if read.infinite is not None:
        error = wanted.refuse(column, read.infinite, "a finite number", "mend the cell, or leave it empty")
        finite = np.where(np.isinf(read.values), np.nan, read.values)
        if (
            wanted.ignore
            and (guessed := _of_numbers(wanted, replace(read, values=finite, infinite=None)))[0] == "regress"
        ):
            return guessed
        raise error
    values = np.unique(read.present)
    if not len(values):
        words = "".join(f", {few([repr(word) for word in read.words])} among them" if read.words else "")
        raise UserError(
            f"No row of '{wanted.table.path}' has a target: all {len(read.values):,} are missing in '{column}'{words}; "
            "give a table with labels."
        )
    if read.codes:
        return "classify", "its numbers have zeros in front, as codes do"
    if (values != np.round(values)).any():
        return "regress", "it holds numbers that are not whole"
    if len(values) > MOST_STEPS:
        if wanted.names is None and _counts_up(read.values):
            raise UserError(
                f"'{column}' of '{wanted.table.path}' counts up by one from {values[0]:.0f} to {values[-1]:.0f}, so it "
                f"is the number of the row and no target; name another column, or say {KIND} regress."
            )
        return "regress", f"it holds {len(values):,} different whole numbers, more than {MOST_STEPS}"
    if len(values) == 2 or len(values) == 1:
        return "classify", f"it holds {len(values)} different whole number{'s' * (len(values) > 1)}"
    return "classify", (
        f"it holds {len(values)} different whole numbers, which may be quantities or steps of a scale as well, as "
        f"{KIND} regress or {KIND} ordinal would take them"
    )


def _counts_up(values: np.ndarray) -> bool:
    return len(values) > MOST_STEPS and bool((np.diff(values) == 1).all())


def _of_texts(wanted: Wanted, texts: Texts, read: Numbers) -> tuple[str, str]:
    column = wanted.columns[0]
    there = {i: str(cell).strip() for i, cell in enumerate(texts.cells) if not wanted.gone(cell)}
    keys = {text_of(cell) for cell in there.values()}
    odd = [cell for cell in there.values() if number(cell) is None]
    if odd and all(COMMA.fullmatch(cell) for cell in odd):
        row = texts.first(next(i for i, cell in there.items() if number(cell) is None))
        raise wanted.refuse(column, row, *must_be_number(wanted.cells(column)[row], f"or say {KIND} classify"))
    units = {match[1] for cell in odd if (match := UNIT.fullmatch(cell))}
    if odd and len(units) == 1 and all(UNIT.fullmatch(cell) for cell in odd):
        if len(keys) > MOST_STEPS:
            row = texts.first(next(i for i, cell in there.items() if number(cell) is None))
            raise wanted.refuse(column, row, *must_be_number(wanted.cells(column)[row], f"or say {KIND} classify"))
        wanted.note(f"the classes of '{column}' look like numbers with the unit {shown(units.pop())}; numbers alone "
                    "would be regressed")  # fmt: skip
    if odd and all(DATE.fullmatch(cell) for cell in odd):
        if len(keys) > MOST_STEPS:
            row = texts.first(next(i for i, cell in there.items() if number(cell) is None))
            then = f"write dates and times as numbers (of years, days or hours), or say {KIND} classify"
            raise wanted.refuse(column, row, "a number or a class", then)
        wanted.note(f"the classes of '{column}' look like dates or times; as numbers they would be regressed")
    words = {key.lower() for key in keys}
    if words <= {"true", "false"}:
        return "classify", "it holds true and false"
    if len(words) > 2 and words <= set(YES_NO):
        raise UserError(
            f"'{column}' of '{wanted.table.path}' says yes and no in several ways ({few(sorted(keys))}); write each in "
            f"one way, or say {KIND} classify to keep all of them apart."
        )
    if keys and all(cell.startswith("[") and cell.endswith("]") for cell in there.values()):
        return "multilabel", "its cells are lists"
    if lists := {i for i, cell in there.items() if cell[0] + cell[-1] == "[]" and parsed_list(cell) is not None}:
        row = texts.first(next(i for i in there if i not in lists))
        raise wanted.refuse(
            column, row, f"a list, as in row {wanted.line(texts.first(min(lists))):,}",
            f'write one label as ["a"], or say {KIND} classify',
        )  # fmt: skip
    if (separator := separator_of(wanted, texts)) and wanted.names is None:
        return "multilabel", f"its cells are labels joined by {separator}"
    if joined := _joined_by_commas(keys):
        wanted.note(f"commas are letters of the classes of '{column}' ({shown(joined)}); where they part several "
                    "labels, write | between them, or lists")  # fmt: skip
    return "classify", "it holds texts"


def _joined_by_commas(keys: set[str]) -> str:
    """A class that looks like several others with commas between them: each part stands in another one too."""
    parts = {key: {part.strip() for part in key.split(",")} for key in keys}
    often = Counter(part for found in parts.values() for part in found)
    return min((key for key, found in parts.items() if "," in key and all(often[p] > 1 for p in found)), default="")


def separator_of(wanted: Wanted, texts: Texts, needed: float = JOINED) -> str:
    """What joins the labels of the cells; an empty text where nothing does."""
    counts = texts.counts()
    cells = {i: cell for i, cell in enumerate(texts.cells) if isinstance(cell, str) and not wanted.gone(cell)}
    total = sum(int(counts[i]) for i in cells)
    with_it = {s: sum(int(counts[i]) for i, cell in cells.items() if s in cell) for s in SEPARATORS}
    found = [s for s, count in with_it.items() if count and count >= needed * total]
    column = wanted.columns[0]
    if len(found) > 1:
        raise UserError(
            f"The cells of '{column}' hold | and ;, so what separates their labels can be meant in two ways; write "
            f'lists, such as ["a", "b"], or say {KIND} classify.'
        )
    for s, count in with_it.items():
        if count and s not in found:
            wanted.note(f"cells of '{column}' that hold {s}, which is taken for a letter of a class ({KIND} multilabel "
                        f"would split them): {count:,}")  # fmt: skip
    return found[0] if found else ""


def must_be_number(cell: object, otherwise: str) -> tuple[str, str]:
    """What a number must be, and what to do about a cell that is none."""
    text = str(cell).strip()
    if COMMA.fullmatch(text):
        if re.fullmatch(r"[+-]?[0-9]*,[0-9]+", text):
            return "a number with a point", f"write 3.5 for 3,5 and 1234 for 1,234, {otherwise}"
        return "a number without separators of thousands", f"write 1234 for 1,234, {otherwise}"
    if match := UNIT.fullmatch(text):
        return "a number alone", f"leave out {shown(match[1])}, {otherwise}"
    return "a number", f"mend the cell or leave it empty, {otherwise}"


def guess_several(wanted: Wanted) -> tuple[str, str]:
    """The kind of several columns, and why: multilabel, regress, or SEVERAL where not all hold the same.

    Raises UserError for a column of numbers and other texts.
    """
    yes_no, texts = [], False
    for column in wanted.columns:
        cells = wanted.cells(column)
        if any(isinstance(cell, list) for cell in cells):
            return SEVERAL, ""
        read = numbers_of(cells)
        words = {str(cell).strip().lower() for cell in read.bad_cells}
        there = {*words, *(("other",) if np.setdiff1d(read.present, (0, 1)).size else ())}
        if there <= set(YES_NO):
            yes_no.append(column)
        elif read.bad is not None and len(read.present):
            if wanted.ignore and read.bad_count < len(read.present):
                continue  # a few mistakes among numbers, which are left out
            raise wanted.refuse(
                column, read.bad,
                *must_be_number(cells[read.bad], f"{KIND} {column}=classify takes all cells as classes"),
            )  # fmt: skip
        texts = texts or bool(read.bad_count)
    if len(yes_no) == len(wanted.columns):
        return "multilabel", "all of them hold 0 and 1 (or true and false, yes and no)"
    if texts:
        return SEVERAL, ""
    if yes_no:
        which = few([f"'{column}'" for column in yes_no])
        wanted.note(
            f"{which} hold 0 and 1, and are numbers here as the other targets are; {KIND} {yes_no[0]}=classify gives "
            "each column a head of its own"
        )
    return "regress", "they hold numbers"


def cells_of(kind: str | None) -> str | None:
    """The kind here whose cells and coded values a kind has."""
    return kind if kind is None else READ_AS.get(kind, kind)


def parsed_kinds(value: str | Mapping[str, str] | None) -> str | dict[str, str] | None:
    """What `--data.kind` says: one kind, or that of some columns, written COLUMN=KIND with commas between them.

    Raises:
        UserError: an entry is not of this form, or a column is named twice.
    """
    if value is None or isinstance(value, Mapping):
        return None if value is None else dict(value)
    if "=" not in value:
        return value.strip()
    found: dict[str, str] = {}
    for entry in value.split(","):
        name, equals, kind = (part.strip() for part in entry.rpartition("="))
        if not equals or not name or not kind:
            raise UserError(f"{KIND} has '{entry.strip()}', but must be one kind, or COLUMN=KIND with commas between.")
        if name in found:
            raise UserError(f"{KIND} names the column '{name}' twice; name it once.")
        found[name] = kind
    return found


def too_many(wanted: Wanted, column: str) -> UserError:
    """What is said of a column with more different texts than classes can be."""
    return UserError(
        f"'{column}' of '{wanted.table.path}' holds too many different texts for classes, as names and sentences are; "
        "name another column as the target."
    )


def parsed_list(text: str) -> list[object] | None:
    """The list that a cell of text spells, in JSON or as Python writes it; None where it spells none."""
    import ast

    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, (list, tuple)):
            return list(value)
    return None
