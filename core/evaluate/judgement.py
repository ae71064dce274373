"""What the judging of any head gives: figures, their intervals, a baseline, and what the pictures are drawn from."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .reliability import Reliability

MOST_ROWS = 20
"""Classes that a printed table shows."""


@dataclass(frozen=True)
class Confusion:
    """Examples of each true class by the class predicted.

    Args:
        names: one name a class.
        counts: int `[classes, classes]`, true classes in rows.
    """

    names: tuple[str, ...]
    counts: np.ndarray

    @property
    def total(self) -> int:
        """All examples."""
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """The share on the diagonal."""
        return float(self.counts.trace() / max(self.total, 1))

    @property
    def recalls(self) -> list[float | None]:
        """The share of each class that is right; None for a class without examples."""
        pairs = zip(self.counts.diagonal().tolist(), self.counts.sum(axis=1).tolist())
        return [right / count if count else None for right, count in pairs]

    def mistakes(self, most: int = 5) -> list[tuple[str, str, int]]:
        """The most frequent mistakes: `(true class, predicted class, examples)`, the most frequent first."""
        wrong = self.counts.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        rows, columns = np.unravel_index(order, wrong.shape)
        found = ((self.names[row], self.names[column], int(wrong[row, column])) for row, column in zip(rows, columns))
        return [mistake for mistake in found if mistake[2]]


@dataclass(frozen=True)
class Panel:
    """One half of a reliability diagram.

    Args:
        title: what was judged, such as "as trained".
        bins: confidence and accuracy.
        nll: mean negative log-likelihood, nats.
        share, point, probability: what stands beside the axes and points.
        counted: what the bins hold; empty for examples.
        adaptive: calibration error over bins of equally many examples (Nixon et al. 2019), which does not hide a crowd
            in one bin; None where it is not computed.
    """

    title: str
    bins: Reliability
    nll: float
    share: str = "share that is right"
    point: str = "accuracy"
    probability: str = "confidence"
    counted: str = ""
    adaptive: float | None = None


@dataclass(frozen=True)
class Scatter:
    """Predicted numbers beside the true ones, of one target.

    Args:
        name: the target.
        true, value: float `[examples]`.
        low, high: ends of the intervals, `[examples]`; None without intervals.
    """

    name: str
    true: np.ndarray
    value: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Judgement:
    """The figures of one set of predictions.

    Args:
        kind: of the head.
        count: examples (or tokens) judged; those without a target are not among them.
        metrics: the figures by name. One that is not defined for this set is left out.
        intervals: 95 % of the resamples of the examples (or groups) lie between the two numbers.
        baseline: the same figures of one constant answer, that of the training targets.
        per_class: a row for each class, label or target: `name`, `count` and its own figures, None where not defined.
        notes: sentences that a reader of the figures must know.
        confusion, panels, scatters: what the pictures are drawn from, where the kind has it.
        parts: of a head for several columns, the judgement of each by its name.
    """

    kind: str
    count: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    baseline: dict[str, float] = field(default_factory=dict)
    per_class: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    confusion: Confusion | None = None
    panels: list[Panel] = field(default_factory=list)
    scatters: list[Scatter] = field(default_factory=list)
    parts: dict[str, Judgement] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Leaves out intervals and baselines of figures that are left out."""
        for name in ("intervals", "baseline"):
            object.__setattr__(self, name, {key: v for key, v in getattr(self, name).items() if key in self.metrics})

    def table(self) -> str:
        """Each figure with its interval and the baseline's, then the notes, as the terminal shows them."""
        rows = [("", "value", "95 % interval", "constant answer")]
        for name, value in self.metrics.items():
            ends = self.intervals.get(name)
            between = f"{shown(ends[0])} to {shown(ends[1])}" if ends else ""
            constant = shown(self.baseline[name]) if name in self.baseline else ""
            rows.append((name.replace("_", " "), shown(value), between, constant))
        return "\n".join([*aligned(rows), *self.notes])

    def class_table(self, most: int = MOST_ROWS) -> str:
        """The rows of `per_class`; of more than `most` those with the lowest figures, by the last column. Of several
        columns one table each.
        """
        if self.parts:
            held = {name: part.class_table(most) for name, part in self.parts.items()}
            return "\n\n".join(f"{shown(name)}\n{text}" for name, text in held.items() if text)
        if not self.per_class:
            return ""
        rows, note = self.per_class, []
        if len(rows) > most:
            last = list(rows[0])[-1]
            rows = sorted(rows, key=lambda row: (row[last] is None, row[last] or 0))[:most]
            note = [f"The {most} of {len(self.per_class)} with the lowest {last.replace('_', ' ')}."]
        head = tuple("" if name == "name" else name.replace("_", " ") for name in rows[0])
        return "\n".join([*aligned([head, *(tuple(map(shown, row.values())) for row in rows)]), *note])

    def to_dict(self) -> dict[str, Any]:
        """What `summary.json` keeps: everything but what only the pictures need."""
        return {
            "kind": self.kind, "count": self.count, "metrics": self.metrics,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()}, "baseline": self.baseline,
            "per_class": self.per_class, "notes": self.notes,
        }  # fmt: skip


def joined(kind: str, count: int, parts: dict[str, Judgement], first: dict[str, float], notes: list[str]) -> Judgement:
    """The judgements of several columns as one: names of figures follow that of their column and a point.

    Args:
        kind: of the head.
        count: examples with any target.
        parts: by their columns.
        first: figures of all together.
        notes: of all together.
    """

    def named(of: str) -> dict[str, Any]:
        return {f"{name}.{key}": v for name, part in parts.items() for key, v in getattr(part, of).items()}

    said = [(name, note) for name, part in parts.items() for note in part.notes]
    same = [note for note in dict.fromkeys(note for _, note in said) if [n for _, n in said].count(note) == len(parts)]
    notes = [*notes, *same, *(f"{name}: {note}" for name, note in said if note not in same)]
    rows = [{"target": name, **row} for name, part in parts.items() for row in part.per_class]
    metrics, baseline = first | named("metrics"), dict.fromkeys(first, 0.0) | named("baseline")
    return Judgement(kind, count, metrics, named("intervals"), baseline, rows, notes, parts=parts)


def shown(value: Any) -> str:
    """A figure as a table shows it: four decimals, or four digits of numbers of another size; a dash for None."""
    if value is None:
        return "—"
    if isinstance(value, str):
        return value if len(value) <= 40 else f"{value[:26]}…{value[-13:]}"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    value = 0.0 if abs(value) < 1e-9 else value  # what sums of floating point leave of nothing
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:.4g}"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with the first column to the left and the others to the right."""
    widths = [max(_cells(row[column]) for row in rows) for column in range(len(rows[0]))]

    def padded(cell: str, width: int, left: bool) -> str:
        space = " " * (width - _cells(cell))
        return cell + space if left else space + cell

    return [
        "  ".join(padded(cell, width, not at) for at, (cell, width) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]


def _cells(text: str) -> int:
    """Columns of a terminal that a text takes: Chinese, Japanese and Korean characters take two, accents none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
