"""Files in S3, from a server of one's own: errors in one sentence, nothing left in the cache, then read as ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from triune.core import stores
from triune.core.errors import UserError
from triune.core.stores import BLOCK, Cache, found

pytest.importorskip("s3fs", reason="S3 is read through s3fs (pip install 'triune[stores]')")
pytest.importorskip("moto.server", reason="needs a server of S3 (pip install 'moto[s3,server]')")

CONTENT = bytes(range(256)) * (BLOCK // 128)
CODES = {
    403: ("403 Forbidden", "AccessDenied", "Access Denied"),
    404: ("404 Not Found", "NoSuchKey", "The specified key does not exist."),
    500: ("500 Internal Server Error", "InternalError", "We encountered an internal error. Please try again."),
    503: ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
}


class Faulty:
    """A WSGI application that answers with the errors in `faults` first: numbers, or "silent"."""

    def __init__(self, app: Any) -> None:
        self.app, self.faults, self.asked = app, list[Any](), 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if "one.bin" not in environ["PATH_INFO"]:
            return self.app(environ, start_response)
        self.asked += 1
        fault = self.faults.pop(0) if self.faults else None
        if fault == "silent":
            time.sleep(0.6)
        elif fault is not None:
            status, code, message = CODES[fault]
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()]
        return self.app(environ, start_response)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Faulty, str]]:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = Faulty(DomainDispatcherApplication(create_backend_app))
    one = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=one.serve_forever, daemon=True).start()
    yield app, f"http://127.0.0.1:{one.server_port}"
    one.shutdown()


@pytest.fixture
def store(server: tuple[Faulty, str], monkeypatch: pytest.MonkeyPatch) -> Faulty:
    import fsspec
    import s3fs

    app, address = server
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_MAX_ATTEMPTS")
    for name, value in zip(names, ("key", "secret", "us-east-1", address, "1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stores, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    app.faults = []
    fs = fsspec.filesystem("s3")
    if not fs.exists("bucket"):
        fs.mkdir("bucket")
        for name in ("one.bin", "two.bin"):
            fs.pipe(f"bucket/room/{name}", CONTENT)
    app.asked = 0
    return app


def test_files_of_a_folder(store: Faulty, tmp_path: Path) -> None:
    files = found("s3://bucket/room")
    assert [(file.name, file.size) for file in files] == [("one.bin", len(CONTENT)), ("two.bin", len(CONTENT))]
    assert Cache(tmp_path, 1e9).whole(files[0]).read_bytes() == CONTENT
    assert Cache(tmp_path, 1e9).read(files[1], BLOCK - 5, 10) == CONTENT[BLOCK - 5 : BLOCK + 5]


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ([403] * 9, r"answers with an error \(.*Access Denied.*\); nothing is lost"),
        ([404] * 9, "There is no file 's3://bucket/room/one.bin'; give one that exists"),
        ([500] * 99, r"answers with an error \(.*internal error.*\); nothing is lost"),
        ([503] * 99, r"answers with an error \(.*reduce your request rate.*\); nothing is lost"),
    ],
    ids=["403", "404", "500", "503"],
)
def test_errors(store: Faulty, tmp_path: Path, faults: list[Any], says: str) -> None:
    file, cache = found("s3://bucket/room/one.bin")[0], Cache(tmp_path, 1e9)
    store.faults = [*faults]
    with pytest.raises(UserError, match=says) as caught:
        cache.read(file, 0, 9)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    store.faults = []
    assert cache.read(file, 0, len(CONTENT)) == CONTENT


def test_an_error_that_passes(store: Faulty, tmp_path: Path) -> None:
    file = found("s3://bucket/room/one.bin")[0]
    store.faults = [500, 503]
    assert Cache(tmp_path, 1e9).read(file, 0, 9) == CONTENT[:9]
    assert store.faults == []


def test_a_slow_answer(store: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = found("s3://bucket/room/one.bin")[0]
    monkeypatch.setattr(stores, "SECONDS", 0.2)
    store.faults = ["silent"] * 9
    with pytest.raises(UserError, match=r"has not answered for 0\.2 s; nothing is lost"):
        Cache(tmp_path, 1e9).read(file, 0, 9)
    store.faults = []
    monkeypatch.setattr(stores, "SECONDS", 20.0)
    assert Cache(tmp_path, 1e9).read(file, 0, 9) == CONTENT[:9]


def test_a_bucket_that_is_not_there(store: Faulty) -> None:
    with pytest.raises(UserError, match="There is no file 's3://nothing/room'; give one that exists"):
        found("s3://nothing/room")
