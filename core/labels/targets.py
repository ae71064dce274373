"""What is to be learned: the kind of head that columns call for, the names of its classes, and the coded values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import UserError, nearest
from ..files import few
from .cells import Numbers, Texts, clipped, numbers_of, texts_of
from .classes import IGNORED, code_classes
from .columns import Table
from .guess import KIND, KINDS, guess_one, guess_several
from .labelsets import code_columns, code_sets
from .quantities import code_numbers
from .tags import code_tags
from .wanted import MOST_SAID, Wanted


@dataclass(frozen=True)
class Target:
    """What a head learns.

    Args:
        kind: of the head: classify, multilabel, regress, ordinal or tag.
        columns: those of the table.
        names: the classes (of classify, ordinal in their order, tag of classes), the labels (multilabel), or the
            columns (regress).
        values: classify, ordinal: int64 `[rows]`, -100 where missing. multilabel: float32 `[rows, labels]`, NaN where
            missing. regress: float64 `[rows, targets]`, NaN where missing. tag: for each row int64 `[tokens]` (-100
            where missing) or float64 `[tokens]` (NaN); an empty array where the row has none.
        numbers: of tag: whether its values are numbers.
        said: one sentence: which kind was taken, why, and how to say otherwise.
        notes: what else was decided on the way, each a sentence without its full stop.
    """

    kind: str
    columns: list[str]
    names: list[str]
    values: np.ndarray | list[np.ndarray]
    numbers: bool = False
    said: str = ""
    notes: tuple[str, ...] = ()

    @property
    def missing(self) -> np.ndarray:
        """Bool `[rows]`: whether a row has no target at all."""
        if isinstance(self.values, list):
            absent = np.isnan if self.numbers else lambda part: part == IGNORED
            return np.array([bool(absent(part).all()) for part in self.values], bool)
        if self.values.ndim == 1:
            return self.values == IGNORED
        return np.asarray(np.isnan(self.values).all(1))

    def take(self, rows: np.ndarray) -> Target:
        """The targets of these rows, in this order."""
        values = self.values
        return replace(self, values=[values[i] for i in rows] if isinstance(values, list) else values[rows])


def infer(
    table: Table,
    columns: Sequence[str],
    kind: str | None = None,
    names: Sequence[str] | None = None,
    *,
    order: Sequence[str] | None = None,
    missing: Sequence[str] = (),
    numbers: bool | None = None,
    apart: bool = False,
    on_unseen: str = "error",
) -> Target:
    """Codes columns of a table as the target of a head.

    Without `kind`: one column of texts is classify; of 2 to 20 different whole numbers too; of other numbers regress;
    of lists, or texts joined by | or ;, multilabel. Several columns of 0 and 1 (true and false, yes and no) are
    multilabel, of numbers regress. tag and ordinal must be asked for.

    Args:
        table: with these columns.
        columns: the targets.
        kind: of the head; None takes what the cells call for.
        names: the classes, labels or targets of a trained model: cells meet them by key. A table may then have few of
            them, or one alone.
        order: the classes of ordinal, from the lowest to the highest, where they are no numbers.
        missing: texts that are no class but a missing one. In columns of numbers NA, NaN, null and the like are so
            anyway; in columns of texts only empty cells are.
        numbers: of tag: whether whole numbers are numbers, or classes.
        apart: of tag: the labels of a text have spaces between them, as those of words have, instead of being its
            letters.
        on_unseen: "error", or "ignore" for labels that `names` lacks, and cells that cannot be read: they count as
            missing, and the notes name or count them.

    Raises:
        UserError: the cells do not fit the kind, can be read in two ways, or say nothing: all are missing or equal.
    """
    columns = list(columns)
    if not columns:
        raise UserError("No target is named, but at least one column must be; name it.")
    if doubled := [name for name in columns if columns.count(name) > 1]:
        raise UserError(f"The target '{doubled[0]}' is named twice; name each column once.")
    if kind is not None and kind not in KINDS:
        raise UserError(f"The kind of the target is '{kind}'{nearest(kind, KINDS)}, but must be {_or(KINDS)}.")
    if on_unseen not in ("error", "ignore"):
        raise ValueError(f"on_unseen is {on_unseen!r}")
    given = None if names is None else list(names)
    wanted = Wanted(table, columns, given, order, frozenset(missing), numbers, on_unseen == "ignore", apart)
    return _several(wanted, kind) if len(columns) > 1 else _one(wanted, kind)


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _one(wanted: Wanted, kind: str | None) -> Target:
    column = wanted.columns[0]
    cells = wanted.cells(column)
    if kind == "tag":
        values, names, are_numbers = code_tags(wanted)
        what = "numbers" if are_numbers else f"{len(names)} classes ({few([clipped(name) for name in names], 8)})"
        said = f"'{column}' gives each token one of {what}: kind tag was asked for."
        return _checked(wanted, Target("tag", [column], names, values, are_numbers, said))
    read: Numbers | None = None
    texts: Texts | None = None
    because = ""
    if kind is None or kind in ("classify", "ordinal", "regress"):
        read = numbers_of(cells) if not any(isinstance(cell, list) for cell in cells) else None
    if kind is None:
        kind, because, texts = guess_one(wanted, read)
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


def _several(wanted: Wanted, kind: str | None) -> Target:
    if kind not in (None, "multilabel", "regress"):
        raise UserError(
            f"{kind} was asked for {len(wanted.columns)} columns, but must be of one; name one, or take multilabel or "
            "regress."
        )
    because = ""
    if kind is None:
        kind, because = guess_several(wanted)
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
        wanted.note(f"{absent:,} of {len(target.missing):,} rows have no target")
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
