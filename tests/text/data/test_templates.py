"""Chat templates with what those of published models use: the texts of transformers, and what is learned from them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from triune.core.errors import UserError
from triune.core.training.data import Draw
from triune.text.data.chat import ChatTemplate, Sample
from triune.text.data.messages import Conversation, Message
from triune.text.data.packing import ChatRows, join
from triune.text.data.rendering import BEGIN, END
from triune.text.tokenizer import Tokenizer

CLOSE = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
TEMPLATES = {
    "turns": "{% for m in messages %}" + TURN + "{% endfor %}" + CLOSE,
    "a default system prompt": "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}" + TURN + "{% endfor %}" + CLOSE,
    "the system prompt in the first question": "{{ bos_token }}{% set first = '' %}{% set rest = messages %}"
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}{% set rest = "
    "messages[1:] %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}{{ '<|user|>' + (first if loop.first else "
    "'') + m.content + '<|end|>' }}{% else %}{{ '<|assistant|>' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    "a namespace": "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.index0 > ns.last and "
    "m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}" + CLOSE,
    "thoughts under another name": "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% if m.thinking is defined "
    "and loop.last %}{{ '<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|message|>' + m.content + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant' }}{% endif %}",
    "a thought that is asked for": "{% for m in messages %}{% if m.role == 'assistant' %}{% set text = "
    "m.content.split('</think>')[-1].lstrip('\n') %}{{ '<|im_start|>assistant\n' }}{% if loop.last %}{{ '<think>\n' + "
    "(m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}{{ text + '<|im_end|>\n' }}{% else %}" + TURN +
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is "
    "defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
    "marks of what is learned": "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}" + TURN +
    "{% endif %}{% endfor %}" + CLOSE,
    "a macro": "{%- macro turn(role, content) -%}{{ '<|im_start|>' ~ role ~ '\n' ~ content ~ '<|im_end|>\n' }}"
    "{%- endmacro -%}{%- for m in messages -%}{{ turn(m.role, m.content) }}{%- endfor -%}" + CLOSE,
    "the date of today": "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %B %Y') + '.<|im_end|>\n' }}"
    "{% for m in messages %}" + TURN + "{% endfor %}" + CLOSE,
    "tools": "{% if tools %}{{ '<|im_start|>tools\n' }}{% for tool in tools %}{{ tool | tojson(indent=2) + '\n' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{% if m.tool_calls %}"
    "{{ '<|im_start|>assistant\n' + m.content }}{% for call in m.tool_calls %}{{ '<tool_call>' + "
    "(call.function | tojson) + '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% else %}" + TURN +
    "{% endif %}{% endfor %}" + CLOSE,
    "a strict order": "{% if messages[0].role == 'system' %}{{ raise_exception('No system prompt here') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must "
    "alternate') }}{% endif %}" + TURN + "{% endfor %}" + CLOSE,
    "another name of the assistant": "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m.role == "
    "'assistant' else m.role %}{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "no announcement of answers": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + "
    "m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}"
    "{{ '<<SYS>>' + m.content + '<</SYS>>' }}{% endif %}{% endfor %}",
    "an end of answers of their own": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + ("
    "'<|return|>' if loop.last and m.role == 'assistant' else '<|im_end|>') + '\n' }}{% endfor %}" + CLOSE,
    "break and continue": "{% for m in messages %}{% if not m.content %}{% continue %}{% endif %}" + TURN +
    "{% if loop.index > 50 %}{% break %}{% endif %}{% endfor %}" + CLOSE,
    "white space that is cut": """{%- for m in messages %}
    {%- if m['role'] in ['user', 'system'] %}
        {{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>assistant\n' }}
        {{- m['content'] }}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
""" + CLOSE,
}  # fmt: skip
"""Written for this test; `published` adds others."""
SPECIAL = re.compile(r"<\|[^|<>\s']{1,40}\|>|<｜[^<>｜]{1,40}｜>|<(?:start|end)_of_turn>|\[/?INST\]")


def published() -> dict[str, str]:
    """Templates of published models, where they lie: a folder in TRIUNE_CHAT_TEMPLATES, or those inside of TRL."""
    spec = find_spec("trl")
    places = [os.environ.get("TRIUNE_CHAT_TEMPLATES"), *((spec.submodule_search_locations or []) if spec else [])]
    files = [file for place in filter(None, places) for file in sorted(Path(place).rglob("*.jinja"))]
    return {file.stem: file.read_text() for file in files}


PUBLISHED = published()


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


TALKS: dict[str, list[Message]] = {
    "one": [user("Who are you?"), assistant("A cat.")],
    "two": [user("Who are you?"), assistant("A cat."), user("Where?"), assistant("Down  there,\nbelow.")],
    "system": [{"role": "system", "content": "Be brief."}, user("Who are you?"), assistant("A cat.")],
    "thoughts": [
        user("Who are you?"), assistant("A cat.", reasoning_content="Hm, whiskers."), user("Where?"),
        assistant("Here.", reasoning_content="Look around."),
    ],
}  # fmt: skip


@cache
def chat(name: str) -> ChatTemplate:
    """A template with a tokenizer of bytes whose special tokens are those that it writes."""
    source = (TEMPLATES | PUBLISHED)[name]
    backend = Tokenizer.bytes().backend
    backend.add_special_tokens(["<s>", "</s>", *sorted(set(SPECIAL.findall(source)))])
    tokenizer = Tokenizer(backend, "</s>", bos="<s>")
    tokenizer.chat_template = source
    return ChatTemplate(tokenizer)


def plain(text: str) -> str:
    return text.replace(BEGIN, "").replace(END, "")


def words(template: ChatTemplate, tokens: Any) -> str:
    return template.tokenizer.decode(tokens, skip_special=False)


def learned(template: ChatTemplate, samples: list[Sample]) -> list[str]:
    """The text of each run of tokens to learn, over all samples."""
    found = []
    for sample in samples:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], sample.answers.astype(int), [0]]))).reshape(-1, 2)
        found += [words(template, sample.tokens[begin:end]) for begin, end in edges]
    return found


def or_refusal(run: Callable[[], Any], *errors: type[Exception]) -> Any:
    try:
        return run()
    except errors:
        return None


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", [*TEMPLATES, *PUBLISHED])
def test_texts_are_those_of_transformers(name: str, talk: str) -> None:
    """With and without the announcement of an answer; a template refuses here what it refuses there."""
    rendering = pytest.importorskip("transformers.utils.chat_template_utils")
    template, messages = chat(name), TALKS[talk]
    for answer, some in ((False, messages), (True, messages[:-1])):
        options = {"add_generation_prompt": answer, "bos_token": "<s>", "eos_token": "</s>", "enable_thinking": False}
        theirs = or_refusal(
            lambda some=some, options=options: rendering.render_jinja_template(
                [[dict(message) for message in some]], chat_template=template.source, **options
            )[0][0],
            Exception,
        )
        ours = or_refusal(lambda some=some, answer=answer: plain(template.render(some, answer)), UserError)
        assert ours == theirs


def test_tools_are_those_of_transformers() -> None:
    rendering = pytest.importorskip("transformers.utils.chat_template_utils")
    template = chat("tools")
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"where": ["up", "Ünten"], "n": 1.5}}}]
    call = {"type": "function", "function": {"name": "look", "arguments": {"where": "up"}}}
    messages = [user("Where?"), assistant("Let me see.", tool_calls=[call]), {"role": "tool", "content": "sky"}]
    theirs = rendering.render_jinja_template([messages], tools=tools, chat_template=template.source)[0][0]
    assert plain(template.render(messages, False, tools)) == theirs
    samples = template.samples(Conversation("x", messages[:2], tools=tools))
    assert learned(template, samples) == ['Let me see.<tool_call>{"name": "look", "arguments": {"where": "up"}}'
                                          "</tool_call><|im_end|>"]  # fmt: skip


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", [*TEMPLATES, *PUBLISHED])
def test_all_of_an_answer_is_learned_or_the_row_is_refused(name: str, talk: str) -> None:
    template, messages = chat(name), TALKS[talk]
    samples = or_refusal(lambda: template.samples(Conversation("x", messages)), UserError)
    if samples is None:
        with pytest.raises(UserError, match=r"leaves out|refuses these messages|cannot be told apart"):
            template.samples(Conversation("x", messages))
        return
    found, answers = learned(template, samples), [m for m in messages if m["role"] == "assistant"]
    assert len(found) == len(answers)
    for text, message in zip(found, answers, strict=True):
        assert message["content"] in text
        assert message.get("reasoning_content", "") in text
        assert not any(m["content"] in text for m in messages if m["role"] != "assistant")


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_these_templates_refuse(name: str) -> None:
    """Only what is expected, so that the test above cannot pass by refusing everything."""
    refused = [talk for talk in TALKS if or_refusal(lambda t=talk: chat(name).samples(Conversation("x", TALKS[t])),
                                                    UserError) is None]  # fmt: skip
    thinks = {"a namespace", "thoughts under another name", "a thought that is asked for"}
    assert refused == (["system"] if name == "a strict order" else []) + ([] if name in thinks else ["thoughts"])


def test_the_mask_is_that_of_transformers() -> None:
    """Where a template marks what is learned: the same tokens."""
    transformers = pytest.importorskip("transformers")
    template = chat("marks of what is learned")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=template.tokenizer.backend)
    found = theirs.apply_chat_template(
        TALKS["two"], chat_template=template.source, return_dict=True, return_assistant_tokens_mask=True
    )
    (sample,) = template.samples(Conversation("x", TALKS["two"]))
    length = len(sample.tokens)  # the line end behind the last turn is not written
    assert sample.tokens.tolist() == found["input_ids"][:length]
    assert sample.answers.tolist() == [bool(mark) for mark in found["assistant_masks"][:length]]


# --- properties of all conversations ----------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cn", "Co"]), min_size=1, max_size=12)
NAMES = [name for name in TEMPLATES if name not in ("a strict order", "another name of the assistant")]
"""Templates that take every conversation and change no text in it."""


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    turns = draw(st.integers(1, 3))
    system = draw(st.booleans())
    # Numbers make all texts different, and none a part of another.
    texts = [f"{n}{draw(TEXT)}{n}" for n in range(10, 10 + 2 * turns + system)]
    found = [{"role": "system", "content": texts.pop()}] if system else []
    return found + [(user, assistant)[n % 2](text) for n, text in enumerate(texts)]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(NAMES), conversations(), st.data())
def test_properties_of_every_conversation(name: str, messages: list[Message], data: st.DataObject) -> None:
    template = chat(name)
    samples = template.samples(Conversation("x", messages))
    tokenizer, backend = template.tokenizer, template.tokenizer.backend
    specials = set(backend.get_added_tokens_decoder())
    answers = [n for n, m in enumerate(messages) if m["role"] == "assistant"]
    found = learned(template, samples)
    # 1. Every answer is learned, once, and in order.
    assert len(found) == len(answers)
    for text, n in zip(found, answers, strict=True):
        # 2. The text comes back whole.
        assert messages[n]["content"] in text
        # 3. Nothing of a question or a system prompt is learned.
        assert not any(m["content"] in text for m in messages if m["role"] != "assistant")
    ends = []
    for sample in samples:
        # 4. One flag a token, and something to learn.
        assert len(sample.tokens) == len(sample.answers)
        assert sample.answers.any()
        # 5. Tokens are those of the vocabulary, and nothing follows the last answer.
        assert sample.tokens.min() >= 0 and sample.tokens.max() < tokenizer.vocab_size
        assert sample.answers[-1]
        # 6. Special tokens are single tokens: as text they stand nowhere.
        plain_part = [int(token) for token in sample.tokens if int(token) not in specials]
        assert not any(token in words(template, plain_part) for token in ("<|im_start|>", "<|im_end|>", "</s>"))
        # 7. The tokens are those of the text, encoded once.
        again = template._encode(words(template, sample.tokens)).ids
        assert again == sample.tokens.tolist()
        last = np.flatnonzero(np.diff(np.concatenate([sample.answers, [False]]).astype(int)) == -1)
        ends += [int(sample.tokens[at]) for at in last]
    # 8. Each answer ends with a special token, at which generation stops.
    assert set(ends) <= specials
    # 9. What stands before an answer is what is asked in use, token by token.
    asked = [template.ask(messages[:n]) for n in answers]
    starts = [np.flatnonzero(np.diff(np.concatenate([[False], s.answers]).astype(int)) == 1) for s in samples]
    befores = [s.tokens[:at] for s, several in zip(samples, starts, strict=True) for at in several]
    assert [b.tolist() for b in befores] == [a.tolist() for a in asked]
    # 10. A question ends with what announces the answer, and holds no answer that is not given yet.
    for n, tokens in zip(answers, asked, strict=True):
        text = words(template, tokens)
        assert messages[n]["content"] not in text
        assert text.index(messages[n - 1]["content"]) + len(messages[n - 1]["content"]) < len(text)
    # 11. The system prompt stands once.
    if messages[0]["role"] == "system":
        assert words(template, asked[-1]).count(messages[0]["content"]) == 1
    # 12. The same conversation gives the same samples.
    for one, two in zip(samples, template.samples(Conversation("y", messages)), strict=True):
        assert (one.tokens == two.tokens).all() and (one.answers == two.answers).all()
    # 13. A special token in a message is refused, wherever it stands.
    n = data.draw(st.integers(0, len(messages) - 1))
    bad = [m | {"content": m["content"] + "</s>"} if i == n else m for i, m in enumerate(messages)]
    with pytest.raises(UserError, match="holds the special token '</s>'"):
        template.samples(Conversation("x", bad))
    # 14. Packed, the targets are the tokens that are learned, no more and no less.
    longest = max(len(sample.tokens) for sample in samples)
    rows = ChatRows(join(samples, tokenizer, longest + 1), longest + 1)
    batch = rows[Draw(0, np.arange(len(rows)))]
    targets = batch["targets"][batch["targets"] >= 0].tolist()
    assert sorted(targets) == sorted(int(t) for s in samples for t in s.tokens[s.answers])
    # 15. Later turns change no token that a model has seen before, but where thoughts are left out.
    if len(answers) > 1 and len(samples) == 1:
        first = template.samples(Conversation("x", messages[: answers[0] + 1]))[0]
        assume(name != "an end of answers of their own")
        assert samples[0].tokens[: len(first.tokens)].tolist() == first.tokens.tolist()
