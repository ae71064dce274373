"""Which of Lightning's strategies train here: those whose processes each run the whole command line."""

from __future__ import annotations

import re
from typing import Any

from ...errors import UserError
from ..lightning_fixes import register

NAMES = (
    "auto", "single_device", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "fsdp2",
    "fsdp2_sharded",
)  # fmt: skip
OTHERS = {"ModelParallelStrategy": "fsdp2", "DDPStrategy": "ddp", "FSDP2": "fsdp2"}
"""Names of classes, for the strategies that they are here."""
STARTS = ("spawn", "fork", "forkserver")
"""Ways to start processes that begin within a training, and know nothing of its command line."""


def usable(value: Any) -> Any:
    """The strategy to give to Lightning for what was asked for: a name, or a class path with its arguments.

    `ModelParallelStrategy` is `fsdp2`, which cuts the weights over all devices; with `save_distributed_checkpoint` it
    is `fsdp2_sharded`. With a `tensor_parallel_size` above 1 it cuts the layers over so many of them as well.

    Raises:
        UserError: trainings cannot use it.
    """
    if isinstance(value, str):
        name = value.rsplit(".", 1)[-1]
        if name in OTHERS:
            return OTHERS[name]
        if value.lower() in NAMES:
            return value
        if known := re.fullmatch(r"fsdp2(_sharded)?_tensor(\d+)", value.lower()):
            return tensor_parallel(int(known[2]), sharded=known[1] is not None)
        raise UserError(_sentence(value))
    path, arguments = getattr(value, "class_path", ""), dict(getattr(value, "init_args", None) or {})
    name = path.rsplit(".", 1)[-1]
    if name in ("ModelParallelStrategy", "FSDP2"):
        parts = (arguments.get("save_distributed_checkpoint") or arguments.get("sharded")) is True
        return tensor_parallel(_size(arguments), parts)
    ours = path.startswith(("lightning.", "pytorch_lightning."))
    if arguments.get("start_method") in STARTS:
        raise UserError(_sentence(f"{path} with start_method {arguments['start_method']}"))
    if ours and name not in ("DDPStrategy", "SingleDeviceStrategy"):
        raise UserError(_sentence(path))
    return value


def tensor_parallel(size: int, sharded: bool) -> str:
    """The name of the strategy that cuts weights over all devices, and layers over `size` of them.

    Raises:
        UserError: there is no such number.
    """
    if size < 1:
        raise UserError(f"--trainer.strategy.tensor_parallel_size is {size}, but must be at least 1; give 2 or more.")
    return register(size, sharded)


def _size(arguments: dict[str, Any]) -> int:
    """Over how many devices layers are cut. Raises UserError for arguments of `ModelParallelStrategy` that ask for
    something else.
    """
    tensor, data = arguments.get("tensor_parallel_size", 1), arguments.get("data_parallel_size", "auto")
    if data != "auto":
        raise UserError(
            f"--trainer.strategy.data_parallel_size is {data}, but follows from the number of processes; leave it out."
        )
    return 1 if tensor in ("auto", None) else tensor


def _sentence(value: str) -> str:
    why = ""
    if any(word in value for word in ("spawn", "fork", "notebook")):
        why = ", because processes that begin within a training know nothing of its command line"
    elif "fsdp" in value.lower():
        why = ", because it flattens the weights, which matrix optimizers and clipping cannot use"
    return (
        f"--trainer.strategy is {value}, but must be auto, ddp (the whole model on each device), fsdp2 (cut over all"
        f" devices), fsdp2_sharded (with checkpoints in parts) or either with _tensor2 (layers over two){why}; choose"
        " one of these."
    )
