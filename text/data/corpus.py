"""Files to documents.

A corpus may be larger than memory, so it is walked twice: a survey that checks every document and remembers only its
hash and size, and (when the token cache does not know it yet) a second walk that tokenises.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...core.checkpoints.source import PACKAGE, in_package
from ...core.errors import UserError, nearest
from ...core.files import check_regular, open_regular, parse_json, parsing

ROWS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".parquet")
# What counts as text inside a folder. A file that is named itself is read whatever its name.
TEXT = frozenset(
    [".txt", ".text", ".md", ".rst", ".org", ".tex", ".csv", ".tsv", ".html", ".htm", ".xml", ".json", ".yaml", ".yml"]
    + [".toml", ".ini", ".cfg", ".sql", ".css", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go"]
    + [".java", ".kt", ".swift", ".js", ".ts", ".jsx", ".tsx", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".hs", ".sh"]
)
# Parts of the standard library that are not on every machine, or that repeat others.
NOT_STANDARD = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}


MAX_ROW_BYTES = 64 << 20
"""Longest row of a file of rows; a packed file of a few kB can hold one of any length."""


class Document(NamedTuple):
    """One text and where it came from (`file`, or `file:row` for a file of rows)."""

    name: str
    text: str


class Survey(NamedTuple):
    """What is remembered of a document: the hash of its content, its size in UTF-8 bytes and in characters."""

    digest: bytes
    size: int
    characters: int


@dataclass
class Corpus:
    """The documents of a list of files, read anew on every iteration, in the same order.

    Args:
        files: pairs of a file and whether the user named it himself. A named file must be a readable text; one that was
            found in a folder is passed over, and counted in `skipped`, when it is not.
        text_field: the field that holds the text in files of rows.
    """

    files: list[tuple[Path, bool]]
    text_field: str = "text"
    skipped: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Document]:
        self.skipped = Counter({k: n for k, n in self.skipped.items() if k in FOUND_BY_NAME})
        for file, named in self.files:
            if file.name.lower().endswith(ROWS):
                yield from self._rows(file)
                continue
            try:
                yield Document(str(file), read_text(file))
            except NotText as error:
                if named:
                    raise
                self.skipped[error.kind] += 1

    def _rows(self, file: Path) -> Iterator[Document]:
        rows = _parquet(file, self.text_field) if file.suffix.lower() == ".parquet" else _jsonl(file, self.text_field)
        for document in rows:
            if document.text:
                yield document
            else:
                self.skipped["empty row"] += 1

    def survey(self) -> list[Survey]:
        """Read and check every document once.

        Raises:
            UserError: a file cannot be read as text, or there is no text at all.
        """
        documents = [_survey(document.text) for document in self]
        if not documents:
            names = ", ".join(str(file) for file, _ in self.files[:3])
            raise UserError(
                f"no text in {names}{' …' if len(self.files) > 3 else ''}: every file or row of it is empty"
            )
        return documents


class NotText(UserError):
    """A file that is no text; `kind` says why in a word or two."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


FOUND_BY_NAME = ("hidden", "no text suffix")


def digest(text: str) -> bytes:
    """Return the 16-byte hash that stands for a document's content."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _survey(text: str) -> Survey:
    content = text.encode()
    return Survey(hashlib.blake2b(content, digest_size=16).digest(), len(content), len(text))


# -- finding files ----------------------------------------------------------------------------------------------------


def find(patterns: str | Iterable[str] | None, text_field: str = "text") -> Corpus:
    """Return the corpus of files, folders, globs and `package:NAME/PATH` (what an installed package brings); None is
    the source of the Python standard library.

    A file that is reached in two ways is read once; a folder is listed once.

    Raises:
        UserError: a file or folder does not exist, a glob matches nothing, a folder holds no text file.
    """
    if patterns is None:
        return Corpus([(file, False) for file in standard_library()], text_field)
    found: dict[Path, tuple[Path, bool]] = {}
    skipped: Counter[str] = Counter()
    listed: set[Path] = set()
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise UserError("data.files is an empty list: name at least one file, folder or glob")
    for path in (path for pattern in patterns for path in _expand(pattern)):
        if path.is_dir():
            if path.resolve() not in listed:
                listed.add(path.resolve())
                for file in _walk(path, skipped):
                    found.setdefault(file.resolve(), (file, False))
        else:
            found[path.resolve()] = (path, True)
    return Corpus(list(found.values()), text_field, skipped)


def standard_library() -> list[Path]:
    """Return the Python sources of the standard library, without its tests: about 11 MB on every machine."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in NOT_STANDARD)
        files += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    if not files:
        raise UserError(f"'{root}' holds no source of the Python standard library; name a text with --data.files")
    return files


def _expand(pattern: str) -> list[Path]:
    path = in_package(pattern) if pattern.startswith(PACKAGE) else Path(os.path.expanduser(pattern))
    if path.exists():
        return [path]
    if glob.has_magic(pattern):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise UserError(f"no file matches '{pattern}' (looked from '{Path.cwd()}')")
        return matches
    parent = path.parent
    if not parent.is_dir():
        raise UserError(f"there is no file '{path}': the folder '{parent}' does not exist")
    raise UserError(f"there is no file '{path}'{nearest(path.name, os.listdir(parent))}")


def _walk(folder: Path, skipped: Counter[str]) -> list[Path]:
    files = []
    for place, folders, names in os.walk(folder):
        skipped["hidden"] += sum(name.startswith(".") for name in names)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            if Path(name).suffix.lower() in TEXT or name.lower().endswith(ROWS):
                files.append(Path(place, name))
            else:
                skipped["no text suffix"] += 1
    if not files:
        raise UserError(f"folder '{folder}' holds no text file (such as .txt, .md, .py or .jsonl)")
    return files


# -- reading one file -------------------------------------------------------------------------------------------------


def read_text(file: Path) -> str:
    """Return the content of a UTF-8 file, its line ends as they are.

    Raises:
        UserError: the file cannot be opened, is empty, holds a NUL byte or is not UTF-8.
    """
    content = _read(file)
    if not content:
        raise NotText(f"'{file}' is empty: name a file that holds text", "empty")
    return _decode(content, str(file))


def _read(file: Path) -> bytes:
    try:
        return check_regular(file).read_bytes()
    except UserError as error:
        raise NotText(str(error), "not a regular file") from None
    except OSError as error:
        raise NotText(f"'{file}' cannot be read: {error.strerror}", "unreadable") from error


def _decode(content: bytes, name: str, offset: int = 0) -> str:
    if (at := content.find(b"\0")) >= 0:
        raise NotText(f"'{name}' is a binary file, not text: it holds a NUL byte at offset {offset + at}", "binary")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise NotText(
            f"'{name}' is not UTF-8 text: byte 0x{content[error.start]:02x} at offset {offset + error.start}; "
            "convert it first, for example with iconv -f latin1 -t utf-8",
            "not UTF-8",
        ) from None


def _jsonl(file: Path, text_field: str) -> Iterator[Document]:
    offset = 0
    try:
        with open_regular(file) as rows:
            for number, line in enumerate(iter(lambda: rows.readline(MAX_ROW_BYTES + 1), b""), 1):
                where = f"{file}:{number}"
                if len(line) > MAX_ROW_BYTES:
                    raise UserError(f"{where} is longer than {MAX_ROW_BYTES / 1e6:,.0f} MB; cut it into several rows.")
                if line.strip():
                    row = parse_json(_decode(line, str(file), offset), where)
                    yield Document(where, _field(row, text_field, where))
                offset += len(line)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"'{file}' cannot be read: {error}") from error


def _field(row: Any, text_field: str, where: str) -> str:
    if not isinstance(row, dict):
        raise UserError(f'{where} holds no JSON object but {type(row).__name__}: expected {{"{text_field}": "…"}}')
    if text_field not in row:
        there = ", ".join(sorted(row)) or "none"
        raise UserError(f"{where} has no field '{text_field}'; its fields are: {there} (choose with --data.text_field)")
    if not isinstance(row[text_field], str):
        kind = type(row[text_field]).__name__
        raise UserError(f"{where}: field '{text_field}' holds {kind}, not text (choose another with --data.text_field)")
    return row[text_field]


def _parquet(file: Path, text_field: str) -> Iterator[Document]:
    try:
        from pyarrow import parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"'{file}' needs pyarrow: pip install 'triune[datasets]'") from error
    with parsing(file, "Parquet"):
        table = parquet.ParquetFile(check_regular(file))
    if text_field not in table.schema_arrow.names:
        there = ", ".join(table.schema_arrow.names)
        raise UserError(
            f"'{file}' has no column '{text_field}'; its columns are: {there} (choose with --data.text_field)"
        )
    row, batches = 0, table.iter_batches(columns=[text_field])
    while True:
        with parsing(file, "Parquet"):
            batch = next(batches, None)
            texts = [] if batch is None else batch.column(0).to_pylist()
        if batch is None:
            return
        for text in texts:
            yield Document(f"{file}:{row}", _field({text_field: text or ""}, text_field, f"{file}:{row}"))
            row += 1
