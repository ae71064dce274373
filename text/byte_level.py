"""Byte-level BPE as GPT-2 has it, as a backend of the `tokenizers` library."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END_OF_TEXT = "<|endoftext|>"


def byte_level(model: models.BPE) -> Tokenizer:
    """A BPE over the bytes of a text, which are spelled as letters."""
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def gpt2(vocab: Path, merges: Path) -> Tokenizer:
    """The tokenizer of GPT-2's two files."""
    backend = byte_level(models.BPE.from_file(str(vocab), str(merges)))
    backend.add_special_tokens([END_OF_TEXT])
    return backend
