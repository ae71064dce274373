"""Random changes of training images, a whole batch at a time on the batch's device, each image with its own draw.

All randomness comes from a NumPy generator on the host, so that a batch is the same on every device, and nothing waits
for the GPU. Only the crop of large images is made where they are decoded (`random_box`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.checks import check_types
from ...core.errors import UserError
from . import colours

Policy = Literal["none", "three", "rand", "trivial"]
VERSION = 1
"""Of all that is drawn here and in `colours`, and in which order; see the core's versions.py."""


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to training images, in this order. The defaults suit small sets; everything off: crop none, flip
    false.

    Args:
        crop: `pad` shifts the image by up to `padding` pixels into black; `resized` cuts out a random part of at least
            `min_area` and resizes it (Szegedy et al. 2015; what ImageNet recipes use); `none` takes what validation
            does.
        padding: pixels for `pad`; null means an eighth of the image's shorter side.
        min_area: smallest part of the image that `resized` cuts out.
        flip: mirror half of the images; null means yes, except for digits and IDX files.
        rotate: rotate by up to this many degrees.
        zoom: scale by a factor in [1 - zoom, 1 + zoom].
        policy: `three` is 3-Augment (Touvron et al. 2022): grey, solarised or blurred; `rand` is RandAugment (Cubuk et
            al. 2020), `operations` of them at `magnitude`; `trivial` is TrivialAugment (Müller and Hutter 2021).
        operations: of `rand`, for each image.
        magnitude: of `rand`, 0 to 30.
        color_jitter: brightness, contrast and saturation change by factors in [1 - this, 1 + this].
        erasing: chance that a random rectangle is blanked with the mean colour (Zhong et al. 2020).
        mixup: alpha of Mixup (Zhang et al. 2018); 0 for none. Labels become probabilities.
        cutmix: alpha of CutMix (Yun et al. 2019); with both, each image gets one of them.
        mix_chance: part of the images that are mixed.
        repeats: how often an image is in one batch, each time changed anew (Hoffer et al. 2020; DeiT: 3).
    """

    crop: Literal["none", "pad", "resized"] = "pad"
    padding: int | None = None
    min_area: float = 0.08
    flip: bool | None = None
    rotate: float = 0.0
    zoom: float = 0.0
    policy: Policy = "none"
    operations: int = 2
    magnitude: float = 9.0
    color_jitter: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_chance: float = 1.0
    repeats: int = 1

    def __post_init__(self) -> None:
        check_types(self, "augment.")
        ranges = {
            "min_area": (self.min_area, 0.001, 1), "zoom": (self.zoom, 0, 0.9), "rotate": (self.rotate, 0, 180),
            "magnitude": (self.magnitude, 0, 30), "color_jitter": (self.color_jitter, 0, 1),
            "erasing": (self.erasing, 0, 1), "mixup": (self.mixup, 0, 100), "cutmix": (self.cutmix, 0, 100),
            "mix_chance": (self.mix_chance, 0, 1), "operations": (self.operations, 1, 10),
            "repeats": (self.repeats, 1, 100), "padding": (self.padding or 0, 0, 10_000),
        }  # fmt: skip
        for name, (value, least, most) in ranges.items():
            if not least <= value <= most:
                raise UserError(f"data.augment.{name} is {value}, but must be between {least} and {most}.")
        for name, allowed in (("crop", ("none", "pad", "resized")), ("policy", ("none", "three", "rand", "trivial"))):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"data.augment.{name} is '{getattr(self, name)}', but must be one of {', '.join(allowed)}."
                )

    @property
    def mixes(self) -> bool:
        """Labels become probabilities."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_chance > 0


def change_pixels(
    pixels: Tensor, config: AugmentConfig, rng: np.random.Generator, mirror: bool, cropped: bool
) -> Tensor:
    """Crops, turns and colours. uint8 `[batch, channels, height, width]` -> float32 in [0, 1], same shape.

    Args:
        mirror: whether mirrored images are of the same class; decides where `config.flip` is None.
        cropped: the images were cropped at random when they were decoded.
    """
    return change_both(pixels, None, config, rng, mirror, cropped)[0]


def change_both(
    pixels: Tensor, masks: Tensor | None, config: AugmentConfig, rng: np.random.Generator, mirror: bool, cropped: bool
) -> tuple[Tensor, Tensor | None]:
    """As `change_pixels`, of images and of what belongs to their pixels, float32 `[batch, planes, height, width]`: that
    is moved with them, by the nearest pixel and with zeros outside, and is not coloured.
    """
    batch, _, height, width = pixels.shape
    crop = "none" if cropped else config.crop
    padding = min(height, width) // 8 if config.padding is None else config.padding
    plans, rounds = colours.draw(config.policy, config.operations, config.magnitude, batch, rng)
    turns = config.rotate or config.zoom or crop == "resized" or any(name in colours.GEOMETRIC for name in plans)
    if crop == "pad" and padding and not turns:
        offsets = rng.integers(0, 2 * padding + 1, (2, batch))
        pixels = _shift(pixels, offsets, padding)
        masks = masks if masks is None else _shift(masks, offsets, padding)
    if mirror if config.flip is None else config.flip:
        flipped = _to(rng.random(batch) < 0.5, pixels)[:, None, None, None]
        pixels = torch.where(flipped, pixels.flip(-1), pixels)
        masks = masks if masks is None else torch.where(flipped, masks.flip(-1), masks)
    x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    if turns:
        maps = _draw_maps(config, crop, padding, (height, width), batch, rng)
        for names, amounts in rounds:
            maps = _then(maps, colours.geometric_maps(names, amounts, config.policy, (height, width)))
        x = _warp(x, maps)
        masks = masks if masks is None else _warp(masks, maps, "nearest")
    for names, amounts in rounds:
        x = colours.apply(x, names, amounts, config.policy)
    if config.color_jitter:
        low, high = 1 - config.color_jitter, 1 + config.color_jitter
        x = colours.jitter(x, _to(rng.uniform(low, high, (3, batch)), x))
    return x, masks


def _to(values: np.ndarray, like: Tensor) -> Tensor:
    """Small parameters to the device of `like`, without waiting for it."""
    tensor = torch.from_numpy(values.astype(np.float32) if values.dtype == np.float64 else values)
    return tensor.to(like.device, non_blocking=True)


def _shift(pixels: Tensor, offsets: np.ndarray, padding: int) -> Tensor:
    """Cuts the original size out of the padded image, at offsets [2, batch] in pixels."""
    height, width = pixels.shape[-2:]
    windows = F.pad(pixels, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view: no pixel is copied here
    rows, columns = _to(offsets, pixels).long()
    return windows[torch.arange(len(pixels), device=pixels.device), :, rows, columns]


# --- geometry: an image's map sends output pixels, counted from the centre, to input pixels: A·p + t
# ----------------------

Maps = tuple[np.ndarray, np.ndarray]
"""A [batch, 2, 2] and t [batch, 2]; (x, y) in pixels."""


def _then(first: Maps, second: Maps) -> Maps:
    """The map of changing the image by `first` and then by `second`."""
    (a, t), (b, s) = first, second
    return a @ b, (a @ s[..., None])[..., 0] + t


def _draw_maps(
    config: AugmentConfig, crop: str, padding: int, size: tuple[int, int], batch: int, rng: np.random.Generator
) -> Maps:
    angle = np.radians(rng.uniform(-config.rotate, config.rotate, batch))
    scale = 1 / rng.uniform(1 - config.zoom, 1 + config.zoom, batch)
    turn = np.stack([np.stack([np.cos(angle), np.sin(angle)], -1), np.stack([-np.sin(angle), np.cos(angle)], -1)], -2)
    a, t = turn * scale[:, None, None], np.zeros((batch, 2))
    if crop == "pad":
        rows = getattr(rng, "rows", lambda low, high, *size: rng.integers(low, high, size))
        t = rows(-padding, padding + 1, batch, 2).astype(float)
    elif crop == "resized":
        height, width = size
        each = getattr(rng, "each", lambda count, draw: [draw(rng) for _ in range(count)])
        boxes = np.array(each(batch, lambda one: random_box(width, height, config.min_area, one)), dtype=float)
        left, top, right, bottom = boxes.T
        parts = np.stack([(right - left) / width, (bottom - top) / height], -1)
        centres = np.stack([(left + right - width) / 2, (top + bottom - height) / 2], -1)
        a, t = _then((parts[:, :, None] * np.eye(2), centres), (a, t))
    return a, t


def _warp(x: Tensor, maps: Maps, mode: str = "bilinear") -> Tensor:
    """Resamples float images by their maps, with black outside."""
    height, width = x.shape[-2:]
    half = np.array([width / 2, height / 2])
    a, t = maps
    theta = np.concatenate([a * half / half[:, None], (t / half)[:, :, None]], axis=-1)
    grid = F.affine_grid(_to(theta, x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=False)


def random_box(width: int, height: int, min_area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A random part of an image: left, top, right, bottom in pixels (Szegedy et al. 2015; torchvision's
    RandomResizedCrop).

    Its area is `min_area` to 1 of the image's, its aspect ratio 3:4 to 4:3; after ten misses, the largest centred part
    of such a ratio.
    """
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = width * height * rng.uniform(min_area, 1)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


# --- after normalisation
# ------------------------------------------------------------------------------------------------


def erase(x: Tensor, chance: float, rng: np.random.Generator) -> Tensor:
    """Blank a rectangle of 2 % to 33 % of the area, aspect 0.3 to 3.3, in a part of the images (Zhong et al. 2020)."""
    batch, _, height, width = x.shape
    area = rng.uniform(0.02, 1 / 3, batch) * height * width
    ratio = np.exp(rng.uniform(math.log(0.3), math.log(3.3), batch))
    h = np.clip(np.rint(np.sqrt(area * ratio)), 1, height) * (rng.random(batch) < chance)
    w = np.clip(np.rint(np.sqrt(area / ratio)), 1, width)
    top = np.floor(rng.random(batch) * (height - h + 1))
    left = np.floor(rng.random(batch) * (width - w + 1))
    return x.masked_fill(_inside(x, top, left, top + h, left + w), 0)


def _inside(x: Tensor, top: np.ndarray, left: np.ndarray, bottom: np.ndarray, right: np.ndarray) -> Tensor:
    """bool `[batch, 1, height, width]`: pixels within each image's rectangle."""
    row = torch.arange(x.shape[-2], device=x.device)[:, None]
    column = torch.arange(x.shape[-1], device=x.device)
    t, l, b, r = (_to(side, x)[:, None, None, None] for side in (top, left, bottom, right))  # noqa: E741
    return (row >= t) & (row < b) & (column >= l) & (column < r)


def mix(
    x: Tensor, labels: Tensor, classes: int, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mixes each image with the one before it in the batch.

    Args:
        x: float `[batch, channels, height, width]`.
        labels: int64 `[batch]`.

    Returns:
        images like `x`, and probabilities float32 `[batch, classes]`.
    """
    batch, _, height, width = x.shape
    alphas = [(config.mixup, False), (config.cutmix, True)]
    kinds = [entry for entry in alphas if entry[0] > 0]
    chosen = rng.integers(0, len(kinds), batch)
    share = np.choose(chosen, [rng.beta(alpha, alpha, batch) for alpha, _ in kinds])
    share = np.where(rng.random(batch) < config.mix_chance, share, 1.0)
    cut = np.choose(chosen, [np.full(batch, is_cut) for _, is_cut in kinds])
    h, w = np.rint(height * np.sqrt(1 - share)), np.rint(width * np.sqrt(1 - share))
    top, left = np.floor(rng.random(batch) * (height - h + 1)), np.floor(rng.random(batch) * (width - w + 1))
    own = np.where(cut, 1 - h * w / (height * width), share)
    weight = torch.where(
        _to(cut, x)[:, None, None, None], (~_inside(x, top, left, top + h, left + w)).to(x.dtype),
        _to(share, x)[:, None, None, None],
    )  # fmt: skip
    mixed = x.roll(1, 0).lerp(x, weight)
    target, part = F.one_hot(labels, classes).float(), _to(own, x)[:, None]
    return mixed, target * part + target.roll(1, 0) * (1 - part)
