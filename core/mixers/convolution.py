"""A short convolution over each channel alone, with the inputs it must remember between calls."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recurrent import Row


class ShortConvolution(nn.Module):
    """y_t = Σ_j w_j x_{t-j} for j below `kernel`. `[batch, tokens, channels]` -> `[batch, tokens, channels]`.

    A token reads only tokens of its own document. The weight `[channels, 1, kernel]` is laid out as in `nn.Conv1d`: the
    last entry belongs to the token itself. With `centred` that is entry kernel // 2, the next ones to the tokens after
    it.
    """

    def __init__(self, channels: int, kernel: int, bias: bool = True, centred: bool = False) -> None:
        super().__init__()
        self.own = kernel // 2 if centred else kernel - 1
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts as `nn.Conv1d` does: uniform within ±kernel^-½."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, row: Row, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolves.

        Args:
            x: `[batch, tokens, channels]`, the real tokens first.
            row: which tokens are real and where documents begin.
            past: `[batch, kernel - 1, channels]`, the inputs before `x`; zeros by default. Not with `centred`.

        Returns:
            y, and the last `kernel - 1` inputs, for the next call.
        """
        tokens, reach = x.shape[1], self.weight.shape[-1] - 1
        x = row.hold(x)
        if past is None:
            past = x.new_zeros(x.shape[0], self.own, x.shape[2])
        context, after = torch.cat([past, x], dim=1), reach - self.own
        if after:
            context = F.pad(context, (0, 0, 0, after))
        if row.begins is None and tokens == 1:
            # In generation: PyTorch's convolution takes ten times as long for one token.
            y = (context * self.weight[:, 0].mT.to(x.dtype)).sum(1, keepdim=True)
        elif row.begins is None:
            # In two dimensions, one of them 1, because PyTorch's kernels keep channels last there, as they are here:
            # its convolution in one dimension copies inputs and outputs, which takes about twice as long on a CPU.
            wide = F.conv2d(context.mT[:, :, None], self.weight[:, :, None].to(x.dtype), groups=x.shape[2])
            y = wide[:, :, 0].mT
        else:
            segment = F.pad(row.begins.cumsum(1), (self.own, after))
            y = torch.zeros_like(x)
            for j in range(reach + 1):
                near = slice(j, j + tokens)
                same = (segment[:, near] == segment[:, self.own : self.own + tokens])[..., None]
                y = y + self.weight[:, 0, j].to(x.dtype) * context[:, near].masked_fill(~same, 0.0)
            context = context.masked_fill((segment != segment[:, -1:])[..., None], 0.0)
        return y if self.bias is None else y + self.bias.to(x.dtype), row.last(context, reach)
