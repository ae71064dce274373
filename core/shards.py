"""Folders of shards: a manifest with checksums, and the notes with which writing them goes on after an interruption."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import read_json, write_json
from .lock import NAME, Lock
from .version import __version__

FORMAT = 1
MANIFEST, PROGRESS = "manifest.json", "progress.json"


def sum_of(content: dict[str, Any]) -> str:
    """A hash of a manifest without its own."""
    text = json.dumps({key: value for key, value in content.items() if key != "sum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_shards(folder: Path) -> bool:
    """Whether a folder is one of shards, finished or not."""
    return (folder / MANIFEST).is_file() or (folder / PROGRESS).is_file()


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of a folder of shards.

    Args:
        folder: of shards.
        kind: "text" or "vision": the task that wrote them.

    Raises:
        UserError: there is none, it is unfinished, damaged or another task's.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / PROGRESS).is_file():
            raise UserError(f"'{folder}' is not finished; the same `triune {kind} shard` command goes on with it.")
        raise UserError(f"'{folder}' has no {MANIFEST}; give a folder that `triune {kind} shard` wrote.")
    content = read_json(path)
    if content.get("kind") != f"triune {kind} shards" or content.get("format") != FORMAT:
        raise UserError(f"'{path}' is no manifest of {kind} in format {FORMAT}; write the shards with this version.")
    if content.get("sum") != sum_of(content):
        raise UserError(
            f"'{path}' is damaged or was changed by hand; put the original back, or write the shards again."
        )
    return content


def check_size(file: Path, size: int) -> None:
    """Raises UserError when a file of a shard is missing or has another size in bytes than the manifest says."""
    try:
        found = file.stat().st_size
    except OSError:
        raise UserError(f"The shard '{file}' is missing; put it back, or write the shards again.") from None
    if found != size:
        word = "is cut short" if found < size else "is too long"
        raise UserError(
            f"The shard '{file}' {word} ({found:,} bytes, but the manifest says {size:,}); put the original back, or"
            " write the shards again."
        )


def altered(file: Path) -> UserError:
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
    return {child.name for child in folder.iterdir()}


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
