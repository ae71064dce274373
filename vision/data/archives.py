"""Archives: safe extraction into the cache, and WebDataset shards read in place."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from ...core.errors import UserError
from ...core.files import parsing, shown
from .collection import Collection, Images, Side
from .images import EXTENSIONS

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
_MAX_GROWTH, _FREE_BYTES, _MAX_FILES = 100, 1 << 30, 20_000_000
_LABELS = (".cls", ".label", ".txt")


def is_archive(path: Path) -> bool:
    """By its name."""
    return path.is_file() and path.name.lower().endswith(_ARCHIVES)


def extract(archive: Path, cache: Path) -> Path:
    """Unpack an archive into the cache, once. Returns the folder.

    Only regular files are unpacked, none outside the folder, and at most 100 times the archive's size (plus 1 GiB).

    Raises:
        UserError: damaged, unsafe or encrypted archives, or no room.
    """
    status = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache / "archives" / f"{archive.name.split('.')[0]}-{key}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".extracting-"))
    except OSError as error:
        raise UserError(
            f"The cache folder '{cache}' cannot be written ({error.strerror}): choose another with --data.cache."
        ) from None
    try:
        limit = min(_MAX_GROWTH * status.st_size + _FREE_BYTES, shutil.disk_usage(part).free)
        with parsing(archive, "an archive"):
            (_unzip if archive.suffix.lower() == ".zip" else _untar)(archive, part, limit)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # unless another process was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _untar(archive: Path, folder: Path, limit: int) -> None:
    total = 0
    with tarfile.open(archive) as tar:
        for number, member in enumerate(tar):
            total += member.size
            _check_growth(archive, total, number, limit)
            if not (member.isreg() or member.isdir()):
                raise _no_file(archive, member.name)
            tar.extract(member, folder, filter="data")


def _unzip(archive: Path, folder: Path, limit: int) -> None:
    total = 0
    with zipfile.ZipFile(archive) as package:
        for number, member in enumerate(package.infolist()):
            total += member.file_size
            _check_growth(archive, total, number, limit)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _no_file(archive, member.filename)
            target = (folder / member.filename).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise UserError(f"The archive '{archive}' is unsafe: '{member.filename}' lies outside of it.")
            package.extract(member, folder)


def _no_file(archive: Path, name: str) -> UserError:
    return UserError(
        f"The archive '{archive}' holds '{shown(name)}', a link or a device; extract it by hand and give the folder."
    )


def _check_growth(archive: Path, total: int, files: int, limit: int) -> None:
    if total > limit or files > _MAX_FILES:
        raise UserError(
            f"The archive '{archive}' unpacks to more than {limit / 1e9:.1f} GB or {_MAX_FILES:,} files, which is "
            "suspicious or does not fit on the disk: extract it by hand and give the folder."
        )


# --- WebDataset shards ------------------------------------------------------------------------------------------------


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
    with parsing(path, "an uncompressed tar"), tarfile.open(path, "r:") as tar:
        yield from tar


def shards(path: Path) -> Collection:
    """WebDataset shards (`train-000.tar`, …) read in place: an index of their members is made, nothing is extracted.

    A sample is an image and a label file of the same name: `.cls` holds the number of the class, `.label` or `.txt` its
    name. Shards whose name (or folder) starts with val or test are those sides. A file `classes.txt` beside the shards
    names the classes of numbers.

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
    if "train" not in members:
        raise UserError(f"'{path}' holds no training shards, only {', '.join(sorted(members)) or 'empty ones'}.")
    classes, of = _classes(path, {label for labels in found.values() for label in labels})
    sides = {
        side: Images(names[side], np.array([of[label] for label in found[side]], dtype=np.int64), Members(entries))
        for side, entries in members.items()
    }
    return Collection(classes, sides)


def _side(shard: Path, root: Path) -> Side:
    text = (shard.name if shard.parent == root else shard.parent.name).lower()
    return "val" if text.startswith(("val", "dev")) else "test" if text.startswith("test") else "train"


def _samples(shard: Path) -> Iterator[tuple[str, tarfile.TarInfo, str]]:
    """(name, image member, label text) of each sample."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str] = {}
    with shard.open("rb") as file:
        for member in _members(shard):
            stem, dot, extension = member.name.rpartition(".")
            extension = (dot + extension).lower()
            if member.isreg() and extension in EXTENSIONS:
                images[stem] = member
            elif member.isreg() and extension in _LABELS and member.size < 1000:
                labels[stem] = _text(file, member)
    single = sorted(images.keys() ^ labels.keys())
    if single:
        raise UserError(
            f"The shard '{shard}' has {len(single):,} samples without an image or without a label, such as "
            f"'{single[0]}'."
        )
    for stem, member in images.items():
        yield stem, member, labels[stem]


def _text(file: IO[bytes], member: tarfile.TarInfo) -> str:
    file.seek(member.offset_data)
    return file.read(member.size).decode("utf-8", "replace").strip()


def _classes(path: Path, labels: set[str]) -> tuple[list[str], dict[str, int]]:
    """Names of the classes, and the class of each label text."""
    if not all(label.isdigit() for label in labels):
        classes = sorted(labels)
        return classes, {name: i for i, name in enumerate(classes)}
    count = 1 + max(map(int, labels))
    named = (path if path.is_dir() else path.parent) / "classes.txt"
    classes = named.read_text(encoding="utf-8").split("\n")[:count] if named.is_file() else []
    if count > 1_000_000 or (classes and len(classes) < count):
        raise UserError(f"The labels of '{path}' go up to {count - 1:,}, but '{named}' names {len(classes):,} classes.")
    return classes or [str(i) for i in range(count)], {label: int(label) for label in labels}
