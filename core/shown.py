"""A table of texts as a terminal shows it, and as a CSV file holds it: one form for all commands."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from typing import Any


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] | None = (0,), title: str = ""
) -> None:
    """Prints a table; in a pipe no row is cut to the width of a terminal.

    Args:
        columns: their titles.
        rows: a text for each column.
        left: numbers of the columns that begin at the left, the others end at the right; None for all at the left.
        title: above it.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title) or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(escape(name), justify="left" if left is None or number in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console(highlight=False)
    (console if console.is_terminal else Console(width=10_000, highlight=False)).print(table)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV with a line of titles; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()
