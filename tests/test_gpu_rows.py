"""The one call that measures all that needs a GPU: its rows are commands that exist, and it survives what fails."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def gpu() -> Any:
    spec = importlib.util.spec_from_file_location("bench_gpu", ROOT / "bench/gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_row_is_a_command_that_exists(gpu):
    assert sum(row.limit for row in gpu.ROWS[:5]) <= 60 * gpu.MINUTES
    for row in gpu.ROWS:
        for words in filter(None, (row.command, row.small)):
            if words[0] == "-m":
                continue
            source = (ROOT / words[0]).read_text()
            for word in words[1:]:
                assert not word.startswith("--") or f'"{word}"' in source, (row.name, word)
        for name in row.needs:
            assert f"{{{name}}}" in row.command


def test_the_rehearsal(gpu, tmp_path, capsys):
    output = tmp_path / "gpu.json"
    rows = ["kernels", "generation", "shakespeare", "cifar10"]
    only = [word for name in rows for word in ("--only", name)]
    assert gpu.main(["--rehearse", "--output", str(output), *only]) == 0
    found = {row["row"]: row for row in json.loads(output.read_text())["rows"]}
    assert found["kernels"]["state"] == found["generation"]["state"] == "done"
    assert "x plain" in found["generation"]["output"]
    assert found["shakespeare"]["state"] == "left out: needs --shakespeare"
    assert found["cifar10"]["state"] == "left out: needs --cifar"


def test_a_row_that_fails_or_takes_too_long_costs_no_other(gpu, tmp_path, monkeypatch):
    rows = (
        gpu.Row("slow", "", (), 1, ("-c", "import time; print('began', flush=True); time.sleep(60)")),
        gpu.Row("broken", "", (), 20, ("-c", "raise SystemExit(3)")),
        gpu.Row("fine", "", (), 20, ("-c", "print('figures')")),
    )
    monkeypatch.setattr(gpu, "ROWS", rows)
    output = tmp_path / "gpu.json"
    assert gpu.main(["--rehearse", "--output", str(output)]) == 1
    states = [(row["state"], row["output"].strip()) for row in json.loads(output.read_text())["rows"]]
    assert states[0] in (("over its time", "began"), ("over its time", ""))
    assert states[1:] == [("failed (3)", ""), ("done", "figures")]
    assert gpu.main(["--rehearse", "--output", str(output), "--minutes", "0"]) == 0
    assert all(row["state"] == "left out: no time was left" for row in json.loads(output.read_text())["rows"])
