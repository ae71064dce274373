"""Files of rows (JSON lines or one JSON array, packed or not, in any Unicode encoding), one row at a time."""

from __future__ import annotations

import codecs
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..errors import UserError
from ..files import open_regular, parse_json

MAX_ROW_BYTES = 64 << 20
"""Longest row of a file; a packed file of a few kB can hold one of any length."""
MAX_ARRAY_BYTES = 1 << 30
"""Longest file with one JSON array, which has to be in memory as a whole."""
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte-order marks, the longer ones first where one begins with another."""


class Row(NamedTuple):
    """One row: where it stands (`file:number`), and its value, or what is wrong with it."""

    where: str
    value: Any
    error: UserError | None = None


def encoding_of(start: bytes) -> tuple[str, int]:
    """The encoding that the first four bytes of a file tell of, and the length of its byte-order mark (0: none)."""
    return next(((name, len(mark)) for mark, name in MARKS if start.startswith(mark)), ("utf-8", 0))


def rows(file: Path) -> Iterator[Row]:
    """The rows of a JSON-lines file, or the items of a file whose whole content is one JSON array; blank rows are none.

    Raises:
        UserError: the file cannot be read, or has more than 1 GB in one array.
    """
    try:
        with open_regular(file) as raw:
            content = _in_utf8(raw)
            first = content.readline(MAX_ROW_BYTES + 1)
            while first and not first.strip():
                first = content.readline(MAX_ROW_BYTES + 1)
            if first.lstrip().startswith(b"["):
                yield from _items(first + content.read(MAX_ARRAY_BYTES), file)
            else:
                content.seek(0)
                yield from _lines(content, file)
    except UnicodeDecodeError as error:
        raise UserError(f"'{file}' begins with a mark of {error.encoding}, but is not; save it as UTF-8.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"'{file}' cannot be read ({error}); write it again.") from None


def _in_utf8(raw: IO[bytes]) -> Any:
    """The same file as UTF-8 without a byte-order mark; offsets begin behind the mark."""
    encoding, mark = encoding_of(raw.read(4))
    raw.seek(0)
    if not mark:
        return raw
    if encoding == "utf-8":
        return _Behind(raw, mark)
    text = io.TextIOWrapper(raw, encoding.removesuffix("-le").removesuffix("-be"), newline="\n")
    return _Encoded(text)


class _Behind:
    """A binary file without its first bytes."""

    def __init__(self, raw: IO[bytes], skip: int) -> None:
        self._raw, self._skip = raw, skip
        self.readline, self.read = raw.readline, raw.read
        self.seek(0)

    def seek(self, position: int) -> None:
        self._raw.seek(self._skip + position)


class _Encoded:
    """A text file as the bytes of its UTF-8 form."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.seek = text.seek

    def readline(self, size: int) -> bytes:
        return self._text.readline(size).encode("utf-8", "surrogatepass")

    def read(self, size: int) -> bytes:
        return self._text.read(size).encode("utf-8", "surrogatepass")


def _lines(content: Any, file: Path) -> Iterator[Row]:
    offset = 0
    for number, line in enumerate(iter(lambda: content.readline(MAX_ROW_BYTES + 1), b""), 1):
        where = f"{file}:{number}"
        if len(line) > MAX_ROW_BYTES:
            raise UserError(f"{where} is longer than {MAX_ROW_BYTES / 1e6:,.0f} MB; cut it into several rows.")
        if line.strip():
            try:
                yield Row(where, parse_json(_decoded(line, where, offset), where))
            except UserError as error:
                yield Row(where, None, error)
        offset += len(line)


def _decoded(line: bytes, where: str, offset: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 text: byte 0x{line[error.start]:02x} at offset {offset + error.start}; convert the "
            "file, for example with iconv -f latin1 -t utf-8."
        ) from None


def _items(content: bytes, file: Path) -> Iterator[Row]:
    if len(content) > MAX_ARRAY_BYTES:
        raise UserError(f"'{file}' is one JSON array of more than 1 GB; write one row a line (.jsonl).")
    text, decoder, number = _decoded(content, str(file), 0), json.JSONDecoder(), 0
    at = _space(text, text.index("[") + 1)
    while at < len(text) and text[at] != "]":
        number += 1
        where = f"{file}:{number}"
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:  # where this item ends is unknown, so those behind it are lost
            why = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"
            yield Row(where, None, UserError(f"{where} (an item of an array) is not valid JSON: {why}."))
            return
        try:
            yield Row(where, parse_json(text[at:end], where))
        except UserError as error:
            yield Row(where, None, error)
        at = _space(text, end)
        if at < len(text) and text[at] == ",":
            at = _space(text, at + 1)
        elif at >= len(text) or text[at] != "]":
            yield Row(where, None, UserError(f"'{file}' has no comma or ] behind item {number}; it was cut short."))
            return
    if (rest := text[at + 1 :].strip()) or at >= len(text):
        what = f"more behind its array ({rest[:20]!r})" if rest else "no ] at its end"
        yield Row(f"{file}:{number + 1}", None, UserError(f"'{file}' has {what}; it is damaged."))


def _space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
