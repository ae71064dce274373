"""The lens of each depth: what the model's own head says of the residual stream after each block.

nostalgebraist 2020 (the logit lens): the final norm and the head of the trained model, applied to the values between
its blocks. Nothing is trained; early depths may well mean something in another basis (Belrose et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .edit import lens
from .points import transformer_of


@torch.no_grad()
def depth_lens(model: nn.Module, run: Callable[[], Any], decode: Callable[[Tensor], Any]) -> list[Any]:
    """What `decode` makes of each depth: of the input of the first block, then of the output of each block.

    Args:
        model: in evaluation mode, holding one Transformer.
        run: runs it once.
        decode: from `[batch, tokens, dim]` after the final norm to an answer: `LanguageModel.logits` for text, the
            pooling and the head for images.
    """
    transformer = transformer_of(model)
    last = transformer.config.depth - 1
    with lens(model, keep=["0.resid_pre", "*.resid_post"]) as seen:
        run()
    names = ["0.resid_pre", *(f"{layer}.resid_post" for layer in range(last + 1))]
    return [decode(transformer.final_norm(seen[name])) for name in names]
