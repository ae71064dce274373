"""Reading and writing files safely: whole or not at all, of bounded size, to regular files only. No torch at import."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MAX_JSON_BYTES = 16 << 20
"""A larger JSON file is no configuration."""


def umask() -> int:
    """The permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def refuse_special(path: Path) -> None:
    """Raise UserError when `path` exists and is no regular file: a folder, a device, a pipe or a socket."""
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing there, or a link to nothing
        return
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "not a regular file (a device, a pipe or a socket)"
        raise UserError(f"'{path}' is {what}; give the name of a file to write.")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when the block ends well, and vanishes otherwise.

    It has the same ending, because libraries choose a format by it. A symbolic link is kept, and its target replaced.

    Raises:
        UserError: `path` is something else than a regular file.
    """
    path = Path(os.path.realpath(path))
    refuse_special(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o666 & ~umask())  # a temporary file is private, the file it becomes is not
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never half of it; also after a power cut.

    Raises:
        UserError: `path` is something else than a regular file.
    """
    with written_whole(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Write a value as JSON with an indent of two, as `write_atomic` does."""
    write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends well, and vanishes otherwise.

    Whether the old one may go is the caller's business.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield new
        new.chmod(0o777 & ~umask())
        old = None
        if folder.exists():
            # A folder that is not empty cannot be replaced in one step; between the two the old one still exists.
            old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
            os.replace(folder, old / "it")
        os.replace(new, folder)
        if old:
            shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size. Raises UserError when it is damaged or something else."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"'{path}' is {path.stat().st_size:,} bytes, far too large for a config; is it another file?")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not valid JSON ({error}); it was damaged or is another file.") from None
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds a {type(content).__name__}, but must hold an object; is it another file?")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError when it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"'{path}' cannot be read as safetensors ({error}); it was cut short or damaged.") from None


def few(names: Sequence[str], most: int = 4) -> str:
    """The first names, and how many more there are: "a, b, c, d and 3 more"."""
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def listing(folder: Path) -> str:
    """What a folder holds, for messages: the first names, or "nothing"."""
    return few(sorted(path.name for path in folder.iterdir())) or "nothing"
