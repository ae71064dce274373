"""Computing blocks again in the backward pass, in the place of keeping what they made (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from .errors import UserError

_AGAIN = False  # not of a thread: a device has one for its backward pass, in which this is read and set


def computing_again() -> bool:
    """Whether a block runs for the second time, for its gradients: what it counts was counted before."""
    return _AGAIN


@contextmanager
def _second() -> Iterator[None]:
    global _AGAIN
    _AGAIN = True
    try:
        yield
    finally:
        _AGAIN = False


def run_again(block: nn.Module, *inputs: Any) -> Any:
    """`block(*inputs)`, of which only the inputs are kept; random numbers are the same both times."""
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _second()))


def keep_inputs_only(model: nn.Module, on: bool) -> None:
    """Lets the stacks of blocks in `model` compute their blocks again, or not.

    Raises:
        UserError: there is no such stack.
    """
    stacks: list[Any] = [module for module in model.modules() if hasattr(module, "checkpointing")]
    if on and not stacks:
        raise UserError(
            f"model.checkpointing is true, but a {type(model).__name__} has no stack of blocks that could be computed "
            "again; leave it out."
        )
    for stack in stacks:
        stack.checkpointing = on


@contextmanager
def computed_once(model: nn.Module) -> Iterator[None]:
    """Within this block every stack keeps what it makes."""
    stacks: list[Any] = [module for module in model.modules() if getattr(module, "checkpointing", False)]
    for stack in stacks:
        stack.checkpointing = False
    try:
        yield
    finally:
        for stack in stacks:
            stack.checkpointing = True
