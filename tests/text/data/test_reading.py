"""Texts of files, and words of a command line that are texts or name files."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from triune.core.errors import UserError
from triune.core.labelled.predict import inputs_of
from triune.text.data.reading import text_of
from triune.text.labelled import MODALITY


def test_a_word_is_a_text_or_the_file_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("note.txt").write_bytes("\ufeffa note\n".encode())
    Path("rows.csv").write_text("text\na\n")
    assert text_of("note.txt", "…") == ("a note\n", True)
    assert text_of("see note.txt", "…") == ("see note.txt", False)
    assert text_of("U.S.A", "…") == ("U.S.A", False) and text_of("x" * 5000, "…")[1] is False
    with pytest.raises(UserError, match=r"'missing.txt' is named like a file, but there is none; name a file"):
        text_of("missing.txt", "…")
    with pytest.raises(UserError, match=r"'rows.csv' is a table, not a text; pass it as --table"):
        text_of("rows.csv", "pass it as --table FILE")


def test_lines_of_standard_input_are_never_names_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("note.txt").write_text("a note\n")
    assert inputs_of(MODALITY, ["note.txt"], None, None)[0].cells == ["a note\n"]
    assert "'note.txt' is a file, and its content is the text." in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("note.txt\nmissing.txt\n"))
    assert inputs_of(MODALITY, ["-"], None, None)[0].cells == ["note.txt", "missing.txt"]
