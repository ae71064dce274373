"""Read sequences and alignments: FASTA, A3M (ColabFold's too), A2M, Stockholm, Clustal and PSICOV's `.aln`.

Every alignment becomes the same thing: one column per residue of the query (the first row), and for each cell how many
residues of that row were inserted before the column.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ...core.errors import UserError
from ...core.files import open_regular
from .alphabet import GAP, INVALID, TABLE, decode, encode, unknown_letter

Format = Literal["a3m", "a2m", "fasta", "stockholm", "clustal", "aln"]

SUFFIXES: dict[str, Format] = {
    ".a3m": "a3m",
    ".a2m": "a2m",
    ".sto": "stockholm",
    ".sth": "stockholm",
    ".stk": "stockholm",
    ".stockholm": "stockholm",
    ".aln": "aln",
    ".psicov": "aln",
    ".clustal": "clustal",
    ".clw": "clustal",
    **dict.fromkeys((".fasta", ".fa", ".fas", ".faa", ".afa", ".mfa", ".seq"), "fasta"),
}
CLUSTAL = (b"CLUSTAL", b"MUSCLE", b"PROBCONS", b"MSAPROBS", b"Kalign")
MAX_BYTES = 1 << 30
MAX_ROWS = 20_000
"""Rows of an alignment that are read: to weight them takes time that grows with their square."""


class Record(NamedTuple):
    """A name and what stood below it, letters as they were."""

    name: str
    letters: str


@dataclass(frozen=True)
class Alignment:
    """Rows aligned to a query.

    Args:
        names: of the rows; the query comes first.
        tokens: uint8 [rows, columns], numbers of `alphabet`; the query has no gap.
        deletions: uint8 [rows, columns], residues inserted before the column (at most 255).
        chains: lengths of the chains that the query is joined of (ColabFold writes complexes so).
    """

    names: list[str]
    tokens: np.ndarray
    deletions: np.ndarray
    chains: tuple[int, ...] = ()

    @property
    def query(self) -> str:
        """The letters of the query."""
        return decode(self.tokens[0])

    def rows(self, which: np.ndarray) -> Alignment:
        """Return the alignment of some rows [rows]; the first should be 0, the query."""
        names = [self.names[row] for row in which]
        return replace(self, names=names, tokens=self.tokens[which], deletions=self.deletions[which])


# -- files ------------------------------------------------------------------------------------------------------------


def read_content(file: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the (unpacked) content of a file.

    Raises:
        UserError: it cannot be read, is empty or is larger than `max_bytes`.
    """
    try:
        with open_regular(file) as stream:
            content = stream.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"'{file}' cannot be read: {reason}") from error
    if len(content) > max_bytes:
        raise UserError(
            f"'{file}' holds more than {max_bytes / 1e6:,.0f} MB: give fewer rows (an alignment of a few thousand "
            "diverse rows says as much)"
        )
    if not content.strip():
        raise UserError(f"'{file}' is empty: it should hold a sequence or an alignment")
    return content


def format_of(file: str | Path, content: bytes) -> Format:
    """Return the format of a file, by its content where that is plain and by its suffix where it is not.

    Raises:
        UserError: neither says what it is.
    """
    name = Path(file).name.lower().removesuffix(".gz")
    if content.startswith(b"# STOCKHOLM"):
        return "stockholm"
    if content.startswith(CLUSTAL):
        return "clustal"
    suffix = SUFFIXES.get(Path(name).suffix)
    marked = re.search(rb"^>", content[: 1 << 16], re.MULTILINE) is not None
    if marked:
        return suffix if suffix in ("a3m", "a2m") else "fasta"
    if suffix == "aln" or (suffix is None and re.fullmatch(rb"[A-Za-z.\-\s]+", content[: 1 << 16])):
        return "aln"
    raise UserError(
        f"'{file}' is no format that is read here (its first line is {_first_line(content)!r}): give FASTA, A3M, A2M, "
        "Stockholm, Clustal or PSICOV .aln"
    )


def _first_line(content: bytes) -> str:
    return content.lstrip()[:40].split(b"\n", 1)[0].decode("latin-1")


# -- sequences --------------------------------------------------------------------------------------------------------


def read_sequences(
    file: str | Path, on_error: Callable[[UserError], None] | None = None, max_bytes: int = MAX_BYTES
) -> list[Record]:
    """Read unaligned sequences from FASTA, in upper case.

    Args:
        file: the file, possibly gzipped.
        on_error: called with what is wrong with a sequence, which is then left out; left out, it is raised.
        max_bytes: bound on the size of the file.

    Raises:
        UserError: the file cannot be read or holds no sequence; a sequence is empty, has gaps or unknown letters, or
            shares its name with another.
    """
    content = read_content(file, max_bytes)
    _refuse_nul(file, content)
    known: dict[str, int] = {}
    found: list[Record] = []
    number = 0
    for number, (name, letters) in enumerate(_fasta(file, content), 1):
        try:
            found.append(_sequence(file, number, name, letters, known))
        except UserError as error:
            if on_error is None:
                raise
            on_error(error)
    if not number:
        raise UserError(f"'{file}' holds no sequence: FASTA starts each with a line '>name'")
    return found


def _sequence(file: str | Path, number: int, name: str, letters: str, known: dict[str, int]) -> Record:
    where = f"'{file}': sequence {number} ('{name}')"
    if name in known:
        raise UserError(
            f"'{file}': sequences {known[name]} and {number} are both named '{name}': give each its own name"
        )
    known[name] = number
    # Translators end a protein with the stop codon's asterisk.
    letters = letters.upper().removesuffix("*")
    if not letters:
        raise UserError(f"{where} is empty")
    if set(letters) & {"-", "."}:
        raise UserError(f"{where} has gaps: an alignment is read where an alignment is asked for; remove the gaps here")
    encode(letters, where)
    return Record(name, letters)


def _fasta(file: str | Path, content: bytes) -> Iterator[Record]:
    name, parts = None, []
    for line in _lines(content):
        if line.startswith(">"):
            if name is not None:
                yield Record(name, "".join(parts))
            words = line[1:].split(maxsplit=1)
            name, parts = words[0] if words else "unnamed", []
        elif line.startswith(";"):
            continue
        elif name is None:
            raise UserError(f"'{file}' starts with {line[:40]!r}: FASTA starts with a line '>name'")
        else:
            parts.append("".join(line.split()))
    if name is not None:
        yield Record(name, "".join(parts))


def _lines(content: bytes) -> Iterator[str]:
    # latin-1 never fails, and what is no residue letter is named by the check of the letters.
    for line in io.TextIOWrapper(io.BytesIO(content), encoding="latin-1"):
        if line := line.strip():
            yield line


def _refuse_nul(file: str | Path, content: bytes) -> None:
    if (at := content.find(b"\0")) >= 0:
        raise UserError(f"'{file}' is a binary file, not text: it holds a NUL byte at offset {at}")


# -- alignments -------------------------------------------------------------------------------------------------------


def read_alignment(
    file: str | Path, format: Format | None = None, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES
) -> Alignment:
    """Read an alignment; its first row is the query.

    Lower-case letters and dots are insertions in A3M and A2M; in the other formats case means nothing, and the columns
    in which the query has a gap are insertions.

    Args:
        file: the file, possibly gzipped.
        format: left out, the content and the suffix say it.
        max_rows: rows to keep; a warning says how many there were.
        max_bytes: bound on the size of the file.

    Raises:
        UserError: the file cannot be read, is empty or of another format; rows differ in their number of columns;
            letters are unknown.
    """
    return parse_alignment(file, read_content(file, max_bytes), format, max_rows)


def parse_alignment(
    file: str | Path, content: bytes, format: Format | None = None, max_rows: int = MAX_ROWS
) -> Alignment:
    """Return the alignment that `content` holds; `file` says in messages, and by its suffix, what it is."""
    format = format or format_of(file, content)
    content, chains = _colabfold(file, content)
    records = list(_records(file, content, format))
    if not records:
        raise UserError(f"'{file}' holds no row of an alignment")
    if len(records) > max_rows:
        warnings.warn(f"'{file}' has {len(records):,} rows; the first {max_rows:,} are used", stacklevel=2)
        records = records[:max_rows]
    alignment = _with_case(file, records) if format in ("a3m", "a2m") else _without_case(file, records)
    columns = alignment.tokens.shape[1]
    if chains and sum(chains) != columns:
        raise UserError(
            f"'{file}': its first line gives chains of {', '.join(map(str, chains))} residues, together {sum(chains)}, "
            f"but the query has {columns}"
        )
    return replace(alignment, chains=chains)


def _records(file: str | Path, content: bytes, format: Format) -> Iterator[Record]:
    if format == "stockholm":
        from Bio import AlignIO

        try:
            # A file may hold several alignments; the first is read.
            for record in next(iter(AlignIO.parse(io.StringIO(content.decode("latin-1")), format))):
                yield Record(str(record.id), str(record.seq))
        except StopIteration:
            return
        except (ValueError, KeyError, AssertionError) as error:
            raise UserError(f"'{file}' cannot be read as Stockholm: {error}") from error
    elif format == "clustal":
        yield from _clustal(content)
    elif format == "aln":
        for number, line in enumerate(_lines(content), 1):
            yield Record("query" if number == 1 else f"row {number}", line)
    else:
        yield from _fasta(file, content)


def _clustal(content: bytes) -> Iterator[Record]:
    # Biopython's parser never ends when the file does so early.
    rows: dict[str, list[str]] = {}
    for line in content.decode("latin-1").splitlines()[1:]:
        # Lines of the consensus start with a space; a third word counts residues.
        if line[:1].strip() and len(words := line.split()) > 1:
            rows.setdefault(words[0], []).append(words[1])
    yield from (Record(name, "".join(parts)) for name, parts in rows.items())


def _colabfold(file: str | Path, content: bytes) -> tuple[bytes, tuple[int, ...]]:
    """Take off what ColabFold adds to A3M: a first line `#lengths<tab>copies`, and NUL bytes between its databases."""
    chains: tuple[int, ...] = ()
    if match := re.match(rb"#([\d,]+)\t[\d,]+\r?\n", content):
        chains = tuple(int(length) for length in match[1].split(b",") if length)
        content = content[match.end() :]
    if b"\0" not in content:
        return content, chains if len(chains) > 1 else ()
    blocks = [block for block in re.split(rb"\0\s*", content) if block.strip()]
    if not blocks or not all(block.startswith(b">") for block in blocks):
        _refuse_nul(file, content)
    queries = {next(_fasta(file, block)) for block in blocks}
    if len({query.letters for query in queries}) > 1:
        names = ", ".join(sorted(query.name for query in queries))
        raise UserError(
            f"'{file}' holds the alignments of {len(queries)} queries ({names}), with NUL bytes between them as "
            "ColabFold's server writes them: put each into a file of its own"
        )
    # Each block repeats the query.
    rest = [block[block.index(b"\n>") :] if b"\n>" in block else b"" for block in blocks[1:]]
    return b"".join([blocks[0].rstrip(), *rest]), chains if len(chains) > 1 else ()


def _with_case(file: str | Path, records: list[Record]) -> Alignment:
    """A3M and A2M: upper-case letters and dashes are columns, lower-case letters insertions, dots nothing."""
    insertions = bytes(range(ord("a"), ord("z") + 1)) + b"."
    query = records[0].letters
    if lower := sum("a" <= letter <= "z" for letter in query):
        raise UserError(
            f"'{file}': the query ('{records[0].name}') has {lower} lower-case letters, insertions in A3M and "
            "A2M, but nothing can be inserted into the query; is this a FASTA?"
        )
    columns = len(query.replace(".", ""))
    tokens = np.empty((len(records), columns), dtype=np.uint8)
    deletions = np.zeros((len(records), columns), dtype=np.uint8)
    for row, (name, letters) in enumerate(records):
        raw = letters.encode("latin-1", "replace")
        aligned = raw.translate(None, insertions)
        if not columns:
            break
        if len(aligned) != columns:
            raise UserError(
                f"'{file}': Row {row + 1} has {len(aligned):,} aligned columns, the query has {columns:,}; lowercase "
                f"letters are insertions in A3M; is this a FASTA? (row {row + 1} is '{name}')"
            )
        tokens[row] = TABLE[np.frombuffer(aligned, dtype=np.uint8)]
        if not raw.isupper() or b"." in raw:
            deletions[row] = _insertions(raw.replace(b".", b""), columns)
    _refuse_unknown(file, records, tokens)
    return _query_columns(records, tokens, deletions)


def _insertions(raw: bytes, columns: int) -> np.ndarray:
    """Lower-case letters before each column, uint8 [columns]; those behind the last column count for none."""
    letters = np.frombuffer(raw, dtype=np.uint8)
    is_column = (letters < ord("a")) | (letters > ord("z"))
    # Letters before a column, less the columns before it, are all insertions so far.
    so_far = np.flatnonzero(is_column) - np.arange(columns)
    return np.minimum(np.diff(so_far, prepend=0), 255).astype(np.uint8)


def _without_case(file: str | Path, records: list[Record]) -> Alignment:
    """Formats in which all rows are equally long and case means nothing."""
    columns = len(records[0].letters)
    for row, (name, letters) in enumerate(records, 1):
        if len(letters) != columns:
            raise UserError(
                f"'{file}': Row {row} has {len(letters):,} columns, the query has {columns:,}; rows of an alignment "
                f"are equally long (row {row} is '{name}'); is this A3M, or are these sequences not aligned?"
            )
    joined = "".join(letters for _, letters in records).encode("latin-1", "replace").upper()
    raw = np.frombuffer(joined.replace(b".", b"-").replace(b"*", b"X"), dtype=np.uint8)
    tokens = TABLE[raw].reshape(len(records), columns)
    _refuse_unknown(file, records, tokens)
    return _query_columns(records, tokens, np.zeros_like(tokens))


def _query_columns(records: list[Record], tokens: np.ndarray, deletions: np.ndarray) -> Alignment:
    """Keep the columns in which the query has a residue; what rows have in the others is inserted before the next."""
    kept = tokens[0] != GAP
    if not kept.all():
        before = np.cumsum(np.where(kept, deletions, deletions + (tokens != GAP)), axis=1, dtype=np.int64)[:, kept]
        deletions = np.minimum(np.diff(before, axis=1, prepend=0), 255).astype(np.uint8)
        tokens = np.ascontiguousarray(tokens[:, kept])
    return Alignment([name for name, _ in records], tokens, deletions)


def _refuse_unknown(file: str | Path, records: list[Record], tokens: np.ndarray) -> None:
    if not tokens.shape[1] or (tokens[0] == GAP).all():
        raise UserError(f"'{file}': the query (the first row, '{records[0].name}') is empty")
    if (tokens != INVALID).all():
        return
    row = int(np.flatnonzero((tokens == INVALID).any(axis=1))[0])
    letters = records[row].letters
    wrong = [at for at, letter in enumerate(letters.encode("latin-1", "replace").upper()) if not _known(letter)]
    where = f"'{file}': row {row + 1} ('{records[row].name}')"
    raise UserError(unknown_letter(where, letters[wrong[0]], wrong[0] + 1, len(wrong)))


def _known(letter: int) -> bool:
    return TABLE[letter] != INVALID or letter == ord(".")
