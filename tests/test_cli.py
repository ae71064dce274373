"""The top-level command line: instant help, the table of verbs, exit codes."""

from __future__ import annotations

import subprocess
import sys
import time
from types import ModuleType

import pytest

from triune import cli, tasks
from triune.core.errors import Stopped, UserError
from triune.core.task import Task, Verb, named

LIGHT = """
import sys, triune.cli
code = triune.cli.main(sys.argv[1:])
heavy = {"torch", "lightning", "numpy", "yaml", "jsonargparse", "tokenizers", "rich"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


@pytest.mark.parametrize("args", [["--help"], ["recipes"], ["text"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    start = time.process_time()
    done = subprocess.run([sys.executable, "-c", LIGHT, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "triune text fit" in done.stdout
    assert time.process_time() - start < 1  # seconds of this process; the child's imports are checked above


def test_help_names_every_task_and_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    overview = capsys.readouterr().out
    for name, task in tasks.tasks().items():
        assert cli.main([name]) == 0
        about = capsys.readouterr().out
        assert name in overview and task.about in overview
        assert all(verb in overview and verb in about for verb in task.verbs)
    assert max(map(len, overview.splitlines())) <= 120


@pytest.mark.parametrize("name", tasks.NAMES)
def test_every_verb_has_its_code(name: str) -> None:
    task = tasks.task(name)
    for verb in task.verbs.values():
        assert bool(verb.main) != bool(verb.module and verb.data)
        assert verb.about
        for entry in filter(None, (verb.main, verb.module, verb.data)):
            assert callable(named(entry))
    assert callable(named(task.demo)) and (not task.find or callable(named(task.find)))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("triune 0.")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["txet", "fit"], "error: Unknown task or command 'txet' (did you mean 'text'?); `triune --help` lists all.\n"),
        (["text", "fitt"], "error: Unknown verb of `triune text` 'fitt' (did you mean 'fit'?); `triune text --help`"),
        (["text", "fit", "--config", "no-such-recipe"], "error: --config no-such-recipe: neither a file nor a recipe"),
    ],
)
def test_mistakes_exit_with_2(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert err.startswith(message)
    assert len(err.splitlines()) == 1
    assert out == ""


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A task "toy" with a verb "go" whose `main` a test can set."""
    module = ModuleType("triune.toy")
    module.TASK = Task("toys", {"go": Verb("go", "triune.toy:main")})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triune.toy", module)
    monkeypatch.setattr(tasks, "NAMES", (*tasks.NAMES, "toy"))
    return module


def fail(error: BaseException):
    def main(args: list[str]) -> int:
        raise error

    return main


def test_verbs_get_their_arguments(verb: ModuleType) -> None:
    seen: list[str] = []
    verb.main = lambda args: seen.extend(args) or 3  # type: ignore[attr-defined]
    assert cli.main(["toy", "go", "RUN", "--traceback", "--n", "1"]) == 3
    assert seen == ["RUN", "--n", "1"]


def test_traceback_is_shown_on_request(verb: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.main = fail(UserError("The file is\nempty."))  # type: ignore[attr-defined]
    assert cli.main(["toy", "go"]) == 2
    assert capsys.readouterr().err == "error: The file is empty.\n"
    assert cli.main(["toy", "go", "--traceback"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: The file is empty.\n")


def test_what_stands_behind_an_empty_line_keeps_its_lines(verb: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.main = fail(UserError("They do not\nmatch:\n\nACD\n| |\nAED"))  # type: ignore[attr-defined]
    assert cli.main(["toy", "go"]) == 2
    assert capsys.readouterr().err == "error: They do not match:\nACD\n| |\nAED\n"


def test_bugs_keep_their_traceback(verb: ModuleType) -> None:
    verb.main = fail(ZeroDivisionError("oops"))  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        cli.main(["toy", "go"])


def test_an_error_from_a_loader_process_is_one_sentence(verb: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    text = "Caught UserError in DataLoader worker process 0.\nTraceback (…):\n  …\n"
    text += "triune.core.errors.UserError: Bad row 3."
    verb.main = fail(UserError(text))  # type: ignore[attr-defined]
    assert cli.main(["toy", "go"]) == 2
    assert capsys.readouterr().err == "error: Bad row 3.\n"


def test_interrupt_and_closed_pipe(verb: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.main = fail(KeyboardInterrupt())  # type: ignore[attr-defined]
    assert cli.main(["toy", "go"]) == 130
    assert "Stopped" in capsys.readouterr().err
    command = f"{sys.executable} -m triune recipes | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_that_a_signal_ended_has_its_exit_code(verb: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.main = fail(Stopped(143, "Stopped and saved."))  # type: ignore[attr-defined]
    assert cli.main(["toy", "go"]) == 143
    assert capsys.readouterr().err == "Stopped and saved.\n"
