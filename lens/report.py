"""What an answer consists of, and how it is printed and kept as JSON. `pictures.py` and `page.py` show it otherwise."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ..core.subject import Square, Table


@dataclass
class Heads:
    """Numbers of heads, float `[layers, heads]`, NaN where a layer has none.

    Args:
        title: what the numbers are.
        values: them.
        unit: of them.
        signed: negative ones mean the opposite of positive ones.
        caption: what stands below: for weights, how far they agree with effects.
        columns: names of the heads; their numbers by default.
    """

    title: str
    values: Tensor
    unit: str = ""
    signed: bool = False
    caption: str = ""
    columns: list[str] | None = None


@dataclass
class Curves:
    """Curves over depth or over the size of a set; `controls` are drawn as a band."""

    title: str
    x: list[Any]
    lines: dict[str, list[float]]
    unit: str
    x_label: str
    band: tuple[list[float], list[float]] | None = None
    caption: str = ""


@dataclass
class Grid:
    """Effects by layer (rows) and position (columns), float `[layers, positions]`."""

    title: str
    values: Tensor
    rows: list[str]
    columns: list[str]
    unit: str = ""
    caption: str = ""


@dataclass
class Tokens:
    """Weights and effects of tokens on places, float `[places, tokens]`, NaN where unknown.

    Args:
        title: scope of the weights.
        names: of the tokens.
        places: of the answer; one for an image.
        weights: what each place reads.
        effects: how far each place moves when a token is hidden, in nats.
        caption: the rank correlation of the two.
        grid: rows and columns of patches, which are the last tokens; None for a sequence.
        heads: weights of single heads by name, `[places, tokens]` each, for the page.
        image: of an image, `[height, width, 3]` of 0 to 255.
        unit: of the effects.
    """

    title: str
    names: list[str]
    places: list[str]
    weights: Tensor
    effects: Tensor
    caption: str
    grid: tuple[int, int] | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)
    image: Tensor | None = None
    unit: str = "nats"


Panel = Heads | Curves | Grid | Tokens | Square


@dataclass
class Report:
    """One answer.

    Args:
        title: the question and the model.
        notes: sentences about model, input, cost and what the numbers can bear.
        tables: to print.
        panels: to draw.
        data: everything, for the JSON.
    """

    title: str
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


def ranks(square: Square) -> np.ndarray:
    """Both maps in one, each by the share of its pairs that score lower, and the lowest nine tenths white."""
    size = len(square.upper)
    both = np.zeros((size, size))
    i, j = np.triu_indices(size, 6)
    for values, rows, columns in ((square.upper, i, j), (square.lower, j, i)):
        scores = values.double().numpy()[rows, columns]
        order = scores.argsort().argsort() / max(len(scores) - 1, 1)
        both[rows, columns] = ((order - 0.9) / 0.1).clip(0, 1)
    return both


def text(value: Any) -> str:
    """A cell as it is printed."""
    if value is None:
        return ""
    if isinstance(value, float):
        if math.isnan(value):
            return "–"
        return f"{value + 0.0:.3f}" if abs(value) >= 5e-4 or value == 0 else f"{value:.1e}"
    return str(value)


def show(report: Report) -> None:
    """Prints a report; in a pipe, lines are not cut to the width of a terminal."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Printed

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(width=10_000, highlight=False)
    console.print(f"[bold]{escape(report.title)}[/bold]")
    for table in report.tables:
        printed = Printed(title=escape(table.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(table.columns):
            numeric = any(isinstance(row[number], (int, float)) for row in table.rows)
            printed.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
        for row in table.rows:
            printed.add_row(*(escape(text(cell)) for cell in row))
        console.print(printed)
    for note in report.notes:
        console.print(escape(note))


def plain(value: Any) -> Any:
    """A value for JSON: tensors as lists, NaN as null."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) or math.isinf(value) else value
    return value


def as_json(report: Report) -> str:
    """The report as JSON: its sentences, and all numbers behind tables and pictures."""
    tables = [{"title": t.title, "columns": t.columns, "rows": t.rows} for t in report.tables]
    whole = {"title": report.title, "notes": report.notes, "tables": tables, **report.data}
    return json.dumps(plain(whole), ensure_ascii=False, indent=1, allow_nan=False)
