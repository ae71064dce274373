"""`triune demo`: the main job of every task, small enough for a coffee break, and one table at the end."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from .core.options import Parser
from .core.task import named
from .tasks import tasks


def parser() -> argparse.ArgumentParser:
    """The options of `triune demo`."""
    p = Parser(
        prog="triune demo",
        description="Train a small classifier of handwritten digits and let it name some and show where it looks; "
        "train a small language model on the source code of the Python standard library and let it write; train a "
        "small pair model on protein chains and draw the contacts of one it has not seen. All data is on this machine "
        "already. About four minutes on two cores.",
    )
    p.add_argument("--run", type=Path, help="folder for the runs (default: runs/demo/DATE)")
    p.add_argument("--smallest", action="store_true", help="only prove that everything works, in seconds")
    return p


def main(args: list[str]) -> int:
    """Runs `triune demo` and returns its exit code."""
    options = parser().parse_args(args)
    base = options.run or Path("runs/demo") / time.strftime("%Y-%m-%d_%H-%M-%S")
    done = []
    for name, task in tasks().items():
        if task.demo:
            summary = named(task.demo)(base / name, list(task.smallest) if options.smallest else [])
            done.append((name, {key: value for key, value in summary.items() if key in task.shown}, summary))
    _table(done, base)
    return 0


def _table(rows: list[tuple[str, dict[str, float], dict[str, Any]]], base: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"\nTrained in {base}", title_justify="left")
    for column in ("task", "metric", "parameters", "time"):
        table.add_column(column)
    for task, metrics, summary in rows:
        shown = "\n".join(f"{name} {value:.3f}" for name, value in metrics.items())
        table.add_row(task, shown, f"{summary['parameters']:,}", f"{summary['seconds']:.0f} s")
    Console().print(table)
