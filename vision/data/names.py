"""Which name stands for which class: names meet classes by key, never by position alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.errors import UserError, nearest
from ...core.files import few
from ...core.labels.cells import natural, same


def join(texts: Sequence[str], classes: Sequence[str], where: str) -> np.ndarray:
    """The class of each text, int64 `[images]`.

    Raises:
        UserError: a text is no class, or two classes have one name.
    """
    of = {same(name): i for i, name in enumerate(classes)}
    if len(of) < len(classes):
        raise UserError(f"Two classes of '{where}' have names that are equal as Unicode text; rename one of them.")
    unknown = sorted({text for text in texts if same(text) not in of})
    if unknown:
        missing = sorted(of.keys() - set(map(same, texts)))
        lacks = f" and lacks {few([repr(name) for name in missing])}" if missing else ""
        raise UserError(
            f"The classes of training and of '{where}' differ: the latter has {few([repr(name) for name in unknown])} "
            f"that training lacks{nearest(unknown[0], list(classes))}{lacks}; use the same class names in both."
        )
    return np.array([of[same(text)] for text in texts], dtype=np.int64)


def given(labels: Sequence[str] | Mapping[Any, str], classes: Sequence[str], numbered: bool) -> list[str]:
    """The names that `data.labels` gives to classes, in the order of `classes`.

    A mapping names classes by what the data call them; those that it leaves out keep their names. A list belongs to
    numbered classes by their numbers, and to named ones in natural order, which must be the order of their strings too
    unless all names are whole numbers.

    Raises:
        UserError: another number of names, unknown or doubled names, or an order that can be meant in two ways.
    """
    if isinstance(labels, Mapping):
        names = _mapped(labels, classes)
    else:
        names = _listed([str(label) for label in labels], classes, numbered)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"data.labels gives two classes the name '{doubled[0]}', but each needs a name of its own.")
    return names


def _mapped(labels: Mapping[Any, str], classes: Sequence[str]) -> list[str]:
    found = {}
    for key, name in labels.items():
        text = same(str(key))
        numbers = [name for name in classes if isinstance(key, int) and name.isdecimal() and int(name) == key]
        match = [known for known in classes if same(known) == text] or numbers
        if len(match) != 1:
            raise UserError(
                f"data.labels names '{key}'{nearest(str(key), list(classes))}, but the classes of the data are "
                f"{few(sorted(classes, key=natural), 12)}."
            )
        found[match[0]] = str(name)
    return [found.get(known, known) for known in classes]


def _listed(labels: list[str], classes: Sequence[str], numbered: bool) -> list[str]:
    if len(labels) != len(classes):
        raise UserError(f"data.labels names {len(labels)} classes, but the data have {len(classes)}.")
    if {*map(same, labels)} == {*map(same, classes)}:
        return list(classes)  # the data's own names, in whatever order
    order = list(classes) if numbered else sorted(classes, key=natural)
    numbers = all(re.fullmatch(r"[0-9]+", name) for name in classes)
    if order != list(classes) and not numbers and not numbered:
        raise UserError(
            f"data.labels is a list, but the classes {few(order, 3)} have another order as numbers than as text "
            f"({few(list(classes), 3)}): give a mapping, such as {{'{order[0]}': '{labels[0]}', …}}."
        )
    of = dict(zip(order, labels))
    taken = [name for name in classes if of[name] != name and of[name] in classes]
    if taken:
        raise UserError(
            f"data.labels calls the class '{taken[0]}' '{of[taken[0]]}', which is the name of another class: give a "
            f"mapping, such as {{'{taken[0]}': '{of[taken[0]]}', …}}, if that is meant."
        )
    return [of[name] for name in classes]


def refuse_other(mine: Sequence[str], theirs: Sequence[str], where: str) -> None:
    """Raises UserError when the classes of the data, `mine`, are not those of a model, `theirs`."""
    if len(theirs) != len(mine):
        raise UserError(
            f"The data have {len(mine)} classes, but {where} was trained on {len(theirs)}: {few(list(theirs))}."
        )
    for here, there in zip(mine, theirs):
        if here != there:
            raise UserError(
                f"The data's classes are not those of {where}: '{here}' stands where '{there}' was; rename the class "
                "folders, or leave out data.labels."
            )
