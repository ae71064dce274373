"""`triune demo`: the main job of every task, small enough for a coffee break, and one table at the end."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

SMALLEST = {"text": ["--trainer.max_steps", "20", "--trainer.val_check_interval", "20", "--model.transformer.depth", "1"]}
"""Options that shrink a task's demonstration to a proof that everything is installed."""


def parser() -> argparse.ArgumentParser:
    """The options of `triune demo`."""
    p = argparse.ArgumentParser(
        prog="triune demo",
        description="Train a small language model on the source code of the Python standard library, which is on every "
        "machine, and let it write. About two minutes on two cores.",
    )
    p.add_argument("--run", type=Path, help="folder for the runs (default: runs/demo/DATE)")
    p.add_argument("--smallest", action="store_true", help="only prove that everything works, in seconds")
    return p


def main(args: list[str]) -> int:
    """Run `triune demo` and return its exit code."""
    options = parser().parse_args(args)
    base = options.run or Path("runs/demo") / time.strftime("%Y-%m-%d_%H-%M-%S")
    summary = _text(base / "text", SMALLEST["text"] if options.smallest else [])
    _table([("text", summary)], base)
    return 0


def _text(run: Path, options: list[str]) -> dict[str, Any]:
    from .core.training.cli import run_task
    from .text import predict
    from .text.data import TextData
    from .text.task import TextTask

    summary = run_task(
        "text", "fit", ["--config", "demo", "--run", str(run), *options], TextTask, TextData, "triune.text"
    )
    print("\nA sample of what it writes:\n")
    predict.main([str(run), "--prompt", "def read(self, ", "--max-tokens", "120", "--min-p", "0.1", "--seed", "1"])
    return summary


def _table(rows: list[tuple[str, dict[str, Any]]], base: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"\nTrained in {base}", title_justify="left")
    for column in ("task", "figure", "parameters", "time"):
        table.add_column(column)
    for task, summary in rows:
        figures = [f"{name} {value:.3f}" for name, value in summary.items() if name.startswith("val_")]
        table.add_row(task, "\n".join(figures), f"{summary['parameters']:,}", f"{summary['seconds']:.0f} s")
    Console().print(table)
