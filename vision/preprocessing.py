"""How an image becomes the pixels that a model reads; it travels with the model's config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..core.checks import check_keys, check_types
from ..core.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
"""Mean and standard deviation of ImageNet's channels, which most pretrained models expect."""


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to the input of a model.

    Args:
        mean: per channel, subtracted from pixels in [0, 1]; one entry, or one for each channel.
        std: per channel, what they are then divided by.
        interpolation: how images are resized; always antialiased.
        crop_pct: the part of the resized image's height and width that the centre crop keeps (timm's name).
        resize: `crop` keeps the aspect ratio and cuts the centre out; `squash` distorts the whole image to the size.
        size: height and width of the inputs in pixels; null means the model's image_size. Some pretrained models are
            used at another size than that of their table of positions, such as DINOv2 at 224 with a table for 518.
        grey_bits: bits of the values in 16-bit grey files that do not say it themselves: 12 makes 4,095 white.
    """

    mean: list[float] = field(default_factory=lambda: [0.5])
    std: list[float] = field(default_factory=lambda: [0.5])
    interpolation: Interpolation = "bicubic"
    crop_pct: float = 1.0
    resize: Literal["crop", "squash"] = "crop"
    size: list[int] | None = None
    grey_bits: int = 16

    def __post_init__(self) -> None:
        check_types(self, "preprocessing.")
        if len(self.mean) != len(self.std) or not self.mean:
            raise UserError(
                f"preprocessing.mean {self.mean} and std {self.std} need one entry, or one for each channel."
            )
        if any(not s > 0 for s in self.std):
            raise UserError(f"preprocessing.std is {self.std}, but every entry must be positive.")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"preprocessing.crop_pct is {self.crop_pct}, but must be in (0, 1].")
        if self.interpolation not in ("nearest", "bilinear", "bicubic", "lanczos"):
            raise UserError(
                f"preprocessing.interpolation is '{self.interpolation}', but must be nearest, bilinear, bicubic or "
                "lanczos."
            )
        if self.resize not in ("crop", "squash"):
            raise UserError(f"preprocessing.resize is '{self.resize}', but must be crop or squash.")
        if not isinstance(self.grey_bits, int) or not 1 <= self.grey_bits <= 16:
            raise UserError(f"preprocessing.grey_bits is {self.grey_bits}, but must be a whole number from 1 to 16.")
        if self.size is not None and (len(self.size) != 2 or any(side < 1 for side in self.size)):
            raise UserError(f"preprocessing.size is {self.size}, but must be null, or height and width in pixels.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of `dataclasses.asdict`. Raises UserError for an unknown key."""
        return cls(**check_keys(cls, values, "preprocessing"))

    def pixels(self, image: Image, size: tuple[int, int]) -> Tensor:
        """Fits a decoded image (mode L or RGB) to `size` (height, width): uint8 `[channels, height, width]`."""
        return to_tensor(self.fit(image, size))

    def fit(self, image: Image, size: tuple[int, int]) -> Image:
        """Resizes and crops to `size` (height, width) as validation and use do."""
        height, width = size
        if image.size == (width, height) and self.crop_pct == 1:
            return image
        scaled, (left, top) = self.placed(image.size, size)
        if image.size != scaled or self.resize == "squash":
            image = image.resize(scaled, resampling(self.interpolation))
        return image.crop((left, top, left + width, top + height))

    def placed(self, image: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """What an image of (width, height) is resized to, as (width, height), and (left, top) of the part of `size`
        (height, width) that is then cut out.
        """
        height, width = size
        if image == (width, height) and self.crop_pct == 1:
            return image, (0, 0)
        if self.resize == "squash":
            wide, high = round(width / self.crop_pct), round(height / self.crop_pct)
        else:
            target = (int(width / self.crop_pct), int(height / self.crop_pct))
            factor = max(target[0] / image[0], target[1] / image[1])
            wide, high = (max(round(side * factor), least) for side, least in zip(image, target))
        return (wide, high), (round((wide - width) / 2), round((high - height) / 2))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 in [0, 255], or float in [0, 1], `[..., channels, height, width]` -> float32 model input."""
        scale = 1 / 255 if pixels.dtype == torch.uint8 else 1.0
        channels, entries = pixels.shape[-3], len(self.mean)
        if entries not in (1, channels):
            raise UserError(f"The images have {channels} channels, but preprocessing.mean has {entries} entries.")
        if entries == 1:
            return pixels.float() * (scale / self.std[0]) - self.mean[0] / self.std[0]
        # Plane by plane with numbers: copying a vector of means to the GPU would make the host wait.
        planes = pixels.float().unbind(-3)
        return torch.stack([p * (scale / s) - m / s for p, m, s in zip(planes, self.mean, self.std)], dim=-3)


def resampling(name: str) -> Any:
    """Pillow's filter of that name."""
    from PIL.Image import Resampling

    return Resampling[name.upper()]


def to_tensor(image: Image) -> Tensor:
    """A Pillow image of mode L or RGB as uint8 `[channels, height, width]`."""
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
