"""Reads alignments: A3M (ColabFold's too), A2M, aligned FASTA, Stockholm, Clustal and PSICOV's `.aln`.

Every alignment becomes the same thing: one column per residue of the query (the first row), and for each cell how many
residues of that row were inserted before the column.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...core.errors import UserError
from ...core.files import few
from .alphabet import GAP, INVALID, TABLE, decode, unknown_letter
from .formats import COLABFOLD, Format, arrangement, format_of
from .text import MAX_BYTES, Record, fasta_records, is_annotation, lines_of, read_content, refuse_nul, text_of

SEPARATORS = ":/"
"""What joins the chains of a complex in one row: `:` in ColabFold's files, `/` in those of other programs."""

MAX_ROWS = 20_000
"""Rows of an alignment that are read: to weight them takes time that grows with their square."""


class Block(NamedTuple):
    """The rows of one alignment, its name ("" for none), the lengths of its chains (none where the file does not say
    them), and how many copies there are of each.
    """

    records: list[Record]
    name: str = ""
    chains: tuple[int, ...] = ()
    copies: tuple[int, ...] = ()


@dataclass(frozen=True)
class Alignment:
    """Rows aligned to a query.

    Args:
        names: of the rows; the query comes first.
        tokens: uint8 `[rows, columns]`, numbers of `alphabet`; the query has no gap.
        deletions: uint8 `[rows, columns]`, residues inserted before the column (at most 255).
        chains: lengths of the chains of a complex, which the query joins; empty for one chain.
        name: that the file gives it, "" where there is none.
        notes: what was decided in reading.
    """

    names: list[str]
    tokens: np.ndarray
    deletions: np.ndarray
    chains: tuple[int, ...] = ()
    name: str = ""
    notes: tuple[str, ...] = ()

    @property
    def query(self) -> str:
        """The letters of the query."""
        return decode(self.tokens[0])

    def rows(self, which: np.ndarray) -> Alignment:
        """Returns the alignment of some rows `[rows]`; the first should be 0, the query."""
        names = [self.names[row] for row in which]
        return replace(self, names=names, tokens=self.tokens[which], deletions=self.deletions[which])


def read_alignment(
    file: str | Path, format: Format | None = None, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES
) -> Alignment:
    """Reads the alignment of a file; its first row is the query.

    Lower-case letters and dots are insertions in A3M and A2M; in the other formats case means nothing, and the columns
    in which the query has a gap are insertions.

    Args:
        file: the file, possibly gzipped.
        format: left out, the content and the suffix say it.
        max_rows: rows to keep; a note says how many there were.
        max_bytes: bound on the size of the file.

    Raises:
        UserError: the file cannot be read, is empty, of another format or holds several alignments; rows differ in
            their number of columns; letters are unknown.
    """
    return parse_alignment(file, read_content(file, max_bytes), format, max_rows)


def parse_alignment(
    file: str | Path, content: bytes, format: Format | None = None, max_rows: int = MAX_ROWS
) -> Alignment:
    """Returns the one alignment that `content` holds; `file` says in messages, and by its suffix, what it is."""
    found = list(alignments_in(file, text_of(file, content), format, max_rows))
    if len(found) > 1:
        names = few([alignment.name for alignment in found])
        raise UserError(
            f"'{file}' holds the alignments of {len(found)} queries ({names}), but must hold one; put each into a file "
            "of its own."
        )
    return found[0]


def alignments_in(
    file: str | Path, text: str, format: Format | None = None, max_rows: int = MAX_ROWS
) -> Iterator[Alignment]:
    """Yields the alignments of a text: Stockholm may hold several, and A3M with NUL characters between them.

    Raises:
        UserError: as `read_alignment`, and when there is none.
    """
    format = format or format_of(file, text)
    if format == "fasta" and "\0" not in text:
        records = [record for record in fasta_records(file, text) if not is_annotation(record)]
        format = (arrangement(records)[0] if records else None) or "fasta"
    for block in blocks_of(file, text, format):
        yield alignment_of(file, block, format, max_rows)


def blocks_of(file: str | Path, text: str, format: Format) -> Iterable[Block]:
    """Returns the rows of each alignment of a text, as they were written."""
    if format == "stockholm":
        return _stockholm(file, text)
    if format == "clustal":
        return [Block(_clustal(text))]
    if format == "aln":
        lines = [line for line in lines_of(text) if not line.startswith("#")]
        return [Block([Record(f"row {n}" if n > 1 else "query", line) for n, line in enumerate(lines, 1)])]
    return _marked(file, text)


# -- formats ----------------------------------------------------------------------------------------------------------


def _stockholm(file: str | Path, text: str) -> Iterator[Block]:
    from Bio import AlignIO

    for part in re.split(r"(?m)^//[ \t]*$", text):
        if not part.strip():
            continue
        block = part.strip() if part.strip().startswith("# STOCKHOLM") else "# STOCKHOLM 1.0\n" + part.strip()
        try:
            found = AlignIO.read(io.StringIO(block + "\n//\n"), "stockholm")
        except (ValueError, KeyError, AssertionError) as error:
            if block == "# STOCKHOLM 1.0" or "No records" in str(error):
                raise UserError(f"'{file}' holds no row of an alignment.") from None
            raise UserError(f"'{file}' cannot be read as Stockholm: {error}.") from error
        named = re.search(r"(?m)^#=GF\s+ID\s+(\S+)", block) or re.search(r"(?m)^#=GF\s+AC\s+(\S+)", block)
        rows = [Record(str(row.id), str(row.seq)) for row in found]
        yield Block(rows, named[1] if named else "")


def _clustal(text: str) -> list[Record]:
    # Biopython's parser never ends when the file does so early.
    rows: dict[str, list[str]] = {}
    for line in text.split("\n")[1:]:
        # Lines of the consensus start with a space; a third word counts residues.
        if line[:1].strip() and len(words := line.split()) > 1:
            rows.setdefault(words[0], []).append(words[1])
    return [Record(name, "".join(parts)) for name, parts in rows.items()]


def _marked(file: str | Path, text: str) -> list[Block]:
    """FASTA, A2M and A3M, with what ColabFold adds: a first line `#lengths<tab>copies`, and NUL characters between
    the parts of its databases and of its queries."""
    chains, copies = (), ()
    if match := COLABFOLD.match(text):
        chains, copies = _lengths_and_copies(file, match[1], match[2])
    if "\0" not in text:
        return [Block(list(fasta_records(file, text)), "", chains, copies)]
    parts = [part for part in re.split(r"\0\s*", text) if part.strip()]
    if not parts or not all(re.match(r"[>#]", part) for part in parts):
        refuse_nul(file, text)
    # Each part repeats its query.
    queries: dict[str, list[Record]] = {}
    for part in parts:
        records = list(fasta_records(file, part))
        if records:
            rows = queries.setdefault(records[0].letters, [])
            rows += records[1:] if rows else records
    return [Block(rows, rows[0].name, chains, copies) for rows in queries.values()]


def _lengths_and_copies(file: str | Path, lengths: str, copies: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The numbers of ColabFold's first line: residues of each chain, and how many copies there are of it."""
    first, second = (part.strip(",").split(",") for part in (lengths, copies))
    positive = all(re.fullmatch(r"0*[1-9]\d{0,8}", word) for word in (*first, *second))
    if len(first) != len(second) or not positive:
        raise UserError(
            f"'{file}': its first line gives chains of {lengths} residues in {copies} copies, but must give a positive "
            "number of each for every chain; mend or remove the line."
        )
    return tuple(map(int, first)), tuple(map(int, second))


def alignment_of(file: str | Path, block: Block, format: Format, max_rows: int = MAX_ROWS) -> Alignment:
    """Returns the alignment of some rows: without annotations, at most `max_rows`, chains told apart.

    Raises:
        UserError: as `read_alignment`.
    """
    records = [record for record in block.records if not is_annotation(record)]
    if not records:
        raise UserError(f"'{file}' holds no row of an alignment.")
    notes: list[str] = []
    if len(records) > max_rows:
        notes.append(f"'{file}' has {len(records):,} rows; the first {max_rows:,} are used")
        records = records[:max_rows]
    if len(records) > 1 and re.search(r"(^|_)consensus$", records[0].name.lower()):
        notes.append(f"the query is a consensus ('{records[0].name}'), the first row of the alignment")
    has_case = format in ("a3m", "a2m")
    records, separated = _chains_joined(file, records, has_case)
    records = _stops_read(records, has_case, notes)
    alignment = _with_case(file, records) if has_case else _without_case(file, records)
    columns = alignment.tokens.shape[1]
    chains = separated or stated_chains(file, block, columns, notes)
    name = block.name or alignment.names[0]
    return replace(alignment, chains=chains, name=name, notes=tuple(notes))


def stated_chains(file: str | Path, block: Block, columns: int, notes: list[str]) -> tuple[int, ...]:
    """Returns the chains that the first line of a file tells, none for one: each once, or as often as there are copies.

    Args:
        file: for messages.
        block: the rows.
        columns: residues of the query.
        notes: what is said of copies is added to them.

    Raises:
        UserError: they do not add up to `columns`.
    """
    once = block.chains
    each = tuple(length for length, copies in zip(once, block.copies) for _ in range(min(copies, columns + 1)))
    if once and columns not in (sum(once), sum(each)):
        raise UserError(
            f"'{file}': its first line gives chains of {', '.join(map(str, once))} residues, together {sum(once)}, "
            f"but the query has {columns}."
        )
    if sum(once) != columns:
        return each
    if max(block.copies, default=1) > 1:
        notes.append("of a chain in several copies one is read: contacts between copies look like contacts within one")
    return once if len(once) > 1 else ()


def _columns(letters: str, has_case: bool) -> str:
    """The part of a row that stands in columns."""
    return re.sub(r"[a-z.]", "", letters) if has_case else letters


def _chains_joined(file: str | Path, records: list[Record], has_case: bool) -> tuple[list[Record], tuple[int, ...]]:
    """Rows without the separators of their chains, and the residues of each chain of the query (none for one chain)."""
    cut = re.compile(f"[{SEPARATORS}]")
    query = cut.split(records[0].letters)
    if len(query) == 1:
        return records, ()
    widths = [len(_columns(part, has_case)) for part in query]
    joined = []
    for number, record in enumerate(records, 1):
        parts = cut.split(record.letters)
        if len(parts) > 1 and [len(_columns(part, has_case)) for part in parts] != widths:
            raise UserError(
                f"'{file}': row {number} ('{record.name}') has chains of {', '.join(str(len(p)) for p in parts)} "
                f"columns, but the query has chains of {', '.join(map(str, widths))}; separate them at the same places."
            )
        joined.append(record._replace(letters="".join(parts)))
    lengths = tuple(sum(letter not in "-.*" for letter in part) for part in query)
    if 0 in lengths:
        raise UserError(f"'{file}': chain {lengths.index(0) + 1} of the query ('{records[0].name}') is empty.")
    return joined, lengths


def _stops_read(records: list[Record], has_case: bool, notes: list[str]) -> list[Record]:
    """Rows without the asterisk that ends a translation, where all are then equally long; others are read as X."""
    starred = sum("*" in record.letters for record in records)
    if not starred:
        return records
    ended = [record._replace(letters=record.letters.removesuffix("*")) for record in records]
    if len({len(_columns(record.letters, has_case)) for record in ended}) == 1:
        records = ended
    if inside := sum("*" in record.letters for record in records):
        notes.append(f"stop codons (*) in {inside} row(s) are read as unknown residues (X)")
    return [record._replace(letters=record.letters.replace("*", "X")) for record in records]


# -- columns ----------------------------------------------------------------------------------------------------------


def _with_case(file: str | Path, records: list[Record]) -> Alignment:
    """A3M and A2M: upper-case letters and dashes are columns, lower-case letters insertions, dots nothing."""
    insertions = bytes(range(ord("a"), ord("z") + 1)) + b"."
    query = records[0].letters
    if lower := sum("a" <= letter <= "z" for letter in query):
        raise UserError(
            f"'{file}': the query ('{records[0].name}') has {lower} lower-case letters, insertions in A3M and "
            "A2M, but nothing can be inserted into the query; give sequences that are not aligned as a FASTA file."
        )
    columns = len(query.replace(".", ""))
    tokens = np.empty((len(records), columns), dtype=np.uint8)
    deletions = np.zeros((len(records), columns), dtype=np.uint8)
    for row, (name, letters, _) in enumerate(records):
        raw = letters.encode("latin-1", "replace")
        aligned = raw.translate(None, insertions)
        if not columns:
            break
        if len(aligned) != columns:
            raise UserError(
                f"'{file}': Row {row + 1} ('{name}') has {len(aligned):,} aligned columns, the query has {columns:,}; "
                "lowercase letters are insertions in A3M, so give sequences that are not aligned as a FASTA file."
            )
        tokens[row] = TABLE[np.frombuffer(aligned, dtype=np.uint8)]
        if not raw.isupper() or b"." in raw:
            deletions[row] = _insertions(raw.replace(b".", b""), columns)
    _refuse_unknown(file, records, tokens)
    return _query_columns(records, tokens, deletions)


def _insertions(raw: bytes, columns: int) -> np.ndarray:
    """Lower-case letters before each column, uint8 `[columns]`; those behind the last column count for none."""
    letters = np.frombuffer(raw, dtype=np.uint8)
    is_column = (letters < ord("a")) | (letters > ord("z"))
    # Letters before a column, less the columns before it, are all insertions so far.
    so_far = np.flatnonzero(is_column) - np.arange(columns)
    return np.minimum(np.diff(so_far, prepend=0), 255).astype(np.uint8)


def _without_case(file: str | Path, records: list[Record]) -> Alignment:
    """Formats in which all rows are equally long and case means nothing."""
    columns = len(records[0].letters)
    for row, (name, letters, _) in enumerate(records, 1):
        if len(letters) != columns:
            raise UserError(
                f"'{file}': Row {row} has {len(letters):,} columns, the query has {columns:,}; rows of an alignment "
                f"are equally long (row {row} is '{name}'); name an A3M file .a3m, and align sequences first."
            )
    joined = "".join(record.letters for record in records).encode("latin-1", "replace").upper()
    raw = np.frombuffer(joined.replace(b".", b"-"), dtype=np.uint8)
    tokens = TABLE[raw].reshape(len(records), columns)
    _refuse_unknown(file, records, tokens)
    return _query_columns(records, tokens, np.zeros_like(tokens))


def _query_columns(records: list[Record], tokens: np.ndarray, deletions: np.ndarray) -> Alignment:
    """Keeps the columns in which the query has a residue; what rows have in the others is inserted before the next."""
    kept = tokens[0] != GAP
    if not kept.all():
        before = np.cumsum(np.where(kept, deletions, deletions + (tokens != GAP)), axis=1, dtype=np.int64)[:, kept]
        deletions = np.minimum(np.diff(before, axis=1, prepend=0), 255).astype(np.uint8)
        tokens = np.ascontiguousarray(tokens[:, kept])
    return Alignment([record.name for record in records], tokens, deletions)


def _refuse_unknown(file: str | Path, records: list[Record], tokens: np.ndarray) -> None:
    if not tokens.shape[1] or (tokens[0] == GAP).all():
        raise UserError(f"'{file}': the query (the first row, '{records[0].name}') is empty.")
    if (tokens != INVALID).all():
        return
    row = int(np.flatnonzero((tokens == INVALID).any(axis=1))[0])
    letters = records[row].letters
    wrong = [at for at, letter in enumerate(letters.encode("latin-1", "replace").upper()) if not _known(letter)]
    where = f"'{file}': row {row + 1} ('{records[row].name}')"
    raise UserError(unknown_letter(where, letters[wrong[0]], wrong[0] + 1, len(wrong)))


def _known(letter: int) -> bool:
    return TABLE[letter] != INVALID or letter == ord(".")
