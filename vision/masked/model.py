"""A masked autoencoder (He et al. 2021): an encoder sees a part of an image, a decoder paints the rest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core.checkpoints.saved import SavedModel
from ...core.checks import check_keys, check_types
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ...core.transformer import Transformer
from ..model import VisionTransformer, VisionTransformerConfig
from ..positions import Grid, grid_coordinates, sincos2d_table

DECODER = TransformerConfig(
    dim=64, depth=1, heads=2, position="none", norm_eps=1e-6, bias=False, init_std=None, init_residual="zero"
)
"""A decoder for small images. He et al. (section 4.1) find that one block is enough for a later fine-tuning."""


class Masks(NamedTuple):
    """Which patches of each image the encoder sees.

    Args:
        kept: int64 `[batch, visible]`, their numbers, row by row from 0.
        hidden: int64 `[batch, masked]`, those of the others.
    """

    kept: Tensor
    hidden: Tensor


def masks_of(noise: Tensor, share: float) -> Masks:
    """Hides `share` of the patches, those of the largest noise `[batch, patches]`; at least one is kept, one hidden."""
    patches = noise.shape[1]
    visible = visible_of(patches, share)
    order = noise.argsort(dim=1)
    return Masks(order[:, :visible], order[:, visible:])


def visible_of(patches: int, share: float) -> int:
    """How many of `patches` are seen when `share` of them is hidden."""
    return min(max(int(patches * (1 - share)), 1), patches - 1)


def patches_of(images: Tensor, patch: Grid) -> Tensor:
    """`[batch, channels, height, width]` -> `[batch, patches, patch height · patch width · channels]`, the channels of
    a pixel side by side.
    """
    tiles = images.unflatten(3, (-1, patch[1])).unflatten(2, (-1, patch[0]))
    return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def images_of(patches: Tensor, patch: Grid, grid: Grid) -> Tensor:
    """The inverse of `patches_of`, for `grid` rows and columns of patches."""
    tiles = patches.unflatten(1, grid).unflatten(3, (*patch, -1))  # [batch, rows, columns, height, width, channels]
    return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def take(values: Tensor, index: Tensor) -> Tensor:
    """`values` `[batch, tokens, dim]` at `index` `[batch, some]` -> `[batch, some, dim]`."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def normalised(patches: Tensor) -> Tensor:
    """Each patch with the mean 0 and the variance 1 of its own pixels, `[..., pixels]` (He et al., section 4.2)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder of a masked autoencoder.

    Args:
        transformer: its blocks.
        width: of the encoder's vectors.
        prefix: tokens before the patches, such as a class token, which have no position.
        pixels: numbers of a patch.
    """

    transformer: TransformerConfig = field(default_factory=lambda: DECODER)
    width: int = 192
    prefix: int = 0
    pixels: int = 48

    def __post_init__(self) -> None:
        check_types(self)
        core = self.transformer
        if core.position != "none" or core.causal or core.cross_attention:
            raise UserError(
                "decoder has position, causal or cross_attention, but must have position none and read in both "
                "directions: its sine-cosine table is added before the first block."
            )
        if core.dim % 4:
            raise UserError(f"decoder.dim is {core.dim}, but must be a multiple of 4 for sine-cosine positions.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DecoderConfig:
        """The inverse of `to_dict`. Raises UserError for an unknown key."""
        values = dict(check_keys(cls, values, "model"))
        values["transformer"] = TransformerConfig.from_dict(values.get("transformer", {}))
        return cls(**values)


class Decoder(SavedModel, config=DecoderConfig):
    """The encoder's vectors of the visible patches -> the pixels of the hidden ones."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        core = config.transformer
        self.embed = nn.Linear(config.width, core.dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, core.dim).normal_(std=0.02))
        self.transformer = Transformer(core)
        self.to_pixels = nn.Linear(core.dim, config.pixels)
        for layer in (self.embed, self.to_pixels):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, masks: Masks, grid: Grid) -> Tensor:
        """The pixels of the hidden patches `[batch, masked, pixels]`, in the order of `masks.hidden`.

        Args:
            tokens: `[batch, prefix + visible, width]`, the patches in the order of `masks.kept`.
            masks: which patches these are.
            grid: rows and columns of all patches.
        """
        x, first = self.embed(tokens), self.config.prefix
        table = sincos2d_table(grid_coordinates(grid, grid, device=x.device), x.shape[-1], last=False).to(x.dtype)
        # Attention does not ask for an order, so the tokens stay in that of the masks.
        x = torch.cat(
            [x[:, :first], x[:, first:] + table[masks.kept], self.mask_token.to(x.dtype) + table[masks.hidden]], dim=1
        )
        hidden = self.transformer(x)[:, -masks.hidden.shape[1] :]
        return self.to_pixels(hidden)


@dataclass(frozen=True)
class AutoencoderConfig:
    """Encoder, decoder and what is asked of them.

    Args:
        encoder: an image model without a head.
        decoder: the blocks of the decoder.
        masked: share of the patches that the encoder does not see.
        normalise: the decoder learns each patch with mean 0 and variance 1, instead of its pixels as the encoder reads
            them.
    """

    encoder: VisionTransformerConfig
    decoder: TransformerConfig = field(default_factory=lambda: DECODER)
    masked: float = 0.75
    normalise: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.masked < 1:
            raise UserError(f"masked is {self.masked}, but must lie between 0 and 1 (such as 0.75).")
        self._check_encoder()

    def _check_encoder(self) -> None:
        encoder = self.encoder
        if encoder.stem != "patches":
            raise UserError(
                f"stem is '{encoder.stem}', but must be patches in a masked autoencoder: convolutions would show the "
                "encoder pixels of the patches that are hidden from it."
            )
        if encoder.relative_bias != "none":
            raise UserError(
                f"relative_bias is '{encoder.relative_bias}', but must be none in a masked autoencoder; take learned, "
                "sincos2d or rotary positions."
            )
        if encoder.pool not in ("class", "mean", "class_and_mean") or encoder.pooled_norm or encoder.pre_logits:
            raise UserError(
                "pool, pooled_norm or pre_logits of the encoder have weights that a masked autoencoder does not train; "
                "take pool mean, or class with class_token true."
            )
        rows, columns = encoder.grid(*encoder.size)
        if rows * columns < 2:
            raise UserError(
                f"An image of {encoder.size[0]}×{encoder.size[1]} pixels is one patch, of which nothing can be hidden; "
                "take a smaller patch_size."
            )


class MaskedAutoencoder(nn.Module):
    """Images `[batch, channels, height, width]`, normalised, with noise `[batch, patches]` -> a loss for each image.

    He et al. 2021, "Masked autoencoders are scalable vision learners". The encoder reads the visible patches alone; the
    loss is the mean squared error over the pixels of the hidden ones.

    Args:
        config: what it is.
        encoder: with its weights; None makes a new one.
    """

    def __init__(self, config: AutoencoderConfig, encoder: VisionTransformer | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder or VisionTransformer(replace(config.encoder, classes=0, labels=[]))
        inner = self.encoder.config
        pixels = inner.channels * inner.patch[0] * inner.patch[1]
        self.decoder = Decoder(DecoderConfig(config.decoder, inner.transformer.dim, inner.prefix, pixels))

    def predict(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Masks]:
        """What the decoder says of the hidden patches `[batch, masked, pixels]`, and which these are."""
        masks = masks_of(noise, self.config.masked)
        tokens = self.encoder.tokens(images, masks.kept)
        return self.decoder(tokens, masks, self.encoder.grid(images)), masks

    def targets(self, images: Tensor, masks: Masks) -> Tensor:
        """What it should say, `[batch, masked, pixels]`."""
        hidden = take(patches_of(images, self.encoder.config.patch), masks.hidden)
        return normalised(hidden) if self.config.normalise else hidden

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """The mean squared error over the hidden patches of each image, `[batch]`."""
        predicted, masks = self.predict(images, noise)
        return (predicted.float() - self.targets(images, masks).float()).square().mean(dim=(1, 2))

    @torch.no_grad()
    def painted(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Images as the encoder sees them, with NaN for what is hidden, and as the decoder completes them; both
        `[batch, channels, height, width]`, in the scale of `images`.

        Where the decoder learns normalised patches, these get back the mean and deviation of the hidden pixels, which
        it does not know.
        """
        predicted, masks = self.predict(images, noise)
        patch, grid = self.encoder.config.patch, self.encoder.grid(images)
        patches = patches_of(images, patch)
        if self.config.normalise:
            variance, mean = torch.var_mean(take(patches, masks.hidden), dim=-1, keepdim=True)
            predicted = predicted * (variance + 1e-6).sqrt() + mean
        index = masks.hidden[..., None].expand(-1, -1, patches.shape[-1])
        seen = patches.scatter(1, index, float("nan"))
        return images_of(seen, patch, grid), images_of(patches.scatter(1, index, predicted.to(patches)), patch, grid)
