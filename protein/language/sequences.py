"""Distinct protein sequences of FASTA files, one file in memory at a time, and the side that each is on."""

from __future__ import annotations

import glob
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...core.errors import UserError
from ...core.files import few
from ...core.stores import Cache, Remote, found, is_url, local_path, speaking_of
from ..read import alphabet
from ..read.complexes import spans
from ..read.inputs import Sequence, read_sequences


class Protein(NamedTuple):
    """A sequence: its name, its letters, and the same as numbers of `alphabet`, uint8 `[residues]`."""

    name: str
    letters: str
    tokens: np.ndarray


def named_files(files: list[str]) -> list[str | Remote]:
    """The files that paths, patterns and URLs mean. Raises UserError when there are none."""
    several: list[str | Remote] = []
    for name in files:
        path = local_path(name) if is_url(name) else name
        if path is None:
            several += found(name)
        else:
            plain = str(path)
            several += sorted(glob.glob(plain)) if glob.has_magic(plain) else [plain]
    if not several:
        raise UserError(f"data.files is {few(files)}, but no file matches; give FASTA files.")
    return several


class Distinct:
    """The distinct sequences of files, in the order of their first appearance; the chains of a complex are several.

    Args:
        files: FASTA files.
        cache: for those in stores; None for the usual one.

    Attributes (after an iteration):
        duplicates: sequences that repeat an earlier one.
        problems: what is wrong with those that were left out.
    """

    def __init__(self, files: list[str | Remote], cache: Cache | None = None) -> None:
        self._files, self._cache = files, cache or Cache.of(None)
        self.duplicates, self.problems = 0, list[str]()

    def __iter__(self) -> Iterator[Protein]:
        """The sequences. Raises UserError for a file that cannot be read."""
        known: set[bytes] = set()
        self.duplicates, self.problems = 0, []
        for file in self._files:
            for record in self._records(file):
                for span in spans(record.chains, len(record.letters)):
                    letters = record.letters[span]
                    digest = hashlib.blake2b(letters.encode(), digest_size=16).digest()
                    if digest in known:
                        self.duplicates += 1
                        continue
                    known.add(digest)
                    tokens = alphabet.encode(letters)
                    try:
                        alphabet.check_protein(tokens, f"the sequence '{record.name}'")
                    except UserError as error:
                        self.problems.append(str(error))
                        continue
                    yield Protein(record.name, letters, tokens)

    def _records(self, file: str | Remote) -> list[Sequence]:
        local = self._cache.whole(file) if isinstance(file, Remote) else Path(file)
        told = file if isinstance(file, Remote) else local
        with speaking_of(told, local):
            return read_sequences(
                local, on_error=lambda error: self.problems.append(str(error).replace(str(local), str(told)))
            )


def is_held_out(letters: str, fraction: float) -> bool:
    """Whether a sequence is for validation: its content decides, so that it stays there in any file."""
    return zlib.crc32(letters.encode()) < fraction * 2**32
