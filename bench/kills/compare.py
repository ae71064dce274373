"""What differs between two run folders, down to the last bit."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from triune.core.training.run.folder import RunFolder

CLOCKED = {"seconds", "units_per_second", "slots_per_second", "mfu", "data_wait", "memory_gb", "eta"}
"""Columns of metrics.csv that depend on the machine's clock and memory."""
COUNTED = ("best_step", "steps", "parameters", "tokens", "interrupted")
STATE = ("state_dict", "optimizer_states", "lr_schedulers", "ema", "rng", "global_step", "epoch")


def differences(one: Path, other: Path) -> list[str]:
    """In words: each value of the last and the best checkpoint, the exported model and the rows of metrics that is not
    the same in both runs; empty where the runs are equal.
    """
    a, b = RunFolder(one), RunFolder(other)
    found = [f"last{name}" for name in _unequal(_read(a.last, STATE), _read(b.last, STATE))]
    found += [f"best{name}" for name in _unequal(_read(a.best, ("state_dict",)), _read(b.best, ("state_dict",)))]
    found += [f"metrics.csv{name}" for name in _unequal(rows(a.metrics), rows(b.metrics))]
    for folder in (a.model, a.adapter):
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            twin = b.path / file.relative_to(a.path)
            if not twin.is_file() or twin.read_bytes() != file.read_bytes():
                found.append(f"{file.relative_to(a.path)} differs")
    return found + [f"summary.json{name}" for name in _unequal(_figures(a.summary), _figures(b.summary))]


def _figures(path: Path) -> dict[str, Any]:
    """What the summary says about the weights, less what depends on the clock and the name of the run."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name.startswith("val_") or name in COUNTED}


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, less what depends on the clock."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCKED} for row in csv.DictReader(file)]


def _read(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    return {name: content[name] for name in names if name in content}


def _unequal(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Names of the values that differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            if key in one and key in other:
                yield from _unequal(one[key], other[key], f"{where}.{key}")
            else:
                yield f"{where}.{key} is only in {'the first' if key in one else 'the second'}"
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield f"{where} has {len(one)} and {len(other)} entries"
        for index, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from _unequal(a, b, f"{where}[{index}]")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield f"{where} differs"
    elif one != other:
        yield f"{where} is {one!r} and {other!r}"
