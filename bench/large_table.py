"""What it takes to begin a training on a table of millions of rows.

    python bench/large_table.py [--rows 10000000]

A CSV of short texts with two classes is written, and `triune text fit --data.table` is started on it. Counted are the
time of the processor and on the clock until the first step, and the most memory that the process had by then; the
training stops there.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from common import record, table

from triune.cli import main as triune
from triune.text.labels import TextLabels

WORDS = {"yes": ["good", "great", "fine", "nice", "superb"], "no": ["bad", "poor", "awful", "sad", "gloomy"]}


class Begun(Exception):
    """The first step would follow."""


def write(path: Path, rows: int) -> None:
    """Writes the table."""
    draw = random.Random(0)
    with path.open("w") as file:
        file.write("text,label\n")
        for row in range(rows):
            label = draw.choice(("yes", "no"))
            file.write(f"the {draw.choice(WORDS[label])} {row},{label}\n")


def begin(folder: Path, rows: int) -> dict[str, Any]:
    """Starts the training; returns what it took."""
    file = folder / "table.csv"
    write(file, rows)
    before, began = time.process_time(), time.monotonic()
    found: dict[str, Any] = {"rows": rows, "MB": round(file.stat().st_size / 1e6, 1)}

    def step(*_: Any) -> None:
        found["processor s"] = round(time.process_time() - before, 1)
        found["clock s"] = round(time.monotonic() - began, 1)
        found["GB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
        raise Begun

    words = ["text", "fit", "--data.table", str(file), "--data.input", "text", "--data.target", "label"]
    words += ["--data.val_fraction", "0.001", "--run", str(folder / "run"), "--trainer.max_steps", "10"]
    with mock.patch.object(TextLabels, "training_step", step), contextlib.suppress(Begun):
        triune([*words, "--trainer.accelerator", "cpu", "--threads", "1"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000_000])
    with tempfile.TemporaryDirectory() as folder:
        found = [begin(Path(folder), rows) for rows in parser.parse_args().rows]
    print(table(found))
    record("large_table", found)


if __name__ == "__main__":
    main()
