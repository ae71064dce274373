"""A run that is killed goes on as if it had not been: weights, optimizer, averages, generators and rows of metrics,
bit by bit.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

STEPS = 480
OPTIONS = [
    "--data.context", "16", "--data.batch_size", "4", "--data.tokenizer", "bytes",
    "--model.transformer.dim", "16", "--model.transformer.depth", "1", "--model.transformer.heads", "2",
    "--model.transformer.dropout", "0.1", "--model.ema", "0.9", "--trainer.max_steps", str(STEPS),
    "--trainer.accumulate_grad_batches", "3", "--trainer.val_check_interval", "14", "--trainer.limit_val_batches", "2",
    "--trainer.log_every_n_steps", "5", "--threads", "1", "--trainer.accelerator", "cpu",
]  # fmt: skip


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "triune", "text", "fit", *options]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def fresh(folder: Path, run: str, *more: str) -> subprocess.Popen[str]:
    files = ["--data.files", str(folder / "text.txt"), "--data.cache", str(folder)]
    return start(folder, *files, "--run", run, *OPTIONS, *more)


def finish(process: subprocess.Popen[str], code: int) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err[-2000:]
    return out + err


def same(one: Any, other: Any, where: str = "") -> None:
    """Asserts that two checkpoints hold equal values, down to the last bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            same(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


def state(run: Path) -> dict[str, Any]:
    content = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    return {
        name: content[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "ema", "rng", "global_step")
    }


TIMES = (
    "seconds", "units_per_second", "slots_per_second", "mfu", "data_wait", "memory_gb", "eta"
)  # fmt: skip


def rows(run: Path) -> list[dict[str, str]]:
    """All rows of metrics.csv, of training and of validation, less what a clock says."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    (folder / "text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}\n" for i in range(2000)))
    finish(fresh(folder, "whole"), 0)
    return folder


@pytest.mark.parametrize(
    ("number", "code", "wait"),
    [
        (signal.SIGKILL, -9, 0.2),
        (signal.SIGTERM, 143, 0.3),
        pytest.param(signal.SIGINT, 130, 0.5, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, 0.0, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, 0.7, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(whole: Path, number: int, code: int, wait: float) -> None:
    name = f"run-{number}-{wait}"
    process, run = fresh(whole, name), whole / name
    began = time.monotonic()
    while not (run / "checkpoints" / "last.ckpt").exists() and time.monotonic() - began < 120:
        time.sleep(0.01)
    time.sleep(wait)
    if process.poll() is not None:
        finish(process, 0)
        pytest.skip("the run was faster than the signal")
    process.send_signal(number)
    finish(process, code)
    resumed = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["global_step"]
    assert 0 < resumed < STEPS
    finish(start(whole, "--run", name, "--resume", "true"), 0)
    same(state(whole / "whole"), state(run))
    assert rows(run) == rows(whole / "whole")


def test_a_run_that_was_killed_before_its_first_checkpoint_can_be_started_again(whole: Path) -> None:
    process, run = fresh(whole, "early"), whole / "early"
    began = time.monotonic()
    while not (run / "config.yaml").exists() and time.monotonic() - began < 120:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    finish(process, -9)
    if (run / "checkpoints" / "last.ckpt").exists():
        pytest.skip("the first checkpoint was faster than the kill")
    finish(fresh(whole, "early"), 0)
    same(state(whole / "whole"), state(run))


def test_one_run_folder_has_one_training(whole: Path) -> None:
    first = fresh(whole, "locked", "--trainer.max_steps", "100000")
    began = time.monotonic()
    while not (whole / "locked" / "checkpoints" / "last.ckpt").exists() and time.monotonic() - began < 120:
        time.sleep(0.01)
    second = start(whole, "--run", "locked", "--resume", "true")
    said = finish(second, 2)
    assert first.poll() is None
    first.kill()
    finish(first, -9)
    assert "locked" in said


def test_a_changed_option_that_cannot_be_exact_is_refused(whole: Path) -> None:
    before = (whole / "whole" / "config.yaml").read_text()
    said = finish(start(whole, "--run", "whole", "--resume", "true", "--model.transformer.dim", "32"), 2)
    assert "dim" in said
    assert "--model.pretrained" in said
    assert (whole / "whole" / "config.yaml").read_text() == before
