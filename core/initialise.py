"""How every parameter starts, in one function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .config import TransformerConfig
from .experts import Router
from .grouped import StackedLinear
from .mixers.base import Mixer


def initialise(block: nn.Module, config: TransformerConfig) -> None:
    """Set the parameters of one `Block` (or any module made of linear layers and norms named as there).

    | parameter                        | start                                                                    |
    |----------------------------------|--------------------------------------------------------------------------|
    | linear weights, of experts too   | normal, std `init_std` (0.02: GPT-2), or 1/sqrt(fan in) when it is None   |
    | `out` and `down` weights         | the same divided by sqrt(2·depth) (GPT-2, section 2.3), or zero           |
    | linear biases                    | zero                                                                     |
    | norm gains                       | one (stored as zero when `norm_weight` is offset); norm biases zero      |
    | layer scale                      | `layer_scale`                                                            |
    | embeddings, positions, heads     | by the module that owns them                                             |
    | what else a mixer has            | by its own `initialise`, last                                            |
    """
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | StackedLinear | Router):
            std = config.init_std if config.init_std is not None else 1 / math.sqrt(module.in_features)
            if name.rsplit(".", 1)[-1] in ("out", "down"):
                std = 0.0 if config.init_residual == "zero" else std / math.sqrt(2 * config.depth)
            nn.init.normal_(module.weight, std=std)
            if (bias := getattr(module, "bias", None)) is not None:
                nn.init.zeros_(bias)
    for module in block.modules():
        if isinstance(module, Mixer):
            module.initialise(config)


class _NoDraws(TorchFunctionMode):
    """Leaves memory that would be filled with random numbers as it is."""

    DRAWS = (
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.trunc_normal_,
        nn.init.kaiming_uniform_,
        nn.init.xavier_uniform_,
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def uninitialised() -> Iterator[None]:
    """Models built in this block get no random numbers, because weights follow: saves seconds and, until the weights
    are written, their memory."""
    with _NoDraws():
        yield


# -- blocks that no process holds all of ------------------------------------------------------------------------------


class Cutter(Protocol):
    """Cuts the blocks of a model that is being made over processes."""

    def cut(self, block: nn.Module) -> None:
        """Keeps of a new block what belongs to this process."""
        ...

    def fill(self, block: nn.Module, values: dict[str, Tensor]) -> None:
        """Gives parameters and buffers of a block that was cut, by name, the values of whole ones."""
        ...


_CUTTER: ContextVar[Cutter | None] = ContextVar("cutter", default=None)


@contextmanager
def cutting(cutter: Cutter) -> Iterator[None]:
    """Stacks of blocks that are built within it are cut, block by block."""
    before = _CUTTER.set(cutter)
    try:
        yield
    finally:
        _CUTTER.reset(before)


def make_blocks(make: Callable[[int], nn.Module], depth: int) -> nn.ModuleList:
    """The blocks of a stack, `make(layer)` for each; `start_blocks` sets their parameters."""
    blocks, cutter = nn.ModuleList(), _CUTTER.get()
    for layer in range(depth):
        blocks.append(make(layer))
        if cutter is not None:
            cutter.cut(blocks[layer])
    return blocks


def start_blocks(blocks: nn.ModuleList, make: Callable[[int], nn.Module], config: TransformerConfig) -> None:
    """Calls `initialise` for each block. Where they are cut, a whole one is made again for each in its turn: the random
    numbers are those of a model that is not cut, and no process holds more than one block that is whole.
    """
    cutter = _CUTTER.get()
    for layer, block in enumerate(blocks):
        if cutter is None:
            initialise(block, config)
            continue
        with uninitialised():
            whole = make(layer)
        versions = {name: tensor._version for name, tensor in whole.state_dict(keep_vars=True).items()}
        initialise(whole, config)
        changed = {n: t for n, t in whole.state_dict(keep_vars=True).items() if t._version != versions[n]}
        cutter.fill(block, changed)  # the rest is as it was when the block was made
