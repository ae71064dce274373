"""A label or a number for each token: texts of one letter a token, or of words with spaces between them, or lists."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UserError, nearest
from ..files import few
from .cells import MISSING, NUMBER, natural, number, shown, text_of
from .classes import IGNORED, finder, note_alike
from .guess import KIND, MOST_STEPS, parsed_list
from .wanted import Wanted

GAP = re.compile(r"\s*[,;]\s*|\s+")
SEVERAL = re.compile(rf"{NUMBER.pattern}(?:(?:{GAP.pattern}){NUMBER.pattern})*")
MOST_TAGS = 10_000
"""Different labels of tokens."""
MOST_DAMAGED, MOST_ROWS, LONG = 0.1, 1000, 8
"""Part of the cells, and their number, that may have another number of labels than their input where a column is taken
for one of labels of tokens, and the parts of the longest input that such a guess needs.
"""


def code_tags(wanted: Wanted) -> tuple[list[np.ndarray], list[str], bool]:
    """The labels or numbers of each row's tokens, the names of the classes (or of the column), and whether they are
    numbers."""
    column = wanted.columns[0]
    cells = wanted.cells(column)
    if _separated(cells):
        wanted.note(f"cells of '{column}' are numbers with spaces, commas or semicolons between them")
        rows: list[Sequence[Any]] = [
            [float(part) for part in GAP.split(cell.strip())] if isinstance(cell, str) and cell.strip() else ()
            for cell in cells
        ]
    else:
        rows = [_parts(wanted, i, cell) for i, cell in enumerate(cells)]
    if _are_numbers(wanted, rows, {type(part) for parts in rows for part in parts}):
        return _numbers(wanted, rows), [wanted.names[0] if wanted.names else column], True
    return *_classes(wanted, rows), False


def are_per_part(wanted: Wanted) -> bool:
    """Whether all cells have as many labels as their input has words or letters, and these are not always as many. Of
    long inputs nearly all cells are enough, so that a damaged one is named as such, and not the whole column.
    """
    if wanted.parts_of is None or wanted.masks is not None or wanted.names is not None:
        return False
    sizes, others, cells = set[int](), 0, wanted.cells(wanted.columns[0])
    most = min(MOST_DAMAGED * len(cells), MOST_ROWS)
    for cell, parts in zip(cells, wanted.parts_of, strict=True):
        if wanted.gone(cell):
            continue
        listed = parsed_list(cell.strip()) if isinstance(cell, str) and _spelt(cell) else cell
        if isinstance(listed, str):
            listed = listed.split() if wanted.apart else listed.strip()
        if isinstance(listed, (list, str)) and len(listed) == parts:
            sizes.add(parts)
        else:
            others += 1
        if others > most:
            return False
    return len(sizes) > 1 and max(sizes) > (LONG if others else 2)


def _separated(cells: Sequence[Any]) -> bool:
    """Whether all cells are texts of several numbers, such as "0.5 1 0.25"."""
    if not all(cell is None or isinstance(cell, str) for cell in cells):
        return False
    texts = [cell.strip() for cell in cells if cell and cell.strip()]
    return any(GAP.search(text) for text in texts) and all(SEVERAL.fullmatch(text) for text in texts)


def _spelt(cell: str) -> bool:
    text = cell.strip()
    return text.startswith("[") and text.endswith("]")


def _parts(wanted: Wanted, row: int, cell: Any) -> Sequence[Any]:
    """The labels of a row's tokens; none where the cell is empty."""
    column = wanted.columns[0]
    if cell is None:
        return ()
    if isinstance(cell, list):
        parts: Sequence[Any] = cell
    elif isinstance(cell, str) and _spelt(cell) and (spelt := parsed_list(cell.strip())) is not None:
        parts = spelt
    elif isinstance(cell, str):
        return cell.split() if wanted.apart else cell
    else:
        form = "O B-PER" if wanted.apart else "HHEC"
        raise wanted.refuse(
            column, row, f'a label for each token, as a text such as {form} or a list such as ["H", "E"]',
            "mend the cell",
        )  # fmt: skip
    if any(isinstance(part, (list, dict, tuple)) for part in parts):
        raise wanted.refuse(column, row, "a list without lists in it", "write one label or number a token")
    return parts


def _are_numbers(wanted: Wanted, rows: list[Sequence[Any]], kinds: set[type]) -> bool:
    column = wanted.columns[0]
    of_numbers = bool(kinds & {int, float}) and kinds <= {int, float, type(None)}
    if wanted.numbers is not None:
        return wanted.numbers
    if wanted.names is None and kinds & {int, float} and str in kinds:
        _refuse_mixture(wanted, rows)
    if not of_numbers:
        return False
    if wanted.names is not None:
        return wanted.names == [column] or not all(number(name) is not None for name in wanted.names)
    values = {part for parts in rows for part in parts if part is not None and part == part}
    if all(value == int(value) for value in values if math.isfinite(value)) and len(values) <= MOST_STEPS:
        wanted.note(
            f"the {len(values)} whole numbers of '{column}' are classes; {KIND} tag:numbers takes them as quantities"
        )
        return False
    return True


def _refuse_mixture(wanted: Wanted, rows: list[Sequence[Any]]) -> None:
    """Raises UserError where a few texts stand among numbers."""
    parts = Counter(type(part) for labels in rows for part in labels)
    if parts[str] < parts[int] + parts[float]:
        row = next(i for i, labels in enumerate(rows) if any(isinstance(part, str) for part in labels))
        odd = next(part for part in rows[row] if isinstance(part, str))
        raise wanted.refuse(
            wanted.columns[0], row, "a list of numbers",
            f"mend {shown(odd)} in it or write null, or say {KIND} tag:classes to take all as classes",
        )  # fmt: skip


def _numbers(wanted: Wanted, rows: list[Sequence[Any]]) -> list[np.ndarray]:
    column, found = wanted.columns[0], []
    seen: set[float] = set()
    for i, parts in enumerate(rows):
        values = [number(part) for part in parts]
        for part, value in zip(parts, values, strict=True):
            if value is None or math.isinf(value):
                raise wanted.refuse(column, i, "a list of finite numbers", f"mend {shown(part)} in it")
        array = np.array(values, np.float64)
        if len(seen) < 2:
            seen.update(array[~np.isnan(array)].tolist())
        found.append(array)
    if len(seen) == 1 and wanted.names is None:
        raise UserError(
            f"'{column}' of '{wanted.table.path}' is {seen.pop():g} for all tokens, but must differ for something to "
            "be learned; name another column."
        )
    return found


def _classes(wanted: Wanted, rows: list[Sequence[Any]]) -> tuple[list[np.ndarray], list[str]]:
    column = wanted.columns[0]
    counts: Counter[Any] = Counter()
    for parts in rows:
        counts.update("true" if part is True else "false" if part is False else part for part in parts)
    gone = {part for part in counts if part is None or part in wanted.missing or part == ""}
    gone |= {part for part in counts if isinstance(part, float) and part != part}
    keys = {part: _key(part) for part in counts if part not in gone}
    if wanted.names is None:
        names = sorted(set(keys.values()), key=natural)
        _check(wanted, names)
        of: dict[Any, int] = {part: names.index(key) for part, key in keys.items()}
        if " " in keys.values():
            wanted.note(f"' ' (a space) is a class of '{column}'")
        for name in names:
            if name.lower() in MISSING and name.strip():
                listed = json.dumps([name], ensure_ascii=False)
                wanted.note(f"{shown(name)} is a class of '{column}'; --data.missing '{listed}' makes it missing")
        note_alike(wanted, names)
    else:
        names, of = list(wanted.names), {}
        find, spaces = finder([name if name.strip() else "␠" for name in names]), " " in names
        unseen: Counter[Any] = Counter()
        for part, key in keys.items():
            code = names.index(" ") if spaces and key == " " else find(key)
            if code is None and not wanted.ignore:
                row = next(i for i, parts in enumerate(rows) if part in parts)
                raise wanted.refuse(
                    column, row,
                    f"labels of the model, which lacks {shown(key)}{nearest(key, names)}: {few(names, 12)}",
                    "mend the cell",
                )  # fmt: skip
            if code is None:
                unseen[key] += counts[part]
            of[part] = IGNORED if code is None else code
        if unseen:
            wanted.note(f"{few([shown(k) for k in unseen])} at {unseen.total():,} tokens are no labels of the model, "
                        "and count as missing")  # fmt: skip
    of |= dict.fromkeys(gone, IGNORED)
    if True in of or False in of or "true" in of or "false" in of:
        return [np.array([of[_bool(p)] for p in parts], np.int64) for parts in rows], names
    return [np.fromiter(map(of.__getitem__, parts), np.int64, len(parts)) for parts in rows], names


def _bool(part: Any) -> Any:
    return "true" if part is True else "false" if part is False else part


def _key(part: Any) -> str:
    return part if isinstance(part, str) and not part.strip() else text_of(part)


def _check(wanted: Wanted, names: list[str]) -> None:
    column, path = wanted.columns[0], wanted.table.path
    if len(names) == 1:
        raise UserError(
            f"'{column}' of '{path}' is {shown(names[0])} for all tokens, but must differ for something to be learned; "
            "name another column."
        )
    if len(names) > MOST_TAGS:
        raise UserError(
            f"'{column}' of '{path}' has {len(names):,} different labels of tokens, but at most {MOST_TAGS:,} are "
            "learned; name another column."
        )
