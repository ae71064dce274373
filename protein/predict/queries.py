"""What is to be predicted: the sequences and alignments of files and folders, each with a name of its own."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...core.errors import UserError
from ..read.alignment import Alignment
from ..read.alphabet import check_protein, encode
from ..read.formats import SUFFIXES
from ..read.inputs import Kind, read_input

SHORTEST = 7
"""Residues a chain must have for one pair that counts."""

LONGEST_NAME = 120
"""Bytes of a name in a file's name, of which systems allow 255."""

FORCE = "--force reads it as a protein"


@dataclass(frozen=True)
class Query:
    """One chain or complex.

    Args:
        name: unique in the batch, fit for a file name.
        title: the name that the file gives it.
        source: the file.
        alignment: of one row for a sequence.
        letters: the sequence as it was written; None for an alignment.
        notes: which reading was taken.
    """

    name: str
    source: Path
    alignment: Alignment
    letters: str | None = None
    notes: tuple[str, ...] = ()
    title: str = ""


class Queries:
    """Reads files one after the other, each once.

    Args:
        inputs: files and folders, which are searched to the bottom.
        kind: what the files are read as.
        force: also what does not look like a protein.
        only_alignments: sequences are refused.

    Attributes:
        problems: sentences about what could not be read.
    """

    def __init__(
        self, inputs: Sequence[Path], kind: Kind = "auto", force: bool = False, only_alignments: bool = False
    ) -> None:
        self.kind: Kind = kind
        self.force, self.only_alignments = force, only_alignments
        self.problems: list[str] = []
        self.files = list(dict.fromkeys(file for path in inputs for file in self._files(path)))
        self._taken: set[str] = set()

    def _files(self, path: Path) -> Iterable[Path]:
        if not path.is_dir():
            return [path]
        files = sorted(file for file in path.rglob("*") if _is_input(file))
        if not files:
            self.problems.append(f"'{path}' holds no sequence or alignment: no file ends in {', '.join(SUFFIXES)}.")
        return files

    def sizes(self) -> list[int]:
        """Bytes of each file, 0 for one that is not there."""
        return [file.stat().st_size if file.is_file() else 0 for file in self.files]

    def of(self, file: Path) -> Iterator[Query]:
        """Yields what a file holds; what is wrong with it is noted in `problems`."""
        try:
            content = read_input(file, self.kind, lambda error: self.problems.append(str(error)))
        except UserError as error:
            self.problems.append(str(error))
            return
        if content.sequences and self.only_alignments:
            why = f": {content.notes[0]}" if content.notes else ""
            self.problems.append(
                f"'{file}' holds {len(content.sequences):,} sequences, but must hold an alignment{why}."
            )
            return
        stem = Path(file.name.removesuffix(".gz")).stem
        for alignment in content.alignments:
            name = stem if len(content.alignments) == 1 else f"{stem}_{alignment.name}"
            yield from self._checked(Query(name, file, alignment, None, content.notes))
        for found in content.sequences:
            tokens = encode(found.letters, found.name)[None]
            alignment = Alignment([found.name], tokens, np.zeros_like(tokens), found.chains, found.name)
            yield from self._checked(Query(found.name, file, alignment, found.letters, content.notes))

    def _checked(self, query: Query) -> Iterator[Query]:
        query = replace(query, name=unique(query.name, self._taken), title=query.name)
        residues = query.alignment.tokens.shape[1]
        try:
            if residues < SHORTEST:
                raise UserError(
                    f"'{query.source}': {query.name} has {residues} residues, but contacts are predicted between "
                    f"residues at least {SHORTEST - 1} apart."
                )
            if not self.force:
                check_protein(query.alignment.tokens[0], f"'{query.source}': {query.name}", FORCE)
        except UserError as error:
            self.problems.append(str(error))
            return
        yield replace(query, notes=(*query.notes, *query.alignment.notes))


def _is_input(file: Path) -> bool:
    hidden = file.name.startswith(".")
    return not hidden and Path(file.name.removesuffix(".gz")).suffix.lower() in SUFFIXES and file.is_file()


def unique(name: str, taken: set[str]) -> str:
    """Returns a file name like `name` that no other input has, whatever the system thinks of upper and lower case."""
    letters = unicodedata.normalize("NFC", name)  # some systems take both forms for one name
    marks = {letter for letter in letters if unicodedata.category(letter).startswith("M")}  # vowels of many scripts
    plain = re.sub(rf"[^\w.+={''.join(marks)}-]+", "_", letters)
    plain = plain.encode()[:LONGEST_NAME].decode(errors="ignore").strip("._") or "sequence"
    found, number = plain, 2
    while found.casefold() in taken:
        found, number = f"{plain}-{number}", number + 1
    taken.add(found.casefold())
    return found


def named(query: Query, problem: str) -> str:
    """Returns a sentence with the input that it is about."""
    return problem if str(query.source) in problem else f"'{query.source}': {query.name}: {problem}"
