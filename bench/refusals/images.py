"""Images, folders, archives and IDX files that cannot be used."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator

from .made import Case, Content, claimed, folder, idx, packed, picture, pipe, table, tarred

IMAGES = "vision fit --run run --data.cache cache --data.root {}"
PLAIN = "vision pretrain --run run --data.cache cache --data.root {}"
CHECK = "vision check --cache cache {}"
CLASSIFY = "vision classify {} --run ok/vit"
GOOD = picture()
PAIRS: dict[str, Content] = {"x/a/1.png": GOOD, "x/b/1.png": picture(colour=9)}
LABELS = idx((2,), b"\0\1")
PACKED_IDX = gzip.compress(idx((2, 2, 2), bytes(8)))

BROKEN: list[tuple[str, Content, str]] = [
    ("a pipe", pipe, "pipe"),
    ("an empty file", b"", "empty"),
    ("a text", b"hello", "text file"),
    ("a web page", b"<html>", "web page"),
    ("a cut image", GOOD[:40], "cut short|damaged"),
    ("zero bytes only", bytes(99), "zero bytes"),
    ("a PDF", b"%PDF-1.4", "PDF"),
    ("an image of 10^10 pixels", GOOD[:16] + struct.pack(">II", 100_000, 100_000) + GOOD[24:], "too large|damaged"),
]
PLAIN_CASES: list[tuple[str, str, dict[str, Content], str]] = [
    ("no such folder", "none", {}, "does not exist"),
    ("an empty folder", "x", {"x": folder}, "no images at any depth"),
    ("one image", "x", {"x/1.png": GOOD}, "held out|one training image"),
    ("a cut image", "x", {"x/1.png": GOOD, "x/2.png": picture(colour=9), "x/3.png": GOOD[:40]}, "cut short|damaged"),
]
PLAIN_OPTIONS: list[tuple[str, str, str]] = [
    ("names of classes", "--data.labels [a,b]", "labels"),
    ("all is hidden", "--model.masked 1", "between 0 and 1"),
    ("a decoder that turns", "--model.decoder.position rotary", "position none"),
    ("patches of -1 pixels", "--model.patch_size=-1", "patch_size"),
]
PLACES = [
    ("no such folder", "none", {}, "does not exist"),
    ("a pipe as folder", "x", {"x": pipe}, "file|pipe"),
    ("an empty folder", "x", {"x": folder}, "no class folders"),
    ("one class", "x", {"x/a/1.png": GOOD}, "one class"),
    ("a class without images", "x", PAIRS | {"x/c": folder}, "no images"),
    ("a text for a folder", "x.txt", {"x.txt": b"a"}, "is a file"),
    ("a file name that is not UTF-8", "x", PAIRS | {"x/a/caf\udce9.png": picture(colour=5)}, "UTF-8"),
    ("a class name that is not UTF-8", "x", PAIRS | {"x/caf\udce9/1.png": picture(colour=5)}, "UTF-8"),
]
ARCHIVES: list[tuple[str, str, bytes, str]] = [
    ("no zip", "x.zip", b"hello", "as an archive"),
    ("a cut zip", "x.zip", packed(a=GOOD)[:-30], "as an archive"),
    ("a zip that leaves its folder", "x.zip", packed(**{"../evil.png": GOOD}), "unsafe|outside"),
    ("a tar that leaves its folder", "x.tar", tarred(("../evil.png", GOOD, b"0")), "archive|outside|shard"),
    ("an absolute path", "x.tar.gz", tarred(("/evil.png", GOOD, b"0"), mode="w:gz"), "class|archive|outside"),
    ("a link", "x.tar.gz", tarred(("a/1.png", b"", b"2"), mode="w:gz"), "link or a device"),
    ("a hard link", "x.tar.gz", tarred(("a/1.png", b"", b"1"), mode="w:gz"), "link or a device"),
    ("a device", "x.tar.gz", tarred(("a/1.png", b"", b"3"), mode="w:gz"), "link or a device"),
    ("a pipe", "x.tar.gz", tarred(("a/1.png", b"", b"6"), mode="w:gz"), "link or a device"),
    ("no tar", "x.tar.gz", gzip.compress(b"hello" * 500), "as an archive"),
    ("a damaged tar.xz", "x.tar.xz", b"\xfd7zXZ\0\0\x04hello", "as an archive"),
    ("a damaged tar.bz2", "x.tar.bz2", b"BZh9hello", "as an archive"),
    ("a bomb", "x.tar.gz", gzip.compress(claimed(1 << 40)), "unpacks to more"),
]
HEADERS: list[tuple[str, Content, str]] = [
    ("no header", b"hello", "not an IDX file"),
    ("nothing", b"", "not an IDX file"),
    ("floats", idx((2, 2, 2), bytes(32), 13), "not an IDX file"),
    ("a claim of 2^96 bytes", idx((2**32 - 1,) * 3), "claims"),
    ("no images", idx((0, 28, 28)), "claims"),
    ("fewer bytes than claimed", idx((2, 2, 2), bytes(4)), "claims|should hold"),
    ("more bytes than claimed", idx((2, 2, 2), bytes(40)), "should hold"),
    ("other labels", idx((3, 2, 2), bytes(12)), "3 images, but"),
]

PNG = ("1.png", GOOD, b"0")
SHARDS: list[tuple[str, str, dict[str, Content], str]] = [
    (
        "an image without a label",
        "x.tar",
        {"x.tar": tarred(PNG, ("1.cls", b"0", b"0"), ("2.png", GOOD, b"0"))},
        "without",
    ),
    (
        "a label without an image",
        "x.tar",
        {"x.tar": tarred(PNG, ("1.cls", b"0", b"0"), ("2.cls", b"1", b"0"))},
        "without",
    ),
    ("an empty label", "x.tar", {"x.tar": tarred(PNG, ("1.cls", b"", b"0"))}, "label"),
    ("one class", "x.tar", {"x.tar": tarred(PNG, ("1.cls", b"0", b"0"))}, "class"),
    ("a label of 9 digits", "x.tar", {"x.tar": tarred(PNG, ("1.cls", b"999999999", b"0"))}, "class|memory|label"),
    ("a cut shard", "x.tar", {"x.tar": tarred(PNG, ("1.cls", b"0", b"0"))[:700]}, "tar|cut|label|class"),
    (
        "labels that are no images",
        "x.tar",
        {
            "x.tar": tarred(
                ("1.png", b"hello", b"0"), ("1.cls", b"0", b"0"), ("2.png", GOOD, b"0"), ("2.cls", b"1", b"0")
            )
        },
        "text file",
    ),
    (
        "names for fewer classes",
        "x",
        {"x/a.tar": tarred(PNG, ("1.cls", b"3", b"0")), "x/classes.txt": b"cat"},
        "classes.txt",
    ),
    (
        "names that are no UTF-8",
        "x",
        {"x/a.tar": tarred(PNG, ("1.cls", b"0", b"0")), "x/classes.txt": b"\xe9"},
        "classes.txt",
    ),
    (
        "names that are a pipe",
        "x",
        {"x/a.tar": tarred(PNG, ("1.cls", b"0", b"0")), "x/classes.txt": pipe},
        "classes.txt|class",
    ),
    ("a shard that is a pipe", "x", {"x/a.tar": pipe}, "pipe|no class|x"),
    ("no Parquet", "x.parquet", {"x.parquet": b"PAR1"}, "datasets|Parquet"),
    ("an empty Parquet", "x.parquet", {"x.parquet": b""}, "datasets|Parquet"),
    ("a Parquet that is a pipe", "x.parquet", {"x.parquet": pipe}, "datasets|pipe"),
    ("a device", "/dev/zero", {}, "is a file|device"),
]
HUGE = b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 2, -2147483648, 1, 24, 0) + bytes(20)
CLASSIFIED: list[tuple[str, str, dict[str, Content], str]] = [
    ("a device", "/dev/zero", {}, "device"),
    ("a name that is not UTF-8", "caf\udce9.png", {}, "UTF-8"),
    ("a folder of texts", "f", {"f/a.txt": b"a"}, "no image"),
    ("a video", "x.mp4", {"x.mp4": b"\0\0\0\x20ftypisom" + bytes(99)}, "x.mp4"),
    ("a drawing", "x.svg", {"x.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, "x.svg"),
    ("an image of no pixels", "x.ppm", {"x.ppm": b"P6 0 0 255\n"}, "x.ppm"),
    ("a PPM of 2^62 pixels", "x.ppm", {"x.ppm": b"P6 2147483648 2147483648 255\n"}, "x.ppm"),
    ("a PPM of negative size", "x.ppm", {"x.ppm": b"P6 -2 2 255\n" + bytes(12)}, "x.ppm"),
    ("a TIFF that points at itself", "x.tif", {"x.tif": b"II*\0\x08\0\0\0\0\0\x08\0\0\0"}, "x.tif"),
    ("a GIF without a frame", "x.gif", {"x.gif": b"GIF89a\x02\0\x02\0\x80\0\0\0\0\0\xff\xff\xff;"}, "x.gif"),
    ("a BMP of a huge height", "x.bmp", {"x.bmp": HUGE}, "x.bmp"),
]
WORDS: list[tuple[str, str, str]] = [
    ("names for fewer classes", IMAGES.format("ok/img") + " --data.labels '[a]'", "labels"),
    ("a name twice", IMAGES.format("ok/img") + " --data.labels '[a, a]'", "labels|twice"),
    ("names that are numbers", IMAGES.format("ok/img") + " --data.labels '[1, 2]'", "labels"),
    ("a set of nobody", "vision fit --run run --data.dataset mnits", "dataset"),
    ("a set and its file", "vision fit --run run --data.dataset mnist --data.root none.gz", "none.gz|dataset|root"),
    ("two channels", IMAGES.format("ok/img") + " --data.channels 2", "channels"),
    ("a validation folder without classes", IMAGES.format("ok/img") + " --data.val_root ok/pdb", "no class folders"),
    ("a test folder that is not there", IMAGES.format("ok/img") + " --data.test_root none", "test_root"),
    (
        "a validation folder that is the training folder",
        IMAGES.format("ok/img") + " --data.val_root ok/img",
        "so that none is left",
    ),
]


def cases() -> Iterator[Case]:
    """All of this room."""
    yield from table(
        "images", IMAGES, [(about, "x", PAIRS | {"x/a/2.png": bad}, words) for about, bad, words in BROKEN]
    )
    yield from table("images", IMAGES, PLACES)
    yield from table("a look at images", CHECK, PLACES[:3] + PLACES[5:])
    yield from table(
        "image archives", IMAGES, [(about, name, {name: bad}, words) for about, name, bad, words in ARCHIVES]
    )
    labels: dict[str, Content] = {"x/train-labels-idx1-ubyte": LABELS}
    rows = [(about, "x", labels | {"x/train-images-idx3-ubyte": bad}, words) for about, bad, words in HEADERS]
    packed_ones: list[tuple[str, Content, str]] = [
        ("damaged gzip", PACKED_IDX[:20] + b"\xff" * 9, "cannot be read|should hold"),
        ("a pipe", pipe, "pipe"),
    ]
    rows += [(about, "x", labels | {"x/train-images-idx3-ubyte.gz": bad}, words) for about, bad, words in packed_ones]
    rows.append(("no labels", "x", {"x/train-images-idx3-ubyte": LABELS}, "no labels"))
    yield from table("IDX", IMAGES, rows)
    yield from table("classify", CLASSIFY, [(about, "y.png", {"y.png": bad}, words) for about, bad, words in BROKEN])
    nothing = [("no such file", "none.png", {}, "does not exist"), ("an empty folder", "f", {"f": folder}, "no image")]
    yield from table("classify", CLASSIFY, nothing)
    yield from table("classify", CLASSIFY, CLASSIFIED)
    yield from table("shards", IMAGES, SHARDS)
    yield from table("images without labels", PLAIN, PLAIN_CASES)
    four: dict[str, Content] = {f"x/{n}.png": picture(colour=9 * n) for n in range(4)}
    for about, option, words in PLAIN_OPTIONS:
        yield Case("images without labels", about, f"{PLAIN.format('x')} {option}", four, words)
    for about, command, words in WORDS:
        yield Case("image options", about, command, {}, words)
