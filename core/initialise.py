"""How every parameter starts, in one function."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
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
