"""Files behind a URL: listed, brought into a bounded cache on the local disk, or read in parts. No torch at import.

`fsspec` knows the stores (`s3://`, `gs://`, `https://`, `memory://`, …). Whatever a store does wrong (silence, an
error, fewer bytes than it says) is a `UserError` that names the file, after a few attempts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .errors import UserError
from .work import cache_folder, progress

BLOCK = 1 << 18
"""Bytes that are asked for at once where only parts of a file are needed, and that the cache keeps as one."""
PIECE = 8 << 20
"""Bytes that are asked for at once where a whole file is needed."""
SECONDS = 60.0
"""How long the answer to one question may take; one without an answer is asked once more."""
NOT_ALLOWED, NOT_THERE = (401, 403, 407), (404, 410)
"""Answers of HTTP that another attempt does not change."""
WAITS = (0.5, 2.0)
"""Seconds before a question that met an error is asked again."""
TOGETHER = 16
"""Questions to a store at once, of one process."""
MARKS = (
    "ETag", "etag", "md5Hash", "Content-MD5", "LastModified", "Last-Modified", "last_modified", "mtime", "created",
)  # fmt: skip
"""What stores call a tag or the time of a content."""
CACHE_GB = 20.0
"""How much the cache holds where no option says otherwise."""


def is_url(name: str) -> bool:
    """Whether a name is a URL, such as `s3://bucket/file`, and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)", name) is not None


def local_path(url: str) -> Path | None:
    """The path that a `file://` URL means; None for other stores."""
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in ("file", "local"):
        return None
    host = urlsplit(url).netloc
    if host not in ("", "localhost"):
        raise UserError(f"'{url}' names the host '{host}', but a file:// URL has three slashes: file:///FOLDER/FILE.")
    return Path(unquote(rest.removeprefix(host)))


@dataclass(frozen=True)
class Remote:
    """A file in a store.

    Args:
        url: where it is.
        size: its bytes.
        version: a hash of the URL, the size, and the time or tag that the store gives the content.
    """

    url: str
    size: int
    version: str

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return unquote(self.url.split("?")[0].rstrip("/").rsplit("/", 1)[-1])

    @property
    def suffix(self) -> str:
        """The ending of the name, such as `.txt`."""
        return Path(self.name).suffix

    def __str__(self) -> str:
        return self.url


def found(url: str) -> list[Remote]:
    """The files that a URL means: one, all below a folder, or those that match a pattern; in the order of their names.

    Raises:
        UserError: there is none, or the store does not answer.
    """
    fs, path = _opened(url)

    def look() -> dict[str, Any]:
        if re.search(r"[*?\[]", path) and not url.lower().startswith("http"):
            return fs.glob(path, detail=True)
        if fs.isdir(path):
            return fs.find(path, detail=True)
        return {path: fs.info(path)}

    entries = {name: entry for name, entry in _ask(url, look).items() if entry.get("type") != "directory"}
    if not entries:
        raise UserError(f"There is no file at '{url}'; give the URL of a file, of a folder with files, or a pattern.")
    return [_remote(fs, name, entries[name]) for name in sorted(entries)]


def _remote(fs: Any, name: str, entry: dict[str, Any]) -> Remote:
    url = fs.unstrip_protocol(name)
    if entry.get("size") is None:  # a listing of HTTP
        entry = _ask(url, lambda: fs.info(name))
    if entry.get("size") is None:
        raise UserError(
            f"The store does not say how long '{url}' is, which is needed; copy it to a disk and give that."
        )
    marks = [entry.get(key) for key in MARKS]
    marks = [mark.timestamp() if isinstance(mark, datetime) else mark for mark in marks]
    version = hashlib.sha256(repr((url, int(entry["size"]), marks)).encode()).hexdigest()[:24]
    return Remote(url, int(entry["size"]), version)


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it. Raises UserError when it is not known, or needs another package."""
    if "::" in url:
        raise UserError(f"'{url}' chains stores; give the inner one alone, its files are cached as they are.")
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise UserError(f"'{url}' needs another package ({_line(error)}); pip install 'triune[stores]'.") from None
    except Exception as error:  # of many kinds: an unknown scheme, a wrong host, no credentials
        raise UserError(f"'{url}' cannot be opened ({_line(error)}); give a URL such as s3://bucket/folder.") from None


def _line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    if status := getattr(error, "status", None):
        return f"{status} {getattr(error, 'message', '')}".strip()
    text = str(error).strip()
    return text.splitlines()[0][:200].rstrip(".") if text else type(error).__name__


def _ask(url: str, question: Callable[[], Any]) -> Any:
    """The answer to a question, asked again after an error; in a thread of its own, so that silence has an end.

    Raises:
        UserError: there is no such file, it may not be read, or the store gave no answer.
    """
    silent = False
    for wait in (*WAITS, None):
        answer: list[Any] = []
        thread = threading.Thread(target=_answer, args=(question, answer), daemon=True)
        thread.start()
        thread.join(SECONDS)
        if not answer:
            if silent or wait is None:
                raise UserError(
                    f"The store of '{url}' has not answered for {SECONDS:g} s; nothing is lost: try again when it does."
                )
            silent = True  # of many connections one may hang
            continue
        result, error = answer[0]
        if error is None:
            return result
        if isinstance(error, UserError):
            raise error
        error = _meant(error)
        if isinstance(error, FileNotFoundError) or getattr(error, "status", None) in NOT_THERE:
            raise UserError(f"There is no file '{url}'; give one that exists.") from None
        refused = isinstance(error, PermissionError) or getattr(error, "status", None) in NOT_ALLOWED
        if refused or wait is None:
            raise UserError(
                f"The store of '{url}' answers with an error ({_line(error)}); nothing is lost: mend it, or try again."
            ) from None
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _meant(error: BaseException) -> BaseException:
    """What has happened: fsspec says of every error of HTTP, while it asks about a file, that there is none."""
    cause = error.__cause__
    known = isinstance(error, FileNotFoundError) and cause is not None and type(cause).__module__.startswith("aiohttp")
    return cause if known and cause is not None else error


def _answer(question: Callable[[], Any], answer: list[Any]) -> None:
    try:
        answer.append((question(), None))
    except BaseException as error:
        answer.append((None, error))


def _part(file: Remote, first: int, count: int) -> bytes:
    """Bytes of a file, straight from the store."""

    def question() -> bytes:
        fs, path = _opened(file.url)
        content = fs.cat_file(path, start=first, end=first + count)
        if len(content) == file.size and count < file.size:  # a server that knows whole files only
            content = content[first : first + count]
        if len(content) != count:
            raise OSError(f"it gave {len(content):,} bytes of {count:,}")
        return content

    return _ask(file.url, question) if count else b""


@dataclass
class Cache:
    """Files and parts of files of stores, on the local disk: at most about `most` bytes, the least recently used go.

    Several processes may share a folder.

    Args:
        folder: where they lie.
        most: bytes that all of them may have.
    """

    folder: Path
    most: float
    _new: float = field(default=float("inf"), repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, chosen: str | None, gigabytes: float | None = None) -> Cache:
        """The part for stores of the cache folder (see `cache_folder`), of so many 10⁹ bytes."""
        return cls(cache_folder(chosen) / "stores", (CACHE_GB if gigabytes is None else gigabytes) * 1e9)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "most": self.most}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def whole(self, file: Remote) -> Path:
        """A local copy of a file.

        Raises:
            UserError: it is larger than the cache may be, the store does not give it, or the disk is full.
        """
        path = self.folder / file.version / (file.name or "file")
        if self._has(path, file.size):
            return path
        if file.size > self.most:
            raise UserError(
                f"'{file.url}' has {file.size / 1e9:.3g} GB, but the cache may hold {self.most / 1e9:.3g}; raise it"
                " with --data.cache_gb (--cache_gb of shard), or cut the file."
            )
        with progress(f"fetching {file.name}", file.size, "MB", 1e6) as advance:
            self._keep(path, file.size, self._pieces(file, advance))
        return path

    @staticmethod
    def _pieces(file: Remote, advance: Callable[[float], None]) -> Iterator[bytes]:
        for first in range(0, file.size, PIECE):
            yield _part(file, first, min(PIECE, file.size - first))
            advance(min(PIECE, file.size - first))

    def read(self, file: Remote, first: int, count: int) -> bytes:
        """Bytes of a file; what surrounds them is kept. Raises UserError as `whole` does."""
        blocks = range(first // BLOCK, -(-(first + count) // BLOCK))
        content = b"".join(self._block(file, number) for number in blocks)
        skip = first - BLOCK * blocks.start
        return content[skip : skip + count]

    def forget(self, file: Remote, first: int, count: int) -> None:
        """Removes bytes of a file, and what surrounds them, so that they are fetched again."""
        for number in range(first // BLOCK, -(-(first + count) // BLOCK)):
            self._path(file, number).unlink(missing_ok=True)

    def prepare(self, wanted: Iterable[tuple[Remote, int, int]]) -> None:
        """Fetches parts (file, first byte, bytes) that will be read next, several at once."""
        blocks = {
            (file, number): None
            for file, first, count in wanted
            for number in range(first // BLOCK, -(-(first + count) // BLOCK))
            if not self._has(self._path(file, number), self._length(file, number))
        }
        if len(blocks) > 1:
            with ThreadPoolExecutor(min(TOGETHER, len(blocks))) as pool:
                list(pool.map(lambda block: self._block(*block), blocks))

    def _path(self, file: Remote, number: int) -> Path:
        return self.folder / file.version / f"{number:x}.part"

    @staticmethod
    def _length(file: Remote, number: int) -> int:
        return min(BLOCK, file.size - number * BLOCK)

    def _block(self, file: Remote, number: int) -> bytes:
        path, size = self._path(file, number), self._length(file, number)
        if self._has(path, size):
            with contextlib.suppress(OSError):  # another process has just removed it
                if len(content := path.read_bytes()) == size:
                    return content
        content = _part(file, number * BLOCK, size)
        self._keep(path, size, [content])
        return content

    @staticmethod
    def _has(path: Path, size: int) -> bool:
        """Whether a file is there, of the right length; it is then the last to be removed."""
        try:
            if path.stat().st_size != size:
                return False
            os.utime(path)
            return True
        except OSError:
            return False

    def _keep(self, path: Path, size: int, content: Iterable[bytes]) -> None:
        """Writes a file of the cache, whole or not at all, and makes room for it before."""
        with self._lock:
            self._new += size
            if self._new > self.most / 50:
                self._make_room(size)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new.")
            try:
                with os.fdopen(handle, "wb") as out:
                    for piece in content:
                        out.write(piece)
                os.replace(name, path)
            finally:
                Path(name).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"The cache '{self.folder}' cannot be written ({error.strerror}); nothing is lost: make room, lower"
                " --data.cache_gb, or choose another folder with --data.cache, and the same command goes on."
            ) from error

    def _make_room(self, size: int) -> None:
        """Removes what was not used for longest, until a file of `size` bytes has room."""
        known, total, busy = [], 0, time.time() - 3600
        for place, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):
                    about = os.stat(file := os.path.join(place, name))
                    total += about.st_size
                    if not name.startswith(".new.") or about.st_mtime < busy:  # else another process writes it now
                        known.append((about.st_mtime, about.st_size, file))
        self._new = size
        left = total + size - self.most
        if left <= 0:
            return
        left += 0.1 * self.most
        for _, removed, file in sorted(known):
            if left <= 0:
                break
            with contextlib.suppress(OSError):
                os.unlink(file)
            left -= removed


@contextlib.contextmanager
def speaking_of(file: Remote | Path, local: Path) -> Iterator[None]:
    """Within it a mistake that names the local copy of a file names the file itself."""
    try:
        yield
    except UserError as error:
        if file is local or str(local) not in str(error):
            raise
        error.args = (str(error).replace(str(local), str(file)), *error.args[1:])
        raise
