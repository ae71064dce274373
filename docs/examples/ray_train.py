"""A training of triune on the workers of a Ray cluster (needs `pip install 'ray[train]'`).

    python docs/examples/ray_train.py 2 text fit --run runs/ray --data.files FOLDER --data.batch_size 16
    python docs/examples/ray_train.py 16 --gpu text fit --run /shared/runs/ray --data.shards s3://bucket/shards

The first number says how many processes; what follows is a command line of triune. Ray finds places for the processes
and starts them again after a failure; each is then one of torchrun's kind, and the run goes on from its last
checkpoint. The run folder must be one that all machines see.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

RESTARTS = 3


def worker(options: dict[str, Any]) -> None:
    """One process of the training: torchrun's variables, and triune in a process of its own."""
    context = ray.train.get_context()
    with socket.socket() as free:
        free.bind(("", 0))
        mine = [ray.util.get_node_ip_address(), free.getsockname()[1]]
    address, port = broadcast_from_rank_zero(mine)
    rank, world, local = context.get_world_rank(), context.get_world_size(), context.get_local_world_size()
    launched = {
        "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": context.get_local_rank(), "LOCAL_WORLD_SIZE": local,
        "GROUP_RANK": context.get_node_rank(), "MASTER_ADDR": address, "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": context.get_experiment_name(),
    }  # fmt: skip
    words, folder = list(options["words"]), options["folder"]
    if "--run" in words and "--resume" not in words:
        run = os.path.join(folder, words[words.index("--run") + 1], "checkpoints")
        # Asked of the first process alone: another may look when that has begun to write.
        if broadcast_from_rank_zero(os.path.isdir(run) and os.listdir(run) != []):
            words += ["--resume", "true"]
    environment = os.environ | {name: str(value) for name, value in launched.items()}
    process = subprocess.Popen([sys.executable, "-m", "triune", *words], env=environment, cwd=folder)
    try:
        code = process.wait()
    finally:  # Ray ends this worker when another one fails
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait()
    if code:
        raise RuntimeError(f"triune ended with code {code} in process {rank} on {socket.gethostname()}.")


def main() -> None:
    count, *words = sys.argv[1:]
    gpu = "--gpu" in words
    words = [word for word in words if word != "--gpu"]
    trainer = DataParallelTrainer(
        worker,
        train_loop_config={"words": words, "folder": os.getcwd()},
        scaling_config=ScalingConfig(num_workers=int(count), use_gpu=gpu),
        run_config=RunConfig(
            storage_path=os.path.abspath("ray_results"), failure_config=FailureConfig(max_failures=RESTARTS)
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
