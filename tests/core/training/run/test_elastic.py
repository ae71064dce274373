"""Trainings that are killed and go on with another number of processes see the batches of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from triune.bench.kills.elastic import TASKS, WAYS, Elastic, apart
from triune.bench.kills.server import Server


@pytest.mark.parametrize(
    ("task", "ways"),
    [("text", WAYS[1:2]), *(pytest.param(task, WAYS, marks=pytest.mark.slow) for task in TASKS)],
)
def test_killed_and_going_on(task: str, ways: tuple[tuple[int, int], ...], tmp_path: Path, server: Server) -> None:
    elastic = Elastic(task, tmp_path, server, "64-true")
    for before, after in ways:
        losses, weights = apart(elastic.one, elastic.killed(before, after))
        assert losses <= 5e-6, (before, after)  # metrics.csv has six figures
        # Images are changed in float32, in parts whose sizes depend on the processes.
        assert weights <= (1e-6 if task == "vision" else 1e-12), (before, after)
