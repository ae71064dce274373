"""Files to documents.

A corpus, and one text of it, may be larger than memory. So it is walked twice: a survey that checks every document and
remembers only its hash and size, and (when the token cache does not know it yet) a second walk that tokenises. Both see
a text in blocks.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ...core.checkpoints.source import PACKAGE, in_package
from ...core.errors import UserError, nearest
from ...core.files import few
from ...core.labels.rows import Row, rows
from ...core.stores import Cache, Remote, found, is_url, local_path, speaking_of
from .columns import arrow_rows, parquet_rows, saved_set
from .reading import NotText, read_blocks

ROWS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".parquet", ".arrow")
# What counts as text inside a folder. A file that is named itself is read whatever its name.
TEXT = frozenset(
    [".txt", ".text", ".md", ".rst", ".org", ".tex", ".csv", ".tsv", ".html", ".htm", ".xml", ".json", ".yaml", ".yml"]
    + [".toml", ".ini", ".cfg", ".sql", ".css", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go"]
    + [".java", ".kt", ".swift", ".js", ".ts", ".jsx", ".tsx", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".hs", ".sh"]
)
# Parts of the standard library that are not on every machine, or that repeat others.
NOT_STANDARD = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}


class Document(NamedTuple):
    """One text and where it came from (`file`, or `file:row` for a file of rows).

    `blocks`: the text in parts, one behind the other, to be read once.
    """

    name: str
    blocks: Iterable[str]


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
            found in a folder is passed over, and counted in `skipped`, when it is not. A file in a store is brought
            into the cache when its turn comes.
        text_field: the field that holds the text in files of rows.
        skip_bad: rows that cannot be used are passed over and counted, instead of stopping at the first.
        cache: of files in stores.

    Attributes:
        skipped: what is passed over, by reason, after `survey`.
        notes: how files are read that could be read in two ways, after `survey`.
    """

    files: Sequence[tuple[Path | Remote, bool]]
    text_field: str = "text"
    skip_bad: bool = False
    cache: Cache | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    _no_text: dict[str, str] = field(default_factory=dict)

    @property
    def may_have_rows(self) -> bool:
        """Whether a file is of a kind that has rows, or may."""
        return any(file.name.lower().endswith((*ROWS, ".json")) for file, _ in self.files)

    @property
    def remote(self) -> bool:
        """Whether a file lies in a store."""
        return any(isinstance(file, Remote) for file, _ in self.files)

    def __iter__(self) -> Iterator[Document]:
        return self._walk(Counter(), [])

    def _walk(self, skipped: Counter[str], notes: list[str]) -> Iterator[Document]:
        for file, named in self.files:
            local = self._local(file)
            for document in _told(self._documents(local, str(file), named, skipped, notes), file, local):
                name, blocks = document
                if local is not file:
                    name, blocks = name.replace(str(local), str(file)), _told(iter(blocks), file, local)
                yield Document(name, blocks)

    def _local(self, file: Path | Remote) -> Path:
        if isinstance(file, Path):
            return file
        assert self.cache is not None, "files in stores come with a cache"
        return self.cache.whole(file)

    def _documents(
        self, file: Path, name: str, named: bool, skipped: Counter[str], notes: list[str]
    ) -> Iterator[Document]:
        kind = self._kind(file, name, named, notes)
        if kind == "rows":
            yield from self._rows(file, skipped)
        elif kind == "text":
            yield Document(str(file), read_blocks(file))
        else:
            skipped[kind] += 1

    def _kind(self, file: Path, name: str, named: bool, notes: list[str]) -> str:
        """`rows`, `text`, or why a file that was found in a folder is no text."""
        if file.name.lower().endswith(ROWS):
            return "rows"
        if not named and name in self._no_text:
            return self._no_text[name]
        try:
            first = next(read_blocks(file), "")
        except NotText as error:
            if named:
                raise
            return error.kind
        if file.suffix.lower() != ".json" or not self._holds_rows(file, first, named):
            return "text"
        notes.append(f"{file.name} read as rows, not as the letters of its JSON")
        return "rows"

    def _holds_rows(self, file: Path, start: str, named: bool) -> bool:
        """Whether a .json file, which begins with `start`, is an array of rows with texts; else its letters are the
        text."""
        first = next(rows(file), None) if start.lstrip().startswith("[") else None
        if first is None or not isinstance(first.value, dict):
            return False
        if self.text_field in first.value:
            return True
        if named:
            raise UserError(
                f"'{file}' is an array of objects without a field '{self.text_field}'{_there(first.value)}; choose one "
                "with --data.text_field, or name the file .txt to train on its JSON as it is written."
            )
        return False

    def _rows(self, file: Path, skipped: Counter[str]) -> Iterator[Document]:
        read = {".parquet": parquet_rows, ".arrow": arrow_rows}.get(file.suffix.lower())
        for row in read(file, self.text_field) if read else rows(file):
            try:
                text = field_of(row, self.text_field)
            except UserError:
                if not self.skip_bad:
                    raise
                skipped["row that cannot be used"] += 1
                continue
            if text:
                yield Document(row.where, (text,))
            else:
                skipped["empty row"] += 1

    def survey(self) -> list[Survey]:
        """Reads and checks every document once.

        Raises:
            UserError: a file cannot be read as text, or there is no text at all.
        """
        named, documents = {str(file) for file, named in self.files if named}, []
        skipped, notes = Counter({k: n for k, n in self.skipped.items() if k in FOUND_BY_NAME}), list[str]()
        for document in self._walk(skipped, notes):
            try:
                documents.append(survey(document.blocks))
            except NotText as error:  # behind its first block; the second walk knows it by then
                if document.name in named:
                    raise
                self._no_text[document.name] = error.kind
                skipped[error.kind] += 1
        self.skipped, self.notes = skipped, notes
        if not documents:
            names = few([str(file) for file, _ in self.files], 3)
            raise UserError(f"There is no text in {names}: every file or row of it is empty; give others.")
        return documents


FOUND_BY_NAME = ("hidden", "no text suffix", "file of a test split")


T = TypeVar("T")


def _told(items: Iterator[T], file: Path | Remote, local: Path) -> Iterator[T]:
    """The same items; a mistake in them names the file, not its local copy."""
    while True:
        with speaking_of(file, local):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


class Sum:
    """Hash and sizes of a text that passes in blocks."""

    def __init__(self) -> None:
        self._hash, self._size, self._characters = hashlib.blake2b(digest_size=16), 0, 0

    def of(self, blocks: Iterable[str]) -> Iterator[str]:
        """The same blocks; each is counted as it passes."""
        for block in blocks:
            content = block.encode()
            self._hash.update(content)
            self._size, self._characters = self._size + len(content), self._characters + len(block)
            yield block

    def result(self) -> Survey:
        """What has passed so far; the hash has 16 bytes."""
        return Survey(self._hash.digest(), self._size, self._characters)


def survey(blocks: Iterable[str]) -> Survey:
    """Reads a text to its end and returns what is remembered of it."""
    found = Sum()
    for _ in found.of(blocks):
        pass
    return found.result()


# -- finding files ----------------------------------------------------------------------------------------------------


def find(
    patterns: str | Iterable[str] | None, text_field: str = "text", skip_bad: bool = False, cache: Cache | None = None
) -> Corpus:
    """Returns the corpus of files, folders, globs, URLs and `package:NAME/PATH` (what an installed package brings);
    None is the source of the Python standard library.

    A file that is reached in two ways is read once; a folder is listed once.

    Args:
        patterns: what to read.
        text_field, skip_bad: see `Corpus`.
        cache: for files in stores; None for the usual one.

    Raises:
        UserError: a file or folder does not exist, a glob matches nothing, a folder holds no text file, a store does
            not answer.
    """
    if patterns is None:
        return Corpus([(file, False) for file in standard_library()], text_field, skip_bad)
    known: dict[Path | str, tuple[Path | Remote, bool]] = {}
    skipped: Counter[str] = Counter()
    listed: set[Path] = set()
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise UserError("data.files is an empty list; name at least one file, folder or glob.")
    for pattern in patterns:
        if is_url(pattern) and local_path(pattern) is None:
            for file, named in _in_store(pattern, skipped):
                known.setdefault(file.url, (file, named))
            continue
        for path in matching(str(local_path(pattern) or pattern)):
            if not path.is_dir():
                known[_real(path)] = (path, True)
            elif _real(path) not in listed:
                listed.add(_real(path))
                for file in _walk(path, skipped):
                    known.setdefault(_real(file), (file, False))
    return Corpus(list(known.values()), text_field, skip_bad, cache or Cache.of(None), skipped)


def _real(path: Path) -> Path:
    """Where links lead; a link to itself, which `Path.resolve` raises RuntimeError for, is refused by who reads it."""
    return Path(os.path.realpath(path))


def _in_store(url: str, skipped: Counter[str]) -> list[tuple[Remote, bool]]:
    """The text files that a URL means; one that is the URL itself is named."""
    several = found(url)
    if len(several) == 1 and several[0].url.rstrip("/").endswith(url.split("://", 1)[1].strip("/")):
        return [(several[0], True)]
    texts = []
    for file in several:
        if file.name.startswith("."):
            skipped["hidden"] += 1
        elif _is_text(file.name):
            texts.append((file, False))
        else:
            skipped["no text suffix"] += 1
    if not texts:
        raise UserError(f"'{url}' holds no text file (such as .txt, .md, .py or .jsonl); give another.")
    return texts


def _is_text(name: str) -> bool:
    return Path(name).suffix.lower() in TEXT or name.lower().endswith(ROWS)


def standard_library() -> list[Path]:
    """Returns the Python sources of the standard library, without its tests: about 11 MB on every machine."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in NOT_STANDARD)
        files += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    if not files:
        raise UserError(f"'{root}' holds no source of the Python standard library; name a text with --data.files.")
    return files


def matching(pattern: str) -> list[Path]:
    """The files and folders that a path, a glob or `package:NAME/PATH` means. Raises UserError when there is none."""
    path = in_package(pattern) if pattern.startswith(PACKAGE) else Path(os.path.expanduser(pattern))
    if path.exists():
        return [path]
    if glob.has_magic(pattern):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise UserError(f"No file matches '{pattern}' (looked from '{Path.cwd()}'); give another pattern.")
        return matches
    parent = path.parent
    if not parent.is_dir():
        raise UserError(f"There is no file '{path}': the folder '{parent}' does not exist; give one that does.")
    raise UserError(f"There is no file '{path}'{nearest(path.name, os.listdir(parent))}; give one that exists.")


def _walk(folder: Path, skipped: Counter[str]) -> list[Path]:
    if kind := saved_set(folder):
        raise UserError(f"'{folder}' is {kind}, not a folder of texts; give it as --data.dataset.")
    files = []
    for place, folders, names in os.walk(folder):
        skipped["hidden"] += sum(name.startswith(".") for name in names)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            if _is_text(name):
                files.append(Path(place, name))
            else:
                skipped["no text suffix"] += 1
    if not files:
        raise UserError(f"Folder '{folder}' holds no text file (such as .txt, .md, .py or .jsonl); give another.")
    return files


# -- rows -------------------------------------------------------------------------------------------------------------


def field_of(row: Row, text_field: str) -> str:
    """The text of a row. Raises UserError when it has none."""
    if row.error:
        raise row.error
    if not isinstance(row.value, dict):
        kind = type(row.value).__name__
        raise UserError(f'{row.where} holds no JSON object but {kind}; write {{"{text_field}": "…"}}.')
    if text_field not in row.value:
        raise UserError(
            f"{row.where} has no field '{text_field}'{_there(row.value)}; choose one with --data.text_field."
        )
    text = row.value[text_field]
    if not isinstance(text, str):
        kind = type(text).__name__
        raise UserError(
            f"{row.where}: field '{text_field}' holds {kind}, not text; choose another with --data.text_field."
        )
    return text


def _there(row: dict[str, Any]) -> str:
    """The fields of a row, for a message."""
    there = f"; its fields are: {few(sorted(row), 8) or 'none'}"
    lists = [name for name in ("messages", "conversations") if isinstance(row.get(name), list)]
    return f"{there}; these are conversations, which --data.chats reads" if lists else there
