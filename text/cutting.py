"""Where a long text may be cut so that memory stays bounded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

PIECE = 1 << 16
"""Texts longer than this many characters are cut, so that memory stays bounded and all cores take part."""
LONGEST = 1 << 20
"""A piece never has more characters, even where it can only be cut within a word."""

SAFE_CUT = re.compile(r"(?<=[!-~]\n)(?=[!-~])|(?<=[!-~])(?= [!-~])")
"""GPT-2's pattern ends a word at a single newline between two visible ASCII characters, and before a single space
between two of them, whatever stands around: a cut there never changes the tokens."""
WORD_END = re.compile(r"(?<=\w)(?=[^\w'’])|(?<=\s)(?=\S)")
"""Where most words end, in any script; the next best."""

LONG_WORD = re.compile(r"[^\W\d_]{1000,}|\d{1000,}|[^\w\s]{1000,}|\s{1000,}")
"""What byte-level tokenizers take for one word where nothing parts it: a text without spaces, a line of dashes."""
ENOUGH, WORD_PART = 1 << 19, 250
"""Characters of such words that a tokenizer learns from: each of its merges reads all of them again;
and of the parts in which they are read."""
LINE_START = re.compile(r"(?<=\n)(?=\S)")
"""Where tokenizers of other libraries are tried."""

Place = Callable[[str, int, int], int]
"""`place(text, first, last)` says where to cut between two offsets, of which the last is the end of what is known."""


class Part(NamedTuple):
    """A part of a text that is encoded by itself.

    text: the part.
    start: characters of the text before it.
    lead: the last of them, where it matters what stands before.
    """

    text: str
    start: int = 0
    lead: str = ""


def usual_place(text: str, first: int, last: int) -> int:
    """A safe place where there is one, else the end of a word, else the last."""
    found = SAFE_CUT.search(text, first, last) or WORD_END.search(text, first, last)
    return found.start() if found else last


def cut(
    text: str | Iterable[str], piece: int = PIECE, longest: int = LONGEST, place: Place = usual_place
) -> Iterator[str]:
    """Cuts a text into pieces of about `piece` characters, and of at most `longest`.

    The pieces are the same whether the text comes as a whole or in blocks; of blocks no more than `longest` characters
    and one block are kept.
    """
    blocks, rest, complete = iter([text] if isinstance(text, str) else text), "", False
    while not complete:
        parts, size, start = [rest], len(rest), 0
        while size < longest and not complete:
            block = next(blocks, None)
            complete = block is None
            parts.append(block or "")
            size += len(parts[-1])
        rest = "".join(parts)
        while len(rest) - start >= longest or (complete and len(rest) - start > piece):
            end = place(rest, start + piece, min(start + longest, len(rest)))
            yield rest[start:end]
            start = end
        rest = rest[start:]
    yield rest


def few_long_words(pieces: Iterable[str], enough: int = ENOUGH) -> Iterator[str]:
    """The pieces of a text; of the words in `LONG_WORD` no more than the first `enough` characters of all, in parts of
    `WORD_PART`, because to learn from a word takes time that grows with the square of its length.
    """
    left = enough
    for piece in pieces:
        start = 0
        for word in LONG_WORD.finditer(piece):
            yield piece[start : word.start()]
            taken = min(left, len(word[0]))
            left, start = left - taken, word.end()
            for at in range(0, taken, WORD_PART):
                yield word[0][at : min(at + WORD_PART, taken)]
        yield piece[start:] if start else piece
