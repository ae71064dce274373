"""Decides, once for all verbs, what a file holds: alignments, or sequences to be taken one by one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from ...core.errors import UserError
from .alignment import SEPARATORS, Alignment, alignment_of, blocks_of, stated_chains
from .alphabet import encode
from .formats import Format, arrangement, format_of
from .text import MAX_BYTES, Record, fasta_records, is_annotation, read_content, refuse_nul, text_of

Kind = Literal["auto", "alignment", "sequences"]
KINDS: tuple[Kind, ...] = ("auto", "alignment", "sequences")

OnError = Callable[[UserError], None]


@dataclass(frozen=True)
class Sequence:
    """One protein.

    Args:
        name: unique in its file.
        letters: upper case, without gaps; the chains of a complex are joined.
        chains: their lengths; empty for one chain.
    """

    name: str
    letters: str
    chains: tuple[int, ...] = ()


@dataclass(frozen=True)
class Content:
    """What a file holds: alignments, or sequences.

    Args:
        alignments, sequences: one of the two is empty.
        notes: which of several readings was taken.
    """

    alignments: list[Alignment] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def read_input(file: str | Path, kind: Kind = "auto", on_error: OnError | None = None) -> Content:
    """Reads a file of sequences or alignments.

    A3M, A2M, Stockholm, Clustal and .aln are alignments. FASTA is one when its records have gaps and are equally long,
    equally long but for lower-case insertions (A3M), or equally long and alike; otherwise its records are sequences.

    Args:
        file: possibly gzipped.
        kind: what it is to be read as; `auto` decides as above. As `sequences`, rows lose their gaps.
        on_error: called with what is wrong with one sequence or alignment, which is then left out; left out, it is
            raised.

    Raises:
        UserError: the file cannot be read, or holds neither.
    """
    text = text_of(file, read_content(file))
    format = format_of(file, text)
    if format != "fasta":
        if kind != "sequences":
            return Content(_several(file, text, format, on_error))
        rows = _rows_as_records(file, text, format)
        return Content(sequences=_sequences(file, rows, on_error), notes=("the rows of an alignment, read one by one",))
    refuse_nul(file, text)
    records = [record for record in fasta_records(file, text) if not is_annotation(record)]
    if not records:
        raise UserError(f"'{file}' holds no sequence; FASTA starts each with a line '>name'.")
    if kind == "sequences":
        ungapped = [record._replace(letters=re.sub(r"[-.]", "", record.letters)) for record in records]
        return Content(sequences=_sequences(file, ungapped, on_error))
    aligned, note = arrangement(records)
    if kind == "alignment":
        aligned, note = aligned or "fasta", ""
    notes = (note,) if note else ()
    if aligned:
        return Content(_several(file, text, aligned, on_error), notes=notes)
    return Content(sequences=_sequences(file, records, on_error), notes=notes)


def read_sequences(file: str | Path, on_error: OnError | None = None, max_bytes: int = MAX_BYTES) -> list[Sequence]:
    """Reads the sequences of FASTA, in upper case, whether or not they are equally long.

    Args:
        file: the file, possibly gzipped.
        on_error: called with what is wrong with a sequence, which is then left out; left out, it is raised.
        max_bytes: bound on the size of the file.

    Raises:
        UserError: the file cannot be read or holds no sequence; a sequence is empty, has gaps or unknown letters.
    """
    text = text_of(file, read_content(file, max_bytes))
    refuse_nul(file, text)
    records = [record for record in fasta_records(file, text) if not is_annotation(record)]
    if not records:
        raise UserError(f"'{file}' holds no sequence; FASTA starts each with a line '>name'.")
    return _sequences(file, records, on_error)


def _several(file: str | Path, text: str, format: Format, on_error: OnError | None) -> list[Alignment]:
    blocks = list(blocks_of(file, text, format))
    found = []
    for block in blocks:
        try:
            found.append(alignment_of(file, block, format))
        except UserError as error:
            if on_error is None or len(blocks) == 1:
                raise
            on_error(error)
    if not blocks:
        raise UserError(f"'{file}' holds no row of an alignment.")
    return found


def _rows_as_records(file: str | Path, text: str, format: Format) -> list[Record]:
    """The rows of alignments, with their insertions and without their gaps."""
    found = []
    for block in blocks_of(file, text, format):
        rows = [record for record in block.records if not is_annotation(record)]
        chains = stated_chains(file, block, len(_columns(rows[0].letters)), []) if rows else ()
        found += [row._replace(letters=_by_chains(row.letters, chains)) for row in rows]
    return found


def _columns(letters: str) -> list[int]:
    """Where the columns of a row of A3M stand: all but lower-case letters and dots."""
    return [at for at, letter in enumerate(letters) if not ("a" <= letter <= "z" or letter == ".")]


def _by_chains(letters: str, chains: tuple[int, ...]) -> str:
    """A row without its gaps, with `:` between the residues of two of `chains`."""
    columns = _columns(letters)
    ends = [end for end in np.cumsum(chains).tolist() if end < len(columns)]
    cuts = [0, *(columns[end] for end in ends), len(letters)] if chains else [0, len(letters)]
    parts = (re.sub(r"[-.]", "", letters[start:end]) for start, end in pairwise(cuts))
    return ":".join(part for part in parts if part)


def _sequences(file: str | Path, records: list[Record], on_error: OnError | None) -> list[Sequence]:
    found = []
    for number, (record, name) in enumerate(zip(records, unique_names(records)), 1):
        try:
            found.append(_sequence(f"'{file}': sequence {number} ('{name}')", name, record.letters))
        except UserError as error:
            if on_error is None:
                raise
            on_error(error)
    return found


def _sequence(where: str, name: str, letters: str) -> Sequence:
    # Translators end a protein with the stop codon's asterisk.
    parts = [part.upper().removesuffix("*") for part in re.split(f"[{SEPARATORS}]", letters)]
    joined = "".join(parts)
    if not joined:
        raise UserError(f"{where} is empty.")
    if set(joined) & {"-", "."}:
        raise UserError(f"{where} has gaps, but the file is read as sequences; remove the gaps, or align all of it.")
    encode(joined, where)
    if "" in parts:
        raise UserError(f"{where} has an empty chain; write the chains of a complex as `AAA:BBB`.")
    return Sequence(name, joined, tuple(map(len, parts)) if len(parts) > 1 else ())


def unique_names(records: list[Record]) -> list[str]:
    """A name for each record: the first word of its header, the whole header where others begin with the same word,
    and a number behind it where whole headers are the same.
    """
    words = Counter(record.name for record in records)
    names = [record.name if words[record.name] == 1 else record.title or record.name for record in records]
    count = Counter(names)
    taken = {name for name in names if count[name] == 1}
    found = []
    for name in names:
        number, free = 2, name
        while count[name] > 1 and free in taken:
            free, number = f"{name}-{number}", number + 1
        taken.add(free)
        found.append(free)
    return found
