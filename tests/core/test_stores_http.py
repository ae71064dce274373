"""Stores behind HTTP that answer with errors, slowly, or not to the end: a server in this process, no network."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("aiohttp")

from triune.core import stores
from triune.core.errors import UserError
from triune.core.stores import BLOCK, Cache, found

CONTENT = np.random.default_rng(0).integers(256, size=2 * BLOCK + 100, dtype=np.uint8).tobytes()
PAGE = b'<a href="one.bin">one</a> <a href="two.bin">two</a>'


class Store(BaseHTTPRequestHandler):
    """A page at /room/ that names two files; `faults` are what it does to the next questions about a file."""

    protocol_version = "HTTP/1.1"
    faults: ClassVar[list[Any]] = []
    asked = 0
    time = "Mon, 01 Jan 2024 00:00:00 GMT"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        if self.path == "/room/":
            self._send(200, PAGE, PAGE, "text/html")
        else:
            self._answer(None)

    def _answer(self, body: bytes | None) -> None:
        type(self).asked += 1
        fault = self.faults.pop(0) if self.faults else 200
        if self.path not in ("/room/one.bin", "/room/two.bin"):
            fault = 404
        if fault == "silent":
            time.sleep(0.6)
        if isinstance(fault, int) and fault >= 400:
            self._send(fault, b"", b"")
            return
        part, code = CONTENT, 200
        if (asked := self.headers.get("Range")) and fault != "whole":
            first, last = asked.removeprefix("bytes=").split("-")
            part, code = CONTENT[int(first) : int(last) + 1], 206
        self._send(code, part, part if body is None else body, cut=fault == "reset")

    def _send(self, code: int, content: bytes, body: bytes, kind: str = "x/y", cut: bool = False) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", self.time)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:  # a reset, not an orderly end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is what these tests are about."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with Quiet(("127.0.0.1", 0), Store) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/room/"
        server.shutdown()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WAITS", (0.0, 0.0))
    Store.faults.clear()
    Store.asked = 0


def test_files_of_a_page(address: str, tmp_path: Path) -> None:
    files = found(address)
    assert [(file.name, file.size) for file in files] == [("one.bin", len(CONTENT)), ("two.bin", len(CONTENT))]
    assert Cache(tmp_path, 1e9).whole(files[0]).read_bytes() == CONTENT
    assert Cache(tmp_path, 1e9).read(files[1], BLOCK - 5, 10) == CONTENT[BLOCK - 5 : BLOCK + 5]


def test_a_file_of_another_time_is_another_version(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = found(f"{address}one.bin")[0]
    assert found(f"{address}one.bin")[0] == before
    monkeypatch.setattr(Store, "time", "Tue, 02 Jan 2024 00:00:00 GMT")
    assert found(f"{address}one.bin")[0].version != before.version


@pytest.mark.parametrize(
    ("faults", "says", "times"),
    [
        ([403], r"answers with an error \(403 Forbidden\); nothing is lost", 1),
        ([401], r"answers with an error \(401 Unauthorized\); nothing is lost", 1),
        ([404], "There is no file 'http.*/room/one.bin'; give one that exists", 1),
        ([410], "There is no file 'http.*/room/one.bin'; give one that exists", 1),
        ([500, 500, 500], r"answers with an error \(500 Internal Server Error\)", 3),
        ([500, 503, 429], r"answers with an error \(429 Too Many Requests\)", 3),
        (["reset"] * 3, "answers with an error", 3),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else None,
)
@pytest.mark.parametrize("whole", [True, False])
def test_errors(address: str, tmp_path: Path, faults: list[Any], says: str, times: int, whole: bool) -> None:
    """What may pass is asked three times, what will not is asked once; nothing is left in the cache."""
    file, cache = found(f"{address}one.bin")[0], Cache(tmp_path, 1e9)
    Store.faults, Store.asked = [*faults], 0
    with pytest.raises(UserError, match=says):
        _ = cache.whole(file) if whole else cache.read(file, 0, 9)
    assert times == Store.asked and not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (cache.whole(file).read_bytes() if whole else cache.read(file, 0, len(CONTENT))) == CONTENT


@pytest.mark.parametrize("faults", [[500, 503], ["reset", "reset"], ["reset", 429], ["whole"]])
def test_errors_that_pass(address: str, tmp_path: Path, faults: list[Any]) -> None:
    file = found(f"{address}one.bin")[0]
    Store.faults, Store.asked = [*faults], 0
    assert Cache(tmp_path, 1e9).read(file, 0, 9) == CONTENT[:9]
    assert len([fault for fault in faults if fault != "whole"]) + 1 == Store.asked


def test_a_connection_that_hangs(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is asked again; a store that stays silent is given up."""
    file = found(f"{address}one.bin")[0]
    monkeypatch.setattr(stores, "SECONDS", 0.2)
    Store.faults = ["silent"]
    assert Cache(tmp_path, 1e9).read(file, 0, 9) == CONTENT[:9]
    Store.faults, Store.asked = ["silent"] * 9, 0
    with pytest.raises(UserError, match=r"has not answered for 0\.2 s; nothing is lost"):
        Cache(tmp_path / "new", 1e9).read(file, 0, 9)
    assert Store.asked == 2


@pytest.mark.parametrize(
    ("faults", "says"),
    [([403, 403], "403 Forbidden"), ([500] * 6, "500 Internal Server Error"), ([404, 404], "There is no file")],
)
def test_errors_while_a_page_is_looked_at(address: str, faults: list[Any], says: str) -> None:
    """A file that may not be looked at, or a server with an error, is not a file that is missing."""
    Store.faults = [*faults]
    with pytest.raises(UserError, match=says):
        found(address)


def test_a_server_that_is_gone() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=r"answers with an error \(Cannot connect to host 127\.0\.0\.1"):
        found(f"http://127.0.0.1:{port}/room/one.bin")


def test_two_readers_share_a_small_cache(address: str, tmp_path: Path) -> None:
    """Each removes what the other has kept; both read what is there, and the cache stays within its bound."""
    files = found(address)

    def size(path: Path) -> int:
        with suppress(OSError):  # the other has just removed it
            return path.stat().st_size
        return 0

    def read(number: int) -> int:
        draw, cache, most = np.random.default_rng(number), Cache(tmp_path, 2.5 * BLOCK), 0
        for _ in range(25):
            first, file = int(draw.integers(len(CONTENT) - 100)), files[int(draw.integers(2))]
            cache.prepare([(file, first, 100), (file, (first + BLOCK) % (len(CONTENT) - 100), 100)])
            assert cache.read(file, first, 100) == CONTENT[first : first + 100]
            most = max(most, sum(map(size, list(tmp_path.rglob("*.part")))))
        return most

    with ThreadPoolExecutor(2) as pool:
        assert max(pool.map(read, range(2))) <= 4.5 * BLOCK  # each may bring two before either makes room
