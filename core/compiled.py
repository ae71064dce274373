"""Compiling the blocks of a model in place, one after the other: equal blocks share what is compiled."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from .errors import UserError


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The children of every `nn.ModuleList` named `blocks`."""
    return [
        block
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] == "blocks"
        for block in module
    ]


def eager() -> AbstractContextManager[Any]:
    """A block in which nothing that was compiled runs as such. Without the compiler's module nothing was compiled, and
    its import takes as long as PyTorch's."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def compile_blocks(model: nn.Module, device: str, dynamic: bool | None = None) -> None:
    """Compiles the blocks of `model`, which takes place when they are first called.

    Args:
        model: on `device`.
        device: where it runs; on a `cpu` PyTorch writes C++ and needs its compiler.
        dynamic: lengths change from call to call; None finds out which.

    Raises:
        UserError: there is no C++ compiler.
    """
    check_compiler(device)
    for block in blocks_of(model):
        block.compile(dynamic=dynamic)


def check_compiler(device: str) -> None:
    """Raises UserError where PyTorch has no compiler for a `device`."""
    if device == "cpu":
        compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
        if shutil.which(compiler) is None:
            raise UserError(
                f"Compiling needs the C++ compiler '{compiler}', which was not found; install it (on Debian: apt-get "
                "install g++), name another one in the environment variable CXX, or go without compile."
            )
