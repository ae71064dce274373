"""Image files as a person sees them: decoded to 8-bit grey or colour, or refused with a reason."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ...core.errors import UserError
from ...core.files import kind_of

# Pillow warns of sizes that are refused here anyway, and of odd metadata. Suppressing it at each call would not be safe
# in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_PIXELS = 80_000_000
"""Larger images are refused: 80 megapixels are 240 MB of colour, and a file of a few kB can claim any size."""

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".avif", ".jp2", ".tga",
)  # fmt: skip
"""Names that are taken for images; anything else in a folder is passed over."""

FORMAT_OF = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".bmp": "BMP", ".gif": "GIF",
    ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
"""The format that a name promises, for the common ones."""


class UnreadableImage(UserError):
    """A file that cannot be decoded. `name` says which, `reason` why, in a few words ("is cut short")."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"The image '{name}' {reason}.")
        self.name, self.reason = name, reason

    def __reduce__(self) -> Any:  # so that it survives the way out of a worker process
        return type(self), (self.name, self.reason)


def read_image(source: str | os.PathLike[str] | bytes, channels: int = 3, name: str = "") -> Image.Image:
    """Decode a file, or its content, completely. Returns an image of mode RGB (`channels` 3) or L (1).

    - turned upright as its EXIF orientation says;
    - transparency (alpha, a transparent palette entry or colour) on white;
    - 16-bit grey scaled to 8 bits (65,535 becomes 255); 32-bit images by `_from_wide`;
    - palette, 1-bit, CMYK and YCbCr images converted; colour to grey by ITU-R 601 luma;
    - the first frame of an animation, the first page of a document.

    Args:
        source: path, or the bytes of the file.
        channels: 1 or 3.
        name: how messages call `bytes`.

    Raises:
        UnreadableImage: missing, empty, truncated, damaged, no image, or larger than `MAX_PIXELS`.
    """
    return decode(*open_image(source, name), channels)


def decode(image: Image.Image, name: str, channels: int = 3) -> Image.Image:
    """Decode what `open_image` returned, and close it; otherwise as `read_image`."""
    try:
        image.load()
        return _convert(_upright(image), channels, name)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them into
        raise UnreadableImage(name, _reason(error)) from None
    finally:
        image.close()


def open_image(source: str | os.PathLike[str] | bytes, name: str = "") -> tuple[Image.Image, str]:
    """Read the header only: Pillow's lazy image (its `size`, `mode`, `format`) and its name. Raises UnreadableImage."""
    name = name or ("(bytes)" if isinstance(source, bytes) else os.fspath(source))
    if not isinstance(source, bytes) and os.path.exists(source) and (what := kind_of(os.stat(source).st_mode)):
        raise UnreadableImage(name, f"is {what}, not a file")
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except FileNotFoundError:
        raise UnreadableImage(name, "does not exist") from None
    except UnidentifiedImageError:
        raise UnreadableImage(name, what_is(source)) from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(
            name, f"is too large ({_pixels_in(str(error))}, at most {MAX_PIXELS:,} are read)"
        ) from None
    except Exception as error:
        raise UnreadableImage(name, _reason(error)) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise UnreadableImage(name, f"is too large ({width:,} × {height:,} pixels, at most {MAX_PIXELS:,} are read)")
    return image, name


def _pixels_in(message: str) -> str:
    numbers = [int(word) for word in message.replace("(", " ").split() if word.isdigit()]
    return f"{numbers[0]:,} pixels" if numbers else "too many pixels"


def what_is(source: str | os.PathLike[str] | bytes) -> str:
    """Say in words what a file that is no image looks like."""
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
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "is HEIC, which is not supported; convert it to JPEG or PNG"
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


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data say nothing about the pixels
        return image


def _convert(image: Image.Image, channels: int, name: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = _from_wide(image, name)
        return grey if channels == 1 else grey.convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    target = "L" if channels == 1 else "RGB"
    if image.mode == target:
        return image.copy()
    return (image if image.mode in ("L", "1", "RGB") else image.convert("RGB")).convert(target)


def _from_wide(image: Image.Image, name: str) -> Image.Image:
    """Grey of 16 or 32 bits as 8 bits; Pillow's own conversion clips at 255.

    Integers are 16-bit values; floats count from 0 to 1, or from 0 to 255. Other values have no agreed meaning.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        scale = 255.0 if high <= 1 else 1.0
        fits = low >= 0 and high <= 255
    else:
        scale = 255 / 65535
        fits = low >= 0 and high <= 65535
    if not fits:  # also where a value is not a number
        raise UnreadableImage(
            name,
            f"has 32-bit values from {low:g} to {high:g}, which have no agreed brightness; convert it to 8 or 16 bits",
        )
    return Image.fromarray(np.rint(values * scale).astype(np.uint8))
