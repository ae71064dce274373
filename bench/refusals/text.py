"""Text, conversations, tokenizers and configurations that cannot be used."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

from .made import Case, Content, bomb, folder, pipe, single, table

TEXT = "text fit --run run --data.cache cache --data.tokenizer bytes --data.files {}"
CHATS = "text fit --run run --data.cache cache --data.tokenizer bytes --data.chats {}"
TOKENIZER = "text fit --run run --data.cache cache --data.files ok/ok.txt --data.tokenizer {}"
CONFIG = "text fit --run run --data.cache cache --config {}"
WRITE = "text generate ok/lm --prompt-file {}"

ROWS: list[tuple[str, Content, str]] = [
    ("a pipe", pipe, "pipe|no file"),
    ("deep nesting", b'{"text":' + b"[" * 100_000, "nested too deeply"),
    ("a number of 5,000 digits", b'{"text": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ("half a surrogate pair", rb'{"text": "\ud800"}', "half a surrogate pair"),
    ("no JSON", b"hello\n", "not valid JSON"),
    ("a cut row", b'{"text": "a"', "not valid JSON"),
    ("a list in a row", b"[1]\n", "no JSON object|must hold an object|list"),
    ("no UTF-8", b'{"text": "\xe9"}', "UTF-8|utf-8"),
    ("not the field", b'{"body": "a"}', "no field|but must have"),
    ("a number for a text", b'{"text": 3}', "not text|but must have"),
]


def cases() -> Iterator[Case]:
    """All of this room."""
    message = {"role": "assistant", "content": "a"}
    yield from table("text", TEXT, single(".txt", PLAIN))
    yield from table("text", TEXT, PLACES)
    yield from table("text", TEXT, single(".jsonl", ROWS))
    yield from table("text", TEXT, single(".jsonl.gz", PACKED))
    yield from table("text", TEXT, single(".parquet", TABLES))
    devices = [("a device", "/dev/zero", {}, "device|no file"), ("a name that is not UTF-8", "caf\udce9", {}, "UTF-8")]
    yield from table("text", TEXT, devices)
    yield from table("conversations", CHATS, devices)
    yield from table("prompts", WRITE, devices)
    yield from table("conversations", CHATS, single(".jsonl", ROWS))
    conversations = [
        ("no answer", [message | {"role": "user"}], "no answer"),
        ("a number as content", [message | {"content": 3}], "must be a text"),
        ("a role of nobody", [message | {"role": "god"}, message], "role"),
        ("messages that are a text", "hello", "messages|list"),
        ("messages that are numbers", [1, 2], "message|object"),
        ("no messages", [], "no message|empty|answer"),
        ("a message without a role", [{"content": "a"}, message], "role"),
        ("one conversation", [{"role": "user", "content": "q"}, message], "at least 2"),
    ]
    rows = [(about, json.dumps({"messages": found}).encode(), words) for about, found, words in conversations]
    yield from table("conversations", CHATS, single(".jsonl", [*rows, ("an empty file", b"", "at least 2")]))
    yield from table("tokenizers", TOKENIZER, single(".json", TOKENIZERS))
    yield from table("configurations", CONFIG, single(".yaml", YAML))
    yield from table("configurations", CONFIG, CONFIGS)
    prompts: list[tuple[str, Content, str]] = [("a pipe", pipe, "is a pipe"), ("no UTF-8", b"\xe9", "UTF-8")]
    yield from table("prompts", WRITE, single(".txt", prompts))
    yield from table("prompts", WRITE, [("no such file", "none", {}, "No such file"), ("a folder", "ok", {}, "folder")])


PLAIN: list[tuple[str, Content, str]] = [
    ("a pipe", pipe, "pipe"),
    ("an empty file", b"", "empty"),
    ("a NUL byte", b"a\0b", "binary"),
    ("bytes that are not UTF-8", b"caf\xe9", "not UTF-8"),
]
PLACES = [
    ("no such file", "none.txt", {}, "there is no file"),
    ("a folder without text", "f", {"f": folder}, "no text"),
    ("a pattern that matches nothing", "*.none", {}, "no file matches"),
    ("a package that is not there", "package:none", {}, "no installed package"),
]
TABLES: list[tuple[str, Content, str]] = [
    ("no Parquet", b"PAR1", "Parquet|pyarrow"),
    ("an empty Parquet", b"", "Parquet|pyarrow|empty"),
    ("a Parquet that is a pipe", pipe, "pipe"),
    ("a Parquet of zero bytes", b"PAR1" + bytes(200) + b"PAR1", "Parquet|pyarrow"),
]
PACKED: list[tuple[str, Content, str]] = [
    ("damaged gzip", gzip.compress(b'{"text": "a"}' * 99)[:-9], "cannot be read"),
    ("no gzip", b'{"text": "a"}', "cannot be read"),
]
PATTERN = (
    b'{"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": false},'
    b' "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'
)
TOKENIZERS: list[tuple[str, Content, str]] = [
    ("a pipe", pipe, "no tokenizer|pipe"),
    ("no JSON", b"hello", "as a tokenizer"),
    ("an empty file", b"", "as a tokenizer"),
    ("another JSON", b"{}", "as a tokenizer"),
    ("deep nesting", b"[" * 100_000, "as a tokenizer"),
    ("no UTF-8", b"\xff\xfe", "as a tokenizer"),
    ("a device", lambda path: path.symlink_to("/dev/zero"), "device|tokenizer"),
    ("no model", b'{"version": "1.0"}', "as a tokenizer"),
    ("a model of no kind", b'{"model": {"type": "X"}}', "as a tokenizer"),
    (
        "merges of words that are not there",
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}',
        "as a tokenizer",
    ),
    ("an empty vocabulary", b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "vocabulary|tokenizer"),
    ("a negative number", b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "as a tokenizer"),
    (
        "a pattern that is none",
        PATTERN,
        "as a tokenizer",
    ),
    ("a vocabulary that is a list", b'{"model": {"type": "BPE", "vocab": [], "merges": []}}', "as a tokenizer"),
]
YAML: list[tuple[str, Content, str]] = [
    ("deep nesting", b"[" * 100_000, "nested too deeply"),
    ("a bomb of aliases", bomb().encode(), "more than 100,000 values"),
    ("a key twice", b"trainer: {max_steps: 1, max_steps: 2}", "stands twice"),
    ("trainer: null", b"trainer: null", "trainer"),
    ("model: null", b"model: null", "model"),
    ("data: null", b"data: null", "data"),
    ("data: 3", b"data: 3", "data"),
    ("model: []", b"model: []", "model"),
    ("an unknown section without options", b"trainr: {}", "trainr"),
    ("an unknown section", b"trainr: {max_steps: 3}", "trainr"),
    ("an unknown option", b"trainer: {max_step: 3}", "max_step"),
    ("a list", b"- 1", "holds a list"),
    ("nothing", b"", "is empty"),
    ("no UTF-8", b"a: \xe9", "not UTF-8"),
    ("a NUL character", b"a: \0", "not valid YAML"),
    ("a Python object", b"a: !!python/object:os.system x", "not valid YAML"),
    ("an alias that holds itself", b"a: &a [*a]", "holds itself"),
    ("a number of 5,000 digits", b"a: " + b"9" * 5000, "cannot be read"),
    ("a text for a number", b"trainer: {max_steps: many}", "max_steps"),
    ("a number that is none", b"model: {optimizer: {lr: .nan}}", "lr"),
]
CONFIGS = [
    ("a pipe", "x.yaml", {"x.yaml": pipe}, "neither a file nor a recipe"),
    ("a folder", "f", {"f": folder}, "is a folder"),
    ("no such recipe", "defualt", {}, "did you mean"),
]
