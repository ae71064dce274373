"""From a collection to the images that are trained on and scored: looked at, sorted out, each file decoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...core.errors import UserError
from ..preprocessing import IMAGENET, Preprocessing
from .batches import channel_statistics, common_size, pixels_in_memory
from .collection import Collection, Side
from .folders import unread_note
from .images import Decoding, is_wide, open_image
from .scan import Fit, Kept, Record, scan
from .split import check_classes, check_sides, count_copies, drop_unreadable, hold_out

SMALL_SIDE = 64
"""Images of up to this many pixels a side are trained on as they are, and cropped at random from these pixels."""
GLANCES = 16
"""Files of which the size is read to guess how all will be kept, before each is decoded."""
_BITS = (8, 10, 12, 14, 16)
Records = dict[Side, list[Record]]
Shape = tuple[tuple[int, int], int]
"""((height, width), channels) of training."""


def chosen_shape(
    known: list[Record], image_size: int | list[int] | tuple[int, ...] | None, channels: int | None
) -> Shape:
    """(height, width) and channels of training: what is given, else what suits readable images; see `ImageData`."""
    if image_size is None:
        common = common_size([(record.height, record.width) for record in known])
        image_size = common if common and max(common) <= SMALL_SIDE else 224
    sides = [image_size] if isinstance(image_size, int) else list(image_size)
    if channels is None:
        channels = 1 if all(map(is_grey, known)) else 3
    return (sides[0], sides[-1]), channels


def is_grey(record: Record) -> bool:
    """Whether an image has no colour by its mode."""
    return record.mode in ("1", "L", "LA", "F") or is_wide(record.mode)


@dataclass(frozen=True)
class Settings:
    """How images are gathered; the fields are those of `ImageData`, but for these.

    Args:
        bits: of 16-bit grey files that do not say it; None: what the images have.
        from_files: training images are decoded for each batch, because they are cropped at random.
        fitted: mean and std are those of `preprocessing`, not of the images.
        later: pixels are read when they are first asked for.
    """

    image_size: int | list[int] | tuple[int, ...] | None
    channels: int | None
    preprocessing: Preprocessing
    bits: int | None
    from_files: bool
    fitted: bool
    memory: float
    max_pixels: int
    on_error: str
    val_fraction: float
    seed: int
    statistics: str
    later: bool = False

    def in_memory(self, images: int, shape: Shape) -> bool:
        """Whether so many images are kept as pixels."""
        (height, width), channels = shape
        from_files = self.from_files and max(height, width) > SMALL_SIDE
        return not from_files and images * channels * height * width <= self.memory * 1e9


@dataclass
class Gathered:
    """Images that are ready to be served: see the attributes of `ImageData`.

    Args:
        pixels: uint8 `[images, channels, height, width]` of each side, or what reads them; empty if they are not kept
            in memory.
        content: hash of the images to train and validate on.
        learned: hashes of the training images, in their order.
    """

    collection: Collection
    records: Records
    shape: Shape
    preprocessing: Preprocessing
    pixels: dict[Side, Any]
    skipped: int
    leaked: int
    duplicates: int
    content: str
    learned: list[str]


def gather(collection: Collection, settings: Settings, cache: Path, changed: Callable[[str], None]) -> Gathered:
    """Looks at the images of a collection, splits it, and decodes what is kept in memory.

    Args:
        collection: what was found; it is changed.
        settings: how.
        cache: folder for records and pixels.
        changed: called with the content's hash before anything is split, and may refuse it.

    Raises:
        UserError: what is wrong with the images.
    """
    collection.notes += unread_note(collection.others)
    for images in collection.sides.values():
        images.decoding = Decoding(settings.max_pixels)
    records, kept = _look_through(collection, cache, settings)
    bits = settle_range(collection, records, settings.bits, kept)
    skipped = drop_unreadable(collection, records, settings.on_error)
    digests = sorted(record.digest for side in ("train", "val") for record in records.get(side, ()))
    content = hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest() if "train" in records else ""
    changed(content)
    leaked = duplicates = 0
    if "train" in records:
        check_classes(collection)
        leaked, duplicates = _separate(collection, records, settings.val_fraction, settings.seed)
    else:
        check_sides(collection)
    known = [record for found in records.values() for record in found]
    size, channels = shape = chosen_shape(known, settings.image_size, settings.channels)
    preprocessing = replace(settings.preprocessing, grey_bits=bits)
    pixels = {}
    if settings.in_memory(len(known), shape):
        for side, images in collection.sides.items():
            label = f"reading {side} images"
            read = partial(pixels_in_memory, images, size, channels, preprocessing, cache, label, kept)
            pixels[side] = read if settings.later else read()
    if not settings.fitted:
        preprocessing = _normalised(preprocessing, settings.statistics, channels, pixels.get("train"))
    learned = [record.digest for record in records.get("train", ())]
    return Gathered(collection, records, shape, preprocessing, pixels, skipped, leaked, duplicates, content, learned)


def _normalised(preprocessing: Preprocessing, statistics: str, channels: int, pixels: Any) -> Preprocessing:
    """With the mean and std that `ImageData.statistics` asks for."""
    mean, std = [0.5], [0.5]
    if callable(pixels):
        pixels = pixels() if statistics == "auto" else None
    if statistics == "auto" and pixels is not None:
        mean, std = channel_statistics(pixels)
    elif statistics != "half" and channels == 3:
        mean, std = IMAGENET
    return replace(preprocessing, mean=list(mean), std=list(std))


def _look_through(collection: Collection, cache: Path, settings: Settings) -> tuple[Records, Kept]:
    """A record of each image by side, and the pixels of files that are decoded for it, if they are to be kept.

    Their shape is guessed from a few files. Where one image differs from all those, the pixels are made anew.
    """
    count = sum(map(len, collection.sides.values()))

    def shape(known: list[Record]) -> Shape | None:
        chosen = chosen_shape(known, settings.image_size, settings.channels)
        return chosen if known and settings.in_memory(count, chosen) else None

    guessed, kept = shape(_glances(collection)), Kept()
    fit = None if guessed is None else _fit(settings.preprocessing, guessed)
    records = {
        side: scan(images, cache, f"checking {side} images", fit, kept) for side, images in collection.sides.items()
    }
    known = [record for found in records.values() for record in found if not record.problem]
    if guessed is not None and shape(known) != guessed:
        kept.clear()
    return records, kept


def _glances(collection: Collection) -> list[Record]:
    """What the headers of a few files say."""
    found = []
    for images in collection.sides.values():
        for index in range(0, len(images), max(1, len(images) // GLANCES)):
            if images.array is not None:
                height, width = images.array.shape[1:3]
                found.append(Record(width, height, "L" if images.array.ndim == 3 else "RGB"))
                continue
            try:
                image = open_image(images.source(index), images.names[index], images.decoding.max_pixels).image
            except (UserError, OSError):
                continue
            found.append(Record(*image.size, image.mode))
            image.close()
    return found


def _fit(preprocessing: Preprocessing, shape: Shape) -> Fit:
    size, channels = shape

    def fit(image: Image.Image) -> np.ndarray:
        return preprocessing.pixels(image.convert("L") if channels == 1 else image, size).numpy()

    return fit


def settle_range(collection: Collection, records: Records, bits: int | None = None, kept: Kept | None = None) -> int:
    """Decides, for 16-bit grey files that do not say it themselves, how many bits their values have.

    It is what a trained model was given (`bits`), else the least of 8, 10, 12, 14 and 16 that holds the largest value
    of all sides.

    Raises:
        UserError: colour images of 16 bits that use fewer, of which the decoder keeps only the upper 8; images of
            floating-point values in two ranges.
    """
    found = [record for side in records.values() for record in side if not record.problem]
    deep = [record.peak for record in found if record.peak and not is_wide(record.mode) and record.mode != "F"]
    if deep and max(deep) < 1 << 14:
        raise UserError(
            f"The {len(deep):,} colour images of 16 bits have values below {max(deep) + 1:,} only, so they have fewer "
            "bits in 16-bit files and would be read as almost black; convert them to 8 bits."
        )
    whites = [record.peak for record in found if record.mode == "F"]
    if len(set(whites)) > 1:
        raise UserError(
            f"Of {len(whites):,} images of floating-point values {whites.count(1):,} reach up to 1 and the others "
            "further, so the same value would have two brightnesses; convert all of them to 8 bits, or to values from "
            "0 to 1."
        )
    peaks = [record.peak for record in found if record.open_range]
    if bits is None:
        bits = next(bits for bits in _BITS if max(peaks, default=65535) < 1 << bits) if max(peaks, default=0) else 16
    for side, images in collection.sides.items():
        images.decoding = replace(images.decoding, grey_bits=bits)
        for index, record in enumerate(records[side]):
            if record.open_range and record.peak >= 1 << bits:
                problem = f"has values up to {record.peak:,}, but the model was trained on {bits} bits"
                records[side][index] = replace(record, problem=problem)
            if kept and record.open_range and bits != 16:
                kept.pop((id(images.encoded), int(images.rows[index])), None)
    if peaks and bits != 16:
        collection.notes.append(
            f"{len(peaks):,} images have {bits} bits in 16-bit files: {(1 << bits) - 1:,} is white."
        )
    return bits


def _separate(collection: Collection, records: Records, fraction: float, seed: int) -> tuple[int, int]:
    """Holds out validation images if there are none, and takes from training what another side also has.

    Returns:
        Training images left out because validation or test has the same pixels; copies within training and validation.
    """
    digests = {side: [record.digest for record in found] for side, found in records.items()}
    others = {digest for side in digests if side != "train" for digest in digests[side]}
    clean = np.array([digest not in others for digest in digests["train"]], dtype=bool)
    if len(clean) and not clean.any():
        raise UserError(
            f"All {len(clean):,} training images have the pixels of images of validation or test, so that none is left "
            "to learn from; hold out other ones."
        )
    _keep(collection, records, "train", np.flatnonzero(clean))
    train = [record.digest for record in records["train"]]
    if "val" not in collection.sides:
        held = hold_out(train, collection.sides["train"].labels, fraction, seed)
        collection.sides["val"], records["val"] = collection.sides["train"], records["train"]
        _keep(collection, records, "val", np.flatnonzero(held))
        _keep(collection, records, "train", np.flatnonzero(~held))
    check_classes(collection)
    return int((~clean).sum()), count_copies(train) + count_copies(digests.get("val", []))


def _keep(collection: Collection, records: Records, side: Side, index: np.ndarray) -> None:
    collection.sides[side] = collection.sides[side].select(index)
    records[side] = [records[side][i] for i in index]


def colour_note(records: list[Record], channels: int) -> list[str]:
    """What happens to images whose colours are not those of the model."""
    grey = sum(map(is_grey, records))
    if channels == 3 and grey:
        return [f"{grey:,} grey images are read as colour, as the model was trained."]
    if channels == 1 and grey < len(records):
        return [f"{len(records) - grey:,} colour images are read as grey, as the model was trained."]
    return []
