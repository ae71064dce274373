"""Which rows are for training, validation and test.

A row's side follows from a hash of what it is (its group, or its input), so it stays where it is when rows are added,
removed or moved. Only where the hashes miss the parts asked for by more than a tenth are rows at the boundary moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import UserError, nearest
from ..files import few
from ..work import blocks
from .cells import loose, plain, shown, text_of
from .guess import cells_of

SIDES = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "dev", "development", "eval"),
    "test": ("test", "testing", "holdout", "heldout", "held-out"),
}
WORDS = {word: side for side, words in SIDES.items() for word in words}
SLACK = 0.1
"""The part of its size by which a side may miss what was asked for, because of hashes."""


class Split(dict[str, np.ndarray]):
    """The rows of each side, int64, ascending; `notes` say how they were found."""

    def __init__(self, sides: dict[str, np.ndarray], notes: Iterable[str] = ()) -> None:
        super().__init__(sides)
        self.notes = list(notes)


def split(
    count: int,
    *,
    column: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
    labels: np.ndarray | None = None,
    inputs: Sequence[Any] | np.ndarray | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    where: str = "the table",
) -> Split:
    """Assigns rows to the sides "train", "val" and, where asked for, "test".

    Args:
        count: rows.
        column: cells that say the side: train, val or test, in any case, and the usual words for them.
        groups: cells that say what must not be on two sides, such as a patient; None for a row of its own.
        labels: int `[rows]`, a class of each row (-100: none), whose parts are kept on each side; see `strata`.
        inputs: what a model sees of each row, or hashes of it: equal ones are on one side.
        val_fraction, test_fraction: parts of the rows.
        seed: another one gives another split.
        rows: what messages call each row; by default the number of the row, from 1.
        where: what messages call the table.

    Raises:
        UserError: a side would be empty, or a cell of `column` is no side.
    """
    for name, given in (("column", column), ("groups", groups), ("labels", labels), ("inputs", inputs)):
        if given is not None and len(given) != count:
            raise ValueError(f"{name} has {len(given)} entries, but there are {count} rows")
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise UserError(
            f"The parts of validation and test are {val_fraction:g} and {test_fraction:g}, but must be at least 0 and "
            "less than 1 together; choose smaller ones."
        )
    if not count:
        raise UserError(f"No row of {where} is left to be split; give more.")
    units, keys, notes = _units(count, groups, inputs)
    if column is not None:
        return _by_column(column, units, keys, labels, groups, val_fraction, seed, rows, where, notes)
    side = _sides(units, keys, labels, {"test": test_fraction, "val": val_fraction}, seed, where)
    if labels is not None:
        limits = ["groups"] if groups else []
        limits += ["classes of few rows"] if _few(labels, bool(val_fraction) + bool(test_fraction)) else []
        allowed = f", as far as {' and '.join(limits)} allow" if limits else ""
        notes.append(f"each side has the classes in the same parts{allowed}")
    found = {name: np.flatnonzero(side == code) for code, name in enumerate(("train", "val", "test"))}
    shares = ", ".join(f"{len(part):,} {name}" for name, part in found.items() if len(part))
    by = "group" if groups is not None else "hash of the input" if inputs is not None else "row"
    notes.insert(0, f"split by {by}: {shares} (seed {seed})")
    return Split({name: part for name, part in found.items() if len(part) or name != "test"}, notes)


# -- what stays together ----------------------------------------------------------------------------------------------


def hashes(cells: Sequence[Any] | np.ndarray) -> np.ndarray:
    """A number for each cell, uint64, equal for equal ones. Arrays of uint64 are hashes already."""
    if isinstance(cells, np.ndarray) and cells.dtype == np.uint64:
        return cells
    found = np.empty(len(cells), np.uint64)
    for span in blocks("Comparing the rows", len(cells)):
        keys = [cell if isinstance(cell, (str, bytes)) else str(plain(cell)) for cell in cells[span]]
        of = {key: _digest(key) for key in set(keys)}
        found[span] = np.frombuffer(b"".join(map(of.__getitem__, keys)), "<u8")
    return found


def _digest(key: str | bytes) -> bytes:
    content = key if isinstance(key, bytes) else key.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=8).digest()


def mixed(values: np.ndarray, seed: int) -> np.ndarray:
    """Other numbers for other seeds, evenly spread: SplitMix64 (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        x = values + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        return x ^ (x >> np.uint64(31))


def _few(labels: np.ndarray, held: int) -> bool:
    """Whether a class has too few rows to be on every side, of which `held` are not for training."""
    counts = np.unique(np.asarray(labels)[np.asarray(labels) >= 0], return_counts=True)[1]
    return bool(len(counts)) and int(counts.min()) <= held


def _units(count: int, groups: Sequence[Any] | None, inputs: Any) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """What stays together: the unit of each row, int64 `[rows]`, a hash of each unit, and notes."""
    notes: list[str] = []
    own = np.arange(count, dtype=np.uint64)
    keys = hashes(inputs) if inputs is not None else mixed(own, 1)
    units = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    if inputs is not None and (copies := count - int(units.max()) - 1):
        notes.append(f"{copies:,} rows have the input of another row, and are on its side")
    if groups is not None:
        units, keys = _grouped(units, keys, groups)
        notes += _alike(groups)
        if without := sum(group is None or str(group).strip() == "" for group in groups):
            notes.append(f"{without:,} rows have no group, and each of them is taken for a group of its own")
    order = np.full(int(units.max()) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(order, units, keys)
    return units, order, notes


def _grouped(units: np.ndarray, keys: np.ndarray, groups: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Units of rows with the same group or the same input, and the hash of each row's group."""
    there = np.array([not (group is None or str(group).strip() == "") for group in groups], bool)
    named = hashes([text_of(group) if there[i] else "" for i, group in enumerate(groups)])
    if not there.any():
        return units, keys
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, of = np.flatnonzero(there), np.unique(named[there], return_inverse=True)[1]
    inputs, size = int(units.max()) + 1, int(units.max()) + 1 + int(of.max()) + 1
    edges = coo_matrix((np.ones(len(rows), np.int8), (units[rows], inputs + of)), shape=(size, size))
    component = connected_components(edges, directed=False)[1]
    return np.unique(component[units], return_inverse=True)[1].astype(np.int64), np.where(there, named, keys)


def _alike(groups: Sequence[Any]) -> list[str]:
    """A note where groups differ in case or spaces alone, as one patient written in two ways."""
    names: dict[str, set[str]] = {}
    for name in {text_of(group) for group in groups if isinstance(group, str)}:
        names.setdefault(loose(name), set()).add(name)
    if doubled := [sorted(found) for found in names.values() if len(found) > 1]:
        count = f"{len(doubled):,} groups are" if len(doubled) > 1 else "1 group is"
        which = few([shown(name) for name in min(doubled)])
        return [f"WARNING: {count} written in several ways ({which}), which are different groups here"]
    return []


# -- by hash ----------------------------------------------------------------------------------------------------------


def _sides(
    units: np.ndarray, keys: np.ndarray, labels: np.ndarray | None, fractions: dict[str, float], seed: int, where: str
) -> np.ndarray:
    """The side of each row: 0 train, 1 val, 2 test."""
    wanted = [(name, part) for name, part in fractions.items() if part]
    sizes = np.bincount(units)
    if len(sizes) < len(wanted) + 1:
        what = "group or input" if len(units) > len(sizes) else "row"
        raise UserError(
            f"{where[:1].upper() + where[1:]} has {len(sizes):,} {what}{'s' * (len(sizes) != 1)} that can be apart, "
            f"but {len(wanted) + 1} sides must not be empty; give more rows, or ask for fewer sides."
        )
    order = mixed(keys, seed)
    stratum = _strata_of(units, labels, len(sizes))
    side = np.zeros(len(sizes), np.int8)
    below = 0.0
    for i, (name, fraction) in enumerate(wanted):
        free = side == 0
        below += fraction
        chosen = _choose(order, sizes, stratum, free, below, fraction, len(wanted) - i)
        side[chosen] = {"val": 1, "test": 2}[name]
    return side[units]


def _strata_of(units: np.ndarray, labels: np.ndarray | None, count: int) -> np.ndarray:
    """The most frequent class of each unit, the lower one of equals."""
    if labels is None:
        return np.zeros(count, np.int64)
    classes, of = np.unique(labels, return_inverse=True)
    if len(units) == count:  # a row each
        found = np.empty(count, np.int64)
        found[units] = of
        return found
    pairs, times = np.unique(units * len(classes) + of, return_counts=True)
    best = np.lexsort((pairs % len(classes), -times, pairs // len(classes)))
    first = np.unique((pairs // len(classes))[best], return_index=True)[1]
    return (pairs % len(classes))[best][first]


def _choose(
    order: np.ndarray,
    sizes: np.ndarray,
    stratum: np.ndarray,
    free: np.ndarray,
    below: float,
    fraction: float,
    left: int,
) -> np.ndarray:
    """Units of one side: those with a hash below a threshold, or so many more or fewer that parts are kept.

    At least `left` of the `free` units are left for other sides.
    """
    limit = np.uint64(min(int(below * 2.0**64), 2**64 - 1))
    walk = np.lexsort((order, stratum))
    starts = np.flatnonzero(np.r_[True, np.diff(stratum[walk]) > 0])
    may = free.copy()
    may[walk[np.r_[starts[1:] - 1, len(walk) - 1]]] = False  # the last of each class stays in training
    if not may.any():  # each class is one group
        may = free & (order < order[free].max())
    picked = may & (order < limit)
    totals = np.bincount(stratum, sizes)
    for part in np.split(walk, starts[1:]):
        _correct(picked, part[may[part]], sizes, fraction * float(totals[stratum[part[0]]]))
    rest = walk[np.argsort(order[walk], kind="stable")]
    rest = rest[may[rest]]
    _correct(picked, rest, sizes, fraction * sizes.sum())
    if not picked.any():  # all groups are larger than the side
        picked[rest[np.argmin(sizes[rest])]] = True
    picked[rest[picked[rest]][max(1, int(free.sum()) - left) :]] = False
    return picked


def _correct(picked: np.ndarray, part: np.ndarray, sizes: np.ndarray, asked: float) -> None:
    """Moves units of `part`, which are in the order of their hashes, until their rows are near to those asked for."""
    least, most = np.floor(asked * (1 - SLACK)), np.ceil(asked * (1 + SLACK))
    rows = int(sizes[part][picked[part]].sum())
    for unit in part[picked[part]][::-1]:  # the last ones first
        if rows <= most:
            break
        picked[unit] = False
        rows -= int(sizes[unit])
    for unit in part[~picked[part]]:
        if rows >= least:
            break
        if rows + sizes[unit] <= most:
            picked[unit] = True
            rows += int(sizes[unit])


# -- by a column ------------------------------------------------------------------------------------------------------


def _by_column(
    column: Sequence[Any], units: np.ndarray, keys: np.ndarray, labels: np.ndarray | None, groups: Any,
    val_fraction: float, seed: int, rows: Sequence[int] | None, where: str, notes: list[str],
) -> Split:  # fmt: skip
    codes = {"train": 0, "val": 1, "test": 2}
    known: dict[Any, int] = {}
    side = np.empty(len(column), np.int8)
    for i, cell in enumerate(column):
        key = str(plain(cell)) if cell is not None else ""
        if (code := known.get(key)) is None:
            word = key.strip().lower()
            if word not in WORDS:
                line = f"{(rows[i] if rows is not None else i + 1):,}"
                raise UserError(
                    f"The split column of {where} holds {shown(cell) if cell is not None else 'nothing'} in row {line}"
                    f"{nearest(word, WORDS)}, but must hold train, val or test; mend the cell."
                )
            code = known[key] = codes[WORDS[word]]
        side[i] = code
    found = {name: np.flatnonzero(side == code) for name, code in codes.items()}
    there = [name for name, part in found.items() if len(part)]
    if len(there) == 1:
        raise UserError(
            f"The split column of {where} says {there[0]} in all rows, but there must be train and val or test; mend "
            "it, or name no split column."
        )
    if "train" not in there:
        raise UserError(f"The split column of {where} names no row for training; write train in some.")
    notes = [note for note in notes if "on its side" not in note]
    if "val" not in there and val_fraction:
        train = found["train"]
        _, kept = np.unique(units[train], return_inverse=True)
        own = keys[np.unique(units[train])]
        part = _sides(kept, own, None if labels is None else labels[train], {"val": val_fraction}, seed, where)
        side[train[part == 1]] = 1
        found = {name: np.flatnonzero(side == code) for name, code in codes.items()}
        notes.append(f"the split column names no row for validation: {len(found['val']):,} of training are held out")
    touched = np.zeros((3, len(keys)), bool)
    touched[side, units] = True
    if leaks := int((touched.sum(0) > 1).sum()):
        what = "groups or inputs" if groups is not None else "inputs"
        notes.append(f"WARNING: {leaks:,} {what} are on two sides of the split column, so its figures are too good")
    shares = ", ".join(f"{len(part):,} {name}" for name, part in found.items() if len(part))
    notes.insert(0, f"split by its column: {shares}")
    return Split({name: part for name, part in found.items() if len(part) or name == "val"}, notes)


def strata(kind: str, values: Any) -> np.ndarray | None:
    """Classes for `labels` of `split`: int64 `[rows]`, or None for a target that has none.

    classify and ordinal: the class. multilabel: the rarest label that the row has (Sechidis et al. 2011 begin with it),
    -1 where it has none. regress and tag: None.
    """
    kind = cells_of(kind) or kind
    if kind in ("classify", "ordinal"):
        return np.asarray(values, np.int64)
    if kind != "multilabel":
        return None
    has = np.asarray(values) == 1
    rarity = np.argsort(has.sum(0), kind="stable")
    ordered = has[:, rarity]
    return np.where(ordered.any(1), rarity[ordered.argmax(1)], -1).astype(np.int64)


def described(sides: Split) -> str:
    """The notes of a split in one line."""
    return few(sides.notes, 6)
