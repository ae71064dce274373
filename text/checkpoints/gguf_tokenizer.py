"""Tokenizers inside GGUF files: byte-level BPE, cut in the ways that are known by name; SentencePiece's; characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as HFTokenizer

from ...core.checkpoints.source import Source
from ...core.errors import UserError
from ..tokenizer import Tokenizer
from .gguf import read_header
from .gguf_vocabulary import BYTE, CASED, CONTROL, GPT4O, QWEN35, SPACE, UNKNOWN, UNUSED, USER_DEFINED, WORDS, unescaped


def _split(pattern: str) -> Any:
    """Words by a pattern, then bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _llama3_words() -> Any:
    return _split(WORDS % r"\p{N}{1,3}")


def _qwen2_words() -> Any:
    return _split(WORDS % r"\p{N}")


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
    "qwen35": lambda: _split(QWEN35),
    "gpt-4o": lambda: _split(GPT4O),
    "tekken": lambda: _split(CASED),
}
"""Their names of how a text is cut before the merges."""
_WHOLE = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""Those in which a whole word that is a token stays one."""
_BEGUN = ("llama-bpe", "llama3", "llama-v3")
"""Those in which a text begins with a token where a file does not say it."""


def tokenizer(source: Source) -> Tokenizer | None:
    """The tokenizer of a file; None for a kind that is not read here."""
    meta = read_header(source.path).metadata
    read = {"gpt2": _byte_level, "llama": _sentencepiece, "rwkv": _characters}.get(meta.get("tokenizer.ggml.model", ""))
    if read is None or (read is _sentencepiece and "tokenizer.ggml.scores" not in meta):
        return None
    pre = str(meta.get("tokenizer.ggml.pre", "default"))
    if read is _byte_level and pre not in PRE_TOKENIZERS:
        raise UserError(
            f"'{source.name}' cuts its text in the way '{pre}', which is not known here; known are "
            f"{', '.join(PRE_TOKENIZERS)}. Take the original's folder, which holds a tokenizer.json."
        )
    try:
        return read(meta, pre)
    except Exception as error:  # the library raises a bare one for whatever does not fit together
        raise UserError(
            f"The tokenizer inside '{source.name}' cannot be read ({error}); download the file again."
        ) from None


def _tokens(meta: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Names and kinds of the tokens, without rows behind them that no token has."""
    tokens = list(meta["tokenizer.ggml.tokens"])
    kinds = list(meta.get("tokenizer.ggml.token_type", []))
    while kinds and kinds[-1] == UNUSED and len(kinds) == len(tokens):
        tokens.pop()
        kinds.pop()
    return tokens, kinds


def _byte_level(meta: dict[str, Any], pre: str) -> Tokenizer:
    """Byte-level BPE from metadata."""
    tokens, kinds = _tokens(meta)
    merges = [tuple(merge.split(" ", 1)) for merge in meta.get("tokenizer.ggml.merges", [])]
    vocab = {token: number for number, token in enumerate(tokens)}
    backend = HFTokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in _WHOLE))
    backend.pre_tokenizer = PRE_TOKENIZERS[pre]()
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    return _completed(backend, meta, tokens, kinds, begun=pre in _BEGUN)


def _sentencepiece(meta: dict[str, Any], pre: str) -> Tokenizer:
    """BPE of SentencePiece: neighbours are merged whose union has the highest score, so the merges are all pairs that
    make a token, by its score."""
    tokens, kinds = _tokens(meta)
    scores, vocab = meta["tokenizer.ggml.scores"], {token: number for number, token in enumerate(tokens)}
    plain = [n for n, kind in enumerate(kinds) if kind not in (CONTROL, USER_DEFINED, UNKNOWN, BYTE, UNUSED)]
    merges = [
        (token[:at], token[at:])
        for token in (tokens[n] for n in sorted(plain, key=lambda n: -scores[n]))
        for at in range(1, len(token))
        if token[:at] in vocab and token[at:] in vocab
    ]
    unknown = next((tokens[n] for n, kind in enumerate(kinds) if kind == UNKNOWN), None)
    backend = HFTokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefixed = meta.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return _completed(backend, meta, tokens, kinds, begun=True)


def _characters(meta: dict[str, Any], pre: str) -> Tokenizer | None:
    """Tokens that are characters, which this kind finds one after the other; None where some are longer."""
    tokens, _ = _tokens(meta)
    names = [unescaped(token) for token in tokens]
    if any(len(name) != 1 for name in names) or sorted(names) != names:
        return None
    return Tokenizer.characters(names)


def _completed(
    backend: HFTokenizer, meta: dict[str, Any], tokens: list[str], kinds: list[int], begun: bool
) -> Tokenizer:
    """The tokenizer with its special tokens and what stands before a text."""
    for token, kind in zip(tokens, kinds):
        if kind in (CONTROL, USER_DEFINED, UNKNOWN):
            added = AddedToken(token, special=kind != USER_DEFINED, normalized=False)
            (backend.add_tokens if kind == USER_DEFINED else backend.add_special_tokens)([added])
    begin = meta.get("tokenizer.ggml.bos_token_id")
    if begin is not None and meta.get("tokenizer.ggml.add_bos_token", begun):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tokens[begin]} $A", pair=None, special_tokens=[(tokens[begin], begin)]
        )
    ends = [meta.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = [end for end in ends if end is not None]
    template, bos = meta.get("tokenizer.chat_template"), None if begin is None else tokens[begin]
    return Tokenizer(backend, tokens[ends[0]] if ends else None, ends=ends, chat_template=template, bos=bos)
