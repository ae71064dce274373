"""Tokenizers inside GGUF files: byte-level BPE, cut in the ways that are known by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as HFTokenizer

from ...core.checkpoints.source import Source
from ...core.errors import UserError
from ..tokenizer import Tokenizer
from .gguf import read_header

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(numbers: str) -> Any:
    """Words by the pattern of cl100k, with digits in groups of `numbers`, then bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS % numbers), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _llama3_words() -> Any:
    return _split(r"\p{N}{1,3}")


def _qwen2_words() -> Any:
    return _split(r"\p{N}")


PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "default": _gpt2,
    "gpt-2": _gpt2,
    "olmo": _gpt2,
    "smollm": _digits,
    "llama-bpe": _llama3_words,
    "llama3": _llama3_words,
    "llama-v3": _llama3_words,
    "smaug-bpe": _llama3_words,
    "qwen2": _qwen2_words,
}
"""Their names of how a text is cut before the merges."""
_CONTROL, _USER_DEFINED = 3, 4


def tokenizer(source: Source) -> Tokenizer | None:
    """The tokenizer of a file; None for a kind that is not byte-level BPE."""
    meta = read_header(source.path).metadata
    if meta.get("tokenizer.ggml.model") != "gpt2":
        return None
    pre = str(meta.get("tokenizer.ggml.pre", "default"))
    if pre not in PRE_TOKENIZERS:
        raise UserError(
            f"'{source.name}' cuts its text in the way '{pre}', which is not known here; known are "
            f"{', '.join(PRE_TOKENIZERS)}. Take the original's folder, which holds a tokenizer.json."
        )
    try:
        return _byte_level(meta, pre)
    except Exception as error:  # the library raises a bare one for whatever does not fit together
        raise UserError(
            f"The tokenizer inside '{source.name}' cannot be read ({error}); download the file again."
        ) from None


def _byte_level(meta: dict[str, Any], pre: str) -> Tokenizer:
    """Byte-level BPE from metadata."""
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta.get("tokenizer.ggml.token_type", [])
    merges = [tuple(merge.split(" ", 1)) for merge in meta.get("tokenizer.ggml.merges", [])]
    three = PRE_TOKENIZERS[pre] is _llama3_words
    vocab = {token: number for number, token in enumerate(tokens)}
    backend = HFTokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=three))
    backend.pre_tokenizer = PRE_TOKENIZERS[pre]()
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    for token, kind in zip(tokens, kinds):
        if kind in (_CONTROL, _USER_DEFINED):
            added = AddedToken(token, special=kind == _CONTROL, normalized=False)
            (backend.add_special_tokens if kind == _CONTROL else backend.add_tokens)([added])
    begin = meta.get("tokenizer.ggml.bos_token_id")
    if begin is not None and meta.get("tokenizer.ggml.add_bos_token", three):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tokens[begin]} $A", pair=None, special_tokens=[(tokens[begin], begin)]
        )
    ends = [meta.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = [end for end in ends if end is not None]
    return Tokenizer(
        backend, tokens[ends[0]] if ends else None, ends=ends, chat_template=meta.get("tokenizer.chat_template")
    )
