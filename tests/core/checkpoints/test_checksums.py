"""A byte that changed in a model folder is found before it changes a number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from triune.core.checkpoints.checksums import write_config
from triune.core.checkpoints.source import open_source
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model beside its tokenizer, as a run exports them."""
    small = TransformerConfig(dim=16, depth=1, heads=2, causal=True)
    LanguageModel(LanguageModelConfig(vocab_size=257, transformer=small)).save_pretrained(tmp_path)
    Tokenizer.bytes().save(tmp_path)
    return tmp_path


def refused(read: Callable[[], object], *parts: str) -> None:
    with pytest.raises(UserError) as error:
        read()
    assert all(part in str(error.value) for part in ("does not match its checksum", *parts))


def test_a_flipped_bit_of_the_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    refused(lambda: LanguageModel.from_pretrained(folder), "model.safetensors")
    refused(lambda: open_source(str(folder)).tensors(), "model.safetensors")


def test_a_changed_digit_of_the_config_and_a_change_on_purpose(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("10000.0", "20000.0"))
    refused(lambda: LanguageModel.from_pretrained(folder), "config.json")
    refused(lambda: open_source(str(folder)).config, "config.json")
    config = json.loads(path.read_text())
    del config["checksum"]
    path.write_text(json.dumps(config))
    assert LanguageModel.from_pretrained(folder).config.transformer.rotary.base == 20000.0  # pyright: ignore


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_changed_tokenizer(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text(path.read_text().replace("en", "em", 1))
    refused(lambda: Tokenizer.load(folder), name)


def test_what_is_written_again_is_vouched_for(folder: Path) -> None:
    Tokenizer.characters("other letters").save(folder)
    assert Tokenizer.load(folder).vocab_size < 257
    model = LanguageModel.from_pretrained(folder)
    with torch.no_grad():
        model.embedding.weight.add_(1)
    model.save_pretrained(folder)
    assert torch.equal(LanguageModel.from_pretrained(folder).embedding.weight, model.embedding.weight)
    write_config(folder, LanguageModel.read_settings(folder) | {"note": 1})
    assert LanguageModel.read_settings(folder)["note"] == 1
    LanguageModel.from_pretrained(folder)


def test_folders_without_checksums_and_of_others_are_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name in ("checksum", "checksums"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    LanguageModel.from_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "gpt2", "checksum": "0", "checksums": {"tokenizer.json": "0"}}')
    Tokenizer.load(folder)
    assert open_source(str(folder)).config["model_type"] == "gpt2"
