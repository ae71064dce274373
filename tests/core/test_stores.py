"""Files in stores: whole and in parts as they are, a cache that stays small, and stores that fail in one sentence."""

from __future__ import annotations

import errno
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from triune.core import stores
from triune.core.errors import UserError
from triune.core.stores import BLOCK, Cache, Remote, found, is_url, local_path, speaking_of


class Flaky(MemoryFileSystem):
    """A store in memory with faults: `behave` is called before each part of a file is given."""

    protocol = "flaky"
    behave: Any = staticmethod(lambda path: None)
    cut = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        type(self).behave(path)
        content = super().cat_file(path, start, end, **more)
        return content[: len(content) - self.cut]


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> Iterator[bytes]:
    """A file of two and a half blocks at flaky://room/file.bin."""
    monkeypatch.setattr(stores, "WAITS", (0.0, 0.0))
    found = np.random.default_rng(0).integers(256, size=2 * BLOCK + BLOCK // 2, dtype=np.uint8).tobytes()
    fs = Flaky()
    fs.pipe("/room/file.bin", found)
    fs.pipe("/room/deeper/other.txt", b"abc")
    yield found
    Flaky.behave, Flaky.cut = staticmethod(lambda path: None), 0
    fs.rm("/room", recursive=True)


def the_file() -> Remote:
    return found("flaky://room/file.bin")[0]


def test_names() -> None:
    assert all(map(is_url, ("s3://a/b", "memory://x", "simplecache::s3://a", "file:///a")))
    assert not any(map(is_url, ("a/b", "package:numpy/LICENSE.txt", "hf:owner/name", "C:\\x", "")))
    assert local_path("file:///a/b%20c") == Path("/a/b c") and local_path("s3://a") is None
    with pytest.raises(UserError, match="three slashes"):
        local_path("file://a/b")


def test_listing(content: bytes) -> None:
    assert [(f.url, f.size, f.name, f.suffix) for f in found("flaky://room")] == [
        ("flaky:///room/deeper/other.txt", 3, "other.txt", ".txt"),
        ("flaky:///room/file.bin", len(content), "file.bin", ".bin"),
    ]
    assert [f.name for f in found("flaky://room/*.bin")] == ["file.bin"]
    for url, word in (
        ("flaky://nowhere", "There is no file 'flaky://nowhere'"),
        ("flaky://room/*.csv", "There is no file at"),
        ("nostore://a", "cannot be opened"),
        ("simplecache::flaky://room", "chains stores"),
    ):
        with pytest.raises(UserError, match=word):
            found(url)


def test_whole_and_parts(content: bytes, tmp_path: Path) -> None:
    cache, file = pickle.loads(pickle.dumps(Cache(tmp_path / "a", 1e9))), pickle.loads(pickle.dumps(the_file()))
    assert cache.whole(file).read_bytes() == content and cache.whole(file).name == "file.bin"
    parts = [(0, 5), (BLOCK - 3, 6), (BLOCK, BLOCK), (2 * BLOCK + 7, BLOCK // 2 - 7), (3, 0)]
    other = Cache(tmp_path / "b", 1e9)
    other.prepare([(file, *part) for part in parts[1:2]])
    asked: list[str] = []
    Flaky.behave = staticmethod(asked.append)
    for first, count in parts:
        assert other.read(file, first, count) == content[first : first + count]
    assert len(asked) == 1, "two of three blocks were there"
    other.read(file, 0, len(content))
    assert len(asked) == 1


def test_what_changed_is_fetched_anew(content: bytes, tmp_path: Path) -> None:
    cache, before = Cache(tmp_path, 1e9), the_file()
    cache.whole(before)
    Flaky().pipe("/room/file.bin", content[::-1])
    assert the_file().version != before.version
    assert cache.whole(the_file()).read_bytes() == content[::-1]


def test_the_cache_stays_small(content: bytes, tmp_path: Path) -> None:
    cache, file = Cache(tmp_path, 2.2 * BLOCK), the_file()
    for first in (0, BLOCK, 2 * BLOCK, 0, BLOCK):
        assert cache.read(file, first, 9) == content[first : first + 9]
        sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
        assert sizes and sum(sizes) <= 2.2 * BLOCK
    with pytest.raises(UserError, match=r"has 0\.000655 GB, but the cache may hold 0\.000577; raise it with"):
        cache.whole(file)


def test_a_damaged_part_is_fetched_again(content: bytes, tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1e9)
    cache.read(the_file(), 0, 9)
    for path in tmp_path.rglob("*.part"):
        path.write_bytes(b"short")
    assert cache.read(the_file(), 0, 9) == content[:9]


def test_errors_that_pass_and_errors_that_stay(content: bytes, tmp_path: Path) -> None:
    left = [OSError("out of luck")] * 2

    def fail(path: str) -> None:
        if left:
            raise left.pop()

    Flaky.behave = staticmethod(fail)
    assert Cache(tmp_path, 1e9).read(the_file(), 0, 9) == content[:9]
    left += [OSError("out of luck")] * 3
    with pytest.raises(UserError, match=r"The store of 'flaky:///room/file.bin' answers with an error \(out of luck\)"):
        Cache(tmp_path / "new", 1e9).read(the_file(), 0, 9)
    Flaky.cut, left[:] = 1, []
    with pytest.raises(UserError, match="it gave 262,143 bytes of 262,144"):
        Cache(tmp_path / "new", 1e9).read(the_file(), 0, 9)
    assert not list((tmp_path / "new").rglob("*.*"))


def test_a_silent_store(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "SECONDS", 0.05)
    Flaky.behave = staticmethod(lambda path: time.sleep(0.5))
    with pytest.raises(UserError, match=r"has not answered for 0\.05 s; nothing is lost"):
        Cache(tmp_path, 1e9).whole(the_file())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_full_disk(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="cannot be written \\(No space left on device\\); nothing is lost: make room"):
        Cache(tmp_path, 1e9).read(the_file(), 0, 9)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(UserError, match=r"needs another package \(Install s3fs to access S3\); pip install"):
        found("s3://bucket/file")


def test_mistakes_name_the_file(content: bytes, tmp_path: Path) -> None:
    local = Cache(tmp_path, 1e9).whole(the_file())
    with pytest.raises(UserError, match=r"^'flaky:///room/file\.bin' is empty$"), speaking_of(the_file(), local):
        raise UserError(f"'{local}' is empty")
