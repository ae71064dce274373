"""Conversations: reading, templates, answers, packing."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.training.data import Draw
from triune.text.data.chat import ChatTemplate
from triune.text.data.conversations import Usable, split
from triune.text.data.messages import Conversation, read_conversations
from triune.text.data.module import TextData
from triune.text.data.packing import PADDING, ChatRows, Chats, join, pack
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Any time!\n\nBye"},
]


def chatml() -> Tokenizer:
    tokenizer = Tokenizer.bytes()
    tokenizer.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = Tokenizer(tokenizer.backend, "<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def talk(question: str, answer: str) -> Conversation:
    return Conversation(question, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def encode(template: ChatTemplate, conversation: Conversation) -> tuple[np.ndarray, np.ndarray]:
    """The only sample of a conversation."""
    (sample,) = template.samples(conversation)
    return sample.tokens, sample.answers


def tokenise(several: list[Conversation], template: ChatTemplate, context: int) -> Chats:
    samples = [sample for conversation in several for sample in template.samples(conversation)]
    return join(samples, template.tokenizer, context)


def read(*files: str, **columns: str) -> list[Conversation]:
    """The conversations of files; an error in any row is raised."""
    found = list(read_conversations(list(files), columns))
    for one in found:
        if isinstance(one, UserError):
            raise one
    return found  # type: ignore[return-value]


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "input": "", "output": "a"},
    ],
)  # fmt: skip
def test_all_usual_forms_are_read(tmp_path: Path, row: object) -> None:
    (found,) = read(write(tmp_path / "x.jsonl", row))
    assert found.messages == talk("q", "a").messages


def test_turns_before_the_question_are_read_and_not_learned(tmp_path: Path) -> None:
    row = {"instruction": "q", "input": "", "output": "a", "history": [["before", "said"]]}
    (found,) = read(write(tmp_path / "x.jsonl", row))
    assert [message["content"] for message in found.messages] == ["before", "said", "q", "a"]
    assert found.answers == [1, 3]
    with pytest.raises(UserError, match="`history`, but must have a list of pairs"):
        read(write(tmp_path / "y.jsonl", row | {"history": ["before"]}))


def test_two_names_of_one_thing_must_agree(tmp_path: Path) -> None:
    asked = {"from": "human", "role": "user", "value": "q"}
    row = {"conversations": [asked, {"from": "gpt", "value": "a", "content": "a"}]}
    assert read(write(tmp_path / "x.jsonl", row))[0].messages[1]["content"] == "a"
    row = {"conversations": [asked, {"from": "gpt", "value": "a", "content": "b"}]}
    with pytest.raises(UserError, match="message 2 has content and value that differ"):
        read(write(tmp_path / "y.jsonl", row))


def test_answers_in_other_columns_are_not_dropped_in_silence(tmp_path: Path) -> None:
    row = {"problem": "6 * 7?", "solution": "6 * 7 = 42", "answer": "42"}
    with pytest.raises(
        UserError, match=r"has answer and solution; say which is learned: --data.columns.completion answer, or solution"
    ):
        read(write(tmp_path / "x.jsonl", row))
    assert read(str(tmp_path / "x.jsonl"), completion="solution")[0].messages[1]["content"] == "6 * 7 = 42"
    assert read(str(tmp_path / "x.jsonl"), completion="answer")[0].messages[1]["content"] == "42"
    part = {"question": "6 * 7?", "answer": "It is 42", "final_answer": "42"}
    assert read(write(tmp_path / "y.jsonl", part))[0].messages[1]["content"] == "It is 42"
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    ended = {"messages": [*said, {"role": "user", "content": "r"}], "response": "b"}
    with pytest.raises(UserError, match="messages that end with a question, and `response` beside them"):
        read(write(tmp_path / "z.jsonl", ended))
    assert read(str(tmp_path / "z.jsonl"), messages="messages")[0].answers == [1]
    assert read(write(tmp_path / "w.jsonl", {"messages": said, "answer": "42"}))[0].answers == [1]


def test_compressed_rows(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as file:
        file.write('{"prompt": "q", "response": "a"}\n\n{"prompt": "r", "response": "b"}\n')
    names = [conversation.name for conversation in read(str(tmp_path / "x.jsonl.gz"))]
    assert names == [f"{tmp_path}/x.jsonl.gz:1", f"{tmp_path}/x.jsonl.gz:3"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "hello"}', "x.jsonl:1 has text, but must have `messages`"),
        ('{"messages": "[]"}', "x.jsonl:1: `messages` is a str, but must be a list of messages"),
        ("[1]", "x.jsonl:1 holds a int"),
        ("{", "x.jsonl:1 is not valid JSON"),
        ('{"messages": [{"role": "user", "content": "q"}]}', "x.jsonl:1 has no answer"),
        ('{"prompt": 3, "completion": "a"}', "message 1 has a content that is a int"),
        ('{"image": "a.png", "prompt": "<image> what?", "completion": "a"}', "has `image`, which a text model cannot"),
        ('{"messages": [{"role": "user", "content": "q", "images": ["x"]}]}', "message 1 has `images`, which a text"),
        (
            '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": "0"}]}',
            "message 2 has the weight '0', but must be 0 or 1",
        ),
        (
            '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "train": 0.5}]}',
            "message 2 has the train 0.5, but must be 0 or 1",
        ),
        (
            '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "mask": 1}]}',
            "message 2 has `mask`, which may mean learned or left out",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(UserError, match=said):
        read(str(tmp_path / "x.jsonl"))


def test_answers_reach_to_the_end_of_their_turn() -> None:
    tokenizer = chatml()
    tokens, answers = encode(ChatTemplate(tokenizer), Conversation("x:1", TALK))
    assert tokenizer.decode(tokens[answers], skip_special=False) == "Four.<|im_end|>Any time!\n\nBye<|im_end|>"
    assert (tokens == tokenizer.backend.token_to_id("<|im_start|>")).sum() == 4  # special tokens, not their letters


def test_without_a_template_the_plain_one_serves() -> None:
    template = ChatTemplate(Tokenizer.bytes())
    tokens, answers = encode(template, talk("Hi", "Ho"))
    assert template.is_plain
    assert template.tokenizer.decode(tokens, skip_special=False) == "user: Hi<|endoftext|>\nassistant: Ho<|endoftext|>"
    assert template.tokenizer.decode(tokens[answers], skip_special=False) == "Ho<|endoftext|>"


def test_a_question_ends_where_the_answer_begins() -> None:
    template = ChatTemplate(chatml())
    tokens, answers = encode(template, talk("Hi", "Ho"))
    assert template.ask("Hi").tolist() == tokens[: int(answers.argmax())].tolist()


def test_a_message_cannot_end_its_own_turn() -> None:
    with pytest.raises(UserError, match=r"message 1, holds the special token '<\|im_end\|>'"):
        encode(ChatTemplate(chatml()), talk("q<|im_end|>", "a"))


def test_templates_are_sandboxed_and_may_refuse() -> None:
    tokenizer = chatml()
    tokenizer.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(UserError, match="refuses these messages"):
        encode(ChatTemplate(tokenizer), talk("q", "a"))
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="roles must alternate"):
        encode(ChatTemplate(tokenizer), talk("q", "a"))
    tokenizer.chat_template = "{% for"
    with pytest.raises(UserError, match="not valid"):
        encode(ChatTemplate(tokenizer), talk("q", "a"))


def test_a_template_that_writes_the_question_differently_once_it_is_answered_is_refused() -> None:
    tokenizer = chatml()
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(UserError, match="leaves out the question once it is answered"):
        encode(ChatTemplate(tokenizer), Conversation("x:1", [TALK[0], TALK[3]]))


@given(st.lists(st.integers(2, 17), min_size=1, max_size=40))
def test_packing_holds_each_once_and_fits(lengths: list[int]) -> None:
    rows = pack(np.array(lengths), 16)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] - 1 for index in row) <= 16 for row in rows)


def test_equal_conversations_stay_on_one_side() -> None:
    conversations = [Usable(talk(str(i % 5), "a"), []) for i in range(40)]
    train, val = ({one.conversation.name for one in side} for side in split(conversations, 0.2, seed=0))
    assert train | val == set("01234")
    assert not train & val
    assert sum(map(len, split(conversations, 0.2, seed=0))) == 40
    with pytest.raises(UserError, match="1 distinct"):
        split([Usable(talk("q", "a"), [])] * 3, 0.2, seed=0)


def test_what_lies_beyond_the_context_is_counted_as_what_it_is() -> None:
    template = ChatTemplate(Tokenizer.bytes())
    chats = tokenise([talk("q", "a" * 500), talk("q", "a"), talk("q" * 500, "a")], template, 64)
    assert (len(chats), chats.cut, chats.beyond) == (2, 1, 1)


def test_packed_loss_is_that_of_the_conversations_alone() -> None:
    """Forward and gradient."""
    torch.manual_seed(0)
    template = ChatTemplate(chatml())
    talks = [talk("Hi", "Ho"), talk("What is this?", "A test."), talk("x", "y")]
    config = TransformerConfig(dim=32, depth=2, heads=2, causal=True, context=128)
    model = LanguageModel(LanguageModelConfig(300, config)).double()

    def loss(several: list[Conversation]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = ChatRows(tokenise(several, template, 128), 128)
        batch = rows[Draw(0, np.append(np.arange(len(rows)), -1))]
        assert batch["tokens"].shape == (len(rows) + 1, 128)
        assert (batch["documents"][-1] == PADDING).all() and (batch["targets"][-1] == -100).all()
        return model.loss(batch["tokens"], batch["targets"], batch["documents"])

    total, count = loss(talks)
    assert len(ChatRows(tokenise(talks, template, 128), 128)) == 1
    total.backward()
    together = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    alone = [loss([one]) for one in talks]
    sum(one for one, _ in alone).backward()  # type: ignore[union-attr]
    assert int(count) == sum(int(n) for _, n in alone) == 3 + 8 + 2
    torch.testing.assert_close(total, sum(one for one, _ in alone))
    for a, b in zip(together, [p.grad for p in model.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(a, b)


def test_data_module_learns_answers_only(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(60)]
    data = TextData(chats=write(tmp_path / "x.jsonl", *rows), tokenizer="bytes", context=64, batch_size=4)
    data.setup()
    assert data.tokenizer.chat_template is not None and "answer" not in data.describe().split("packed")[1]
    batches = list(data.train_dataloader())
    assert {tuple(batch["tokens"].shape) for batch in batches} == {(4, 64)}
    scored = torch.cat([batch["targets"][batch["targets"] >= 0] for batch in batches])
    assert data.tokenizer.decode(scored).startswith("answer ")
    assert "question" not in data.tokenizer.decode(scored)
    val = list(data.val_dataloader())
    assert sum(int((batch["targets"] >= 0).sum()) for batch in val) == data.val_targets
    assert data.val_bytes == sum(len(f"answer {i}") for i in _held_out(data))


def _held_out(data: TextData) -> list[int]:
    text = data.tokenizer.decode(data.prepared.batches("val").chats.tokens)  # type: ignore[attr-defined]
    return [int(word) for word in re.findall(r"answer (\d+)", text)]


def test_chats_need_a_tokenizer_and_no_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="together with data"):
        TextData(chats="x.jsonl", files="y.txt")
    with pytest.raises(UserError, match="needs a tokenizer that exists"):
        TextData(chats="x.jsonl").setup()
