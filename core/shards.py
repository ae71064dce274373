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


def begin(folder: Path, identity: str, start: dict[str, Any]) -> dict[str, Any] | None:
    """How far an earlier call has come, `start` for none; None when it has finished.

    Args:
        folder: to write.
        identity: of the sources and settings.
        start: the notes of a call that begins.

    Raises:
        UserError: the folder holds something else.
    """
    for name in (MANIFEST, PROGRESS):
        if (folder / name).is_file():
            found = read_json(folder / name)
            if found.get("identity") == identity:
                return None if name == MANIFEST else found
            raise UserError(f"'{folder}' holds shards of other files or settings; give a new folder.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"'{folder}' exists and is no folder of shards; give a new folder.")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    found = json.loads(json.dumps({"identity": identity, **start}))
    note(folder, found)
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
