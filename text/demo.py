"""The part of text in `triune demo`: train on the Python standard library and write some more of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.training.run.cli import run_task
from . import generate
from .data.module import TextData
from .task import TextTask


def main(run: Path, options: list[str]) -> dict[str, Any]:
    """Trains into the folder `run` with further options of `fit`; returns the summary of the run."""

    summary = run_task(
        "text", "fit", ["--config", "demo", "--run", str(run), *options], TextTask, TextData, "triune.text"
    )
    print("\nA sample of what it writes:\n")
    generate.main([str(run), "--prompt", "def read(self, ", "--max-tokens", "120", "--min-p", "0.1", "--seed", "1"])
    return summary
