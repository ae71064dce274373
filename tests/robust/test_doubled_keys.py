"""A key that stands twice in an object is refused wherever people write JSON; parsers keep one of the two silently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triune.core.errors import UserError
from triune.core.files import parse_json, read_json
from triune.core.training.run.arguments import prepare
from triune.text.data.messages import read_conversations
from triune.text.tokenizer import Tokenizer


def test_a_chat_row_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(
        '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "prompt": "other", "completion": "b"}\n'
        '{"messages": [{"role": "user", "content": "a", "content": "c"}]}\n{"prompt": "c", "completion": "d"}\n'
    )
    found = list(read_conversations([str(file)]))
    assert [isinstance(row, UserError) for row in found] == [False, True, True, False]
    assert f"{file}:2 has the key prompt twice in one object; leave one of them." == str(found[1])
    assert f"{file}:3 has the key content twice" in str(found[2])


def test_a_configuration_and_a_nested_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"dim": 8, "rope": {"base": 1, "base": 2}}')
    with pytest.raises(UserError, match="has the key base twice in one object"):
        read_json(tmp_path / "config.json")
    assert parse_json('[{"a": 1}, {"a": 1}]', "it") == [{"a": 1}, {"a": 1}]


def test_a_token_of_a_vocabulary(tmp_path: Path) -> None:
    """The library would keep the last of the two numbers."""
    Tokenizer.characters("abc").save(tmp_path)
    file = tmp_path / "tokenizer.json"
    vocabulary = json.loads(file.read_text())["model"]["vocab"]
    assert Tokenizer.load(tmp_path).backend.get_vocab_size() == len(vocabulary)
    file.write_text(file.read_text().replace('"vocab": {', '"vocab": {"a": 999,'))
    with pytest.raises(UserError, match="has the key a twice"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("words", [["--data.labels={0: cat, 0: dog}"], ["--data.labels", '{"0": "cat", "0": "dog"}']])
def test_a_mapping_on_the_command_line(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"--data.labels is \{.*, but '0' stands twice in one mapping; leave one"):
        prepare("vision", "fit", words, "triune.vision")
