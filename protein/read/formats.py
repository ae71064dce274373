"""Says in which format sequences or alignments are written, and whether records of FASTA are an alignment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np

from ...core.errors import UserError
from .text import Record

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
CLUSTAL = ("CLUSTAL", "MUSCLE", "PROBCONS", "MSAPROBS", "Kalign")
COLABFOLD = re.compile(r"#([-\d,]+)[ \t]+([-\d,]+)[ \t]*(?:\n|$)")
"""The first line that ColabFold writes: lengths of the chains, and how many copies there are of each."""

ALIKE = 0.2
"""Median share of columns in which rows agree with the first one, from which equally long sequences without a gap count
as an alignment: unrelated ones agree in 6 %."""


def format_of(file: str | Path, text: str) -> Format:
    """Returns the format of a file, by its content where that is plain and by its suffix where it is not.

    Raises:
        UserError: neither says what it is.
    """
    if text.startswith("# STOCKHOLM"):
        return "stockholm"
    if text.startswith(CLUSTAL):
        return "clustal"
    suffix = SUFFIXES.get(Path(str(file).lower().removesuffix(".gz")).suffix)
    start = text[: 1 << 16]
    if re.search(r"^>", start, re.MULTILINE):
        if text.startswith("#A3M#") or COLABFOLD.match(text):
            return "a3m"
        return suffix if suffix in ("a3m", "a2m") else "fasta"
    if suffix == "aln" or (suffix is None and re.fullmatch(r"[A-Za-z.\-*:/\s]+", start)):
        return "aln"
    raise UserError(
        f"'{file}' is no format that is read here (its first line is {start[:40].splitlines()[0]!r}); give FASTA, A3M, "
        "A2M, Stockholm, Clustal or PSICOV .aln."
    )


def arrangement(records: list[Record]) -> tuple[Format | None, str]:
    """Whether records of FASTA are an alignment: its format, or None for sequences; and a sentence where they could
    be read in both ways.
    """
    rows = [record.letters.removesuffix("*") for record in records]
    columns = {len(re.sub(r"[a-z.]", "", row)) for row in rows}
    gapped = sum("-" in row or "." in row for row in rows)
    if len({len(row) for row in rows}) == 1:
        if gapped or len(rows) == 1:
            return ("fasta" if gapped else None), ""
        share = _agreement(rows)
        facts = f"{len(rows):,} equally long sequences without a gap, of which the first agrees with the others in"
        if share >= ALIKE:
            return "fasta", f"{facts} {share:.0%}, are read as an alignment; --as sequences takes each by itself"
        return None, f"{facts} only {share:.0%}, are taken one by one; --as alignment reads them as an alignment"
    if len(columns) == 1 and 0 not in columns and not re.search("[a-z]", rows[0]):
        return "a3m", ""
    # An alignment with a fault: its reader names the row.
    return ("a3m" if any(re.search("[a-z]", row) for row in rows) else "fasta") if gapped > len(rows) / 2 else None, ""


def _agreement(rows: list[str]) -> float:
    """Median share of columns in which the other rows have the letter of the first."""
    first = np.frombuffer(rows[0].upper().encode("latin-1", "replace"), dtype=np.uint8)
    others = [np.frombuffer(row.upper().encode("latin-1", "replace"), dtype=np.uint8) for row in rows[1:]]
    return float(np.median([(row == first).mean() for row in others])) if len(first) else 0.0
