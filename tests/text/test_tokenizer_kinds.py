"""Prompt and answer are tokenised in training as in use with tokenizers of the kinds that published models have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as HFTokenizer

from triune.text.data.chat import ChatTemplate
from triune.text.data.messages import Conversation, Message
from triune.text.generate import Continuation, main
from triune.text.tokenizer import Tokenizer

from . import test_by_heart as heart
from .test_by_heart import SPECIALS, TALKS, TEMPLATES, THINKS, learn, sentencepiece

CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""How GPT-4 cuts a text (tiktoken's `cl100k_base`)."""
TEXT = heart.TEXT + " 1234567 12 99 2024 don't I'll  a\n\n" * 5
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def special(backend: HFTokenizer) -> Tokenizer:
    backend.add_special_tokens(SPECIALS)
    return Tokenizer(backend, "</s>", bos="<s>")


def unigram(scheme: str, bytes_: bool = False) -> Tokenizer:
    """As T5 and XLM-R, or with byte fallback as SentencePiece's own models."""
    backend = HFTokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    if bytes_:
        vocab = [tuple(entry) for entry in json.loads(backend.to_str())["model"]["vocab"]]
        backend.model = models.Unigram([*vocab, *((byte, -20.0) for byte in BYTES)], unk_id=0, byte_fallback=True)
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if scheme != "never" else parts)
    return special(backend)


def words(pattern: str, trim: bool = False) -> Tokenizer:
    """Byte-level BPE behind a pattern, with digits in groups of three, as GPT-4, Llama 3 and Qwen."""
    backend = HFTokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    if trim:  # as GPT-NeoX, whose offsets leave out spaces
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return special(backend)


def gemma() -> Tokenizer:
    """Byte fallback, spaces as letters, none before the text."""
    backend = HFTokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=["<unk>", *BYTES], show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    return special(backend)


def wordpiece() -> Tokenizer:
    """As BERT: small letters, no accents, tokens on both sides of a text."""
    backend = HFTokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    around = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=around, show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return special(backend)


def stripping() -> Tokenizer:
    """As Phi-3, whose special tokens take the spaces behind them."""
    backend = sentencepiece().backend
    backend.add_special_tokens([AddedToken(token, rstrip=True, special=True) for token in SPECIALS])
    return Tokenizer(backend, "</s>", bos="<s>")


def spaces() -> Tokenizer:
    """As GPT-NeoX: runs of spaces are tokens that were added."""
    backend = Tokenizer.train_bpe([TEXT], 420).backend
    backend.normalizer = normalizers.NFC()
    backend.add_tokens([AddedToken(" " * count, normalized=True) for count in range(24, 1, -1)])
    return special(backend)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "unigram, space before each part": lambda: unigram("always"),
    "unigram, space before the first": lambda: unigram("first"),
    "unigram without that space": lambda: unigram("never"),
    "unigram with bytes": lambda: unigram("always", bytes_=True),
    "words of GPT-4": lambda: words(CL100K),
    "offsets without spaces": lambda: words(CL100K, trim=True),
    "gemma": gemma,
    "wordpiece": wordpiece,
    "special tokens that strip": stripping,
    "runs of spaces": spaces,
}
TEXTS = ["A cat.", "  Down there\n\n", "Tea, ünd 茶.", "1234567", "don't", "a  b\n    c", "e\u0301ﬁ 🎉", ": x", "▁y"]


def turns(chat: ChatTemplate, messages: list[Message]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For every answer the tokens before it and its own."""
    for sample in chat.samples(Conversation("x", messages)):
        changes = np.flatnonzero(np.diff(np.concatenate([[0], sample.answers.astype(int), [0]])))
        for begin, end in changes.reshape(-1, 2):
            yield sample.tokens[:begin], sample.tokens[begin:end]


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_stands_behind_what_is_asked_in_use(kind):
    """And what is written from its tokens is the answer, as far as the tokenizer keeps it."""
    tokenizer = KINDS[kind]()
    for name, template in TEMPLATES.items():
        tokenizer.chat_template = template
        chat = ChatTemplate(tokenizer)
        for at in range(len(TEXTS)):
            texts = [TEXTS[(at + step * number) % len(TEXTS)] for number, step in enumerate((0, 1, 1, 2))]
            messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
            found = list(turns(chat, messages))
            assert len(found) == 2, (name, texts)
            for turn, (before, answer) in zip((1, 3), found, strict=True):
                asked = chat.ask(messages[:turn])
                assert before.tolist() == asked.tolist(), (name, texts)
                shown = Continuation(tokenizer, [], asked.tolist(), chat.lead(messages[:turn]))
                text = "".join(shown.push(int(token)) for token in answer[:-1]) + shown.flush()
                kept = tokenizer.decode(tokenizer.encode(texts[turn]))
                assert text.strip() in (texts[turn].strip(), kept.strip()), (name, texts)


@pytest.mark.parametrize("kind", KINDS)
def test_thoughts_stand_behind_what_is_asked_in_use(kind):
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = THINKS
    chat = ChatTemplate(tokenizer)
    for thought, text in (("Hm, 12 cats.", "A cat."), ("so\n\n 1", " Tea")):
        messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": text}]
        messages[1]["reasoning_content"] = thought
        ((before, answer),) = turns(chat, messages)
        assert before.tolist() == chat.ask(messages[:1], thinks=True).tolist()
        said = tokenizer.decode(answer)
        for part in (thought, text):
            assert tokenizer.decode(tokenizer.encode(part)).strip() in said


@pytest.mark.parametrize(
    ("kind", "template"),
    [
        ("unigram, space before each part", "plain"),
        ("words of GPT-4", "plain"),
        ("wordpiece", "plain"),
        pytest.param("runs of spaces", "plain", marks=pytest.mark.slow),
    ],
)
def test_what_was_learned_by_heart_comes_back(kind, template, tmp_path, capsys, monkeypatch):
    talks = [*TALKS[:2], ("And a list?", "if 12:\n        tea  -  1234")]
    monkeypatch.setattr(heart, "TALKS", talks)
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = TEMPLATES[template]
    learn(ChatTemplate(tokenizer), tmp_path)
    prompts = [word for question, _ in talks for word in ("--prompt", question)]
    assert main([str(tmp_path), "--chat", *prompts, "--greedy", "--json", "--max-tokens", "60"]) == 0
    answers = [row["text"] for row in json.loads(capsys.readouterr().out)]
    kept = [tokenizer.decode(tokenizer.encode(answer)) for _, answer in talks]
    assert [answer.strip() for answer in answers] == [answer.strip() for answer in kept]


@pytest.mark.parametrize("kind", ["unigram without that space", "gemma", "wordpiece"])
def test_an_answer_that_ends_in_what_is_unknown_ends_no_other(kind):
    tokenizer = KINDS[kind]()
    unknown = tokenizer.backend.token_to_id("[UNK]" if kind == "wordpiece" else "<unk>")
    tokenizer.backend.add_special_tokens(["[UNK]" if kind == "wordpiece" else "<unk>"])
    end = tokenizer.backend.token_to_id("<|im_end|>")
    known = tokenizer.end_ids
    tokenizer.add_ends([unknown, end])
    assert tokenizer.end_ids == known | {end}


def test_tokens_that_were_added_stand_for_their_letters():
    """Indentation that GPT-NeoX writes, token by token, and letters that are no bytes of their own."""
    tokenizer = spaces()
    tokenizer.backend.add_tokens(["é!"])
    text = "if a:\n        b  = é!"
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids.tolist())) + stream.flush() == text
    assert b"".join(tokenizer.token_bytes(int(token)) for token in ids) == text.encode()
