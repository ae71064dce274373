"""The recipes for Ray and SkyPilot in docs/examples: what they start is a training like torchrun's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from triune.core.training.run.processes import launched

EXAMPLES = Path(__file__).parents[4] / "docs" / "examples"
VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT",
             "TORCHELASTIC_RUN_ID"}  # fmt: skip
SMALL = (
    "text fit --data.tokenizer bytes --data.context 16 --data.batch_size 4 --model.transformer.dim 16"
    " --model.transformer.depth 1 --model.transformer.heads 2 --trainer.max_steps 12 --trainer.val_check_interval 6"
    " --trainer.limit_val_batches 1 --threads 1 --trainer.accelerator cpu --trainer.precision 64-true"
)

TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2 -m triune --"


def test_ray_gives_the_variables_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (EXAMPLES / "ray_train.py").read_text()
    given = set(re.findall(r'"([A-Z_]+)": ', text))
    assert given == VARIABLES
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == {"devices": 2, "num_nodes": 2}


def test_skypilot_starts_torchrun() -> None:
    task = yaml.safe_load((EXAMPLES / "skypilot.yaml").read_text())
    assert task["num_nodes"] == 2 and set(task) >= {"resources", "setup", "run", "file_mounts"}
    line = task["run"].replace("\\\n", " ")
    command = line[line.index("torchrun") :].split()
    names = {word: command[at + 1] for at, word in enumerate(command) if word.startswith("--") and word != "--"}
    assert names["--nnodes"] == '"$SKYPILOT_NUM_NODES"' and names["--node-rank"] == '"$SKYPILOT_NODE_RANK"'
    assert command[command.index("-m") : command.index("text")] == ["-m", "triune", "--"]
    # The folder that is looked at before it goes on is that of the run, and on the disk that stays.
    assert names["--run"] + "/checkpoints" in task["run"] and names["--run"].startswith(next(iter(task["file_mounts"])))


def test_two_workers_of_ray_train_as_two_of_torchrun(tmp_path: Path) -> None:
    pytest.importorskip("ray.train", reason="needs Ray (pip install 'ray[train]')")
    (tmp_path / "text.txt").write_text("".join(f"{i} and {i} is {i + i}\n" for i in range(600)))
    words = [*SMALL.split(), "--data.files", str(tmp_path / "text.txt"), "--data.cache", str(tmp_path / "cache")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    python = [sys.executable]
    commands = {
        "ray": [*python, str(EXAMPLES / "ray_train.py"), "2"],
        "torchrun": [*python, *TORCHRUN.split()],
    }
    for name, command in commands.items():
        line = [*command, *words, "--run", name]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, timeout=600, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()[-3000:]
    ours, theirs = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("ray", "torchrun")
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
