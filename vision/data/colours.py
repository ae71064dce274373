"""The operations of RandAugment, TrivialAugment and 3-Augment on batches, each image with its own operation.

Sizes and directions are those of torchvision's `RandAugment` and `TrivialAugmentWide`; 3-Augment follows DeiT III.
Geometric operations only yield a map, so that all geometry of an image is one resampling.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
COLOUR = ("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize")
THREE = ("grey", "solarize", "blur")
_SIGNED = (*GEOMETRIC, "brightness", "color", "contrast", "sharpness")

Round = tuple[np.ndarray, np.ndarray]
"""Names and amounts [batch] of one operation for each image. An amount is in [0, 1], or [-1, 1] for signed
operations.
"""


def draw(
    policy: str, operations: int, magnitude: float, batch: int, rng: np.random.Generator
) -> tuple[set[str], list[Round]]:
    """Chooses operations: the names that may occur and, round by round, one for each image."""
    if policy == "none":
        return set(), []
    if policy == "three":
        return set(THREE), [(rng.choice(THREE, batch), rng.random(batch))]
    names = ("identity", *GEOMETRIC, *COLOUR)
    rounds = []
    for _ in range(operations if policy == "rand" else 1):
        chosen = rng.choice(names, batch)
        amounts = np.full(batch, magnitude / 30) if policy == "rand" else rng.integers(0, 31, batch) / 30
        signs = np.where(np.isin(chosen, _SIGNED) & (rng.random(batch) < 0.5), -1.0, 1.0)
        rounds.append((chosen, amounts * signs))
    return set(names), rounds


def geometric_maps(
    names: np.ndarray, amounts: np.ndarray, policy: str, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The maps (see `augment.Maps`) of one round; the identity for images with an operation of colour."""
    height, width = size
    wide = policy == "trivial"
    a, t = np.tile(np.eye(2), (len(names), 1, 1)), np.zeros((len(names), 2))
    shear = amounts * (0.99 if wide else 0.3)
    a[:, 0, 1] = np.where(names == "shear_x", shear, 0)
    a[:, 1, 0] = np.where(names == "shear_y", shear, 0)
    # TrivialAugment moves by up to 32 pixels of 32: here of the image's own size, never more than itself.
    t[:, 0] = np.where(names == "translate_x", amounts * width * (1.0 if wide else 150 / 331), 0)
    t[:, 1] = np.where(names == "translate_y", amounts * height * (1.0 if wide else 150 / 331), 0)
    angle = np.radians(amounts * (135 if wide else 30))[names == "rotate"]
    cos, sin = np.cos(angle), np.sin(angle)
    a[names == "rotate"] = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)
    return a, t


def apply(x: Tensor, names: np.ndarray, amounts: np.ndarray, policy: str) -> Tensor:
    """One round of colour operations. Float `[batch, channels, height, width]` in [0, 1] -> the same."""
    x = x.clone() if np.isin(names, (*COLOUR, *THREE)).any() else x
    for name in np.unique(names):
        if name not in _OPERATIONS:
            continue
        index = np.flatnonzero(names == name)
        at = torch.from_numpy(index).to(x.device, non_blocking=True)
        amount = torch.from_numpy(amounts[index].astype(np.float32)).to(x.device, non_blocking=True)
        x[at] = _OPERATIONS[name](x[at], amount[:, None, None, None], policy)
    return x


def jitter(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation times `factors` [3, batch]."""
    bright, contrast, saturation = (factor[:, None, None, None] for factor in factors)
    x = (x * bright).clamp(0, 1)
    x = _blend(x, _grey(x).mean((-3, -2, -1), keepdim=True), contrast)
    return _blend(x, _grey(x), saturation) if x.shape[1] == 3 else x


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x
    red, green, blue = x.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """`factor` 1 is x, 0 is the other, more than 1 exaggerates."""
    return (other + (x - other) * factor).clamp(0, 1)


def _factor(amount: Tensor, policy: str) -> Tensor:
    return 1 + amount * (0.99 if policy == "trivial" else 0.9)


def _brightness(x: Tensor, amount: Tensor, policy: str) -> Tensor:
    return (x * _factor(amount, policy)).clamp(0, 1)


def _color(x: Tensor, amount: Tensor, policy: str) -> Tensor:
    return _blend(x, _grey(x), _factor(amount, policy))


def _contrast(x: Tensor, amount: Tensor, policy: str) -> Tensor:
    return _blend(x, _grey(x).mean((-3, -2, -1), keepdim=True), _factor(amount, policy))


def _sharpness(x: Tensor, amount: Tensor, policy: str) -> Tensor:
    if min(x.shape[-2:]) < 3:
        return x
    kernel = torch.full((x.shape[1], 1, 3, 3), 1 / 13, device=x.device, dtype=x.dtype)
    kernel[:, :, 1, 1] = 5 / 13
    smooth = x.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(x, kernel, groups=x.shape[1])
    return _blend(x, smooth, _factor(amount, policy))


def _posterize(x: Tensor, amount: Tensor, policy: str) -> Tensor:
    step = 2 ** (amount * (6 if policy == "trivial" else 4)).round()  # the bits that are dropped
    return ((x * 255).round() / step).floor() * step / 255


def _solarize(x: Tensor, amount: Tensor, policy: str) -> Tensor:
    threshold = 128 / 255 if policy == "three" else 1 - amount
    return torch.where(x >= threshold, 1 - x, x)


def _autocontrast(x: Tensor, amount: Tensor, policy: str) -> Tensor:
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-6), x)


def _equalize(x: Tensor, amount: Tensor, policy: str) -> Tensor:
    """Spreads the values so that their histogram becomes flat, channel by channel (as Pillow does, with 256 bins)."""
    values = (x * 255).round().long().flatten(2)  # [images, channels, pixels]
    counts = torch.zeros(*values.shape[:2], 256, device=x.device).scatter_add_(
        2, values, torch.ones_like(values, dtype=torch.float)
    )
    # The last bin in use does not count towards the step.
    last = counts.gather(2, values.amax(2, keepdim=True))
    step = ((values.shape[2] - last) / 255).floor()
    table = ((counts.cumsum(2) - counts + (step / 2).floor()) / step.clamp(min=1)).floor().clamp(0, 255)
    flat = table.gather(2, values) / 255
    return torch.where(step > 0, flat, x.flatten(2)).view_as(x)


def _to_grey(x: Tensor, amount: Tensor, policy: str) -> Tensor:
    return _grey(x).expand_as(x)


def _blur(x: Tensor, amount: Tensor, policy: str) -> Tensor:
    """Gaussian blur of 0.1 to 2 pixels at 224 pixels, and in proportion for other sizes."""
    images, channels, height, width = x.shape
    scale = min(height, width) / 224
    radius = max(1, math.ceil(6 * scale))
    sigma = ((0.1 + 1.9 * amount[:, :, 0, 0]) * scale).clamp(min=1e-3)  # [images, 1]
    steps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.softmax(-0.5 * (steps / sigma).square(), dim=1)
    kernel = kernel.repeat_interleave(channels, 0)[:, None, :, None]  # [images·channels, 1, taps, 1]
    flat = F.pad(x.reshape(1, images * channels, height, width), (radius,) * 4, mode="replicate")
    flat = F.conv2d(F.conv2d(flat, kernel, groups=len(kernel)), kernel.mT, groups=len(kernel))
    return flat.view_as(x)


_OPERATIONS = {
    "brightness": _brightness, "color": _color, "contrast": _contrast, "sharpness": _sharpness,
    "posterize": _posterize, "solarize": _solarize, "autocontrast": _autocontrast, "equalize": _equalize,
    "grey": _to_grey, "blur": _blur,
}  # fmt: skip
