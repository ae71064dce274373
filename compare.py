"""`triune compare RUNS…`: what differs between runs, their figures side by side, and their curves in one picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import UserError
from .core.files import OVERWRITE, check_new, write_atomic, write_json
from .core.options import Parser
from .core.shown import csv_text, print_table

if TYPE_CHECKING:
    from .core.training.run.compare import Comparison, Row

ENDINGS = (".json", ".csv")
SIDES = {"val": "validation", "test": "test"}


def parser() -> argparse.ArgumentParser:
    """The options of `triune compare`."""
    p = Parser(
        prog="triune compare",
        description="Show what differs between runs: options (only those that differ, defaults included), figures with "
        "the best marked (*) where they can be compared, baselines, device and time. Runs that were validated on "
        "different examples are told so.",
    )
    p.add_argument("runs", metavar="RUN", nargs="+", help="folders of two or more runs")
    p.add_argument("--png", type=Path, metavar="FILE", help="draw the curves together, by step and by what was seen")
    p.add_argument("--out", type=Path, metavar="FILE", help="write the tables: .json or .csv")
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    return p


def main(args: list[str]) -> int:
    """Runs `triune compare` and returns its exit code."""
    options = parser().parse_args(args)
    if options.out is not None and options.out.suffix not in ENDINGS:
        raise UserError(f"--out is '{options.out}', but must end in {' or '.join(ENDINGS)}; give such a name.")
    if options.png is not None and options.png.suffix != ".png":
        raise UserError(f"--png is '{options.png}', but must end in .png; give such a name.")
    check_new([path for path in (options.out, options.png) if path is not None], options.overwrite)
    from .core.training.run.compare import compare

    found = compare(options.runs)
    show(found)
    if options.out is not None:
        if options.out.suffix == ".json":
            write_json(options.out, found.to_dict())
        else:
            write_atomic(options.out, as_csv(found).encode())
        print(f"The tables are in {options.out}.")
    if options.png is not None:
        from .core.training.run.together import draw

        drawn = draw(found.runs, options.png)
        print(f"The curves are in {options.png}." if drawn else "There are no curves to draw: no run has two rows.")
    return 0


def tables(found: Comparison) -> list[tuple[str, list[Row]]]:
    """The tables with their titles; those without a row are left out."""
    every = [("Options that differ", found.options)]
    every += [(f"Figures, {SIDES.get(side, side)}", rows) for side, rows in found.figures.items()]
    return [(title, rows) for title, rows in [*every, ("What it took", found.cost)] if rows]


def show(found: Comparison) -> None:
    """Prints the tables and what is to be known of them."""
    for title, rows in tables(found):
        baselines = any(any(row.baselines) for row in rows)
        columns = ["", *(run.name for run in found.runs), *["baselines"] * baselines]
        cells = [
            [
                _name(row, rows is found.options),
                *(f"{shown(value)}{' *' * (number in row.best)}" for number, value in enumerate(row.values)),
                *["; ".join(dict.fromkeys(filter(None, row.baselines)))] * baselines,
            ]
            for row in rows
        ]
        print_table(columns, cells, None if rows is found.options else (0, len(found.runs) + 1), title)
    if not found.options:
        print("All options are the same.")
    for note in found.notes:
        print(note)


def _name(row: Row, is_option: bool) -> str:
    return row.name if is_option else row.name.replace("_", " ")


def shown(value: Any) -> str:
    """A cell: a dash for nothing."""
    from .core.evaluate.judgement import shown as number

    return number(value) if isinstance(value, int | float) or value is None else str(value)


def as_csv(found: Comparison) -> str:
    """All tables below each other: what it is, its name, a column for each run, the best, and the baselines."""
    names = [run.name for run in found.runs]
    lines = [
        [title, row.name, *row.values, "|".join(names[number] for number in row.best),
         "; ".join(dict.fromkeys(filter(None, row.baselines)))]
        for title, rows in tables(found)
        for row in rows
    ]  # fmt: skip
    return csv_text(["table", "name", *names, "best", "baselines"], lines)
