"""How many processes a launcher has started, which a training then takes for its own."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from ...errors import UserError


def launched() -> dict[str, int]:
    """`devices` (of a machine) and `num_nodes` as torchrun or SLURM started them; empty where nothing did."""
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE"), ("SLURM_NTASKS", "SLURM_NNODES")
    world, local, tasks, nodes = (int(os.environ.get(name, "1")) for pair in names for name in pair)
    if "LOCAL_WORLD_SIZE" in os.environ:
        return {"devices": local, "num_nodes": max(1, world // local)}
    return {"devices": max(1, tasks // nodes), "num_nodes": nodes} if tasks > 1 else {}


def take(options: Any, said: Collection[str]) -> None:
    """Lets the trainer's options be what the launcher has started, also for a run that was trained on another number.

    Args:
        options: of the trainer; changed.
        said: those that stand on the command line.

    Raises:
        UserError: one of them says another number.
    """
    for name, value in launched().items():
        asked = options[name]
        if name in said and str(asked) not in (str(value), "auto", "-1"):
            what = "processes on each machine" if name == "devices" else "machines"
            raise UserError(
                f"--trainer.{name} is {asked}, but the launcher has started {value} {what}; leave the option out."
            )
        options[name] = value
