"""Where a patch stands: learned and sine-cosine tables over a grid, their resampling, coordinates for rotary positions.

A grid is (rows, columns) of patches; its tokens run row by row.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UserError

Grid = tuple[int, int]
Resample = Literal["reference", "dinov2-hub", "timm", "torchvision", "big_vision"]
Coordinates = Literal["index", "count", "unit"]
Relative = Literal["none", "layers", "shared"]


def resample_grid(table: Tensor, old: Grid, new: Grid, method: Resample = "reference") -> Tensor:
    """Stretches a table over one grid to another. `[old rows·columns, dim]` -> `[new rows·columns, dim]`.

    The same weights give features that differ by up to 0.37 between these methods (DINOv2 ViT-S/14, 518 to 224 pixels):

    | method      | how                                                          | used by                      |
    |-------------|--------------------------------------------------------------|------------------------------|
    | reference   | bicubic, no antialias, edges aligned                         | Hugging Face Dinov2, DINO    |
    | dinov2-hub  | the same, with scale (new + 0.1) / old instead of new / old  | DINOv2's torch.hub models    |
    | timm        | bicubic, antialias                                           | timm; DINOv2 with registers  |
    | torchvision | bicubic, no antialias, corners aligned                       | torchvision                  |
    | big_vision  | bilinear, corners aligned (scipy's zoom of order 1)          | big_vision, the first ViT    |

    An equal grid returns the table itself.
    """
    if old == new:
        return table
    image = table.float().unflatten(0, old).permute(2, 0, 1)[None]  # [1, dim, rows, columns]
    if method == "dinov2-hub":
        scale = ((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1])
        image = F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
    elif method in ("torchvision", "big_vision"):
        mode = "bicubic" if method == "torchvision" else "bilinear"
        image = F.interpolate(image, size=new, mode=mode, align_corners=True)
    else:
        image = F.interpolate(image, size=new, mode="bicubic", align_corners=False, antialias=method == "timm")
    return image[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype)


def grid_coordinates(
    grid: Grid, reference: Grid, kind: Coordinates = "index", device: torch.device | None = None,
    offset: float = 0.0,
) -> Tensor:  # fmt: skip
    """Row and column of each patch, float32 `[rows·columns, 2]`.

    `index`: counted from 0 in patches of the `reference` grid, to which another grid is stretched (EVA-02). `count`:
    counted, whatever the reference. `unit`: the centres of the patches, each axis mapped to [-1, 1], times 2π (DINOv3),
    whatever the reference. `offset` patches are added to the counts (Perception Encoder: 1).
    """
    axes = []
    for length, known in zip(grid, reference):
        index = torch.arange(length, device=device, dtype=torch.float32) + offset
        if kind == "unit":
            axes.append(((index + 0.5) / length * 2 - 1) * (2 * math.pi))
        else:
            axes.append(index if kind == "count" else index * (known / length))
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([rows, columns], dim=-1).flatten(0, 1)


def sincos2d_table(coordinates: Tensor, dim: int, last: bool = True) -> Tensor:
    """Sines and cosines of Beyer et al. 2022 (big_vision). `[tokens, 2]` -> float32 `[tokens, dim]`.

    The quarters are sin(column·w), cos(column·w), sin(row·w), cos(row·w) with w = 10000^(-i / (dim/4 - 1)), or, where
    the `last` w is not 1/10000, 10000^(-i / (dim/4)) as in masked autoencoders (He et al. 2021).
    """
    quarter = dim // 4
    steps = max(quarter - 1, 1) if last else quarter
    rate = torch.arange(quarter, device=coordinates.device, dtype=torch.float32) / steps
    angle = coordinates[:, :, None] * 10_000.0**-rate  # [tokens, 2, dim / 4]
    row, column = angle.unbind(1)
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=-1)


class LearnedGrid(nn.Module):
    """A trained vector for each patch of a grid, after those of the first `extra` tokens of the prefix.

    `table` is `[extra + rows·columns, dim]`.
    """

    def __init__(self, grid: Grid, dim: int, extra: int, resample: Resample) -> None:
        super().__init__()
        self.grid, self.extra = grid, extra
        self.resample: Resample = resample
        self.table = nn.Parameter(torch.empty(self.extra + grid[0] * grid[1], dim).normal_(std=0.02))

    def forward(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """The vectors of the patches of another grid, `[rows·columns, dim]`."""
        return resample_grid(self.table[self.extra :], self.grid, grid, self.resample)

    def for_prefix(self) -> Tensor:
        """The vectors of the first tokens of the prefix, `[extra, dim]`."""
        return self.table[: self.extra]


class SinCosGrid(nn.Module):
    """The fixed table of `sincos2d_table`; another grid than the trained one is stretched to its extent."""

    def __init__(self, grid: Grid, dim: int) -> None:
        super().__init__()
        if dim % 4:
            raise UserError(f"transformer.dim is {dim}, but must be a multiple of 4 for position sincos2d.")
        self.grid, self.dim = grid, dim

    def forward(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        return sincos2d_table(grid_coordinates(grid, self.grid, device=device), self.dim)

    def for_prefix(self) -> None:
        """Tokens of the prefix have no place."""


class RelativeBias(nn.Module):
    """Trained biases of the scores by how many rows and columns a key is away from a query (BEiT; Bao et al. 2021).

    `tables` has one tensor `[(2·rows - 1)·(2·columns - 1) + 3, heads]`, or one for each layer: distances by row, then
    by column, from the largest negative on; the last three are for the class token as query, as key, and as both.

    Args:
        grid: rows and columns of the patches.
        heads: of the attention.
        layers: how many tables; None means one that all layers share.
    """

    def __init__(self, grid: Grid, heads: int, layers: int | None) -> None:
        super().__init__()
        self.grid, self.shared = grid, layers is None
        rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
        self.tables = nn.ParameterList(torch.zeros(rows, heads) for _ in range(layers or 1))

    def forward(self, grid: Grid) -> Tensor | list[Tensor]:
        """`[1, heads, tokens, tokens]`, or one of these for each layer. Raises UserError for another grid."""
        if grid != self.grid:
            raise UserError(
                f"The images have {grid[0]}×{grid[1]} patches, but the biases of this model are for "
                f"{self.grid[0]}×{self.grid[1]}; give images of the size that it was trained on."
            )
        index = relative_index(grid, self.tables[0].device)
        found = [table[index].permute(2, 0, 1)[None] for table in self.tables]
        return found[0] if self.shared else found


def relative_index(grid: Grid, device: torch.device | None = None) -> Tensor:
    """Row of `RelativeBias.tables` for each query and key, int64 `[1 + rows·columns, 1 + rows·columns]`."""
    rows, columns = grid
    place = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))
    down, right = (place[:, None] - place[None]).unbind(-1)  # [rows·columns, rows·columns]
    last = (2 * rows - 1) * (2 * columns - 1)
    index = torch.full((len(place) + 1,) * 2, last + 2, device=device)
    index[1:, 1:] = (down + rows - 1) * (2 * columns - 1) + right + columns - 1
    index[0, 1:], index[1:, 0] = last, last + 1
    return index
