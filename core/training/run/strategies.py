"""Which of Lightning's strategies train here: those whose processes each run the whole command line."""

from __future__ import annotations

from typing import Any

from ...errors import UserError

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

    `ModelParallelStrategy` is `fsdp2`, which cuts the weights over all devices and no layer over several; with
    `save_distributed_checkpoint` it is `fsdp2_sharded`.

    Raises:
        UserError: trainings cannot use it.
    """
    if isinstance(value, str):
        name = value.rsplit(".", 1)[-1]
        if name in OTHERS:
            return OTHERS[name]
        if value.lower() in NAMES:
            return value
        raise UserError(_sentence(value))
    path, arguments = getattr(value, "class_path", ""), dict(getattr(value, "init_args", None) or {})
    name = path.rsplit(".", 1)[-1]
    if name == "ModelParallelStrategy":
        _check_cuts(arguments)
        return "fsdp2_sharded" if arguments.get("save_distributed_checkpoint") is True else "fsdp2"
    ours = path.startswith(("lightning.", "pytorch_lightning."))
    if arguments.get("start_method") in STARTS:
        raise UserError(_sentence(f"{path} with start_method {arguments['start_method']}"))
    if ours and name not in ("DDPStrategy", "SingleDeviceStrategy"):
        raise UserError(_sentence(path))
    return value


def _check_cuts(arguments: dict[str, Any]) -> None:
    """Raises UserError for arguments of `ModelParallelStrategy` that ask for something else than `fsdp2` does."""
    tensor, data = arguments.get("tensor_parallel_size", 1), arguments.get("data_parallel_size", "auto")
    if tensor not in (1, "auto") or data != "auto":
        name = "data_parallel_size" if tensor in (1, "auto") else "tensor_parallel_size"
        raise UserError(
            f"--trainer.strategy.{name} is {arguments[name]}, but layers are not cut over devices here, and weights"
            " over all of them; leave it out."
        )


def _sentence(value: str) -> str:
    why = ""
    if any(word in value for word in ("spawn", "fork", "notebook")):
        why = ", because processes that begin within a training know nothing of its command line"
    elif "fsdp" in value.lower():
        why = ", because it flattens the weights, which matrix optimizers and clipping cannot use"
    return (
        f"--trainer.strategy is {value}, but must be auto, ddp (the whole model on each device), fsdp2 (cut over all"
        f" devices) or fsdp2_sharded (with checkpoints in parts){why}; choose one of these."
    )
