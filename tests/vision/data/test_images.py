"""Decoding: what a person expects to see, and a reason for what cannot be seen."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from triune.vision.data import images
from triune.vision.data.images import UnreadableImage, open_image, read_image
from triune.vision.data.scan import look


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes, channels: int = 3) -> np.ndarray:
    return np.asarray(read_image(data, channels))


def noise(height: int = 32, width: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_colour_and_grey_pass_unchanged() -> None:
    picture = noise()
    assert (pixels(encoded(picture)) == np.asarray(picture)).all()
    grey = picture.convert("L")
    assert (pixels(encoded(grey), 1) == np.asarray(grey)).all()
    assert (pixels(encoded(grey)) == np.asarray(grey)[:, :, None]).all()
    assert (pixels(encoded(picture), 1) == np.asarray(grey)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
            6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    assert (pixels(encoded(stored, exif=exif), 1) == upright).all()


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    wide = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    expected = [[0, 1, 1, 128, 255]]
    for kind in ("PNG", "TIFF"):
        assert pixels(encoded(Image.fromarray(wide), kind), 1).tolist() == expected
    as_integers = Image.fromarray(wide.astype(np.int32))
    assert pixels(encoded(as_integers, "TIFF"), 1).tolist() == expected
    assert pixels(encoded(Image.fromarray(wide)), 3)[0, :, 2].tolist() == expected[0]


def test_float_images_and_their_limits() -> None:
    unit = Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32))
    assert pixels(encoded(unit, "TIFF"), 1).tolist() == [[0, 128, 255]]
    bytes_range = Image.fromarray(np.array([[0, 100.4, 255]], dtype=np.float32))
    assert pixels(encoded(bytes_range, "TIFF"), 1).tolist() == [[0, 100, 255]]
    for strange in ([[-3.0, 2.0]], [[0.0, 1e6]], [[0.0, float("nan")]]):
        with pytest.raises(UnreadableImage, match="no agreed brightness"):
            pixels(encoded(Image.fromarray(np.array(strange, dtype=np.float32)), "TIFF"))


def test_transparency_lies_on_white() -> None:
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (200, 0, 0, 128))
    assert pixels(encoded(half)).tolist() == [[[255, 255, 255], [227, 127, 127]]]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert pixels(encoded(grey), 1).tolist() == [[255]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels(encoded(palette)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert pixels(encoded(palette, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    assert pixels(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3))).tolist() == [[[255] * 3]]


def test_other_colour_modes() -> None:
    assert pixels(encoded(Image.new("1", (3, 1), 1)), 1).tolist() == [[255, 255, 255]]
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = pixels(encoded(cmyk, "JPEG", quality=100))[4, 4]
    assert red[0] > 230
    assert red[1] < 30
    assert red[2] < 30


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(gif, 1) == 10).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_truncated_files_are_refused(kind: str, keep: float) -> None:
    whole = encoded(noise(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    with pytest.raises(UnreadableImage, match=r"cut short|damaged|no image"):
        read_image(whole[: int(len(whole) * keep)])


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    cases = {
        b"": "is empty",
        b"<!DOCTYPE html><html>404</html>": "web page",
        b"  <html>": "web page",
        b"<svg xmlns=''>": "SVG",
        b"%PDF-1.7": "PDF",
        b"PK\x03\x04abc": "ZIP",
        b"version https://git-lfs.github.com/spec/v1": "Git LFS",
        b"hello there": "text file",
        bytes(1000): "only zero bytes",
        b"\x93\x81\x00\x01junk\xff": "no image of a known format",
        b"\x00\x00\x00\x18ftypheic\x00": "HEIC",
    }
    for content, words in cases.items():
        file = tmp_path / "cat.jpg"
        file.write_bytes(content)
        with pytest.raises(UnreadableImage, match=words) as error:
            read_image(file)
        assert error.value.name == str(file)
        with pytest.raises(UnreadableImage, match=words):
            read_image(content, name="row 7")
    with pytest.raises(UnreadableImage, match="does not exist"):
        read_image(tmp_path / "no.png")
    with pytest.raises(UnreadableImage, match="is a folder"):
        read_image(tmp_path)


def giant_png(width: int, height: int) -> bytes:
    """A small file that claims to be huge."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_decompression_bombs_are_refused_before_decoding(side: int) -> None:
    with pytest.raises(UnreadableImage, match=r"too large .*80,000,000"):
        read_image(giant_png(side, side))


def test_a_damaged_byte_is_noticed() -> None:
    whole = bytearray(encoded(noise()))
    whole[len(whole) // 2] ^= 0xFF
    with pytest.raises(UnreadableImage):
        read_image(bytes(whole))


def test_errors_pass_between_processes_and_headers_are_enough() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("a.png", "is empty (0 bytes)")))
    assert (error.name, error.reason, str(error)) == (
        "a.png",
        "is empty (0 bytes)",
        "The image 'a.png' is empty (0 bytes).",
    )
    image = open_image(encoded(noise(10, 20))).image
    assert image.size == (20, 10)
    assert Image.MAX_IMAGE_PIXELS is not None, "Pillow's own guard must stay"
    assert images.MAX_PIXELS < Image.MAX_IMAGE_PIXELS


def test_damaged_exif_does_not_hide_the_picture() -> None:
    picture = noise(8, 8)
    data = encoded(picture, exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12")
    assert (pixels(data) == np.asarray(picture)).all()


# --- how bright 16 bits are -------------------------------------------------------------------------------------------

RAMP = np.array([[0, 1023, 2047, 4095]], dtype=np.uint16)
BRIGHT = [[0, 64, 127, 255]]


def tiff(values: np.ndarray, tags: dict[int, int]) -> bytes:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    directory = ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory.tagtype[tag] = 3
        directory[tag] = value
    return encoded(Image.fromarray(values), "TIFF", tiffinfo=directory)


@pytest.mark.parametrize("tag", [281, 341])
@pytest.mark.parametrize("value", [4095, 3100])
def test_tiff_fields_say_the_range(tag: int, value: int) -> None:
    ramp = np.minimum(RAMP, value)
    expected = np.rint(ramp * (255 / 4095)).astype(int).tolist()
    assert pixels(tiff(ramp, {tag: value}), 1).tolist() == expected, "the field names the bits, not each image's white"


def test_a_field_that_the_values_contradict_is_not_used() -> None:
    assert pixels(tiff(RAMP * 16, {281: 4095}), 1)[0, 3] == 255


def png_with_sbit(values: np.ndarray, bits: int) -> bytes:
    whole = encoded(Image.fromarray(values))
    body = b"sBIT" + bytes([bits])
    chunk = struct.pack(">I", 1) + body + struct.pack(">I", zlib.crc32(body))
    return whole[:33] + chunk + whole[33:]


def test_png_says_its_bits_whether_or_not_they_were_stretched() -> None:
    assert pixels(png_with_sbit(RAMP, 12), 1).tolist() == BRIGHT
    assert pixels(png_with_sbit(RAMP << 4, 12), 1).tolist() == BRIGHT, "shifted to the top, as the specification wants"
    assert pixels(png_with_sbit((RAMP << 4) | (RAMP >> 8), 12), 1).tolist() == BRIGHT, "with the upper bits repeated"


def test_pgm_says_its_largest_value() -> None:
    content = b"P5 4 1 4095\n" + RAMP.astype(">u2").tobytes()
    assert pixels(content, 1).tolist() == BRIGHT


def test_white_is_zero_in_tiff() -> None:
    values = np.array([[0, 32768, 65535]], dtype=np.uint16)
    assert pixels(tiff(values, {262: 0}), 1).tolist() == [[255, 127, 0]]


def test_bits_of_the_data_set() -> None:
    content = encoded(Image.fromarray(RAMP), "TIFF")
    twelve = images.Decoding(grey_bits=12)
    assert np.asarray(read_image(content, 1, decoding=twelve)).tolist() == BRIGHT
    with pytest.raises(UnreadableImage, match="values up to 65,520, but those of its data set have 12 bits"):
        read_image(encoded(Image.fromarray(RAMP * 16), "TIFF"), 1, decoding=twelve)


def test_more_pixels_when_told(tmp_path: Path) -> None:
    content = encoded(Image.new("1", (12_000, 7_500)))
    with pytest.raises(UnreadableImage, match="max_megapixels"):
        read_image(content)
    assert read_image(content, 1, decoding=images.Decoding(100_000_000)).size == (12_000, 7_500)


def test_damage_behind_the_first_picture_leaves_it_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of a PSD, or frames: what classify reads, a training reads as well."""

    def damaged(image: Image.Image) -> bool:
        raise ValueError("negative tile size")

    Image.new("RGB", (4, 4), (9, 8, 7)).save(tmp_path / "a.bmp")
    monkeypatch.setattr(
        "PIL.BmpImagePlugin.BmpImageFile.is_animated", property(damaged, lambda *_: None), raising=False
    )
    assert look(str(tmp_path / "a.bmp"), "a.bmp", images.Decoding(), None)[0].problem == ""
    assert read_image(tmp_path / "a.bmp").getpixel((0, 0)) == (9, 8, 7)


def test_the_odd_files_of_pillow_are_read_or_refused() -> None:
    """Set TRIUNE_PILLOW_IMAGES to `Tests/images` of Pillow's source distribution, which has a thousand odd files."""
    folder = Path(os.environ.get("TRIUNE_PILLOW_IMAGES", "no folder"))
    if not folder.is_dir():
        pytest.skip("TRIUNE_PILLOW_IMAGES names no folder of Pillow's own test images")

    def reason(file: Path) -> str:
        try:
            read_image(file)
        except UnreadableImage as error:
            return error.reason
        return ""

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) > 500
    for file in files:
        record, _ = look(str(file), str(file), images.Decoding(), None)
        assert bool(reason(file)) == bool(record.problem), file


def test_heic_is_read_where_the_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"\x00\x00\x00\x18ftypheic" + bytes(20)
    with monkeypatch.context() as patch:
        patch.setattr(images, "_heif", lambda: None)
        with pytest.raises(UnreadableImage, match="needs pillow-heif: pip install pillow-heif"):
            read_image(content)
    opened = iter([UnidentifiedImageError("unknown"), noise(4, 4)])

    def open_once_registered(source: object) -> Image.Image:
        found = next(opened)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(images, "_heif", lambda: images)
    monkeypatch.setattr(images.Image, "open", open_once_registered)
    assert read_image(content).size == (4, 4)
