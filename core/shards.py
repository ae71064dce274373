"""Folders of shards: a manifest with checksums, and the notes with which writing them goes on after an interruption."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import read_json, write_json
from .lock import NAME, Lock
from .stores import Cache, Remote, found, is_url, local_path
from .version import __version__

FORMAT = 1
MANIFEST, PROGRESS = "manifest.json", "progress.json"


def sum_of(content: dict[str, Any]) -> str:
    """A hash of a manifest without its own."""
    text = json.dumps({key: value for key, value in content.items() if key != "sum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Folder:
    """A folder of shards on a disk or in a store.

    Args:
        name: its path or URL.
        cache: for the files of a store; None for the usual one.

    Raises:
        UserError: there is nothing at the URL, or the store does not answer.
    """

    def __init__(self, name: str | Path, cache: Cache | None = None) -> None:
        self._path = Path(name).expanduser() if not is_url(str(name)) else local_path(str(name))
        self._shown, self.cache = str(name), cache or Cache.of(None)
        self._remote: dict[str, Remote] = {}
        if self._path is None:
            at = self._shown.split("://", 1)[1].strip("/")
            self._remote = {file.url.split(at, 1)[-1].strip("/"): file for file in found(self._shown)}

    def __str__(self) -> str:
        return self._shown

    @property
    def name(self) -> str:
        """The last part of its path."""
        return Path(self._shown).name

    @property
    def in_store(self) -> bool:
        """Whether it is not on a disk of this machine."""
        return self._path is None

    def has(self, file: str) -> bool:
        """Whether a file is there."""
        return file in self._remote if self._path is None else (self._path / file).is_file()

    def where(self, file: str) -> str:
        """The whole name of a file, for messages."""
        return f"{self._shown.rstrip('/')}/{file}"

    def file(self, file: str) -> Path | Remote:
        """One of its files. Raises UserError when a store has none of that name."""
        if self._path is not None:
            return self._path / file
        if file not in self._remote:
            raise missing(self.where(file))
        return self._remote[file]

    def local(self, file: str) -> Path:
        """A file on a disk of this machine. Raises UserError when a store does not give it."""
        one = self.file(file)
        return one if isinstance(one, Path) else self.cache.whole(one)

    @contextlib.contextmanager
    def below(self, name: str) -> Iterator[Path]:
        """A folder within it, on a disk of this machine."""
        if self._path is not None:
            yield self._path / name
            return
        with tempfile.TemporaryDirectory() as folder:
            for file, remote in self._remote.items():
                if file.startswith(f"{name}/") and "/" not in (rest := file.removeprefix(f"{name}/")):
                    (Path(folder) / rest).write_bytes(self.cache.whole(remote).read_bytes())
            try:
                yield Path(folder)
            except UserError as error:
                error.args = (str(error).replace(folder, self.where(name)), *error.args[1:])
                raise

    def check_size(self, file: str, size: int) -> None:
        """Raises UserError when a file is missing or has another size in bytes than the manifest says."""
        try:
            one = self.file(file)
            length = one.size if isinstance(one, Remote) else one.stat().st_size
        except OSError:
            raise missing(self.where(file)) from None
        if length != size:
            word = "is cut short" if length < size else "is too long"
            raise UserError(
                f"The shard '{self.where(file)}' {word} ({length:,} bytes, but the manifest says {size:,}); put the"
                " original back, or write the shards again."
            )


def as_folder(folder: Folder | Path) -> Folder:
    """The same folder of shards; a path is one on a disk."""
    return folder if isinstance(folder, Folder) else Folder(folder)


def missing(file: str) -> UserError:
    """What to raise for a file of a shard that is not there."""
    return UserError(f"The shard '{file}' is missing; put it back, or write the shards again.")


def is_shards(name: str | Path) -> bool:
    """Whether a folder is one of shards, finished or not; of a URL, whether a manifest lies there."""
    if is_url(str(name)) and local_path(str(name)) is None:
        return any(file.name in (MANIFEST, PROGRESS) for file in found(str(name)))
    path = local_path(str(name)) if is_url(str(name)) else Path(name).expanduser()
    return path is not None and ((path / MANIFEST).is_file() or (path / PROGRESS).is_file())


def read_manifest(folder: Folder, kind: str) -> dict[str, Any]:
    """The manifest of a folder of shards.

    Args:
        folder: of shards.
        kind: "text", "vision" or "protein": the task that wrote them.

    Raises:
        UserError: there is none, it is unfinished, damaged or another task's.
    """
    path = folder.where(MANIFEST)
    if not folder.has(MANIFEST):
        if folder.has(PROGRESS):
            raise UserError(f"'{folder}' is not finished; the same `triune {kind} shard` command goes on with it.")
        raise UserError(f"'{folder}' has no {MANIFEST}; give a folder that `triune {kind} shard` wrote.")
    content = read_json(folder.local(MANIFEST))
    if content.get("kind") != f"triune {kind} shards" or content.get("format") != FORMAT:
        raise UserError(f"'{path}' is no manifest of {kind} in format {FORMAT}; write the shards with this version.")
    if content.get("sum") != sum_of(content):
        raise UserError(
            f"'{path}' is damaged or was changed by hand; put the original back, or write the shards again."
        )
    return content


def altered(file: Path | str) -> UserError:
    """What to raise for a file whose content is not that of the manifest."""
    return UserError(
        f"The shard '{file}' was altered: its content does not match the manifest's checksum; put the original back, or"
        " write the shards again."
    )


@contextlib.contextmanager
def begin(folder: Path, identity: str, start: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
    """How far an earlier call has come, `start` for none; None when it has finished. Within it no other process writes
    into the folder.

    Args:
        folder: to write.
        identity: of the sources and settings.
        start: the notes of a call that begins.

    Raises:
        UserError: the folder holds something else, or another process writes into it.
    """
    if (folder / MANIFEST).is_file():
        _check(folder, read_json(folder / MANIFEST), identity)
        yield None
        return
    known = folder / PROGRESS
    if not known.is_file() and folder.exists() and (not folder.is_dir() or _names(folder) - {NAME}):
        raise UserError(f"'{folder}' exists and is no folder of shards; give a new folder.")
    lock = Lock(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock.take(
            lambda owner: (
                f"'{folder}' is being written by another process{owner}; wait until it has ended, or give another"
                " folder."
            )
        )
    try:
        if known.is_file():
            yield _check(folder, read_json(known), identity)
        else:
            found = json.loads(json.dumps({"identity": identity, **start}))
            note(folder, found)
            yield found
    finally:
        lock.release()


def _names(folder: Path) -> set[str]:
    """What lies in a folder, but for what a call that was killed had begun to write: notes without their name yet."""
    begun = f".{Path(PROGRESS).stem}."
    return {child.name for child in folder.iterdir() if not child.name.startswith(begun)}


def _check(folder: Path, found: dict[str, Any], identity: str) -> dict[str, Any]:
    """The notes or manifest of the same shards. Raises UserError for others."""
    if found.get("identity") != identity:
        raise UserError(f"'{folder}' holds shards of other files or settings; give a new folder.")
    return found


def note(folder: Path, found: dict[str, Any]) -> None:
    """Keeps how far the work has come."""
    with writing(folder):
        write_json(folder / PROGRESS, found)


def finish(folder: Path, kind: str, content: dict[str, Any]) -> None:
    """Writes the manifest, the last of all files."""
    plain = {"kind": f"triune {kind} shards", "format": FORMAT, "triune": __version__, **content}
    plain = json.loads(json.dumps(plain))
    with writing(folder):
        write_json(folder / MANIFEST, plain | {"sum": sum_of(plain)})
        (folder / PROGRESS).unlink(missing_ok=True)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within it an error of the disk is a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"'{folder}' cannot be written ({error.strerror}); make room or allow it, and the same command goes on."
        ) from error
