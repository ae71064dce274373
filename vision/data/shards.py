"""WebDataset shards: pairs of an image and a label in uncompressed tar files, read in place."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from ...core.errors import UserError
from ...core.files import MAX_JSON_BYTES, check_regular, parsing, read_bytes
from .collection import Collection, Images, Side, side_of
from .images import EXTENSIONS

_LABELS = (".cls", ".label", ".txt")
_MOST_CLASSES = 1_000_000


class Members:
    """Files inside uncompressed tar archives: (path, offset, size)."""

    def __init__(self, members: list[tuple[str, int, int]]) -> None:
        self.members = members

    def __getitem__(self, index: int) -> bytes:
        path, offset, size = self.members[index]
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def key(self, index: int) -> tuple[str, int, int] | None:
        path, offset, size = self.members[index]
        try:
            return f"{os.path.abspath(path)}:{offset}", size, os.stat(path).st_mtime_ns
        except OSError:
            return None


def is_shards(path: Path) -> bool:
    """A folder of .tar files, or one of them, whose members are pairs such as `000.jpg` and `000.cls`."""
    first = _shards(path)[:1]
    return bool(first) and any(member.name.endswith(_LABELS) for member, _ in zip(_members(first[0]), range(8)))


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".tar" else []
    return sorted(path.glob("*.tar")) or sorted(path.glob("*/*.tar")) if path.is_dir() else []


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    with parsing(path, "an uncompressed tar"), tarfile.open(check_regular(path), "r:") as tar:
        yield from tar


def shards(path: Path) -> Collection:
    """WebDataset shards (`train-000.tar`, …) read in place: an index of their members is made, nothing is extracted.

    A sample is an image and a label file of the same name: `.cls`, else `.label`, else `.txt`, which holds the number
    or the name of the class. Shards whose name (or folder) starts with val or test are those sides. A file
    `classes.txt` beside the shards names the classes of numbers: line by line from 0 on, or with the number first.

    Raises:
        UserError: an image without a label, or the other way round.
    """
    members: dict[Side, list[tuple[str, int, int]]] = {}
    names: dict[Side, list[str]] = {}
    found: dict[Side, list[str]] = {}
    for shard in _shards(path):
        side = _side(shard, path)
        for key, member, label in _samples(shard):
            members.setdefault(side, []).append((str(shard), member.offset_data, member.size))
            names.setdefault(side, []).append(f"{shard.name}:{key}")
            found.setdefault(side, []).append(label)
    if not members:
        raise UserError(f"'{path}' holds empty shards only.")
    classes, of, numbered = _classes(path, {label for labels in found.values() for label in labels})
    sides = {
        side: Images(names[side], np.array([of[label] for label in found[side]], dtype=np.int64), Members(entries))
        for side, entries in members.items()
    }
    return Collection(classes, sides, numbered)


def _side(shard: Path, root: Path) -> Side:
    text = shard.name if shard.parent == root or shard == root else shard.parent.name
    return side_of(re.split(r"[^a-zA-Z]", text)[0]) or "train"


def _samples(shard: Path) -> Iterator[tuple[str, tarfile.TarInfo, str]]:
    """(name, image member, label text) of each sample."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, tuple[int, str]] = {}
    with shard.open("rb") as file:
        for member in _members(shard):
            stem, dot, extension = member.name.rpartition(".")
            extension = (dot + extension).lower()
            if member.isreg() and extension in EXTENSIONS:
                images[stem] = member
            elif member.isreg() and extension in _LABELS and member.size < 1000:
                # A caption (.txt) may stand beside the class (.cls).
                labels[stem] = min(labels.get(stem, (9, "")), (_LABELS.index(extension), _text(file, member)))
    single = sorted(images.keys() ^ labels.keys())
    if single:
        raise UserError(
            f"The shard '{shard}' has {len(single):,} samples without an image or without a label, such as "
            f"'{single[0]}'."
        )
    for stem, member in images.items():
        yield stem, member, labels[stem][1]


def _text(file: IO[bytes], member: tarfile.TarInfo) -> str:
    file.seek(member.offset_data)
    return file.read(member.size).decode("utf-8", "replace").strip()


def _classes(path: Path, labels: set[str]) -> tuple[list[str], dict[str, int], bool]:
    """Names of the classes, the class of each label text, and whether these are numbers."""
    if "" in labels:
        raise UserError(f"A label of '{path}' is empty, but must be the number or the name of a class.")
    if not all(re.fullmatch(r"[0-9]{1,9}", label) for label in labels):
        classes = sorted(labels)
        return classes, {name: i for i, name in enumerate(classes)}, False
    count = 1 + max(map(int, labels))
    named = (path if path.is_dir() else path.parent) / "classes.txt"
    classes = _named(named) if named.is_file() else {i: str(i) for i in range(min(count, _MOST_CLASSES))}
    missing = [label for label in sorted(labels, key=int) if int(label) not in classes]
    if missing:
        raise UserError(
            f"'{path}' has the label {missing[0]}, but '{named}' names {len(classes):,} classes; add its name."
        )
    return [classes.get(i, str(i)) for i in range(count)], {label: int(label) for label in labels}, True


def _named(path: Path) -> dict[int, str]:
    """The names in a `classes.txt`, by number."""
    with parsing(path, "a list of classes"):
        text = read_bytes(path, MAX_JSON_BYTES).decode("utf-8-sig")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    keyed = [re.fullmatch(r"([0-9]{1,9})[\s,:;=]+(\S.*)", line) for line in lines]
    if lines and all(keyed):
        return {int(match[1]): match[2] for match in keyed if match}
    return dict(enumerate(lines))
