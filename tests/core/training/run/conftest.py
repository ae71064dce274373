"""A run folder as a training with a table of labels leaves it, without weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triune.core.training.run.folder import RunFolder

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def make_run() -> Callable[..., RunFolder]:
    """Makes one; further arguments replace entries of its summary."""
    return _make


def _make(folder: Path, **changes: Any) -> RunFolder:
    folder.mkdir()
    judged = {
        "kind": "classify", "count": 9, "metrics": {"accuracy": 0.75, "nll": 0.5},
        "intervals": {"accuracy": [0.6, 0.9]}, "baseline": {"accuracy": 0.4},
        "per_class": [{"name": EVIL, "count": 9, "f1": None}], "notes": ["Few rows."],
    }  # fmt: skip
    summary = {
        "val_loss": 0.5, "val_accuracy": 0.75, "judged": judged, "calibration": {}, "task": "text", "unit": "row",
        "loss_unit": "nats", "best_step": 4, "steps": 4, "parameters": 1234, "tokens": 99, "seconds": 61.0,
        "device": "a CPU", "devices": 1, "seed": 1, "versions": {"torch": "2"}, "finished": "2026-01-01 00:00:00",
        "command": f"triune text fit --data.table '{EVIL}'",
    }  # fmt: skip
    run = RunFolder(folder)
    run.config.write_text(f"# triune text fit\ndata:\n  table: '{EVIL}'\n")
    run.summary.write_text(json.dumps(summary | changes))
    rows = ["step,epoch,units,seconds,loss,val_loss,lr,units_per_second,val_accuracy"]
    rows += [f"{step},0,{step * 9},{step},{2 / step},,{0.1 / step},{100 + step}," for step in range(1, 5)]
    rows += [f"{step},0,{step * 9},{step},,{2.1 / step},,,{step / 6}" for step in (2, 4)]
    run.metrics.write_text("\n".join(rows) + "\n")
    return run
