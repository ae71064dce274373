"""Image files as a person sees them: decoded to 8-bit grey or colour, or refused with a reason."""

from __future__ import annotations

import functools
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ...core.errors import UserError
from ...core.files import kind_of

# Pillow warns of sizes that are refused here anyway, and of odd metadata. Suppressing it at each call would not be safe
# in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_PIXELS = 80_000_000
"""Larger images are refused unless told otherwise: 80 megapixels are 240 MB of colour, and a file of a few kB can claim
any size."""
MOST_PIXELS = 10_000_000_000
"""What may be told at most."""

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".avif", ".jp2", ".tga", ".heic", ".heif", ".hif", ".apng", ".dib", ".j2k", ".jpf", ".jpx", ".mpo",
)  # fmt: skip
"""Names that are taken for images; anything else in a folder is passed over."""
UNREAD = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcm", ".dng", ".erf", ".exr", ".hdr", ".iiq", ".jxl", ".jxr", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".psb", ".psd", ".raf", ".raw", ".rw2", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
"""Names of photographs in formats that are not read, which is said wherever a folder is read."""

FORMAT_OF = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".bmp": "BMP", ".gif": "GIF",
    ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
"""The format that a name promises, for the common ones."""


_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class UnreadableImage(UserError):
    """A file that cannot be decoded. `name` says which, `reason` why, in a few words ("is cut short")."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"The image '{name}' {reason}.")
        self.name, self.reason = name, reason

    def __reduce__(self) -> Any:  # so that it survives the way out of a worker process
        return type(self), (self.name, self.reason)


@dataclass(frozen=True)
class Decoding:
    """How files are decoded where there is a choice.

    Args:
        max_pixels: larger images are refused.
        grey_bits: what the values of 16-bit grey files have, where the file does not say it: 12 makes 4,095 white.
    """

    max_pixels: int = MAX_PIXELS
    grey_bits: int = 16


class Opened(NamedTuple):
    """A file of which only the header was read: Pillow's lazy image, its name, and the largest value that its grey
    levels of 16 bits can have by the file's own fields (0 where these do not say it). `inverted`: 0 is white."""

    image: Image.Image
    name: str
    white: int
    inverted: bool


def read_image(
    source: str | os.PathLike[str] | bytes, channels: int = 3, name: str = "", decoding: Decoding = Decoding()
) -> Image.Image:
    """Decodes a file, or its content, completely. Returns an image of mode RGB (`channels` 3) or L (1).

    - turned upright as its EXIF orientation says;
    - transparency (alpha, a transparent palette entry or colour) on white;
    - 16-bit grey scaled to 8 bits by its range (see `white_level`); 32-bit images by `_from_wide`;
    - palette, 1-bit, CMYK and YCbCr images converted; colour to grey by ITU-R 601 luma;
    - the first frame of an animation, the first page of a document.

    Args:
        source: path, or the bytes of the file.
        channels: 1 or 3.
        name: how messages call `bytes`.
        decoding: the choices.

    Raises:
        UnreadableImage: missing, empty, truncated, damaged, no image, or larger than `decoding.max_pixels`.
    """
    return decode(open_image(source, name, decoding.max_pixels), channels, decoding)


def decode(opened: Opened, channels: int = 3, decoding: Decoding = Decoding()) -> Image.Image:
    """Decodes what `open_image` returned, and closes it; otherwise as `read_image`."""
    image, name = opened.image, opened.name
    try:
        image.load()
        if is_wide(image.mode) or image.mode == "F":
            grey = _from_wide(upright(image), opened, decoding.grey_bits)
            return grey if channels == 1 else grey.convert("RGB")
        return _convert(upright(image), channels)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them into
        raise UnreadableImage(name, _reason(error)) from None
    finally:
        image.close()


def open_image(source: str | os.PathLike[str] | bytes, name: str = "", max_pixels: int = MAX_PIXELS) -> Opened:
    """Reads the header only. Raises UnreadableImage."""
    name = name or ("(bytes)" if isinstance(source, bytes) else os.fspath(source))
    image = _opened(source, name, max_pixels)
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise UnreadableImage(name, _too_large(f"{width:,} × {height:,} pixels", max_pixels))
    if not is_wide(image.mode):
        return Opened(image, name, 0, False)
    # Pillow leaves TIFF's "white is zero" of 16 bits as it is.
    inverted = image.format == "TIFF" and image.tag_v2.get(262) == 0  # pyright: ignore[reportAttributeAccessIssue]
    return Opened(image, name, white_level(image, source), inverted)


def _opened(source: str | os.PathLike[str] | bytes, name: str, max_pixels: int) -> Image.Image:
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        if not isinstance(source, bytes) and (what := kind_of(os.stat(source).st_mode)):
            raise UnreadableImage(name, f"is {what}, not a file")
        return _pillow(io.BytesIO(source) if isinstance(source, bytes) else source)
    except UnreadableImage:
        raise
    except FileNotFoundError:
        raise UnreadableImage(name, "does not exist") from None
    except UnidentifiedImageError:
        raise UnreadableImage(name, what_is(source)) from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(name, _too_large(_pixels_in(str(error)), max_pixels)) from None
    except Exception as error:
        raise UnreadableImage(name, _reason(error)) from None


def _pillow(source: Any) -> Image.Image:
    """Opens with Pillow, and with pillow-heif where that is installed and nothing else knows the file."""
    try:
        return Image.open(source)
    except UnidentifiedImageError:
        if _heif() is None:
            raise
        if isinstance(source, io.BytesIO):
            source.seek(0)
        return Image.open(source)


@functools.cache
def _heif() -> Any:
    """The package pillow-heif, registered with Pillow; None where it is not installed."""
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports] (optional)
    except ImportError:
        return None
    pillow_heif.register_heif_opener()
    return pillow_heif


def _too_large(size: str, most: int) -> str:
    return (
        f"is too large ({size}, at most {most:,} are read; to read it, raise max_megapixels: --data.max_megapixels of "
        "training, --max-megapixels of check and classify, --max_megapixels of predict and embed)"
    )


def _pixels_in(message: str) -> str:
    numbers = [int(word) for word in message.replace("(", " ").split() if word.isdigit()]
    return f"{numbers[0]:,} pixels" if numbers else "too many pixels"


def what_is(source: str | os.PathLike[str] | bytes) -> str:
    """Says in words what a file that is no image looks like."""
    try:
        if isinstance(source, bytes):
            start = source[:512]
        else:
            with Path(source).open("rb") as file:
                start = file.read(512)
    except OSError as error:
        return _reason(error)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "is empty (0 bytes)"
    if b"<svg" in text:
        return "is a vector drawing (SVG); convert it to PNG"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "is a web page (HTML), not an image: the download went wrong"
    if text.startswith((b"<?xml", b"<")):
        return "is XML, not an image"
    known = {
        b"%pdf": "a PDF", b"pk\x03\x04": "a ZIP archive", b"\x1f\x8b": "a gzip archive",
        b"version https://git-lfs": "a Git LFS pointer",
    }  # fmt: skip
    for magic, kind in known.items():
        if text.startswith(magic):
            return f"is {kind}, not an image"
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS:
        missing = "needs pillow-heif: pip install pillow-heif, or convert it to JPEG"
        return f"is HEIC, which {missing}" if _heif() is None else "is HEIC, but damaged"
    if not any(start):
        return "holds only zero bytes: it was never written completely"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start):
        return "is a text file, not an image"
    return "is no image of a known format, or its first bytes are damaged"


def _reason(error: Exception) -> str:
    """What a decoder's exception means, as the end of a sentence."""
    text = str(error).strip().rstrip(".")
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, EOFError) or any(word in text.lower() for word in ("truncated", "cut", "end of file")):
        return "is cut short (truncated)"
    return f"is damaged ({text or type(error).__name__})"


def upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data say nothing about the pixels
        return image


def _convert(image: Image.Image, channels: int) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    target = "L" if channels == 1 else "RGB"
    if image.mode == target:
        return image.copy()
    return (image if image.mode in ("L", "1", "RGB") else image.convert("RGB")).convert(target)


def is_wide(mode: str) -> bool:
    """Whether a Pillow mode is grey in integers of more than 8 bits."""
    return mode == "I" or mode.startswith("I;16")


def white_level(image: Image.Image, source: str | os.PathLike[str] | bytes) -> int:
    """The largest value that the grey levels of a file can have by the file's own fields; 0 where they do not say it.

    TIFF: BitsPerSample below 16, else SMaxSampleValue or MaxSampleValue, taken as a number of bits (3,000 means 12
    bits, because the field may hold the largest value that occurs). PNG: sBIT.
    """
    bits = 0
    if image.format == "TIFF":
        tags = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
        bits = _first(tags.get(258)) if _first(tags.get(258)) < 16 else 0
        bits = bits or max(_first(tags.get(341)), 0).bit_length() or max(_first(tags.get(281)), 0).bit_length()
    elif image.format == "PNG":
        bits = _significant_bits(source)
    return (1 << bits) - 1 if 0 < bits < 16 else 0


def _first(value: Any) -> int:
    """A number of a TIFF field, which can be alone or in a tuple; 0 where there is none."""
    value = value[0] if isinstance(value, tuple) and value else value
    return int(value) if isinstance(value, int | float) and 0 <= value < 2**32 else 0


def _significant_bits(source: str | os.PathLike[str] | bytes) -> int:
    """What the sBIT chunk of a grey PNG says; 0 where there is none."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"sBIT" and length:
                return file.read(1)[0]
            file.seek(length + 4, os.SEEK_CUR)
    return 0


def _from_wide(image: Image.Image, opened: Opened, grey_bits: int) -> Image.Image:
    """Grey of 16 or 32 bits as 8 bits; Pillow's own conversion clips at 255.

    Integers reach up to what the file says, else have `grey_bits`; floats count from 0 to 1, or from 0 to 255. Other
    values have no agreed meaning.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        most = float(float_white(high))
    else:
        most = own_white(values, opened.white) or (1 << grey_bits) - 1
        if low >= 0 and most < high <= 65535:
            raise UnreadableImage(
                opened.name,
                f"has values up to {high:,.0f}, but those of its data set have {grey_bits} bits, up to {most:,.0f}",
            )
    if not 0 <= low <= high <= most:  # also where a value is not a number
        raise UnreadableImage(
            opened.name,
            f"has 32-bit values from {low:g} to {high:g}, which have no agreed brightness; convert it to 8 or 16 bits",
        )
    grey = np.rint(values * (255 / most)).astype(np.uint8)
    return Image.fromarray(255 - grey if opened.inverted else grey)


def float_white(largest: float) -> int:
    """What is taken as white in floating-point values up to `largest`."""
    return 1 if largest <= 1 else 255


def own_white(values: np.ndarray, white: int) -> int:
    """The value that is white by the file's own field; 0 where there is no field, or the values contradict it.

    PNG's specification wants values of fewer bits stretched to all 16 (their lower bits are then zero, or repeat the
    upper ones), which many writers do not do: values that stay within the field's bits are taken as they are.
    """
    if not white:
        return 0
    if int(values.max(initial=0)) <= white:
        return white
    shift = 16 - white.bit_length()
    upper = values.astype(np.int64) >> shift
    stretched = (upper << shift) | (upper >> max(white.bit_length() - shift, 0))
    plain = bool((values == upper << shift).all()) or bool((values == stretched).all())
    return 65535 if plain else 0
