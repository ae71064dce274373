"""Folders generated with known truth: each image has the right class, side and brightness, or it is refused."""

from __future__ import annotations

import random
import shutil
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from triune.core.errors import UserError
from triune.vision.data.module import ImageData

FOLDERS = 200
WORDS = ["ant", "bee", "cat", "dog", "emu", "fox", "gnu", "hen", "ibis", "jay", "kiwi", "lynx"]
TEXTS = [
    "caf\u00e9",
    "\u732b",
    "\uace0\uc591\uc774",
    "\u0642\u0637\u0629",
    "a b",
    "x.y",
    "[red]",
    "$5",
    "100%",
    "train",
    "test",
    "label",
]
SIDES = {"train": ["train", "Training"], "val": ["val", "valid", "Validation", "dev"], "test": ["test", "testing"]}


@dataclass
class Truth:
    """What one folder holds: by image name the class as the folder calls it, the side and the grey from 0 to 255."""

    keys: list[str] = field(default_factory=list)
    images: dict[str, tuple[str, str, int]] = field(default_factory=dict)


def write(path: Path, grey: float, kind: str, seed: int) -> int:
    """Writes 7 x 7 pixels: the corner is white, two tell files apart, the rest is `grey`, which returns in 8 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name, _, depth = kind.partition("-")
    bits = int(depth or 8)
    white = (1 << bits) - 1
    level = round(grey * white)
    values = np.full((7, 7), level, dtype=np.uint16)
    values[0, 0] = white
    for place in range(3):
        values[1, place] = seed // 200**place % 200 * white // 255
    if name == "rgb":
        Image.fromarray(np.stack([values] * 3, -1).astype(np.uint8)).save(path.with_suffix(".png"))
    elif name == "grey":
        Image.fromarray(values.astype(np.uint8)).save(path.with_suffix(".bmp"))
    elif name == "pgm":
        header = f"P5 7 7 {white}\n".encode()
        path.with_suffix(".pgm").write_bytes(header + values.astype(">u2").tobytes())
    elif name in ("tif", "field"):
        directory = ImageFileDirectory_v2()
        if name == "field":
            directory.tagtype[281] = 3
            directory[281] = white
        Image.fromarray(values).save(path.with_suffix(".tif"), tiffinfo=directory)
    else:
        Image.fromarray(values).save(path.with_suffix(".png"))
        if name in ("sbit", "stretched"):
            if name == "stretched":
                Image.fromarray(values << (16 - bits)).save(path.with_suffix(".png"))
            whole, body = path.with_suffix(".png").read_bytes(), b"sBIT" + bytes([bits])
            chunk = struct.pack(">I", 1) + body + struct.pack(">I", zlib.crc32(body))
            path.with_suffix(".png").write_bytes(whole[:33] + chunk + whole[33:])
    return round(level * 255 / white)


KINDS = [
    "rgb", "grey", *(f"{name}-{bits}" for name in ("png", "tif", "field", "sbit", "pgm") for bits in (10, 12, 14)),
    "png-16", "tif-16", "pgm-16", "stretched-10", "stretched-12",
]  # fmt: skip


def class_names(draw: random.Random) -> list[str]:
    count = draw.randint(2, 12)
    kind = draw.choice(["words", "numbers", "padded", "texts", "prefixed", "mixed"])
    if kind == "words":
        return draw.sample(WORDS, count)
    if kind == "texts":
        return draw.sample(TEXTS, count)
    if kind == "mixed":
        return draw.sample(WORDS + TEXTS + [str(i) for i in range(12)], count)
    return [{"numbers": f"{i}", "padded": f"{i:03d}", "prefixed": f"class{i}"}[kind] for i in range(count)]


def build(root: Path, draw: random.Random) -> Truth:
    """Draws and writes a folder."""
    truth, layout = Truth(class_names(draw)), draw.choice(["flat", "sides", "within"])
    spelt = {side: draw.choice(names) for side, names in SIDES.items()}
    sides = ["train"] if layout == "flat" else ["train", *draw.sample(["val", "test"], draw.randint(1, 2))]
    kind, number = draw.choice(KINDS), draw.randint(0, 10**6)
    for side in sides:
        for i, key in enumerate(truth.keys):
            if side != "train" and i and draw.random() < 0.2:
                continue  # a class may be missing there
            name = unicodedata.normalize("NFD", key) if side != "train" and draw.random() < 0.5 else key
            folder = {"flat": [name], "sides": [spelt[side], name], "within": [key, spelt[side]]}[layout]
            for _ in range(draw.randint(2, 4)):
                number += 1
                path = root.joinpath(*folder, f"im{number}")
                grey = write(path, (i + 1) / (len(truth.keys) + 1), kind, number)
                truth.images[f"im{number}"] = key, side, grey
    junk(root, draw, layout, truth.keys)
    return truth


def junk(root: Path, draw: random.Random, layout: str, keys: list[str]) -> None:
    """What lies about in folders of images."""
    if draw.random() < 0.3:
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / "boxes.json").write_text("{}")
    if draw.random() < 0.3:
        (root / ".ipynb_checkpoints").mkdir(exist_ok=True)
        write(root / ".ipynb_checkpoints" / "x", 0.5, "rgb", 7)
    if draw.random() < 0.3:
        (root / "__MACOSX" / "cat").mkdir(parents=True, exist_ok=True)
        (root / "__MACOSX" / "cat" / "._im1.png").write_bytes(b"\x00\x05\x16\x07")
    if draw.random() < 0.3:
        write(root / "loose", 0.25, "rgb", 8)
    if layout == "flat":
        (root / keys[0] / "notes.txt").write_text("x")


def packed(root: Path, draw: random.Random) -> Path:
    """The folder itself, or an archive of it."""
    form = draw.choice(["", "", "zip", "tar.gz"])
    target = root.with_name(f"{root.name}.{form}")
    if form == "zip":
        with zipfile.ZipFile(target, "w") as package:
            for file in root.rglob("*"):
                package.write(file, Path("wrapped") / file.relative_to(root))
    elif form:
        with tarfile.open(target, "w:gz") as package:
            package.add(root, "wrapped")
    return target if form else root


def labels_for(truth: Truth, draw: random.Random) -> tuple[object, dict[str, str]]:
    """The option `labels`, and the name of each class by key."""
    names = {key: f"name of {key}" for key in truth.keys}
    if truth.keys[0] == "0" and all(key.isdecimal() for key in truth.keys) and draw.random() < 0.5:
        return [names[key] for key in truth.keys], names  # by their numbers
    if draw.random() < 0.3:
        return names, names
    return None, {key: key for key in truth.keys}


def wrong_images(data: ImageData, truth: Truth, names: dict[str, str]) -> list[str]:
    """Images whose class, side or pixels are not the true ones, and those that are missing."""
    wrong, seen = [], set()
    sides = {side for _, side, _ in truth.images.values()}
    for side, files in data.names.items():
        pixels, labels = data.arrays(side)  # type: ignore[misc]
        for file, image, label in zip(files, pixels, labels.tolist(), strict=True):
            key, true_side, grey = truth.images[Path(file).stem]
            seen.add(Path(file).stem)
            if data.labels[label] != names[key]:
                wrong.append(f"{file} is {names[key]}, read as {data.labels[label]}")
            if (true_side != side and (true_side, side) != ("train", "val")) or (
                side == "val" != true_side and "val" in sides
            ):
                wrong.append(f"{file} is of {true_side}, read as {side}")
            if abs(int(image[0, 4, 4]) - grey) > 1:
                wrong.append(f"{file} has {grey}, read as {int(image[0, 4, 4])}")
    return wrong + [f"{name} is missing" for name in truth.images.keys() - seen]


def scored(
    data: ImageData, truth: Truth, names: dict[str, str], root: Path, monkeypatch, draw: random.Random
) -> list[str]:
    """A part of the classes in a folder of its own, named either way, in other colours, scored as a run does."""
    monkeypatch.setattr(ImageData, "_verb", "test")
    new = Truth(truth.keys)
    by_name = draw.random() < 0.5
    for i, key in enumerate(draw.sample(truth.keys, max(1, len(truth.keys) // 2))):
        folder = names[key] if by_name else key
        grey = write(root / folder / f"new{i}", 0.5, draw.choice(["rgb", "grey"]), i)
        new.images[f"new{i}"] = key, "test", grey
    again = ImageData(root="/nowhere", test_root=str(root))
    again.continue_as(data.trained)
    again.setup()
    assert (again.labels, again.channels) == (data.labels, data.channels)
    return wrong_images(again, new, names)


@pytest.mark.parametrize("folders", [40, pytest.param(FOLDERS, marks=pytest.mark.slow)])
def test_generated_folders_are_read_rightly_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: int
) -> None:
    wrong, refused = [], []
    for seed in range(folders):
        draw = random.Random(seed)
        root = tmp_path / str(seed)
        truth = build(root, draw)
        labels, names = labels_for(truth, draw)
        with monkeypatch.context() as patch:
            try:
                data = ImageData(str(packed(root, draw)), labels=labels, val_fraction=0.3)  # type: ignore[arg-type]
                data.setup()
                wrong += [f"{seed}: {text}" for text in wrong_images(data, truth, names)]
                wrong += [f"{seed}: {t}" for t in scored(data, truth, names, tmp_path / f"{seed}-new", patch, draw)]
            except UserError as error:
                refused.append(f"{seed}: {error}")
        shutil.rmtree(root)
    assert wrong == []
    assert len(refused) <= folders // 8, refused
