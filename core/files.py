"""Reading and writing files safely: whole or not at all, of bounded size, regular files only. No torch at import.

What is read may come from anybody: `check_regular` or `open_regular` stands before every reader, `parsing` around every
library that parses, and what is packed has a bound on what it unpacks to (`most_unpacked`).
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import UserError
from .lock import claim
from .special import kind_of, refuse_special

if TYPE_CHECKING:
    from zipfile import ZipInfo

    import numpy as np
    from torch import Tensor

MAX_JSON_BYTES = 16 << 20
"""A larger JSON file is no configuration."""
MAX_GROWTH, FREE_BYTES = 100, 64 << 20
"""A packed file may unpack to this many times its size, and these bytes; more is an attack or damage."""


class DoubledKey(UserError):
    """A key stands twice in an object of JSON."""


def umask() -> int:
    """The permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_new(paths: Sequence[Path], overwrite: bool) -> None:
    """Looks, before the work begins, at the files that a command will write, and claims them (see `claim`).

    Raises:
        UserError: one is something else than a regular file, lies below something that is no folder, exists and may not
            be replaced, or is being written by another process.
    """
    for path in paths:
        refuse_special(path)
        above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
        if not above.is_dir():
            raise UserError(f"'{above}' is no folder, so '{path}' cannot be written; give another name.")
    claim(paths)
    held = [] if overwrite else [f"'{path}'" for path in paths if path.exists()]
    if held:
        one = len(held) == 1
        raise UserError(
            f"{few(held)} {'exists' if one else 'exist'} already; give another name, or replace "
            f"{'it' if one else 'them'} with --overwrite."
        )


OVERWRITE = "replace files that exist already"
"""What `--overwrite` does, in the help of every command that has it."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives what the system refuses within it the name of `path`, not that of a part of it, or none.

    Libraries in Rust (safetensors, tokenizers) report it as an exception of their own, with "(os error 28)".
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and Path(os.fsdecode(error.filename)).exists()):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except Exception as error:
        if isinstance(error, UserError) or not (found := re.search(r"\(os error (\d+)\)", str(error))):
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when the block ends well, and vanishes otherwise.

    It has the same ending, because libraries choose a format by it. A symbolic link is kept, and its target replaced.

    Raises:
        UserError: `path` is something else than a regular file.
    """
    path = Path(os.path.realpath(path))
    refuse_special(path)
    with naming(path), none_left_empty(path.parent):
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
    """Writes a file so that a reader sees the old content or the new one, never half of it; also after a power cut.

    Raises:
        UserError: `path` is something else than a regular file.
    """
    with written_whole(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Writes a value as JSON with an indent of two, as `write_atomic` does."""
    write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def none_left_empty(folder: Path) -> Iterator[None]:
    """Removes on leaving what was made within of this folder and of those above it, where it holds nothing."""
    made = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    try:
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends well, and vanishes otherwise.

    Whether the old one may go is the caller's business. A symbolic link is kept, and its target replaced.
    """
    folder = Path(os.path.realpath(folder))
    with naming(folder):
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


# -- reading ----------------------------------------------------------------------------------------------------------


def check_regular(path: str | os.PathLike[str]) -> Path:
    """The same path, once it is known to be a regular file, or a link to one, which can be opened without waiting.

    Raises:
        UserError: there is none, it is a folder, a pipe, a socket or a device, or its name is not UTF-8.
    """
    path = Path(check_name(path))
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"'{path}' cannot be read ({why}); give the name of a file that exists.") from None
    if what := kind_of(mode):
        hint = "write what comes out of it to a file and give that" if what == "a pipe" else "give the name of a file"
        raise UserError(f"'{path}' is {what}, but must be a regular file; {hint}.")
    return path


def check_name(name: str | os.PathLike[str]) -> str:
    """The same name, once it is known to be text. Raises UserError for bytes that are not UTF-8."""
    name = os.fspath(name)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"The name of '{shown(name)}' is not UTF-8; rename it.") from None
    return name


def shown(name: object) -> str:
    """A file name as text that can be printed and stored: bytes that are not UTF-8 become `\\xE9`."""
    try:
        return os.fsencode(str(name)).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a surrogate pair, which stands for no byte
        return str(name).encode("utf-8", "backslashreplace").decode()


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a regular file for reading; a name that ends in `.gz` is read through gzip.

    Raises:
        UserError: see `check_regular`; or it may not be read.
    """
    path = check_regular(path)
    try:
        return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); allow it, or give another file.") from None


@contextlib.contextmanager
def parsing(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Around a library that parses a file of anybody's: whatever it raises becomes one sentence.

    Args:
        path: the file, or how to call it.
        kind: what it should be, such as "a NumPy archive".

    Raises:
        UserError: the block raised anything; a UserError of its own goes through unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # libraries raise what a damaged file leads them into
        # A panic of a library in Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        # What these show is a number or a name alone, which says nothing by itself.
        bare = isinstance(error, (KeyError, IndexError, AssertionError, MemoryError, RecursionError))
        text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        why = type(error).__name__ if bare or not text.strip() else text.strip().splitlines()[0][:200]
        raise UserError(
            f"'{path}' cannot be read as {kind} ({why.rstrip('.')}); it was cut short or damaged, or is another file."
        ) from error


def most_unpacked(path: Path) -> int:
    """Bytes that a packed file may unpack to."""
    return MAX_GROWTH * path.stat().st_size + FREE_BYTES


def check_growth(path: Path, members: Sequence[ZipInfo]) -> None:
    """Raises UserError when the members of a zip archive claim to unpack to more than `most_unpacked` bytes."""
    if (total := sum(member.file_size for member in members)) > most_unpacked(path):
        raise UserError(
            f"'{path}' unpacks to {total:,} bytes, more than {MAX_GROWTH} times its size; it is damaged or not what it "
            "seems."
        )


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of a regular file, unpacked where its name ends in `.gz`.

    Raises:
        UserError: it cannot be read, or holds more than `most` bytes.
    """
    with parsing(path, "gzip" if str(path).lower().endswith(".gz") else "a file"), open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        size = f"{most / 1e6:,.0f} MB" if most >= 1e6 else f"{most:,} bytes"
        raise UserError(f"'{path}' holds more than {size}, the most that is read of such a file; give another file.")
    return content


def parse_json(content: str | bytes, where: str) -> Any:
    """The value of a JSON text. Its nesting and numbers are bounded, every text in it can be stored as UTF-8, and no
    key stands twice in an object: readers differ in which of the two they take.

    Raises:
        UserError: it is not valid; `where` says in the message what it is.
    """
    try:
        text = content if isinstance(content, str) else content.decode(json.detect_encoding(content))
        value = json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, where))
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UserError:
        raise
    except UnicodeEncodeError:
        raise UserError(f"{where} holds half a surrogate pair (\\ud800 to \\udfff), which is no text.") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read as JSON.") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except ValueError as error:  # not UTF-8, or a number of thousands of digits
        raise UserError(f"{where} is not valid JSON: {str(error).split(';')[0]}.") from None
    return value


def _object(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        known: set[str] = set()
        key = next(key for key, _ in pairs if key in known or known.add(key))
        raise DoubledKey(f"{where} has the key {shown(key)} twice in one object; leave one of them.")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size. Raises UserError when it is damaged or something else."""
    raw = read_bytes(path, MAX_JSON_BYTES)
    try:
        content = parse_json(raw, f"'{path}'")
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}; it was damaged or is another file.") from None
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds a {type(content).__name__}, but must hold an object; give another file.")
    return content


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive (.npz) by name.

    Raises:
        UserError: it is damaged, holds pickled objects or anything but arrays, or unpacks to more than `most_unpacked`.
    """
    import zipfile

    import numpy as np

    path, found = check_regular(path), {}
    with parsing(path, "a NumPy archive"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_growth(path, members)
        for member in members:
            with archive.open(member) as file:
                found[member.filename.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    return found


def read_table(path: str | os.PathLike[str], columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table whose cells are separated by tabs, under the names in its first line.

    Raises:
        UserError: it cannot be read, is no UTF-8 text, lacks one of `columns`, or a row has more or fewer cells.
    """
    import csv

    with parsing(path, "a table separated by tabs"):
        with check_regular(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            rows, there = list(reader), list(reader.fieldnames or ())
        if missing := [name for name in columns if name not in there]:
            found = few(there) or "none"
            raise UserError(f"'{path}' has no column '{missing[0]}', only {found}; it needs {', '.join(columns)}.")
        for number, row in enumerate(rows, 2):
            if None in row or None in row.values():
                raise UserError(f"'{path}', line {number}, has not as many cells as the first line; it is damaged.")
    return rows


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError when it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_regular(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"'{path}' cannot be read as safetensors ({error}); it was cut short or damaged.") from None


LONGEST = 300
"""Characters of a name in a message; the header of a table may be one of ten million."""


def few(names: Sequence[str], most: int = 4) -> str:
    """The first names, and how many more there are: "a, b, c, d and 3 more"."""
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(name if len(name) <= LONGEST else f"{name[:LONGEST]}…" for name in names[:most]) + rest


def listing(folder: Path) -> str:
    """What a folder holds, for messages: the first names, or "nothing"."""
    return few(sorted(path.name for path in folder.iterdir())) or "nothing"
