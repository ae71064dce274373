"""Masks of images: read from files, fitted as the images are, summed up to a label for each patch, and painted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import UserError
from ..core.labels.masks import Mask
from ..core.labels.wanted import MaskFiles, Raw
from ..core.losses import IGNORED
from .data.images import EXTENSIONS, MAX_PIXELS, MOST_PIXELS, UnreadableImage, is_wide, open_image, upright
from .positions import Grid
from .preprocessing import Preprocessing

NEAREST = Image.Resampling.NEAREST
ASPECT = 0.02
"""How far the shape of a mask may be from that of its image."""


# --- files ------------------------------------------------------------------------------------------------------------


def read_mask(path: Path, max_pixels: int = MAX_PIXELS) -> Raw:
    """The numbers of a mask: indices of a palette, 1-bit, 8-bit, 16-bit or floating-point values, upright.

    Raises:
        UserError: it cannot be decoded, has more than `max_pixels`, or has colours or transparency, of which none is
            the number of a class.
    """
    opened = open_image(path, max_pixels=max_pixels)
    image, name = opened.image, opened.name
    try:
        lossy = image.format == "JPEG"
        image.load()
        found = upright(image)
        palette = found.mode == "P"
        if found.mode in ("RGB", "RGBA", "LA"):
            found = _grey(found, name)
        if found.mode not in ("1", "L", "P", "F") and not is_wide(found.mode):
            raise _coloured(name, found.mode)
        values = np.asarray(found)
    except (UserError, UnreadableImage):
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them into
        raise UserError(f"The mask '{name}' cannot be decoded ({error}); write it anew.") from None
    finally:
        image.close()
    if values.dtype.kind == "i" and values.size and not 0 <= values.min() <= values.max() < 1 << 16:
        raise UserError(f"The mask '{name}' has values beyond 0..65535; write it in 16 bits.")
    kind = {"b": np.uint8, "f": np.float32, "u": values.dtype, "i": np.uint16}[values.dtype.kind]
    return Raw(values.astype(kind), palette, lossy)


def _grey(image: Image.Image, name: str) -> Image.Image:
    """An image of colours that are all grey and opaque, as grey."""
    planes = np.asarray(image)
    opaque = not image.mode.endswith("A") or bool((planes[..., -1] == 255).all())
    colours = planes[..., :-1] if image.mode.endswith("A") else planes
    if not opaque or bool((colours != colours[..., :1]).any()):
        raise _coloured(name, image.mode)
    return Image.fromarray(np.ascontiguousarray(colours[..., 0]))


def _coloured(name: str, mode: str) -> UserError:
    return UserError(
        f"The mask '{name}' has colours or transparency (mode {mode}), but must have one number in each pixel; write "
        "class numbers as grey levels or as the indices of a palette."
    )


def _named(cell: str) -> bool:
    return Path(cell).suffix.lower() in EXTENSIONS


MASKS = MaskFiles(_named, read_mask)


def masks_up_to(megapixels: float) -> MaskFiles:
    """How masks are read of images that may have so many megapixels."""
    return MaskFiles(_named, partial(read_mask, max_pixels=round(megapixels * 1e6)))


# --- fitted as the image is -------------------------------------------------------------------------------------------


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) of an image as a person sees it, from its header. Raises UnreadableImage."""
    image = open_image(path, max_pixels=MOST_PIXELS).image  # its pixels are not decoded here
    try:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception:  # damaged EXIF data say nothing about the pixels
        turned = False
    finally:
        image.close()
    return (image.height, image.width) if turned else image.size


def over_image(mask: Mask, image: Path) -> Image.Image:
    """The labels of a mask at the size of its image, by the nearest pixel; mode I or F.

    Raises:
        UserError: the mask has another shape than its image.
    """
    labels, size = mask.labels(), size_of(image)
    height, width = labels.shape
    if mask.grid is None and abs(width * size[1] / (height * size[0]) - 1) > ASPECT:
        raise UserError(
            f"The mask '{mask.path}' has {width} × {height} pixels, but must have the shape of its image '{image}', "
            f"{size[0]} × {size[1]}; write it anew."
        )
    found = Image.fromarray(labels.astype(np.int32 if labels.dtype.kind == "i" else np.float32))
    return found if found.size == size else found.resize(size, NEAREST)


def fitted(mask: Mask, image: Path, preprocessing: Preprocessing, size: Grid) -> np.ndarray:
    """The labels of a mask as `preprocessing` fits its image to `size`, by the nearest pixel: int32 `[height, width]`
    with -100, or float32 with NaN, where there is none.
    """
    if mask.empty:
        return np.full(size, np.nan, np.float32) if mask.numbers else np.full(size, IGNORED, np.int32)
    return np.asarray(replace(preprocessing, interpolation="nearest").fit(over_image(mask, image), size))


# --- labels of patches ------------------------------------------------------------------------------------------------


def patch_labels(pixels: Tensor, patch: Grid, classes: int | None) -> Tensor:
    """What each patch is labelled with.

    Args:
        pixels: float `[batch, height, width]` of class numbers or numbers, NaN without a label.
        patch: height and width of a patch.
        classes: how many classes there are; None for numbers.

    Returns:
        The commonest class of a patch's labelled pixels, of equally common ones the first, int64 `[batch, patches]`; or
        the mean of its numbers, float32. -100 or NaN where no pixel has a label.
    """
    height, width = patch
    parts = pixels.unflatten(2, (-1, width)).unflatten(1, (-1, height)).transpose(2, 3).flatten(3).flatten(1, 2)
    if classes is None:
        return parts.nanmean(-1)
    batch, patches = parts.shape[:2]
    codes = parts.nan_to_num(nan=float(classes)).long()  # those without a label are counted apart
    each = torch.arange(batch * patches, device=pixels.device).view(batch, patches, 1) * (classes + 1)
    counts = torch.bincount((codes + each).flatten(), minlength=batch * patches * (classes + 1))
    counts = counts.view(batch, patches, classes + 1)[..., :classes]
    return counts.argmax(-1).masked_fill(counts.sum(-1) == 0, IGNORED)


def reference_patch_labels(pixels: Tensor, patch: Grid, classes: int | None) -> Tensor:
    """The same, one patch after another."""
    height, width = patch
    rows = []
    for image in pixels:
        row = []
        for top in range(0, image.shape[0], height):
            for left in range(0, image.shape[1], width):
                held = [float(v) for v in image[top : top + height, left : left + width].flatten() if v == v]
                if classes is None:
                    row.append(sum(held) / len(held) if held else float("nan"))
                else:
                    row.append(max(range(classes), key=lambda c: held.count(c)) if held else IGNORED)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float32 if classes is None else torch.int64)


def with_prefix(labels: Tensor, prefix: int) -> Tensor:
    """Labels `[batch, patches]` behind those of class token and registers, which have none."""
    filler = IGNORED if labels.dtype == torch.int64 else float("nan")
    return torch.cat([labels.new_full((len(labels), prefix), filler), labels], dim=1)


def as_target(pixels: Tensor, patch: Grid, classes: int | None) -> np.ndarray:
    """Labels of patches as heads take them, int64 or float64 `[patches]`, of those of pixels `[height, width]`."""
    found = patch_labels(pixels[None], patch, classes)[0].numpy()
    return found.astype(np.float64) if classes is None else found


def labels_of(mask: Mask, image: Path, preprocessing: Preprocessing, size: Grid, patch: Grid) -> np.ndarray:
    """The label of each patch of one image; see `as_target`."""
    found = fitted(mask, image, preprocessing, size)
    values = torch.from_numpy(found.astype(np.float32))
    if not mask.numbers:
        values = values.masked_fill(values == IGNORED, float("nan"))
    classes = None if mask.numbers else int(values.nan_to_num(nan=0.0).max()) + 1
    return as_target(values, patch, classes)


def planes(pixels: Tensor) -> Tensor:
    """Labels `[batch, height, width]` as `[batch, 2, height, width]` without NaN: labels, and 1 where there is one."""
    return torch.stack([pixels.nan_to_num(), (~pixels.isnan()).to(pixels.dtype)], dim=1)


def from_planes(pair: Tensor) -> Tensor:
    """The inverse of `planes`."""
    return pair[:, 0].masked_fill(pair[:, 1] < 0.5, float("nan"))


# --- answers as pictures ----------------------------------------------------------------------------------------------


PALETTE = [
    round(255 * part)
    for i in range(255)
    for part in hsv_to_rgb(i * 0.618 % 1, 0.55 + 0.15 * (i % 3), 0.95 - 0.2 * (i % 2))
] + [255, 255, 255]  # fmt: skip
"""Colours of the numbers 0..254, neighbours far apart; 255, no label, is white."""


def value_of(names: Sequence[str], called: Mapping[str, str]) -> dict[str, int]:
    """The number of each class in a mask: the value that was called so, its own where all names are whole numbers below
    255, else its place.

    Raises:
        UserError: there are more than a mask of 8 bits holds.
    """
    values = {name: int(value) for value, name in called.items() if value.isdecimal() and int(value) < 255}
    if all(name in values for name in names):
        return {name: values[name] for name in names}
    if all(name.isdecimal() and int(name) < 255 for name in names):
        return {name: int(name) for name in names}
    if len(names) > 255:
        raise UserError(f"The model has {len(names)} classes, but a mask of 8 bits holds 255; leave --masks out.")
    return {name: number for number, name in enumerate(names)}


def as_mask(answers: np.ndarray, image: tuple[int, int], preprocessing: Preprocessing, size: Grid) -> np.ndarray:
    """Answers to the patches of an image, at each of its pixels.

    Args:
        answers: `[rows, columns]` of patches.
        image: (width, height) of the image.
        preprocessing, size: how it was fitted.

    Returns:
        float64 `[height, width]`; NaN for pixels that were cut off, which the model did not see.
    """
    (wide, high), (left, top) = preprocessing.placed(image, size)
    found = []
    for side, scaled, first, whole, count in (
        (image[1], high, top, size[0], answers.shape[0]), (image[0], wide, left, size[1], answers.shape[1]),
    ):  # fmt: skip
        seen = (np.arange(side) + 0.5) * scaled / side - first
        found.append(np.where((seen < 0) | (seen >= whole), -1, np.floor(seen * count / whole)).astype(np.int64))
    down, across = np.ix_(*found)
    return np.where((down < 0) | (across < 0), np.nan, answers.astype(np.float64)[down, across])
