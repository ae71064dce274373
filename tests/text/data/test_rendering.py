"""Chat templates that would never end, or take all memory, end in one sentence."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from triune.core.errors import UserError
from triune.text.data import rendering
from triune.text.data.chat import ChatTemplate
from triune.text.data.messages import Conversation
from triune.text.data.rendering import Refused, Renderer
from triune.text.tokenizer import Tokenizer

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_texts_come_back_whole_and_in_unicode() -> None:
    renderer = Renderer("{% for m in messages %}{{ m.role }}: {{ m.content | tojson }}\n{% endfor %}{{ eos }}")
    text = renderer.render(messages=[{"role": "user", "content": "Ä\n\U0001f600"}], eos="é")
    assert text == 'user: "Ä\\n\U0001f600"\né'
    assert renderer.render(messages=[], eos="z" * 300_000) == "z" * 300_000


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without an end"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 1 % 0 }}", "zero"),
        ("{{ '%01000000000d' % 1 }}", "more than 537 MB of memory"),
        ("{{ '{:>1000000000}'.format(1) }}", "more than 537 MB of memory"),
        ("{{ 'a' * 10 ** 9 }}", "more than 537 MB of memory"),
        ("{{ 'a' | center(10 ** 9) }}", "more than 537 MB of memory"),
        ("{{ [0] * 10 ** 9 }}", "more than 537 MB of memory"),
        ("{{ 'a' * 10 ** 8 }}", "100,000,000 characters"),
        ("{{ range(10 ** 9) }}", "Range too big"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ '\\ud800' }}", "surrogates not allowed"),
        ("{% include '/etc/hostname' %}", "no loader"),
        ("{% if %}", "line 1 of it is not valid"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ],
)
def test_templates_that_cannot_be_done(source: str, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        Renderer(source).render(messages=TALK)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ seven ** (10 ** 9) }}",
    ],
)
def test_a_template_without_an_end_is_ended_and_the_next_text_is_made(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    renderer = Renderer("{% if loop_for_ever %}" + source + "{% else %}fine{% endif %}")
    with pytest.raises(Refused, match=r"ran for more than 0.5 s"):
        renderer.render(loop_for_ever=True, seven=7)
    monkeypatch.undo()  # a process begins anew, which takes what it takes
    assert renderer.render(loop_for_ever=False) == "fine"


def test_the_command_line_gets_one_sentence() -> None:
    tokenizer = Tokenizer.bytes()
    tokenizer.chat_template = "{{ 1 / 0 }}"
    with pytest.raises(UserError, match=r"chat template of the tokenizer refuses these messages \(division by zero\)"):
        ChatTemplate(tokenizer).samples(Conversation("x:1", TALK))


def test_the_process_ends_with_its_renderer_without_a_warning() -> None:
    renderer = Renderer("a")
    assert renderer.render() == "a"
    process = renderer._process
    assert process is not None and process.poll() is None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        del renderer
        gc.collect()
        assert process.poll() is not None
        assert process.stdin and process.stdin.closed and process.stdout and process.stdout.closed
        del process
        gc.collect()
    assert not [warning for warning in seen if issubclass(warning.category, ResourceWarning)]


def test_the_process_ends_with_python_without_a_warning() -> None:
    code = (
        "from triune.text.data.rendering import Renderer\n"
        "kept = Renderer('a'); lost = Renderer('b')\n"
        "print(kept.render(), lost.render(), kept._process.pid, lost._process.pid)\n"
        "del lost"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])}
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Warning" not in done.stderr
    first, second, *numbers = done.stdout.split()
    assert (first, second) == ("a", "b")
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(int(number), 0)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12 and later, for other threads
def test_a_fork_leaves_the_process_to_its_owner() -> None:
    renderer = Renderer("a")
    assert renderer.render() == "a"
    assert renderer._end is not None
    process, child = renderer._process, os.fork()
    if child == 0:
        try:
            os._exit(0 if renderer.render() == "a" and renderer._process is not process else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert renderer.render() == "a" and renderer._process is process


def test_an_interrupted_text_is_not_taken_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer("{{ name }}")
    assert renderer.render(name="first") == "first"
    process = renderer._process
    assert process is not None and process.stdout is not None

    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(process.stdout, "readline", interrupt)
    with pytest.raises(KeyboardInterrupt):
        renderer.render(name="second")
    assert renderer.render(name="third") == "third"
