"""Files of sequences, alignments and structures as text, and the records of FASTA."""

from __future__ import annotations

import codecs
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ...core.errors import UserError
from ...core.files import open_regular

MAX_BYTES = 1 << 30

# The longer marks first: that of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte-order marks at the start of a file, and the encodings they stand for."""

ANNOTATIONS = ("ss_pred", "ss_conf", "ss_dssp", "sa_dssp", "aa_pred", "aa_dssp")
"""Rows that HH-suite puts among the sequences of an alignment: secondary structure, its confidence, accessibility."""


class Record(NamedTuple):
    """A sequence, or a row of an alignment, as it was written.

    Args:
        name: the first word of its header.
        letters: without white space.
        title: the whole header.
    """

    name: str
    letters: str
    title: str = ""


def read_content(file: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns the (unpacked) content of a file.

    Raises:
        UserError: it cannot be read, is empty or is larger than `max_bytes`.
    """
    try:
        with open_regular(file) as stream:
            content = stream.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"'{file}' cannot be read: {reason}.") from error
    if len(content) > max_bytes:
        raise UserError(
            f"'{file}' holds more than {max_bytes / 1e6:,.0f} MB; give fewer rows (an alignment of a few thousand "
            "diverse rows says as much)."
        )
    if not content.strip():
        raise UserError(f"'{file}' is empty; it should hold a sequence, an alignment or a structure.")
    return content


def text_of(file: str | Path, content: bytes) -> str:
    """Returns the text of a file: by its byte-order mark, as UTF-16 where every second byte is 0, as UTF-8, or else
    as Latin-1. Lines end in a line feed, and blank ones at the start are left out.

    Raises:
        UserError: the content does not follow its byte-order mark, or there is nothing but white space.
    """
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), None) or _utf16(content)
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding:
            raise UserError(f"'{file}' begins as {encoding.upper()} but is not ({error.reason}).") from None
        text = content.decode("latin-1")
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff \t\n")
    if not text:
        raise UserError(f"'{file}' is empty; it should hold a sequence, an alignment or a structure.")
    return text


def _utf16(content: bytes) -> str | None:
    """The byte order of UTF-16 without a mark: of letters that ASCII has, every second byte is 0."""
    start = content[:400]
    low, high = start[0::2], start[1::2]
    if len(high) > 3 and high.count(0) > 0.9 * len(high) and low.count(0) == 0:
        return "utf-16-le"
    if len(high) > 3 and low.count(0) > 0.9 * len(low) and high.count(0) == 0:
        return "utf-16-be"
    return None


def lines_of(text: str) -> Iterator[str]:
    """Yields the lines that are not blank, stripped."""
    for line in io.StringIO(text):
        if line := line.strip():
            yield line


def fasta_records(file: str | Path, text: str) -> Iterator[Record]:
    """Yields the records of FASTA, A3M or A2M; lines that start with `;` or `#` are comments.

    Raises:
        UserError: a line stands before the first header.
    """
    header, parts = None, []
    for line in lines_of(text):
        if line.startswith(">"):
            if header is not None:
                yield _record(header, parts)
            header, parts = line[1:].strip(), []
        elif line.startswith((";", "#")):
            continue
        elif header is None:
            raise UserError(f"'{file}' starts with {line[:40]!r}, but FASTA starts with a line '>name'.")
        else:
            parts.append("".join(line.split()))
    if header is not None:
        yield _record(header, parts)


def _record(header: str, parts: list[str]) -> Record:
    words = header.split(maxsplit=1)
    return Record(words[0] if words else "unnamed", "".join(parts), header or "unnamed")


def is_annotation(record: Record) -> bool:
    """Whether a row is one of `ANNOTATIONS` and no sequence."""
    return record.name.lower() in ANNOTATIONS


def refuse_nul(file: str | Path, text: str) -> None:
    """Raises UserError when a text holds a NUL character, as binary files do."""
    if (at := text.find("\0")) >= 0:
        raise UserError(f"'{file}' is a binary file, not text: it holds a NUL byte at offset {at}.")
