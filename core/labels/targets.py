"""What is to be learned: the kind of head that columns call for, the names of its classes, and the coded values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import UserError, nearest
from ..files import few
from .cells import Numbers, Texts, clipped, numbers_of, texts_of
from .classes import IGNORED, code_classes
from .columns import Table
from .guess import KIND, KINDS, OF_TOKENS, READ_AS, SEVERAL, cells_of, guess_one, guess_several
from .labelsets import code_columns, code_sets
from .masks import Mask, are_masks, code_masks
from .quantities import code_numbers
from .tags import are_per_part, code_tags
from .wanted import MOST_SAID, MaskFiles, Wanted


@dataclass(frozen=True)
class Target:
    """What a head learns.

    Args:
        kind: of the head: classify, multilabel, regress, ordinal, tag, or several for columns of different kinds.
        columns: those of the table.
        names: the classes (of classify, ordinal in their order, tag of classes), the labels (multilabel), or the
            columns (regress, several).
        values: classify, ordinal: int64 `[rows]`, -100 where missing. multilabel: float32 `[rows, labels]`, NaN where
            missing. regress: float64 `[rows, targets]`, NaN where missing. tag: for each row int64 `[tokens]` (-100
            where missing) or float64 `[tokens]` (NaN); an empty array where the row has none; of images a `Mask` for
            each row. several: float64 `[rows, cells]`, those of its parts side by side, or for each row `[tokens,
            cells]`; NaN where missing.
        numbers: of tag: whether its values are numbers.
        said: one sentence: which kind was taken, why, and how to say otherwise.
        notes: what else was decided on the way, each a sentence without its full stop.
        parts: of several, the target of each column.
    """

    kind: str
    columns: list[str]
    names: list[str]
    values: np.ndarray | list[Any]
    numbers: bool = False
    said: str = ""
    notes: tuple[str, ...] = ()
    parts: tuple[Target, ...] = ()

    @property
    def words(self) -> list[str]:
        """Names of all classes and labels, those of the parts included."""
        return [word for part in self.parts for word in part.words] or list(self.names)

    @property
    def per_token(self) -> bool:
        """Whether a row has a target for each of its tokens."""
        return isinstance(self.values, list)

    def layout(self) -> dict[str, Any]:
        """How its values stand among those of several: `cells` of an example, whether they are `codes` of classes, and
        whether they are `flat`, an array without an axis of cells.
        """
        one = self.values[0] if isinstance(self.values, list) else self.values
        flat = isinstance(self.values, list) or one.ndim == 1
        return {"cells": 1 if flat else int(one.shape[1]), "codes": one.dtype.kind == "i", "flat": flat}

    @property
    def masked(self) -> bool:
        """Whether a row has a `Mask`."""
        return isinstance(self.values, list) and bool(self.values) and isinstance(self.values[0], Mask)

    @property
    def missing(self) -> np.ndarray:
        """Bool `[rows]`: whether a row has no target at all."""
        if self.masked:
            return np.array([mask.empty for mask in self.values], bool)
        if isinstance(self.values, list):
            absent = np.isnan if self.numbers or self.parts else lambda part: part == IGNORED
            return np.array([bool(absent(part).all()) for part in self.values], bool)
        if self.values.ndim == 1:
            return self.values == IGNORED
        return np.asarray(np.isnan(self.values).all(1))

    def take(self, rows: np.ndarray) -> Target:
        """The targets of these rows, in this order."""
        values = self.values
        parts = tuple(part.take(rows) for part in self.parts)
        return replace(
            self, values=[values[i] for i in rows] if isinstance(values, list) else values[rows], parts=parts
        )


def infer(
    table: Table,
    columns: Sequence[str],
    kind: str | Mapping[str, str] | None = None,
    names: Sequence[str] | Mapping[str, Sequence[str] | None] | None = None,
    *,
    order: Sequence[str] | None = None,
    missing: Sequence[str] = (),
    numbers: bool | None = None,
    apart: bool = False,
    on_unseen: str = "error",
    layouts: Mapping[str, dict[str, Any]] | None = None,
    masks: MaskFiles | None = None,
    parts_of: Sequence[int] | None = None,
) -> Target:
    """Codes columns of a table as the target of a head.

    Without `kind`: one column of texts is classify; of 2 to 20 different whole numbers too; of other numbers regress;
    of lists, or texts joined by | or ;, multilabel. Several columns of 0 and 1 (true and false, yes and no) are
    multilabel, of numbers regress; columns that differ are several, each read as if it stood alone. Names of masks, or
    lists of rows, are tag where `masks` is given; else tag and ordinal must be asked for.

    Args:
        table: with these columns.
        columns: the targets.
        kind: of the head; None takes what the cells call for. A mapping gives each column a head of its own, with the
            kinds that it names.
        names: the classes, labels or targets of a trained model: cells meet them by key. A table may then have few of
            them, or one alone. Of several columns a mapping of them.
        order: the classes of ordinal, from the lowest to the highest, where they are no numbers.
        missing: texts that are no class but a missing one. In columns of numbers NA, NaN, null and the like are so
            anyway; in columns of texts only empty cells are.
        numbers: of tag: whether whole numbers are numbers, or classes.
        apart: of tag: the labels of a text have spaces between them, as those of words have, instead of being its
            letters.
        on_unseen: "error", or "ignore" for labels that `names` lacks, and cells that cannot be read: they count as
            missing, and the notes name or count them.
        layouts: of all columns of a trained model for several: those that are not asked for, or empty, are missing.
        masks: of images: labels of tokens are masks, in files that this reads, or lists of rows.
        parts_of: how many words or letters each row's input has: one column with as many labels in each row is tag.

    Raises:
        UserError: the cells do not fit the kind, can be read in two ways, or say nothing: all are missing or equal.
    """
    columns = list(columns)
    if not columns:
        raise UserError("No target is named, but at least one column must be; name it.")
    if doubled := [name for name in columns if columns.count(name) > 1]:
        raise UserError(f"The target '{doubled[0]}' is named twice; name each column once.")
    if on_unseen not in ("error", "ignore"):
        raise ValueError(f"on_unseen is {on_unseen!r}")
    each, of_tokens = _kinds(columns, kind, trained=layouts is not None)
    kind = "tag" if isinstance(kind, str) and kind in OF_TOKENS else kind
    of = names if isinstance(names, Mapping) else dict.fromkeys(columns, names)

    def wanted(some: list[str]) -> Wanted:
        given = of.get(some[0])
        ordered = order if len(some) > 1 or cells_of(each.get(some[0])) == "ordinal" or len(columns) == 1 else None
        return Wanted(
            table, some, None if given is None else list(given), ordered, frozenset(missing),
            of_tokens.get(some[0]) if numbers is None else numbers, on_unseen == "ignore", apart, masks,
        )  # fmt: skip

    if len(columns) == 1 and layouts is None:
        return _coded(replace(wanted(columns), parts_of=parts_of), each.get(columns[0]))
    found = None if isinstance(kind, Mapping) or isinstance(names, Mapping) else _together(wanted(columns), kind)
    if found is not None:
        return found
    parts: dict[str, Target] = {}
    for name in layouts or columns:
        asked = name in columns and (layouts is None or any(cell is not None for cell in table.columns[name]))
        parts[name] = (
            _coded(wanted([name]), each.get(name)) if asked else _nothing(table, name, layouts or {}, kind, of)
        )
    if layouts and all(part.missing.all() for part in parts.values()):
        raise UserError(f"No row of '{table.path}' has a target in {few(columns)}; give a table with labels.")
    return _each(table, parts)


def _kinds(
    columns: Sequence[str], kind: str | Mapping[str, str] | None, trained: bool
) -> tuple[dict[str, str | None], dict[str, bool]]:
    """The kind that each column is asked for as, and, of those with labels of tokens, whether they are said to be
    numbers.

    Raises:
        UserError: a kind does not exist, or names what is no target and, of a `trained` model, never was.
    """
    each = dict(kind) if isinstance(kind, Mapping) else dict.fromkeys(columns, kind)
    of_tokens = {name: OF_TOKENS[one] for name, one in each.items() if one in OF_TOKENS}
    each = {name: "tag" if name in of_tokens else one for name, one in each.items()}
    for name, one in each.items():
        if name not in columns and not trained:
            raise UserError(f"{KIND} names the column '{name}'{nearest(name, columns)}, which is no target.")
        if one is not None and one not in KINDS and one not in READ_AS:
            known = (*KINDS, *list(OF_TOKENS)[1:], *READ_AS)
            raise UserError(f"The kind of the target is '{one}'{nearest(one, known)}, but must be {_or(known)}.")
    return each, of_tokens


def _together(wanted: Wanted, kind: str | None) -> Target | None:
    """One target of several columns of one kind; None where they differ, and no kind is given."""
    if kind is not None:
        return _called(_several(wanted, cells_of(kind) or kind), kind)
    guessed, because = guess_several(wanted)
    return None if guessed == SEVERAL else _several(wanted, guessed, because)


def _nothing(table: Table, name: str, layouts: Mapping[str, Any], kind: Any, names: Mapping[str, Any]) -> Target:
    """The target of a column that says nothing here, of the form that a trained model has for it."""
    form = layouts[name]
    filler, kind_of = (IGNORED, np.int64) if form["codes"] else (np.nan, np.float64)
    shape = (len(table),) if form["flat"] else (len(table), form["cells"])
    values: Any = np.full(shape, filler, kind_of)
    if kind[name] == "tag":
        values = [np.zeros(0, kind_of)] * len(table)
    known = list(names[name] or [name])
    return Target(kind[name], [name], known, values, not form["codes"], f"'{name}' is not scored here")


def _each(table: Table, parts: Mapping[str, Target]) -> Target:
    """One target of those of several columns, their cells side by side. Raises UserError for rows whose columns have
    labels of tokens, but not as many.
    """
    said = [_of_column(part.said.rstrip("."), name) for name, part in parts.items()]
    notes = tuple(_of_column(note, name) for name, part in parts.items() for note in part.notes)
    kinds = {part.per_token for part in parts.values()}
    if len(kinds) > 1:
        yes, no = (few([f"'{n}'" for n, part in parts.items() if part.per_token is kind]) for kind in (True, False))
        raise UserError(
            f"{yes} of '{table.path}' has a label for each token and {no} one for the whole input, which one model "
            "does not learn together; train two."
        )
    if masked := [name for name, part in parts.items() if part.masked]:
        raise UserError(
            f"'{masked[0]}' of '{table.path}' holds masks, which go with no other target; train a model for it alone."
        )
    columns: list[Any] = [part.values for part in parts.values()]
    if kinds.pop():
        values: Any = [side_by_side(table, list(parts), i, row) for i, row in enumerate(zip(*columns, strict=True))]
    else:
        values = np.concatenate([as_cells(part) for part in columns], axis=1)
    return Target(
        SEVERAL, list(parts), list(parts), values, said="; ".join(said), notes=notes, parts=tuple(parts.values())
    )


def _of_column(sentence: str, name: str) -> str:
    """A sentence about one target, where there are several."""
    sentence = sentence.replace("rows have no target:", f"rows have no '{name}':")
    return (
        sentence.replace(f"{KIND} says", f"{KIND} {name}=… says")
        .replace(f"{KIND} ", f"{KIND} {name}=")
        .replace(f"{name}={name}=", f"{name}=")
    )


def as_cells(values: Any) -> np.ndarray:
    """Values of examples as float64 `[examples, cells]` with NaN where they are missing."""
    cells = np.where(values == IGNORED, np.nan, values) if values.dtype.kind == "i" else values
    cells = cells.astype(np.float64)
    return cells[:, None] if cells.ndim == 1 else cells


def side_by_side(table: Table, names: Sequence[str], row: int, labels: Sequence[np.ndarray]) -> np.ndarray:
    """The labels of one row's tokens in several columns, float64 `[tokens, columns]`; NaN for a column without any."""
    lengths = {name: len(part) for name, part in zip(names, labels) if len(part)}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count:,} in '{name}'" for name, count in lengths.items())
        raise UserError(f"{table.where(row)} has {counts} labels, but each token must have one in each; mend the row.")
    tokens = max(lengths.values(), default=0)
    filled = [part if len(part) else np.full(tokens, np.nan) for part in labels]
    return np.concatenate([as_cells(part) for part in filled], axis=1)


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _coded(wanted: Wanted, kind: str | None) -> Target:
    """The target of one column, of any registered kind."""
    found = _one(wanted, cells_of(kind))
    return found if kind is None else _called(found, kind)


def _called(target: Target, kind: str) -> Target:
    """A target under the name of the kind that it was asked for as."""
    if kind not in READ_AS:
        return target
    return replace(target, kind=kind, said=target.said.replace(f": {target.kind},", f": {kind},"))


def _one(wanted: Wanted, kind: str | None) -> Target:
    column = wanted.columns[0]
    cells = wanted.cells(column)
    if kind is not None:
        _check_order(wanted, kind)
    because = "it holds masks" if kind is None and are_masks(wanted) else ""
    if kind is None and are_per_part(wanted):
        because = f"its cells have as many labels as their inputs have parts; {KIND} says otherwise"
    if kind == "tag" or because:
        values, names, are_numbers = (code_tags if wanted.masks is None else code_masks)(wanted)
        what = "numbers" if are_numbers else f"{len(names)} classes ({few([clipped(name) for name in names], 8)})"
        each = "token" if wanted.masks is None else "pixel"
        of = "a number" if are_numbers else f"one of {what}"
        said = f"'{column}' gives each {each} {of}: kind tag{f', because {because}' if because else ' was asked for'}."
        return _checked(wanted, Target("tag", [column], names, values, are_numbers, said))
    read: Numbers | None = None
    texts: Texts | None = None
    if kind is None or kind in ("classify", "ordinal", "regress"):
        read = numbers_of(cells) if not any(isinstance(cell, list) for cell in cells) else None
    if kind is None:
        kind, because, texts = guess_one(wanted, read)
        _check_order(wanted, kind)
    if kind == "regress":
        return _regress(wanted, because)
    if kind == "multilabel":
        values, names = code_sets(wanted, texts)
        said = _said(column, kind, f"{len(names)} labels ({few([clipped(name) for name in names], 8)})", because)
        return _checked(wanted, Target(kind, [column], names, values, said=said))
    values, names = code_classes(wanted, kind, read, texts or texts_of(cells))
    listed = few([clipped(name) for name in names], 8)
    what = f"{len(names)} {'classes' if kind == 'classify' else 'steps in order'} ({listed})"
    return _checked(wanted, Target(kind, [column], names, values, said=_said(column, kind, what, because)))


def _check_order(wanted: Wanted, kind: str) -> None:
    """Raises UserError for an order of what has none."""
    if wanted.order is not None and kind != "ordinal":
        raise UserError(
            f"An order of classes is given ({few(list(wanted.order))}), but '{wanted.columns[0]}' is read as {kind},"
            f" which has none; leave it out, or ask for kind ordinal ({KIND} ordinal)."
        )


def _several(wanted: Wanted, kind: str, because: str = "") -> Target:
    if kind not in ("multilabel", "regress"):
        names = ",".join(f"{name}={kind}" for name in wanted.columns[:2])
        raise UserError(
            f"{kind} was asked for {len(wanted.columns)} columns, but must be of one; name one, take multilabel or "
            f"regress, or give each column a kind ({KIND} {names}…)."
        )
    if kind == "regress":
        return _regress(wanted, because)
    values, names = code_columns(wanted)
    said = _said(few([f"'{name}'" for name in wanted.columns], 8), kind, f"{len(names)} labels", because)
    return _checked(wanted, Target(kind, list(wanted.columns), names, values, said=said))


def _regress(wanted: Wanted, because: str) -> Target:
    values, names = code_numbers(wanted)
    what = few([f"'{name}'" for name in wanted.columns], 8)
    said = _said(what, "regress", "numbers", because)
    return _checked(wanted, Target("regress", list(wanted.columns), names, values, said=said))


def _said(column: str, kind: str, what: str, because: str) -> str:
    column = column if column.startswith("'") else f"'{column}'"
    why = f", because {because}; {KIND} says otherwise." if because else ", as was asked for."
    return f"{column} is read as {what}: {kind}{why}"


def _checked(wanted: Wanted, target: Target) -> Target:
    if (more := wanted.skipped - MOST_SAID) > 0:
        wanted.note(f"{more:,} more cells are missing because of a mistake")
    absent = int(target.missing.sum())
    if absent == len(target.missing):
        raise UserError(
            f"No row of '{wanted.table.path}' has a target: all {absent:,} are missing in {few(target.columns)}; give "
            "a table with labels."
        )
    if absent:
        wanted.note(f"of {len(target.missing):,} rows have no target: {absent:,}")
    return replace(target, notes=tuple(wanted.notes))


def match_lengths(
    target: Target, lengths: Sequence[int], table: Table, unit: str = "tokens"
) -> tuple[Target, list[tuple[int, UserError]]]:
    """Compares the number of labels in each row with the number of its tokens.

    Args:
        target: of the kind tag.
        lengths: tokens of each row's input.
        table: which the rows are of.
        unit: what a token is: "residues", "words".

    Returns:
        The target without the labels of rows where the numbers differ, and for each of these its place and a sentence.
    """
    assert isinstance(target.values, list)
    values, wrong = list(target.values), []
    cells = table.columns.get(target.columns[0], [None] * len(table))
    for i, (labels, length) in enumerate(zip(target.values, lengths, strict=True)):
        if len(labels) and len(labels) != length:
            letters = ' (of a text each letter is one; a list such as ["O", "B-PER"] may hold longer ones)'
            how = letters if isinstance(cells[i], str) and "[" not in cells[i] else ""
            wrong.append((i, UserError(
                f"'{target.columns[0]}' in {table.where(i)} has {len(labels):,} labels{how}, but its input has "
                f"{length:,} {unit}, and each needs one label; mend the row."
            )))  # fmt: skip
            values[i] = values[i][:0]
    return replace(target, values=values), wrong
