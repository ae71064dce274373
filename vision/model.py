"""A Vision Transformer: patches and special tokens -> core -> pooled vector -> logits over the classes."""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..core.checkpoints.saved import SavedModel
from ..core.checks import check_keys, check_types
from ..core.config import FeedForwardKind, TransformerConfig
from ..core.errors import UserError, nearest
from ..core.inputs import describe
from ..core.layers import Norm
from ..core.transformer import Transformer
from .patches import ConvolutionStem, PatchEmbed, Stem
from .pool import AttentionPool
from .positions import Coordinates, Grid, LearnedGrid, Relative, RelativeBias, Resample, SinCosGrid, grid_coordinates
from .preprocessing import Preprocessing

Pool = Literal["class", "mean", "class_and_mean", "attention", "prefix"]
Position = Literal["learned", "sincos2d", "none"]


def _small() -> TransformerConfig:
    """ViT-S (Touvron et al. 2021)."""
    return TransformerConfig(dim=384, depth=12, heads=6, position="none", norm_eps=1e-6)


@dataclass(frozen=True)
class VisionTransformerConfig:
    """A Vision Transformer (Dosovitskiy et al. 2021) around a `Transformer`.

    Two kinds of position can be had alone or together: `position` adds a table to the patches, and
    `transformer.position: rotary` with `rotary.axes: 2` turns queries and keys by row and column.

    Args:
        image_size: pixels the model is trained at: one number, or height and width.
        patch_size: pixels of a patch: one number, or height and width.
        channels: of the images: 1 grey, 3 colour.
        classes: outputs; 0 makes a backbone whose output is the pooled vector.
        transformer: the core; its `position` is `none` or `rotary`.
        class_token: a learned token before the patches.
        registers: further learned tokens, after the class token (Darcet et al. 2024).
        pool: what the head reads: the `class` token, the `mean` of the patches, both side by side (`class_and_mean`,
            DINOv2's classifiers), class token and registers side by side (`prefix`, DeiT with its distillation token),
            or an `attention` pool, a learned query that attends to the patches (SigLIP's MAP head; Zhai et al. 2022).
        position: table added to the patches: `learned`, `sincos2d` (Beyer et al. 2022) or `none`.
        position_covers_class: the learned table has a row for the class token (timm: not `no_embed_class`).
        position_covers_registers: it has one for each register, too.
        resample: how a learned table is stretched to images of another size; see `positions.resample_grid`.
        rotary_coordinates: `index` counts patches of `rotary_grid` (EVA-02), `count` those of the image (RoPE-ViT),
            `unit` runs from -2π to 2π over the image (DINOv3).
        rotary_grid: rows and columns to which `index` coordinates are stretched; null means those of `image_size`.
        rotary_offset: patches added to row and column (Perception Encoder: 1).
        rotary_columns_first: the first half of the pairs turns with the column (timm: `rope_grid_indexing` xy).
        relative_bias: trained biases of the attention by the distance in rows and columns: `none`, a table for each of
            the `layers`, or one `shared` by all (BEiT).
        stem: how a patch becomes a token: one matrix for all its pixels (`patches`), or 3 x 3 `convolutions`, which
            also see its neighbours and learn more from few images (Xiao et al. 2021).
        patch_bias: the patch projection has a bias.
        patch_norm: a norm on each patch before positions are added (AIMv2).
        pool_prefix: the pool reads the class token and registers beside the patches (Perception Encoder).
        pool_heads, pool_ffn, pool_ffn_dim: of an attention pool; null means those of the blocks.
        pooled_norm: a norm on the pooled vector (timm's fc_norm, with `transformer.final_norm: false`).
        pre_logits: a linear layer and tanh between the pooled vector and the head (big_vision's rep_size).
        head_bias: value the head's bias starts at, such as -log(classes) for a binary cross-entropy.
        labels: names of the classes.
        preprocessing: how images become inputs.
    """

    image_size: int | list[int] = 224
    patch_size: int | list[int] = 16
    channels: int = 3
    classes: int = 1000
    transformer: TransformerConfig = field(default_factory=_small)
    class_token: bool = True
    registers: int = 0
    pool: Pool = "class"
    position: Position = "learned"
    position_covers_class: bool = True
    position_covers_registers: bool = False
    resample: Resample = "reference"
    rotary_coordinates: Coordinates = "index"
    rotary_grid: list[int] | None = None
    rotary_offset: float = 0.0
    rotary_columns_first: bool = False
    relative_bias: Relative = "none"
    stem: Stem = "patches"
    patch_bias: bool = True
    patch_norm: bool = False
    pool_prefix: bool = False
    pool_heads: int | None = None
    pool_ffn: FeedForwardKind | None = None
    pool_ffn_dim: int | None = None
    pooled_norm: bool = False
    pre_logits: bool = False
    head_bias: float = 0.0
    labels: list[str] = field(default_factory=list)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("image_size", "patch_size"):
            object.__setattr__(self, name, pair(getattr(self, name), name))
        _check_multiple(self.size, self.patch, "image_size")
        grid = self.rotary_grid or [size // patch for size, patch in zip(self.size, self.patch)]
        object.__setattr__(self, "rotary_grid", pair(grid, "rotary_grid"))
        self._check_choices()
        self._check_numbers()

    def _check_choices(self) -> None:
        kinds = {
            "stem": Stem, "pool": Pool, "position": Position, "resample": Resample, "rotary_coordinates": Coordinates,
            "relative_bias": Relative,
        }  # fmt: skip
        for name, kind in kinds.items():
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed:
                raise UserError(
                    f"{name} is '{value}'{nearest(value, allowed)}, but must be one of {', '.join(allowed)}."
                )
        core = self.transformer
        if core.position not in ("none", "rotary"):
            raise UserError(
                f"transformer.position is '{core.position}', but must be none or rotary for images: a table over the "
                "grid is chosen by `position` (learned, sincos2d)."
            )
        for layer in range(core.depth):
            rotary = core.rotary_at(layer)
            if rotary is not None and rotary.axes != 2:
                raise UserError(
                    "transformer.rotary.axes is 1, but must be 2 for images: they turn with row and column."
                )
        if core.causal or core.cross_attention:
            raise UserError("transformer.causal and cross_attention must be false for images.")

    def _check_numbers(self) -> None:
        for name, least in (("channels", 1), ("classes", 0), ("registers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least {least}.")
        if self.pool in ("class", "class_and_mean") and not self.class_token:
            raise UserError(f"pool is '{self.pool}', but class_token is false; choose pool mean or attention.")
        if self.pool != "attention" and (self.pool_heads or self.pool_ffn or self.pool_ffn_dim):
            raise UserError(f"pool_heads, pool_ffn and pool_ffn_dim need pool attention, but pool is '{self.pool}'.")
        if self.pool == "prefix" and not self.prefix:
            raise UserError("pool is 'prefix', but there is no class_token and no register; choose mean or attention.")
        if self.pool_prefix and self.pool not in ("mean", "attention"):
            raise UserError(f"pool_prefix needs pool mean or attention, but pool is '{self.pool}'.")
        if self.position_covers_registers and self.class_token and not self.position_covers_class:
            raise UserError("position_covers_registers is true, but position_covers_class is false; set both.")
        if self.relative_bias != "none" and (self.registers or not self.class_token):
            raise UserError(f"relative_bias is '{self.relative_bias}', but needs a class_token and no registers.")
        if self.relative_bias != "none" and self.input_size != self.size:
            raise UserError(
                f"preprocessing.size is {list(self.input_size)}, but must be null or image_size ({list(self.size)}) "
                f"with relative_bias {self.relative_bias}, whose tables are for one size."
            )
        if self.labels and len(self.labels) != self.classes:
            raise UserError(f"labels names {len(self.labels)} classes, but classes is {self.classes}.")
        _check_multiple(self.input_size, self.patch, "preprocessing.size")
        if self.stem == "convolutions" and (self.patch[0] != self.patch[1] or self.patch[0].bit_count() != 1):
            raise UserError(
                f"patch_size is {self.patch_size}, but a stem of convolutions halves the image until a token is left "
                "of a patch: it must be one power of two, such as 4, 8 or 16."
            )
        if len(self.preprocessing.mean) not in (1, self.channels):
            raise UserError(
                f"preprocessing.mean has {len(self.preprocessing.mean)} entries, but must have 1 or one for each of "
                f"{self.channels} channels."
            )

    @property
    def size(self) -> Grid:
        """Height and width in pixels."""
        height, width = self.image_size  # pyright: ignore[reportGeneralTypeIssues] (a pair after __post_init__)
        return height, width

    @property
    def patch(self) -> Grid:
        """Height and width of a patch in pixels."""
        height, width = self.patch_size  # pyright: ignore[reportGeneralTypeIssues]
        return height, width

    @property
    def input_size(self) -> Grid:
        """Height and width of the images that `preprocessing` makes, in pixels."""
        height, width = self.preprocessing.size or self.size
        return height, width

    @property
    def width(self) -> int:
        """Length of the pooled vector."""
        return self.transformer.dim * {"class_and_mean": 2, "prefix": self.prefix}.get(self.pool, 1)

    @property
    def prefix(self) -> int:
        """Tokens before the patches: class token and registers."""
        return int(self.class_token) + self.registers

    @property
    def covered(self) -> int:
        """Tokens before the patches that a learned table has rows for."""
        first = int(self.class_token and self.position_covers_class)
        return first + (self.registers if self.position_covers_registers else 0)

    def grid(self, height: int, width: int) -> Grid:
        """Rows and columns of patches of an image. Raises UserError if its sides are no multiples of the patch."""
        _check_multiple((height, width), self.patch, "The image size")
        return height // self.patch[0], width // self.patch[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VisionTransformerConfig:
        """The inverse of `to_dict`. Raises UserError for an unknown key."""
        values = dict(check_keys(cls, values, "model"))
        if "transformer" in values:
            values["transformer"] = TransformerConfig.from_dict(values["transformer"])
        if "preprocessing" in values:
            values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
        return cls(**values)


def pair(value: int | list[int] | tuple[int, ...], name: str) -> list[int]:
    """One number, or height and width, as a list of two. Raises UserError for anything else."""
    sides = [value, value] if isinstance(value, int) else list(value)
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise UserError(f"{name} is {value}, but must be a positive integer or two of them (height and width).")
    return sides


def checked_patch(value: Any) -> Any:
    """The option `model.patch_size` as it is, None included. Raises UserError for what no patch can be."""
    if value is not None:
        pair(value, "model.patch_size")
    return value


def _check_multiple(size: Grid, patch: Grid, what: str) -> None:
    if size[0] % patch[0] == 0 and size[1] % patch[1] == 0:
        return
    below = [max(side // step, 1) * step for side, step in zip(size, patch)]
    above = [-(-side // step) * step for side, step in zip(size, patch)]
    sizes = " or ".join(dict.fromkeys(f"{height}×{width}" for height, width in (below, above)))
    raise UserError(
        f"{what} is {size[0]}×{size[1]} pixels (height × width), but must be a multiple of the patch "
        f"{patch[0]}×{patch[1]}; the nearest sizes are {sizes}."
    )


def new_head(config: VisionTransformerConfig) -> nn.Linear:
    """Pooled vectors -> logits. At zero, a model starts by predicting all classes alike, at a loss of ln(classes)."""
    head = nn.Linear(config.width, config.classes)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, config.head_bias)
    return head


class VisionTransformer(SavedModel, config=VisionTransformerConfig):
    """Images `[batch, channels, height, width]`, normalised by `config.preprocessing` -> logits `[batch, classes]`.

    Images may have another size than `config.image_size`: a learned table is resampled, rotary and sine-cosine
    positions are computed for the new grid.

    >>> model = VisionTransformer(VisionTransformerConfig(classes=10))
    >>> model(torch.randn(2, 3, 224, 160)).shape
    torch.Size([2, 10])
    """

    def __init__(self, config: VisionTransformerConfig) -> None:
        super().__init__()
        self.config = config
        core = config.transformer
        stem = PatchEmbed if config.stem == "patches" else ConvolutionStem
        self.patch_embed = stem(config.channels, config.patch, core.dim, config.patch_bias)
        self.patch_norm = Norm(core.dim, core) if config.patch_norm else nn.Identity()
        self.class_token = nn.Parameter(torch.empty(1, 1, core.dim).normal_(std=0.02)) if config.class_token else None
        self.registers = (
            nn.Parameter(torch.empty(1, config.registers, core.dim).normal_(std=0.02)) if config.registers else None
        )
        self.positions: LearnedGrid | SinCosGrid | None = None
        if config.position == "learned":
            self.positions = LearnedGrid(config.grid(*config.size), core.dim, config.covered, config.resample)
        elif config.position == "sincos2d":
            self.positions = SinCosGrid(config.grid(*config.size), core.dim)
        self.relative: RelativeBias | None = None
        if config.relative_bias != "none":
            layers = core.depth if config.relative_bias == "layers" else None
            self.relative = RelativeBias(config.grid(*config.size), core.heads, layers)
        self.transformer = Transformer(core)
        self.pool: AttentionPool | None = None
        if config.pool == "attention":
            self.pool = AttentionPool(core, config.pool_heads, config.pool_ffn, config.pool_ffn_dim)
        width = config.width
        self.pooled_norm = Norm(width, core) if config.pooled_norm else nn.Identity()
        self.pre_logits = nn.Sequential(nn.Linear(width, width), nn.Tanh()) if config.pre_logits else nn.Identity()
        self.head = new_head(config) if config.classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pre_logits(self.features(images)))

    def features(self, images: Tensor) -> Tensor:
        """The pooled vector of each image, `[batch, config.width]`."""
        return self.pooled(self.tokens(images))

    def tokens(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """The core's output `[batch, prefix + patches, dim]`: class token, registers, then the patches row by row.

        Args:
            images: `[batch, channels, height, width]`.
            kept: int64 `[batch, visible]`, the patches of each image that the model sees, in this order; None for all.
                Not for a model with `relative_bias`.
        """
        x, grid = self.embed(images, kept), self.grid(images)
        bias = None if self.relative is None else self.relative(grid)
        positions = self.rotary_positions(grid, images.device)
        if positions is not None and kept is not None:
            prefix, patches = positions[: self.config.prefix], positions[self.config.prefix :]
            positions = torch.cat([prefix.expand(len(kept), -1, -1), patches[kept]], dim=1)
        return self.transformer(x, positions=positions, bias=bias)

    def embed(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """The core's input `[batch, prefix + patches, dim]`, with the added positions; arguments as for `tokens`.

        Raises:
            UserError: the images have other channels, or sides that are no multiples of the patch.
        """
        if images.dim() != 4 or images.shape[1] != self.config.channels or not images.is_floating_point():
            raise UserError(
                f"The images are {describe(images)}, but must be float [batch, {self.config.channels} channels, "
                "height, width]."
            )
        grid, batch = self.grid(images), images.shape[0]
        x = self.patch_norm(self.patch_embed(images))
        tokens: list[Tensor] = [token for token in (self.class_token, self.registers) if token is not None]
        prefix = torch.cat(tokens, dim=1) if tokens else None
        if self.positions is not None:
            x = x + self.positions(grid, images.device)
            first = self.positions.for_prefix()
            if prefix is not None and first is not None and len(first):
                prefix = torch.cat([prefix[:, : len(first)] + first, prefix[:, len(first) :]], dim=1)
        if kept is not None:
            x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
        return x if prefix is None else torch.cat([prefix.expand(batch, -1, -1), x], dim=1)

    def grid(self, images: Tensor) -> Grid:
        """Rows and columns of patches of `images`."""
        return self.config.grid(images.shape[-2], images.shape[-1])

    def rotary_positions(self, grid: Grid, device: torch.device) -> Tensor | None:
        """Row and column of every token, `[prefix + patches, 2]`; the prefix is at the origin and so is not turned."""
        if self.config.transformer.position != "rotary":
            return None
        rows, columns = self.config.rotary_grid or grid
        kind, offset = self.config.rotary_coordinates, self.config.rotary_offset
        coordinates = grid_coordinates(grid, (rows, columns), kind, device, offset)
        if self.config.rotary_columns_first:
            coordinates = coordinates.flip(-1)
        return torch.cat([coordinates.new_zeros(self.config.prefix, 2), coordinates])

    def pooled(self, tokens: Tensor) -> Tensor:
        """`[batch, prefix + patches, dim]` -> `[batch, config.width]`."""
        if self.config.pool == "class":
            return self.pooled_norm(tokens[:, 0])
        if self.config.pool == "prefix":
            return self.pooled_norm(tokens[:, : self.config.prefix].flatten(1))
        patches = tokens if self.config.pool_prefix else tokens[:, self.config.prefix :]
        x = patches.mean(dim=1) if self.pool is None else self.pool(patches)
        return self.pooled_norm(torch.cat([tokens[:, 0], x], dim=1) if self.config.pool == "class_and_mean" else x)

    def resized(self, image_size: int | list[int]) -> VisionTransformer:
        """A copy whose learned table belongs to another image size, to fine-tune there or to export.

        Its outputs are those of this model on images of that size. Raises UserError for a size that does not fit.
        """
        preprocessing = replace(self.config.preprocessing, size=None)
        config = replace(self.config, image_size=image_size, preprocessing=preprocessing)
        copy = deepcopy(self)
        copy.config = config
        if isinstance(copy.positions, LearnedGrid):
            grid, extra = config.grid(*config.size), copy.positions.extra
            with torch.no_grad():
                table = torch.cat([copy.positions.table[:extra], copy.positions(grid)])
            copy.positions.grid, copy.positions.table = grid, nn.Parameter(table)
        return copy
