"""Where the parameters, tokens and losses come from: run folders, or a table."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import UserError, nearest
from ..core.files import check_regular, few, parsing

COLUMNS = ("parameters", "tokens", "loss")
LOSS = "val_loss"
MOST_ROWS = 100_000


class Runs(NamedTuple):
    """What the law is fitted to, one entry a run.

    `names` are those of folders, or lines of the table; `parameters`, `tokens` and `loss` are `[runs]`; `notes` say
    what was left out and what differs.
    """

    names: list[str]
    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    unit: str
    notes: list[str]


def read(inputs: Sequence[str]) -> Runs:
    """The runs of folders or of one table. Raises UserError for anything else, and for both together."""
    paths = [Path(name) for name in inputs]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise UserError(f"'{missing[0]}' does not exist; give run folders, or a table with {', '.join(COLUMNS)}.")
    files = [path for path in paths if not path.is_dir()]
    if not files:
        return from_folders(paths)
    if len(paths) > 1:
        raise UserError(f"'{files[0]}' is a file, but so many inputs must all be run folders; give one table alone.")
    return from_table(files[0])


def from_table(path: Path) -> Runs:
    """A CSV or TSV file with the columns parameters, tokens and loss; others are ignored."""
    with parsing(path, "a table"), check_regular(path).open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        reader = csv.DictReader(file, delimiter="\t" if "\t" in first else ",")
        columns = [str(name).strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        if missing := [name for name in COLUMNS if name not in columns]:
            raise UserError(
                f"'{path}' has no column '{missing[0]}'{nearest(missing[0], columns)}, only {few(columns) or 'none'}; "
                f"it needs {', '.join(COLUMNS)}."
            )
        rows = []
        for row in reader:
            rows.append([_number(path, reader.line_num, name, row[name]) for name in COLUMNS])
            if len(rows) > MOST_ROWS:
                raise UserError(f"'{path}' has more than {MOST_ROWS:,} rows; give one row a run.")
    table = np.array(rows, float).reshape(-1, 3)
    return Runs([f"row {i}" for i in range(1, len(rows) + 1)], *table.T, unit="tokens", notes=[])


def _number(path: Path, line: int, name: str, text: str | None) -> float:
    try:
        value = float((text or "").strip())
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"'{path}', line {line}: {name} is '{text or ''}', but must be a number above 0; mend the row.")
    return value


def from_folders(paths: Sequence[Path]) -> Runs:
    """Run folders of one task: their parameters, what they have seen, and the loss of their best weights.

    A run that was stopped early or has no finite loss is left out and named. Points within a run are not used: a
    schedule that has not ended tells nothing about one that has.
    """
    from ..core.training.run.folder import RunFolder, load_summary

    found: dict[str, dict[str, Any]] = {}
    notes, configs = [], {}
    for path in paths:
        run, summary = RunFolder.open(path), load_summary(path)
        name = str(path)
        if name in found or any(Path(other).samefile(path) for other in found):
            raise UserError(f"The run '{name}' is given twice; name each once.")
        if summary.get("interrupted"):
            notes.append(f"'{name}' was stopped early and is left out.")
        elif not (isinstance(value := summary.get(LOSS), (int, float)) and math.isfinite(value) and value > 0):
            notes.append(f"'{name}' has no {LOSS} above 0 and is left out.")
        else:
            found[name], configs[name] = summary, run.config
            if (best := summary.get("best_step")) is not None and best < summary.get("steps", best):
                notes.append(
                    f"'{name}' was best at step {best:,} of {summary['steps']:,}; its loss is that of then, its tokens "
                    "are those of the whole run."
                )
    if len(tasks := {summary["task"] for summary in found.values()}) > 1:
        raise UserError(
            f"The runs are of {' and '.join(sorted(tasks))}, whose losses cannot be compared; give one task."
        )
    notes += _differences(configs)
    values = np.array([[s["parameters"], s["tokens"], s[LOSS]] for s in found.values()], float).reshape(-1, 3)
    unit = {"text": "tokens", "vision": "images"}.get(next(iter(tasks), ""), "units of the loss")
    return Runs(list(found), *values.T, unit=unit, notes=notes)


def _differences(configs: dict[str, Path]) -> list[str]:
    """What differs in the data section of the configurations, sizes of batches aside."""
    from ..core.yaml_files import read_yaml

    sections = [(read_yaml(path, str(path)) or {}).get("data") or {} for path in configs.values()]
    keys = sorted({key for section in sections for key in section} - {"batch_size", "workers", "memory", "cache"})
    odd = [key for key in keys if len({repr(section.get(key)) for section in sections}) > 1]
    return [f"The runs differ in data.{key}; their losses must still be of the same data." for key in odd]
