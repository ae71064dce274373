"""Archives (.tar, .tar.gz, .zip and the like): safe extraction into the cache."""

from __future__ import annotations

import hashlib
import shutil
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path

from ...core.errors import UserError
from ...core.files import parsing, shown

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
_MAX_GROWTH, _FREE_BYTES, _MAX_FILES = 100, 1 << 30, 20_000_000


def is_archive(path: Path) -> bool:
    """By its name."""
    return path.is_file() and path.name.lower().endswith(_ARCHIVES)


def extract(archive: Path, cache: Path) -> Path:
    """Unpacks an archive into the cache, once. Returns the folder.

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
