"""Signals sent to whole processes: a second Ctrl-C, SLURM's warning and preemption, one of two processes.

Run as a script this file is a training that presses Ctrl-C twice within a step.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from triune.bench.kills.compare import differences
from triune.bench.kills.server import Server
from triune.core.training.run.slurm import started_again

FIT = (
    "text fit --data.files text.txt --data.cache cache --data.tokenizer bytes --data.context 16 --data.batch_size 4"
    " --model.transformer.dim 16 --model.transformer.depth 1 --model.transformer.heads 2 --trainer.max_steps 12"
    " --model.transformer.dropout 0.1 --trainer.val_check_interval 5 --trainer.log_every_n_steps 2 --threads 1"
    " --trainer.limit_val_batches 2 --trainer.accelerator cpu --trainer.logger false"
)
STUB = """\
#!/bin/sh
echo "$@" >> "$(dirname "$0")/said"
if [ "$1" = -o ]; then cat "$(dirname "$0")/state"; fi
"""


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 130, done.stdout + done.stderr
    assert "press Ctrl-C again to stop at once" in done.stdout
    assert time.monotonic() - began < 240 and "never" not in done.stdout
    saved = tmp_path / "checkpoints" / "last.ckpt"  # of the validation before
    assert torch.load(saved, weights_only=True)["global_step"] == 3


class Cluster:
    """A folder with a stub of `scontrol`, and a job that runs for the first and for the second time."""

    def __init__(self, folder: Path, servers: tuple[Server, Server]) -> None:
        self.folder, (first, again) = folder, servers
        slurm = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
        self.first = partial(first.run, folder, environment=slurm)
        self.again = partial(again.run, folder, environment=slurm | {"SLURM_RESTART_COUNT": "1"})
        (folder / "text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}\n" for i in range(600)))
        for run in ("whole", "counted"):  # the first one fills the cache
            ended = self.first(f"{FIT} --run {run}".split(), names=folder / "names")
            assert ended.code == 0, ended.printed
        self.names = (folder / "names").read_text().splitlines()

    def moment(self, name: str, share: float) -> int:
        found = [at for at, other in enumerate(self.names, 1) if other == name]
        return found[round(share * (len(found) - 1))]

    def said(self, state: str | None = None) -> list[str]:
        """What was asked of scontrol since the last call; `state` is its next answer."""
        said = self.folder / "bin" / "said"
        lines = said.read_text().splitlines() if said.exists() else []
        said.unlink(missing_ok=True)
        (self.folder / "bin" / "state").write_text(state or "")
        return lines


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, servers: tuple[Server, Server]) -> Cluster:
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "bin").mkdir()
    (folder / "bin" / "scontrol").write_text(STUB)
    (folder / "bin" / "scontrol").chmod(0o755)
    return Cluster(folder, servers)


@pytest.mark.parametrize(
    ("number", "state", "name", "share"),
    [
        pytest.param(signal.SIGUSR1, "", "training_step", 0.5, marks=pytest.mark.slow),
        (signal.SIGUSR1, "", "validation_step", 0.6),
        (signal.SIGUSR1, "", "setup", 0.0),  # before there is anything to save
        (signal.SIGTERM, "JobState=RUNNING PreemptTime=2026-11-27T10:00:00", "optimizer_step", 0.6),
    ],
)
def test_a_job_that_slurm_stops_is_queued_again_and_goes_on(
    cluster: Cluster, number: signal.Signals, state: str, name: str, share: float
) -> None:
    cluster.said(state)
    run = f"{number.name}-{name}"
    words = f"{FIT} --run {run}".split()
    ended = cluster.first(words, cluster.moment(name, share), number)
    assert ended.code == 128 + number, ended.printed
    assert "SLURM starts job 77 again." in ended.printed
    assert cluster.said()[-1] == "requeue 77"
    assert not list((cluster.folder / run).rglob("hpc_ckpt*"))  # Lightning's own, from within a step
    ended = cluster.again(words)  # the script of the job is the same
    assert ended.code == 0, ended.printed
    assert ("SLURM has started this job again" in ended.printed) == (name != "setup")
    assert differences(cluster.folder / "whole", cluster.folder / run) == []


def test_a_job_whose_training_is_over_is_queued_again_for_the_rest(cluster: Cluster) -> None:
    """SLURM's warning in the last validation: all is saved, and whoever resumes judges and exports."""
    cluster.said()
    at = cluster.moment("on_validation_start", 1.0)
    ended = cluster.first(f"{FIT} --run over".split(), at, signal.SIGUSR1)
    assert ended.code == 0 and "SLURM starts job 77 again." in ended.printed
    assert cluster.said() == ["requeue 77"]
    assert differences(cluster.folder / "whole", cluster.folder / "over") == []


@pytest.mark.parametrize("state", ["JobState=RUNNING PreemptTime=None", "JobState=CANCELLED PreemptTime=None"])
def test_a_job_that_is_cancelled_is_not_queued_again(cluster: Cluster, state: str) -> None:
    cluster.said(state)
    words = f"{FIT} --run {state[9:12]}".split()
    ended = cluster.first(words, cluster.moment("training_step", 0.5), signal.SIGTERM)
    assert ended.code == 143 and "--resume true" in ended.printed, ended.printed
    assert cluster.said() == ["-o show job 77"]


def test_another_command_is_not_taken_for_one_that_slurm_repeats(cluster: Cluster) -> None:
    ended = cluster.again(f"{FIT} --run whole --seed_everything 3".split())
    assert ended.code == 2 and "already holds a run" in ended.printed


def test_a_job_without_a_named_run_is_not_queued_again(cluster: Cluster) -> None:
    cluster.said()
    at = cluster.moment("training_step", 0.5)
    ended = cluster.first(FIT.split(), at, signal.SIGUSR1)
    assert ended.code == 138 and "it names no --run" in ended.printed, ended.printed
    assert cluster.said() == []


def press_twice(folder: Path) -> None:
    """A training within whose fourth step Ctrl-C is pressed twice, and which would go on for minutes."""
    sys.path.insert(0, str(Path(__file__).parent))
    from test_stopping import Model, train

    original = Model.loss

    def loss(self, batch):
        if self.training and self.trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(240)
            print("never")
        return original(self, batch)

    Model.loss = loss
    train(folder, max_steps=12, val_check_interval=3, check_val_every_n_epoch=None)


if __name__ == "__main__":
    press_twice(Path(sys.argv[1]))


def test_what_torchrun_starts_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gave the command a first time gets the sentence about a folder that holds a run."""
    (tmp_path / "config.yaml").write_text("# triune text fit --run a\nseed_everything: 1\n")
    for count, command, who in (
        ("1", "triune text fit --run a", "torchrun has started these processes"),
        ("0", "triune text fit --run a", ""),
        ("1", "triune text fit --run a --trainer.max_steps 5", ""),
    ):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        assert started_again(tmp_path / "config.yaml", command) == who
    assert started_again(tmp_path / "none.yaml", "triune text fit --run a") == ""
