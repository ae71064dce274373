"""What no option and no terminal may do to the command line itself."""

from __future__ import annotations

import errno
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from triune import cli
from triune.core import files
from triune.core.errors import UserError


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


def python(words: str, *after: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code with streams as a shell sets them, such as `>&-`."""
    line = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(words)} {' '.join(after)}"
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=200, check=False)


def test_closed_streams_go_nowhere_and_no_file_gets_their_number(tmp_path: Path) -> None:
    file = tmp_path / "file"
    code = f"""
import os, sys
from triune.cli import main
code = main(["--version"])
kept = open({str(file)!r}, "wb")
os.write(1, b"what a library prints")
sys.exit(code or kept.fileno() in (0, 1, 2))
"""
    for closed in ("<&- >&-", "<&- >&- 2>&-"):
        done = python(code, closed)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
        assert file.read_bytes() == b""


def test_a_reader_that_leaves_does_not_end_the_work(tmp_path: Path) -> None:
    """Whoever prints only, as `generate` does, ends there; nobody prints a traceback."""
    code = """
import sys
from triune import cli
cli.dispatch = lambda words: [print("many", "lines") for _ in range(30000)] and open("done", "w").close() or 0
sys.exit(cli.main(sys.argv[1:]))
"""
    for words, goes_on in ((["text", "fit"], True), (["text", "generate"], False)):
        command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {' '.join(words)}"
        line = f"cd {shlex.quote(str(tmp_path))}; {{ {command}; echo $? >&2; }} | head -1"
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=200, check=False)
        assert done.stdout == "many lines\n" and done.stderr.strip() in ("0", "None"), done
        assert (tmp_path / "done").exists() == goes_on
        (tmp_path / "done").unlink(missing_ok=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_standard_output_is_one_sentence() -> None:
    done = python("import sys; from triune.cli import main; sys.exit(main(['--help']))", "> /dev/full")
    assert done.returncode == 2
    assert done.stderr == (
        "error: 'standard output' cannot be read or written (No space left on device); make room, allow it, or give"
        " another name.\n"
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("words", ["--help", "txt fit"])
def test_where_errors_cannot_be_told_the_exit_code_is_that_of_a_refusal(words: str) -> None:
    code = f"import sys; from triune.cli import main; sys.exit(main({words.split()!r}))"
    assert python(code, "> /dev/full 2>&1").returncode == 2


class Rust(Exception):
    """As safetensors and tokenizers raise them."""


@pytest.mark.parametrize("whole", [files.written_whole, files.replaced_folder])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), Rust("I/O error: No space left on device (os error 28)")],
    ids=["python", "rust"],
)
def test_a_full_disk_leaves_no_half_and_names_the_file(whole: Any, error: Exception, tmp_path: Path) -> None:
    target = tmp_path / "out.json"

    def write() -> None:
        with whole(target) as part:
            (part / "inside" if part.is_dir() else part).write_text("half")
            raise error

    with pytest.raises(OSError, match="No space left") as raised:
        write()
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(target))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="as it was"), whole(target):
        raise UserError("as it was.")
