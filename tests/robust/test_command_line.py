"""What no option and no terminal may do to the command line itself."""

from __future__ import annotations

import errno
import io
import os
import sys

import pytest

from triune import cli


def test_words_that_are_not_utf8_are_refused_in_words_that_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["text", "fit", "--run", os.fsdecode(b"caf\xe9")]) == 2
    assert capsys.readouterr().err == "error: The name of 'caf\\xe9' is not UTF-8; rename it.\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_the_system_refuses_is_one_sentence(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(words: list[str]) -> int:
        raise OSError(number, os.strerror(number), "/data/run")

    monkeypatch.setattr(cli, "dispatch", full)
    assert cli.main([]) == 2
    assert capsys.readouterr().err == (
        f"error: '/data/run' cannot be read or written ({os.strerror(number)}); make room, allow it, or give another "
        "name.\n"
    )


def test_other_errors_stay_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(words: list[str]) -> int:
        raise OSError("no number: raised by a library, not by the system")

    monkeypatch.setattr(cli, "dispatch", wrong)
    with pytest.raises(OSError, match="no number"):
        cli.main([])


def test_a_terminal_that_lacks_a_character_gets_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(cli, "overview", lambda: "Cβ")
    assert cli.main(["--help"]) == 0
    assert shown.getvalue() == b"C\\u03b2\n"


def test_a_present_folder_that_is_gone_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> str:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    shown = io.StringIO()
    monkeypatch.setattr(os, "getcwd", gone)
    monkeypatch.setattr("sys.stderr", shown)
    assert cli.main(["recipes"]) == 2
    assert shown.getvalue() == "error: The present folder cannot be used (No such file or directory); go to another.\n"
