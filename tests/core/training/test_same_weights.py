"""Two processes reach the weights of one, with both strategies; `bench/processes.py` is the long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from triune.bench.processes import furthest, train


@pytest.mark.parametrize("task", ["text", "vision"])
def test_two_processes_reach_the_weights_of_one(task: str, tmp_path: Path) -> None:
    one = train(task, tmp_path, 1, "auto", "64-true", 4)
    for strategy in ("ddp", "fsdp2"):
        two = train(task, tmp_path, 2, strategy, "64-true", 4)
        assert furthest(one, two) < 1e-12
        assert two["metrics"]["val_loss"] == pytest.approx(one["metrics"]["val_loss"], abs=1e-6)
