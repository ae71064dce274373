"""What a case is, and files that are damaged in every way."""

from __future__ import annotations

import io
import os
import shlex
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Content = bytes | Callable[[Path], Any]


@dataclass(frozen=True)
class Case:
    """A command line and the files it meets, which `given` makes; `words` stand in the sentence."""

    room: str
    about: str
    command: str
    given: dict[str, Content]
    words: str


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def packed(**members: bytes) -> bytes:
    """A zip archive."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


def tarred(*members: tuple[str, bytes, bytes], mode: str = "w") -> bytes:
    """A tar archive of (name, content, type) members."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:  # type: ignore[call-overload]
        for name, member, kind in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.type, entry.linkname = len(member), kind, "/etc/hostname"
            archive.addfile(entry, io.BytesIO(member))
    return content.getvalue()


def arrays(**values: Any) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **values)
    return content.getvalue()


def picture(size: tuple[int, int] = (8, 8), colour: int = 0) -> bytes:
    content = io.BytesIO()
    Image.new("L", size, colour).save(content, "PNG")
    return content.getvalue()


def idx(shape: tuple[int, ...], content: bytes = b"", kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


PICTURES = {f"img/{name}/{n}.png": picture(colour=20 * n + k) for k, name in enumerate("ab") for n in range(4)}
A3M = b">q\nMKVLAAGIVGLLLAQWERT\n>r\nMKVLAAGIVGLLL-QWERT\n"


Row = tuple[str, str, dict[str, Content], str]
"""What is wrong, the name that the command gets, the files it meets, and words of the sentence."""


def table(room: str, command: str, rows: Iterable[Row]) -> Iterator[Case]:
    """A case for each row; `{}` in the command is the name."""
    for about, name, given, words in rows:
        yield Case(room, about, command.format(shlex.quote(name)), given, words)


def single(suffix: str, rows: Iterable[tuple[str, Content, str]]) -> Iterator[Row]:
    """Rows about one file `x` with this suffix: what is wrong, its content, words of the sentence."""
    for about, content, words in rows:
        yield about, f"x{suffix}", {f"x{suffix}": content}, words


def bomb() -> str:
    first = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    lines = (f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9))
    return first + "".join(lines)


def claimed(size: int) -> bytes:
    """The header of a tar member of `size` bytes that are not there."""
    entry = tarfile.TarInfo("a/1.png")
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)
