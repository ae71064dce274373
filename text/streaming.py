"""Tokens that arrive one at a time, as text of whole characters."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

CONTEXT = 4
"""Pieces of text before the new one that are decoded with it: decoders look at neighbours (leading spaces, bytes)."""
UNFINISHED = "\ufffd"


def _byte_alphabet() -> dict[str, int]:
    """Map each character of the byte-level alphabet to its byte.

    GPT-2 writes printable Latin-1 bytes as themselves and the other 68, in order, as U+0100 and up.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


class StreamDecoder:
    """Decodes a stream of tokens so that only whole characters come out.

    The texts of all `push`es and the final `flush` together are what the tokens add to the text of those before them
    (of a tokenizer with byte fallback, whose decoder rewrites a whole run of bytes: as long as they are valid UTF-8).

    Args:
        backend: the tokenizer.
        bytes_of: the bytes of each token, for byte-level tokenizers; None for others.
        after: the tokens that stand before the stream, whose text is known already.
    """

    def __init__(
        self, backend: HFTokenizer, bytes_of: Callable[[int], bytes] | None = None, after: Iterable[int] = ()
    ) -> None:
        self._backend, self._bytes_of = backend, bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # Each begins where a character does, so that bytes are never decoded from the middle of one.
        self._pieces = deque([[int(token) for token in after]], maxlen=CONTEXT)
        self._ids: list[int] = []

    def push(self, token: int) -> str:
        """Adds one token; returns the text that is now complete, often empty."""
        if self._bytes_of is not None:
            return self._utf8.decode(self._bytes_of(int(token)))
        self._ids.append(int(token))
        text = self._new()
        if not text or text.endswith(UNFINISHED):
            return ""
        self._pieces.append(self._ids)
        self._ids = []
        return text

    def flush(self) -> str:
        """Returns what is left, an unfinished character as U+FFFD."""
        if self._bytes_of is not None:
            return self._utf8.decode(b"", final=True)
        text, self._ids = self._new(), []
        return text

    def _new(self) -> str:
        known = [token for piece in self._pieces for token in piece]
        return self._decode([*known, *self._ids])[len(self._decode(known)) :]

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=True)
