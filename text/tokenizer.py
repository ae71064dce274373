"""Text to token numbers and back.

Every kind of tokenizer (bytes, characters, BPE, or one made by somebody else) is a Hugging Face `tokenizers.Tokenizer`
underneath and is stored as a standard `tokenizer.json`, which other libraries read. Byte-level BPE: Radford et al.,
"Language Models are Unsupervised Multitask Learners" (GPT-2), section 2.2.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from ..core.checkpoints.checksums import check_companions, vouch
from ..core.errors import UserError
from ..core.files import parsing, write_atomic
from .byte_level import END_OF_TEXT, byte_level, gpt2
from .cutting import LINE_START, PIECE, Part, cut, few_long_words, usual_place
from .specials import DEFAULT, MASK_TOKENS, apply_specials, read_specials, refuse_doubled_tokens, write_specials
from .streaming import BYTE_OF, StreamDecoder

# `tokenizer.json` does not say which token ends a text; these are the usual names, asked in this order.
USUAL_END_TOKENS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")
GPT2_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))

# Pieces that are encoded at once.
GROUP = 64
# Characters on each side of a place where a text may be cut that are looked at, and places that are tried.
AROUND, TRIED = 256, 32
# Characters that a BPE learns from at once; the library holds some hundred bytes for each of a few hundred pieces.
TRAINING_PIECE = 1 << 14


class Tokenizer:
    """Encodes text to token numbers and decodes them again.

    Special tokens that stand literally in a text (`"<|endoftext|>"`) are encoded as ordinary text; only the program
    itself places `eos_id`. Make one with `bytes`, `characters`, `train_bpe` or `load`.

    Args:
        backend: the Hugging Face tokenizer; its post-processor says what stands around a text.
        eos: the token that ends a text; None looks for the usual names.
        ends: numbers of further tokens at which generation ends: an instructed model ends its turn with one of its
            own.
        chat_template: the Jinja template of a conversation, as published; kept for those who use it.
        bos: the token that begins a text; None: the one that the post-processor puts before it.
    """

    def __init__(
        self,
        backend: HFTokenizer,
        eos: str | None = None,
        ends: Iterable[int] = (),
        chat_template: str | None = None,
        bos: str | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self.backend = backend
        names = (eos,) if eos else USUAL_END_TOKENS
        self.eos_id: int | None = next((i for i in map(backend.token_to_id, names) if i is not None), None)
        self.end_ids = frozenset(ends) | (frozenset() if self.eos_id is None else {self.eos_id})
        self.chat_template = chat_template
        self.names = {name: token for name, token in (("bos_token", bos), ("eos_token", eos)) if token}
        self.templates: dict[str, str] = {}
        self.split = False
        known = None if bos is None else backend.token_to_id(bos)
        self.bos_id: int | None = known if known is not None or not self.beginning else self.beginning[0]

    # -- making one ---------------------------------------------------------------------------------------------------

    @classmethod
    def bytes(cls) -> Tokenizer:
        """Token i is byte i of the UTF-8 text; 256 ends a text."""
        backend = HFTokenizer(models.BPE(vocab=BYTE_OF, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([END_OF_TEXT])
        return cls(backend)

    @classmethod
    def characters(cls, text: Iterable[str]) -> Tokenizer:
        """One token for each distinct character of `text` (a string or several), sorted by code point, and no
        other.
        """
        seen: set[str] = set()
        for part in [text] if isinstance(text, str) else text:
            seen.update(part)
        distinct = sorted(seen)
        if not distinct:
            raise UserError(
                "The text is empty, but a character vocabulary needs at least one character; give more text."
            )
        backend = HFTokenizer(models.BPE(vocab={c: i for i, c in enumerate(distinct)}, merges=[]))
        backend.decoder = decoders.Fuse()
        return cls(backend)

    @classmethod
    def train_bpe(cls, texts: Iterable[str | Iterable[str]], vocab_size: int, single_digits: bool = False) -> Tokenizer:
        """Trains a byte-level BPE of at most `vocab_size` tokens: the 256 bytes, `<|endoftext|>` and merges; with
        `single_digits`, none of several digits.

        A short text may not hold enough pairs for all of them; `vocab_size` of the result says how many there are.
        A text may come in blocks, so that memory does not grow with its length; see `few_long_words` for its words.
        """
        if vocab_size < 257:
            raise UserError(
                f"vocab_size is {vocab_size}, but must be at least 257 (256 bytes and {END_OF_TEXT}); raise it."
            )
        backend = byte_level(models.BPE())
        if single_digits:
            digits = pre_tokenizers.Digits(individual_digits=True)
            backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        pieces = (piece for text in texts for piece in cut(text, TRAINING_PIECE))
        backend.train_from_iterator(few_long_words(pieces), trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Loads a `tokenizer.json`, or a folder that holds one or GPT-2's two files (vocab.json and merges.txt, or
        encoder.json and vocab.bpe).

        Raises:
            UserError: there is no such path, or what is there is no tokenizer.
        """
        path = Path(path).expanduser()
        if path.is_file():
            check_companions(path.parent)
            return cls._read(path, lambda: HFTokenizer.from_file(str(path)))
        if not path.is_dir():
            kinds = "bpe, bytes, characters, a tokenizer.json or a folder that holds one"
            raise UserError(f"'{path}' is no tokenizer; give {kinds}.")
        if (path / "tokenizer.json").is_file():
            return cls.load(path / "tokenizer.json")
        for vocab, merges in GPT2_FILES:
            if (path / vocab).is_file() and (path / merges).is_file():
                return cls._read(path / vocab, lambda v=path / vocab, m=path / merges: gpt2(v, m))
        raise UserError(
            f"Folder '{path}' holds no tokenizer; it needs a tokenizer.json, or vocab.json and merges.txt, or "
            "encoder.json and vocab.bpe."
        )

    @classmethod
    def _read(cls, file: Path, read: Any) -> Tokenizer:
        """Runs a reader; the library raises a bare `Exception` for whatever it cannot parse."""
        with parsing(file, "a tokenizer"):
            refuse_doubled_tokens(file)
            backend, specials = read(), read_specials(file.parent)
            if not backend.get_vocab_size():
                raise UserError(f"'{file}' is a tokenizer without a token, but must have a vocabulary.")
            apply_specials(backend, specials)
            found = cls(backend, specials.eos, specials.ends, specials.templates.get(DEFAULT), specials.bos)
            found.names, found.templates, found.split = specials.names, specials.templates, specials.split
            return found

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json`, and a `tokenizer_config.json` that names the tokens around a text and the template,
        so that transformers reads the same; where there are several ends, a `generation_config.json` with all."""
        (folder := Path(folder)).mkdir(parents=True, exist_ok=True)
        numbers = {"bos_token": self.bos_id, "eos_token": self.eos_id, "mask_token": self.mask_id}
        found: dict[str, Any] = {n: self.backend.id_to_token(i) for n, i in numbers.items() if i is not None}
        if self.chat_template:  # it reads the names that it was written for, and no others
            found = {name: token for name, token in found.items() if name == "mask_token"}
        names = found | {n: token for n, token in self.names.items() if self.backend.token_to_id(token) is not None}
        default = {DEFAULT: self.chat_template} if self.chat_template else {}
        write_specials(folder, names, self.end_ids, self.templates | default, self.split)
        write_atomic(folder / "tokenizer.json", self.backend.to_str(pretty=True).encode())
        vouch(folder)

    def add_ends(self, tokens: Iterable[int]) -> None:
        """Lets generation end at these tokens, too: at special ones that do not stand for the unknown."""
        model = self._json["model"]
        unknown = {model.get("unk_id"), self.backend.token_to_id(model.get("unk_token") or ""), self.mask_id}
        self.end_ids |= self.special_ids & frozenset(tokens) - unknown

    # -- what it is ---------------------------------------------------------------------------------------------------

    @cached_property
    def vocab_size(self) -> int:
        """Rows an embedding needs: the largest token number plus one."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical json; equal for equal tokenizers on every machine."""
        return _digest(self._json)

    @cached_property
    def _kind(self) -> str:
        """The fingerprint without a token that hides others, which changes nothing about how text is encoded."""
        added = [token for token in self._json["added_tokens"] if token["id"] != self.mask_id]
        return _digest({**self._json, "added_tokens": added})

    @cached_property
    def mask_id(self) -> int | None:
        """The token that hides others from a masked language model; None where there is none."""
        found = map(self.backend.token_to_id, MASK_TOKENS)
        return next((number for number in found if number in self.special_ids), None)

    @cached_property
    def beginning(self) -> list[int]:
        """What stands before every text, in training as in use: the start token, for tokenizers that place one."""
        return self.around[0]

    @cached_property
    def ending(self) -> list[int]:
        """What stands behind every text that is complete: what the post-processor places there, else `eos_id`."""
        return self.around[1] or ([] if self.eos_id is None else [self.eos_id])

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """What the post-processor places before and behind every text, such as [CLS] and [SEP]."""
        inner = len(self.backend.encode("a", add_special_tokens=False).ids)
        encoding = self.backend.encode("a", add_special_tokens=True)
        mask = encoding.special_tokens_mask
        first = next((i for i, special in enumerate(mask) if not special), 0)
        return encoding.ids[:first], encoding.ids[first + inner :]

    @cached_property
    def _json(self) -> dict[str, Any]:
        return json.loads(self.backend.to_str())

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Numbers of the tokens that stand for no text."""
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def _added(self) -> dict[int, str]:
        """The letters of tokens that were added to a vocabulary, which no decoder changes."""
        return {i: str(token.content) for i, token in self.backend.get_added_tokens_decoder().items()}

    @cached_property
    def _is_byte_level(self) -> bool:
        decoder = self._json["decoder"] or {}
        return decoder.get("type") == "ByteLevel"

    @cached_property
    def _is_bytes(self) -> bool:
        return self._kind == Tokenizer.bytes().fingerprint

    @cached_property
    def _character_table(self) -> np.ndarray | None:
        """Token of each code point (-1: none) if this is a plain character vocabulary, else None."""
        vocab: dict[str, int] = self._json["model"].get("vocab") if self._json["model"].get("type") == "BPE" else {}
        if not vocab or any(len(token) != 1 for token in vocab):
            return None
        if self._kind != Tokenizer.characters(vocab).fingerprint:
            return None
        table = np.full(max(map(ord, vocab)) + 1, -1, dtype=np.int64)
        table[[ord(c) for c in vocab]] = list(vocab.values())
        return table

    @cached_property
    def _is_gpt2(self) -> bool:
        """Whether a usual place is safe: GPT-2's own pattern, and nothing that looks at the text before it."""
        pre = self._json["pre_tokenizer"] or {}
        gpt2 = pre.get("type") == "ByteLevel" and pre.get("use_regex") and not pre.get("add_prefix_space")
        plain = all(token.special for token in self.backend.get_added_tokens_decoder().values())
        return bool(gpt2 and plain and self._json["normalizer"] is None)

    # -- encoding and decoding ----------------------------------------------------------------------------------------

    def encode(self, text: str) -> np.ndarray:
        """Returns the int64 token numbers `[tokens]` of `text`, without any special token.

        Raises:
            UserError: a character that a character vocabulary does not have (named with its offset), or half a
                surrogate pair, which is no Unicode text.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes several texts, on all cores; each result is as that of `encode`."""
        if all(len(text) <= PIECE for text in texts):  # each is one part
            return list(self.encode_parts([Part(text) for text in texts]))
        parts = [list(self.parts(text)) for text in texts]
        encoded = self.encode_parts([part for several in parts for part in several])
        return [np.concatenate([next(encoded) for _ in several]) for several in parts]

    def parts(self, text: str | Iterable[str]) -> Iterator[Part]:
        """Cuts a text, whole or in blocks, so that the tokens of its parts are those of the whole.

        Where a text can hardly be cut so within a million characters (one without line ends, with a tokenizer of
        another library), it is cut all the same.
        """
        if self._is_bytes or self._character_table is not None:
            pieces = [text] if isinstance(text, str) else text
        else:
            pieces = cut(text, PIECE, place=usual_place if self._is_gpt2 else self._place)
        start, lead = 0, ""
        for piece in pieces:
            yield Part(piece, start, lead)
            start += len(piece)
            lead = "" if self._is_gpt2 else piece[-1:]

    def encode_parts(self, parts: Sequence[Part]) -> Iterator[np.ndarray]:
        """The tokens of each part, int64 `[tokens]`. Raises UserError as `encode` does."""
        for part in parts:
            _utf8(part)
        if self._is_bytes:
            yield from (np.frombuffer(_utf8(part), dtype=np.uint8).astype(np.int64) for part in parts)
        elif (table := self._character_table) is not None:
            yield from (self._encode_characters(part, table) for part in parts)
        else:
            # The library's result takes about a hundred times the memory of the token numbers: a few at a time.
            for at in range(0, len(parts), GROUP):
                yield from self._behind([(part.lead, part.text) for part in parts[at : at + GROUP]])

    def _behind(self, pairs: list[tuple[str, str]]) -> Iterator[np.ndarray]:
        """The tokens of the second text of each pair where it follows the first, whose tokens are left out."""
        several = self.backend.encode_batch_fast([lead + text for lead, text in pairs], add_special_tokens=False)
        for (lead, text), encoding in zip(pairs, several, strict=True):
            known = self._plain(lead) if lead else []
            ids = encoding.ids if encoding.ids[: len(known)] == known else [*known, *self._plain(text)]
            yield np.array(ids[len(known) :], dtype=np.int64)

    def _plain(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def _place(self, text: str, first: int, last: int) -> int:
        """Where a tokenizer that nothing is known of may cut: at a line where it makes the same of both sides apart."""
        for match in itertools.islice(LINE_START.finditer(text, first, last), TRIED):
            at = match.start()
            left, right = text[max(0, at - AROUND) : at], text[at : at + AROUND]
            (behind,) = self._behind([(left[-1], right)])
            if self._plain(left + right) == [*self._plain(left), *behind.tolist()]:
                return at
        return usual_place(text, first, last)

    def _encode_characters(self, part: Part, table: np.ndarray) -> np.ndarray:
        text = part.text
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        tokens = np.where(points < len(table), table[np.minimum(points, len(table) - 1)], -1)
        if (unknown := np.flatnonzero(tokens < 0)).size:
            at = int(unknown[0])
            raise UserError(
                f"Character {text[at]!r} (U+{ord(text[at]):04X}) at offset {part.start + at} is not among the "
                f"{self.vocab_size} characters of the vocabulary; remove it, or train with --data.tokenizer bytes or "
                "bpe."
            )
        return tokens

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Returns the text of token numbers; bytes that are not UTF-8 become U+FFFD."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def token_bytes(self, token: int) -> bytes:
        """Returns the UTF-8 bytes that one token stands for (none for a special token); parts of a character are kept
        apart only by byte-level tokenizers."""
        if token in self.special_ids:
            return b""
        if self._is_byte_level and token in self._added:  # such as the runs of spaces of GPT-NeoX
            return self._added[token].encode()
        if self._is_byte_level:
            return bytes(BYTE_OF[c] for c in self.backend.id_to_token(token) or "" if c in BYTE_OF)
        return self.decode([token]).encode()

    def stream(self, after: Iterable[int] = ()) -> StreamDecoder:
        """Returns a decoder for tokens that arrive one at a time, behind the tokens `after`."""
        return StreamDecoder(self.backend, self.token_bytes if self._is_byte_level else None, after)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def beside(folder: Path) -> Tokenizer | None:
    """The tokenizer in a folder; None where there is none of a kind that `Tokenizer.load` reads."""
    names = ({"tokenizer.json"}, *map(set, GPT2_FILES))
    found = any(all((folder / name).is_file() for name in several) for several in names)
    return Tokenizer.load(folder) if found else None


def _utf8(part: Part) -> bytes:
    try:
        return part.text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"Character {part.text[error.start]!r} at offset {part.start + error.start} is half a surrogate pair, "
            "which is no text; remove it."
        ) from None
