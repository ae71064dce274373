"""How every parameter starts, in one function."""

from __future__ import annotations

import math

from torch import nn

from .config import TransformerConfig


def initialise(block: nn.Module, config: TransformerConfig) -> None:
    """Set the parameters of one `Block` (or any module made of linear layers and norms named as there).

    | parameter                        | start                                                                    |
    |----------------------------------|--------------------------------------------------------------------------|
    | linear weights                   | normal, std `init_std` (0.02: GPT-2), or 1/sqrt(fan in) when it is None   |
    | `out` and `down` weights         | the same divided by sqrt(2·depth) (GPT-2, section 2.3), or zero           |
    | linear biases                    | zero                                                                     |
    | norm gains                       | one (stored as zero when `norm_weight` is offset); norm biases zero      |
    | layer scale                      | `layer_scale`                                                            |
    | embeddings, positions, heads     | by the module that owns them                                             |
    """
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            std = config.init_std if config.init_std is not None else 1 / math.sqrt(module.in_features)
            if name.rsplit(".", 1)[-1] in ("out", "down"):
                std = 0.0 if config.init_residual == "zero" else std / math.sqrt(2 * config.depth)
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
