"""Where a long text may be cut so that memory stays bounded."""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE = 1 << 16
"""Texts longer than this many characters are cut, so that memory stays bounded and all cores take part."""
LONGEST = 1 << 20
"""A piece never has more characters, even where it can only be cut within a word."""

SAFE_CUT = re.compile(r"(?<=[!-~]\n)(?=[!-~])|(?<=[!-~])(?= [!-~])")
"""GPT-2's pattern ends a word at a single newline between two visible ASCII characters, and before a single space
between two of them, whatever stands around: a cut there never changes the tokens."""
WORD_END = re.compile(r"(?<=\w)(?=[^\w'’])|(?<=\s)(?=\S)")
"""Where most words end, in any script; the next best."""


def cut(text: str, piece: int = PIECE, longest: int = LONGEST) -> Iterator[str]:
    """Cut a text into pieces of about `piece` characters, and of at most `longest`.

    A safe place is taken where there is one within `longest`, else the end of a word, else any.
    """
    start = 0
    while len(text) - start > piece:
        first, last = start + piece, min(start + longest, len(text))
        found = SAFE_CUT.search(text, first, last) or WORD_END.search(text, first, last)
        end = found.start() if found else last
        yield text[start:end]
        start = end
    yield text[start:]
