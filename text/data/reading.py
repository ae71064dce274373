"""One file of text, in blocks, so that memory does not grow with its length."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ...core.errors import UserError
from ...core.files import check_regular
from ...core.labels.rows import encoding_of

BLOCK = 1 << 20
"""Bytes that are read at once."""


FILES = ".txt .md .json .csv .html .pdf .png .jpg .jpeg .fasta .fa .a3m .pdb .cif"
TABLES = ".csv .tsv .parquet .jsonl"
"""One word that ends so is meant as a file; of a table, somebody has to say which column holds the texts."""


class NotText(UserError):
    """A file that is no text; `kind` says why in a word or two."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_text(file: Path) -> str:
    """Returns the content of a text file as a whole; see `read_blocks`."""
    return "".join(read_blocks(file))


def text_of(word: str, tables: str) -> tuple[str, bool]:
    """A word of a command line as a text, and whether it is that of a file.

    Args:
        word: a text, or the name of a text file.
        tables: what to do with the name of a table, the end of a sentence.

    Raises:
        UserError: the word is named like a file, but there is none, or it is a table; NotText: see `read_blocks`.
    """
    path = Path(word)
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a text can be too long for a name
        there = False
    ending = path.suffix.lower() if len(word.split()) == 1 else ""
    if there and ending in TABLES.split():
        raise UserError(f"'{word}' is a table, not a text; {tables}.")
    if there:
        return read_text(path), True
    if ending and ending in (FILES + " " + TABLES).split():
        raise UserError(
            f"'{word}' is named like a file, but there is none; name a file that exists, or write a text of several "
            "words."
        )
    return word, False


def read_blocks(file: Path) -> Iterator[str]:
    """Yields the content of a text file in parts, its line ends as they are, without a byte-order mark.

    It is UTF-8, or what its byte-order mark says (UTF-16 or UTF-32).

    Raises:
        NotText: the file cannot be opened, is empty, holds a NUL character or is not in its encoding.
    """
    try:
        with check_regular(file).open("rb") as content:
            yield from _decoded(content, file)
    except NotText:
        raise
    except UserError as error:
        raise NotText(str(error), "not a regular file") from None
    except OSError as error:
        raise NotText(
            f"'{file}' cannot be read ({error.strerror}); allow it, or give another.", "unreadable"
        ) from error


def _decoded(content: IO[bytes], file: Path) -> Iterator[str]:
    block = content.read(BLOCK)
    if not block:
        raise NotText(f"'{file}' is empty; name a file that holds text.", "empty")
    encoding, offset = encoding_of(block[:4])
    decoder, block, empty = codecs.getincrementaldecoder(encoding)(), block[offset:], True
    size = BLOCK - offset
    while True:
        _check_binary(block, encoding, offset, file)
        pending, complete = len(decoder.getstate()[0]), len(block) < size
        try:
            text = decoder.decode(block, final=complete)
        except UnicodeDecodeError as error:
            at = offset - pending + error.start
            raise NotText(
                f"'{file}' is not {encoding.upper()} text: byte 0x{error.object[error.start]:02x} at offset {at}; "
                "convert it first, for example with iconv -f latin1 -t utf-8.",
                f"not {encoding.upper()}",
            ) from None
        if text:
            empty = False
            yield text
        if complete:
            break
        offset, block, size = offset + len(block), content.read(BLOCK), BLOCK
    if empty:
        raise NotText(f"'{file}' is empty but for a byte-order mark; name a file that holds text.", "empty")


def _check_binary(block: bytes, encoding: str, offset: int, file: Path) -> None:
    if encoding != "utf-8" or (at := block.find(b"\0")) < 0:
        return
    utf16 = offset == 0 and (block[1:64:2].count(0) > 16 or block[0:64:2].count(0) > 16)
    why = ", as UTF-16 does, but has no byte-order mark; save it as UTF-8" if utf16 else "; name a text"
    raise NotText(f"'{file}' is a binary file, not text: it holds a NUL byte at offset {offset + at}{why}.", "binary")
