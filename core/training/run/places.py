"""The place of a process among those of its training, as torchrun, SLURM or Lightning started them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer


@dataclass(frozen=True)
class Place:
    """The place of a process among `world` ones, and the address of the store where they meet."""

    rank: int
    world: int
    host: str
    port: int


def launched() -> Place | None:
    """The place of this process as torchrun or SLURM started it; None for a process of its own."""
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            known = kind()
            return Place(known.global_rank(), known.world_size(), known.main_address, known.main_port)
    return None


def place_in(trainer: Trainer) -> Place:
    """The place of this process in a training whose processes are started."""
    strategy: Any = trainer.strategy
    known = strategy.cluster_environment
    rank = strategy.node_rank * strategy.num_processes + strategy.local_rank
    return Place(rank, strategy.num_nodes * strategy.num_processes, known.main_address, known.main_port)
