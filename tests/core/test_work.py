"""Cache folders and progress of long work."""

from __future__ import annotations

from pathlib import Path

import pytest

from triune.core import work
from triune.core.errors import UserError


def test_the_cache_folder(monkeypatch):
    monkeypatch.delenv("TRIUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert work.cache_folder(None) == Path("/x/triune")
    assert work.cache_folder("here") == Path("here")
    monkeypatch.setenv("TRIUNE_CACHE", "/y")
    assert work.cache_folder(None) == Path("/y")
    with pytest.raises(UserError, match=r"^The cache '/dev/null' is no folder, but must be one"):
        work.cache_folder("/dev/null")


def test_without_a_terminal_only_long_work_says_a_line(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 0.0, 3.0])
    monkeypatch.setattr(work.time, "monotonic", lambda: next(clock))
    with work.progress("short", 10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""
    with work.progress("long", 5_500_000, "MB", 1e6) as advance:
        advance(1)
    assert capsys.readouterr().err == "long: 5.5 MB in 3.0 s\n"
