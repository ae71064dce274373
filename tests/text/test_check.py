"""`triune text check` shows what is learned and names what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triune.core.errors import UserError
from triune.text.check import main
from triune.text.data.module import TextData

GOOD = {"prompt": "Hi", "completion": "Ho"}
BAD: list[tuple[object, str]] = [
    ({"instruction": None, "output": "x"}, "`instruction` is null"),
    ({"prompt": "q", "completion": None}, "`completion` is null"),
    ({"messages": [{"content": "q"}, {"role": "assistant", "content": "a"}]}, "message 1 has no role"),
    ({"messages": [{"role": "usr", "content": "q"}, {"role": "assistant", "content": "a"}]}, "the role 'usr'"),
    ({"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "a"}]}, "no content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]},
        "a part of type image",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            ]
        },
        "leaves out calls of functions",
    ),
    (GOOD | {"tools": [{"name": "f"}]}, "leaves out `tools`"),
    (GOOD | {"answer": "Ha"}, "completion and answer; say which"),
    ({"conversations": [{"from": "gpt", "value": "Hello"}]}, "no answer that follows a question"),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "columns.completion chosen"),
    ({"text": "q"}, "read by --data.files"),
    ({"prompt": "a\ud800", "completion": "b"}, "half a surrogate pair"),
    ({"prompt": "q<|endoftext|>", "completion": "b"}, "special token"),
    ([1], "holds a list"),
]


def write(file: Path, *rows: object) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize("row", range(len(BAD)))
def test_a_row_that_cannot_be_used_is_named_and_may_be_skipped(row, tmp_path, capsys):
    bad, why = BAD[row]
    rows = [GOOD | {"prompt": f"question {number}"} for number in range(6)]
    file = write(tmp_path / "x.jsonl", *rows, bad)
    assert main(["--data.chats", file]) == 2
    shown = capsys.readouterr().out
    assert "x.jsonl:7" in shown
    assert why in shown
    assert "1 of 7 rows cannot be used" in shown
    options = {"chats": file, "tokenizer": "bytes", "context": 64, "batch_size": 1}
    with pytest.raises(UserError, match=r"x\.jsonl:7.*--data.on_error skip leaves it out"):
        TextData(**options).setup()
    data = TextData(**options, on_error="skip")
    data.setup()
    assert data.counts()["unusable"] == 1
    assert "1 rows cannot be used" in data.describe()
    assert why in data.describe()


def test_what_is_learned_is_marked(tmp_path, capsys):
    talk = {"messages": [{"role": "System", "content": "Be brief."}, {"role": "User", "content": "Hi"}]}
    talk["messages"] += [{"role": "Assistant", "content": "Ho"}]
    assert main(["--data.chats", write(tmp_path / "x.jsonl", talk)]) == 0
    shown = capsys.readouterr().out
    assert "system: Be brief.<|endoftext|>\nuser: Hi<|endoftext|>\nassistant: ⟦Ho<|endoftext|>⟧\n" in shown
    assert "1 conversations, 1 samples; the plain template" in shown


@pytest.mark.parametrize(
    ("row", "learned"),
    [
        ({"instruction": "i", "context": "c", "response": "r", "category": "x"}, "i\n\nc|r"),
        ({"question": "q", "answer": "a"}, "q|a"),
        ({"input": "q", "output": "a"}, "q|a"),
        ({"conversations": [{"role": "human", "content": "q"}, {"role": "GPT", "content": "a"}]}, "q|a"),
        (
            {
                "prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}],
                "completion": [{"role": "user", "content": "again"}, {"role": "assistant", "content": "a"}],
            },
            "q|again|a",
        ),
        ({"conversations": [{"from": "gpt", "value": "w"}, {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a"}]}, "q|a"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x", "weight": 0},
            {"role": "user", "content": "p"}, {"role": "assistant", "content": "a", "weight": 1}]}, "q|p|a"),
    ],
)  # fmt: skip
def test_usual_rows(row, learned, tmp_path, capsys):
    assert main(["--data.chats", write(tmp_path / "x.jsonl", row)]) == 0
    *asked, answer = learned.split("|")
    shown = capsys.readouterr().out
    assert shown.count("⟦") == 1
    assert f"⟦{answer}<|endoftext|>⟧" in shown
    assert all(f"user: {text}<|endoftext|>" in shown for text in asked)


def test_columns_are_mapped(tmp_path, capsys):
    file = write(tmp_path / "x.jsonl", {"frage": "q", "antwort": "a", "prompt": "no"})
    assert main(["--data.chats", file, "--data.columns.prompt", "frage", "--data.columns.completion=antwort"]) == 0
    assert "user: q<|endoftext|>\nassistant: ⟦a<|endoftext|>⟧" in capsys.readouterr().out
    said = write(tmp_path / "y.jsonl", {"turns": [{"who": "user", "said": "q"}, {"who": "bot", "said": "a"}]})
    columns = '{"messages": "turns", "role": "who", "content": "said"}'
    assert main(["--data.chats", said, "--data.columns", columns]) == 0
    assert "⟦a<|endoftext|>⟧" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"promt \(did you mean 'prompt'"):
        main(["--data.chats", file, "--data.columns.promt", "frage"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_arrays_and_byte_order_marks(encoding, tmp_path, capsys):
    rows = [{"prompt": "Grüße", "completion": "茶"}, {"prompt": "b", "completion": "c"}]
    array, lines = tmp_path / "x.json", tmp_path / "x.jsonl"
    array.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding=encoding)
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding=encoding)
    for file in (array, lines):
        assert main(["--data.chats", str(file)]) == 0
        shown = capsys.readouterr().out
        assert "user: Grüße<|endoftext|>\nassistant: ⟦茶<|endoftext|>⟧" in shown
        assert "2 conversations" in shown
    text = tmp_path / "x.txt"
    text.write_text("Grüße, 茶", encoding=encoding)
    assert main([str(text)]) == 0
    shown = capsys.readouterr().out
    assert "Grüße, 茶<|endoftext|>\n" in shown
    assert "\ufeff" not in shown


def test_an_array_of_texts_is_rows_and_not_json_to_learn(tmp_path, capsys):
    file = tmp_path / "x.json"
    file.write_text('[{"text": "one"}, {"text": "two"}]')
    assert main([str(file)]) == 0
    shown = capsys.readouterr().out
    assert "one<|endoftext|>" in shown
    assert "{" not in shown.split("x.json read")[0]
    assert "x.json read as rows" in shown
    file.write_text('[{"messages": []}]')
    with pytest.raises(UserError, match=r"these are conversations, which --data.chats reads"):
        main([str(file)])


def test_one_kind_of_files(tmp_path):
    with pytest.raises(UserError, match="Give either FILES"):
        main([])
    with pytest.raises(UserError, match="There is no file"):
        main([str(tmp_path / "none.txt")])
