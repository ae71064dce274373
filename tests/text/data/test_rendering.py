"""Chat templates that would never end, or take all memory, end in one sentence."""

from __future__ import annotations

import pytest

from triune.core.errors import UserError
from triune.text.data import rendering
from triune.text.data.chat import ChatTemplate, Conversation
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
    assert renderer.render(loop_for_ever=False) == "fine"


def test_the_command_line_gets_one_sentence() -> None:
    tokenizer = Tokenizer.bytes()
    tokenizer.chat_template = "{{ 1 / 0 }}"
    with pytest.raises(UserError, match=r"chat template of the tokenizer refuses these messages \(division by zero\)"):
        ChatTemplate(tokenizer).samples(Conversation("x:1", TALK))
