"""`triune text check` shows what is learned and names what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triune.core.errors import UserError
from triune.core.training.run.cli import run_task
from triune.text.check import main
from triune.text.data.module import TextData
from triune.text.generate import main as generate
from triune.text.task import TextTask

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
    ({"prompt": "q", "completion": "a", "label": False}, "its answer is a bad one"),
    ({"question": "q", "reasoning": "since", "answer": "a"}, "leaves out the thoughts"),
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
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x", "loss": False},
            {"role": "user", "content": "p"}, {"role": "assistant", "content": "a", "loss_mask": 1}]}, "q|p|a"),
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


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data.chats", "C", "--data.val_files", "T"], "together with data.files or data.val_files"),
        (["--data.chats", "C", "--data.files", "T"], "together with data.files or data.val_files"),
        (["--data.chats", "C", "--data.text_field", "x"], "text_field is given, but the columns of conversations"),
        (["--data.chats", "C", "--data.vocab_size", "300"], "vocab_size is given, but conversations need"),
        (["--data.files", "T", "--data.columns.prompt", "q"], "data.columns is given without data.chats"),
        (["--data.files", "T", "--data.text_field", "x"], "text_field is given, but none of the files has rows"),
        (["--data.files", "T", "--data.on_error=skip"], "on_error is given, but none of the files has rows"),
        (["--data.files", "T", "--data.vocab_size", "300"], "vocab_size is given, but only a BPE"),
        (
            ["--data.files", "T", "--data.val_files", "T", "--data.val_fraction", "0.2"],
            "val_fraction is given, but --data",
        ),
    ],
)
def test_options_of_the_data_without_an_effect_are_refused(options, sentence, tmp_path):
    chats = write(tmp_path / "c.jsonl", GOOD, GOOD | {"prompt": "Ha"})
    (tmp_path / "t.txt").write_text("some text " * 50)
    line = [{"C": chats, "T": str(tmp_path / "t.txt")}.get(str(word), str(word)) for word in options]
    run = ["--run", str(tmp_path / "run"), "--data.tokenizer", "bytes", "--data.context", "8", "--data.batch_size", "1"]
    with pytest.raises(UserError, match=sentence):
        run_task("text", "fit", [*run, *line], TextTask, TextData, "triune.text")


def test_options_of_a_recipe_may_be_without_an_effect(tmp_path):
    """`--data.tokenizer bytes` does without the vocabulary size that the default recipe has."""
    chats = TextData(chats=write(tmp_path / "c.jsonl", GOOD, GOOD | {"prompt": "Ha"}), tokenizer="bytes", context=64)
    chats.vocab_size = 300
    chats.setup()
    assert chats.vocab_size == 257


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data.chats", "C", "--data.batch_size", "2"], "Unknown option '--data.batch_size'"),
        (["--data.chats", "C", "--data.val_files", "T"], "Unknown option '--data.val_files'"),
        (["--data.chats", "C", "--data.text_field", "x"], "text_field is given, but the columns"),
        (["T", "--data.text_field", "x"], "text_field is given, but none of the files has rows"),
        (["T", "--data.context", "9"], "context is given without --data.chats"),
        (["T", "--data.files", "T"], "FILES and --data.files are both given"),
        (["T", "--data.columns.prompt", "x"], "data.columns is given without data.chats"),
        (["T", "--data.tokenizer", "characters"], "is characters, which is made in training"),
        (["T", "--data.contxt", "9"], "did you mean"),
        (["T", "--data.context", "x"], "data.context"),
        (["T", "--model.pretrained", ""], "--model.pretrained is empty"),
        (["T", "--rows", "-1"], "--rows is -1, but must be at least 0"),
        ([], "Give either FILES of text or --data.chats"),
    ],
)
def test_check_reads_the_options_of_the_data_as_fit_does(options, sentence, tmp_path):
    chats = write(tmp_path / "c.jsonl", GOOD, GOOD | {"prompt": "Ha"})
    (tmp_path / "t.txt").write_text("some text " * 50)
    line = [{"C": chats, "T": str(tmp_path / "t.txt")}.get(str(word), str(word)) for word in options]
    with pytest.raises(UserError, match=sentence):
        main(line)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--system", "x"], "--system is given without --chat"),
        (["--think"], "--think is given without --chat"),
        (["--conversation", "x.json"], "--conversation is given without --chat"),
        (["--greedy", "--temperature", "0.5"], "--greedy and --temperature are both given"),
        (["--greedy", "--top-k", "3"], "--top-k is given with --greedy, which draws nothing"),
        (["--temperature", "0", "--min-p", "0.1"], "--min-p is given with --temperature 0, which draws nothing"),
        (["--temperature", "0", "--seed", "0"], "--seed is given with --temperature 0"),
        (["--no-cache", "--compile"], "--compile is given with --no-cache"),
        (["--stop", ""], "--stop is empty"),
    ],
)
def test_options_of_generate_without_an_effect_are_refused(options, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        generate([str(tmp_path), "--prompt", "a", *options])
