"""Pixels to tokens: one matrix for each patch, or a few convolutions."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from .positions import Grid

Stem = Literal["patches", "convolutions"]


class PatchEmbed(nn.Conv2d):
    """Each patch times one matrix. `[batch, channels, height, width]` -> `[batch, patches, dim]`, patches row by row.

    The weight is that of the convolution other libraries write this as, `[dim, channels, patch height, patch width]`;
    as a product of matrices it takes 0.75 to 0.9 of the convolution's time on a CPU.
    """

    def __init__(self, channels: int, patch: Grid, dim: int, bias: bool = True) -> None:
        super().__init__(channels, dim, patch, patch, bias=bias)
        nn.init.normal_(self.weight, std=(channels * patch[0] * patch[1]) ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, images: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        height, width = self.weight.shape[-2:]
        patches = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [batch, patches, channels·height·width]
        return F.linear(patches, self.weight.flatten(1), self.bias)


class ConvolutionStem(nn.Sequential):
    """Convolutions of 3 x 3 pixels and stride 2 until a token is left of each patch, then a linear map; shapes as
    `PatchEmbed`.

    Xiao et al. 2021 (Early convolutions help transformers see better, section 3.1): the channels double from step to
    step and end at `dim`. Deviations: each step ends in a norm over the whole image instead of the batch, so that an
    image's output does not depend on its neighbours, and in GELU; and patches of up to 4 pixels, which stand for small
    images, begin with a step of stride 1 and grow by equal numbers of channels.
    """

    def __init__(self, channels: int, patch: Grid, dim: int, bias: bool = True) -> None:
        halvings = patch[0].bit_length() - 1
        small = patch[0] <= 4
        steps = halvings + 1 if small else halvings
        widths = [dim * step // steps if small else dim >> (steps - step) for step in range(1, steps)]
        widths = [channels, *(max(width, 8) for width in widths), dim]
        layers: list[nn.Module] = []
        for step, (narrow, wide) in enumerate(pairwise(widths)):
            stride = 1 if small and step == 0 else 2
            layers += [nn.Conv2d(narrow, wide, 3, stride, 1, bias=False), nn.GroupNorm(1, wide), nn.GELU()]
        super().__init__(*layers, nn.Conv2d(dim, dim, 1, bias=bias))
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(images).flatten(2).mT


def patch_for(size: Grid) -> int:
    """A patch that suits an image size: 16 pixels where that makes at least 7 x 7 patches, less in small images."""
    side = min(size)
    return next((patch for patch in (16, 8, 4) if side // patch >= 7), 2 if side >= 8 else 1)
