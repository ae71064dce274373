"""What neighbours say about a data set: copies and near copies, also over its sides, and labels that look wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..losses import IGNORED
from .nearest import Doubts, alike, clusters, doubtful

SHOWN = 10
"""Pairs and doubts that are printed; a file has all."""


@dataclass(frozen=True)
class Items:
    """The examples of a data set, in one order.

    Args:
        names: what a person calls each.
        sides: train, val, test, or an empty text for none.
        labels: numbers of classes, int64 `[items]`, -100 for none.
        classes: their names.
        same: equal where the content is exactly equal, such as hashes.
    """

    names: Sequence[str]
    sides: Sequence[str]
    labels: np.ndarray
    classes: Sequence[str]
    same: Sequence[Any]

    def label(self, row: int) -> str:
        """The name of the class of an item; empty for none."""
        return "" if self.labels[row] == IGNORED else str(self.classes[self.labels[row]])


@dataclass(frozen=True)
class Found:
    """What was found.

    Args:
        items: what was looked at.
        pairs: (row, row, cosine, whether the content is equal), the most alike first.
        doubts: labels that neighbours contradict; None where fewer than two items have a label, or all the same.
        threshold: cosine from which on two are alike.
        k: neighbours that were asked about a label.
        by: what made the vectors.
    """

    items: Items
    pairs: list[tuple[int, int, float, bool]]
    doubts: Doubts | None
    threshold: float
    k: int
    by: str

    @property
    def leaks(self) -> list[tuple[int, int, float, bool]]:
        """Pairs on two sides."""
        sides = self.items.sides
        return [pair for pair in self.pairs if sides[pair[0]] != sides[pair[1]]]

    @property
    def contradictions(self) -> list[tuple[int, int, float, bool]]:
        """Pairs with two labels."""
        items = self.items
        return [
            pair for pair in self.pairs
            if items.label(pair[0]) and items.label(pair[1]) and items.label(pair[0]) != items.label(pair[1])
        ]  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """A table: pairs (`kind` copy or near), then labels in doubt (`kind` label)."""
        items, found = self.items, []
        for first, second, cosine, equal in self.pairs:
            found.append(
                {
                    "kind": "copy" if equal else "near", "name": items.names[first], "side": items.sides[first],
                    "label": items.label(first), "other": items.names[second], "other_side": items.sides[second],
                    "other_label": items.label(second), "cosine": round(cosine, 5), "votes": None,
                }
            )  # fmt: skip
        for doubt in self.doubts.doubts if self.doubts else []:
            found.append(
                {
                    "kind": "label", "name": items.names[doubt.row], "side": items.sides[doubt.row],
                    "label": items.label(doubt.row), "other": None, "other_side": None,
                    "other_label": str(items.classes[doubt.other]), "cosine": round(doubt.cosine, 5),
                    "votes": round(doubt.votes, 3),
                }
            )  # fmt: skip
        return found

    def text(self) -> str:
        """What is printed."""
        equal = sum(pair[3] for pair in self.pairs)
        joined = clusters_of(self.pairs)
        lines = [
            f"neighbours, by {self.by}:",
            f"  pairs that are alike among {len(self.items.names):,}: {len(self.pairs):,}, of which {equal:,} of equal "
            f"content, {len(self.pairs) - equal:,} of a cosine of {self.threshold:g} or more; groups: {len(joined):,}",
        ]
        leaks, apart = self.leaks, self.contradictions
        if len(set(self.items.sides)) > 1:
            lines.append(f"  pairs on two sides, so that what is judged was trained on: {len(leaks):,}")
        if apart:
            lines.append(f"  pairs with two labels: {len(apart):,}")
        lines += [self._pair(pair) for pair in [*leaks, *(p for p in self.pairs if p not in set(leaks))][:SHOWN]]
        return "\n".join([*lines, *self._about_labels()])

    def _pair(self, pair: tuple[int, int, float, bool]) -> str:
        first, second, cosine, equal = pair
        return f"    {'copy  ' if equal else f'{cosine:.4f}'}  {self._place(first)}  {self._place(second)}"

    def _place(self, row: int) -> str:
        said = ", ".join(filter(None, (self.items.sides[row], self.items.label(row))))
        return f"{self.items.names[row]}{f' ({said})' if said else ''}"

    def _about_labels(self) -> list[str]:
        if self.doubts is None:
            return ["  no labels to compare with those of neighbours"]
        found = self.doubts
        lines = [
            f"  {len(found.doubts):,} of {found.rows:,} labels are contradicted by most of the {self.k} nearest; "
            f"neighbours tell {found.agreement:.1%} of the labels (the commonest class: {found.majority:.1%})"
        ]
        if found.agreement < found.majority + 0.1:
            lines.append("  neighbours hardly tell these labels, so that this says little; give a model (--run)")
        lines += [
            f"    {doubt.votes:4.0%} say {self.items.classes[doubt.other]}: {self._place(doubt.row)}"
            for doubt in found.doubts[:SHOWN]
        ]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"by": self.by, "threshold": self.threshold, "k": self.k, "leaks": len(self.leaks), "rows": self.rows()}


def clusters_of(pairs: Sequence[tuple[int, int, float, bool]]) -> list[list[int]]:
    """Items that are joined by pairs."""
    from .nearest import Pair

    return clusters([Pair(first, second, cosine) for first, second, cosine, _ in pairs])


def look(values: np.ndarray, items: Items, threshold: float, k: int, by: str) -> Found:
    """Compares all vectors `[items, dim]` with each other.

    Items of equal content count as alike whatever their vectors. Vectors that are zero are like no other.

    Raises:
        UserError: more pairs are alike than can be listed.
    """
    near = {(p.first, p.second): p.cosine for p in alike(values, threshold)}
    groups: dict[Any, list[int]] = {}
    for row, content in enumerate(items.same):
        groups.setdefault(content, []).append(row)
    equal = {(rows[0], row) for rows in groups.values() for row in rows[1:]}
    of = dict(enumerate(items.same))
    pairs = [(a, b, cosine, of[a] == of[b]) for (a, b), cosine in near.items() if of[a] != of[b] or (a, b) in equal]
    pairs += [(a, b, 1.0, True) for a, b in equal if (a, b) not in near]
    pairs.sort(key=lambda pair: (not pair[3], -pair[2], pair[0], pair[1]))
    known = items.labels[items.labels != IGNORED]
    doubts = doubtful(values, items.labels, k) if len(np.unique(known)) > 1 else None
    return Found(items, pairs, doubts, threshold, min(k, max(len(known) - 1, 1)), by)
