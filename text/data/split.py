"""Documents to a training and a validation side."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Literal, NamedTuple

from ...core.errors import UserError
from .corpus import Corpus, Document, Sum, Survey

Side = Literal["train", "val"]
SIDES: tuple[Side, ...] = ("train", "val")


class Piece(NamedTuple):
    """A document, or one of the two parts of the only document, on its side.

    `blocks`: its text in parts, to be read once.
    `ends`: the text ends where the document ends, so that a token for the end of a text belongs behind it.
    """

    side: Side
    name: str
    blocks: Iterable[str]
    ends: bool


@dataclass(frozen=True)
class Split:
    """Which documents are for validation.

    Args:
        held_out: digests of the documents of the validation side.
        cut: if the corpus is one document only: the number of its first characters that are for training.
        duplicates: documents that repeat the content of an earlier one.
    """

    held_out: frozenset[bytes]
    cut: int | None = None
    duplicates: int = 0


def split(documents: list[Survey], fraction: float, seed: int) -> Split:
    """Holds out about `fraction` of the bytes, whole documents of them; of a single document the last characters.

    Documents are taken in the order of a hash of `seed` and their content, so the side of a document does not depend on
    its file name or on the order of the files, and equal documents are always on the same side. One that alone is
    larger than the whole share stays in training.
    """
    sizes = Counter[bytes]()
    for document in documents:
        sizes[document.digest] += document.size
    duplicates = len(documents) - len(sizes)
    if len(sizes) == 1:
        return Split(frozenset(), int(documents[0].characters * (1 - fraction)), duplicates)
    key = str(seed).encode()
    order = sorted(sizes, key=lambda content: hashlib.blake2b(content, digest_size=16, key=key[:64]).digest())
    wanted = fraction * sum(sizes.values())
    held_out: set[bytes] = set()
    taken = 0
    for content in order:
        if taken >= wanted or len(held_out) == len(sizes) - 1:
            break
        if sizes[content] <= wanted:
            held_out.add(content)
            taken += sizes[content]
    return Split(frozenset(held_out or {min(order, key=sizes.__getitem__)}), None, duplicates)


class Sides:
    """All texts with their side, read anew on every iteration.

    Args:
        corpus: the documents for training (and, without `val`, for validation).
        val: the documents for validation.
        fraction: share of the bytes to hold out when there is no `val`.
        seed: chooses which documents are held out.

    Raises:
        UserError: no document is left for training.
    """

    def __init__(self, corpus: Corpus, val: Corpus | None, fraction: float, seed: int) -> None:
        self.corpus = corpus
        self.val = val
        self._documents = corpus.survey()
        self._val_documents = val.survey() if val else []
        if val:
            held_out = frozenset(document.digest for document in self._val_documents)
            self.split = Split(held_out, None, sum(document.digest in held_out for document in self._documents))
        else:
            self.split = split(self._documents, fraction, seed)
        if all(document.digest in self.split.held_out for document in self._documents):
            raise UserError(
                "Every document of data.files is also in data.val_files, so none is left to train on; give other files."
            )

    def __iter__(self) -> Iterator[Piece]:
        if self.split.cut is not None:
            for side in SIDES:
                document, _ = next(self._walk(self.corpus, self._documents))
                yield Piece(side, document.name, _half(document.blocks, self.split.cut, side == "train"), False)
            return
        for document, known in self._walk(self.corpus, self._documents):
            if known.digest not in self.split.held_out:
                yield Piece("train", document.name, document.blocks, True)
            elif self.val is None:
                yield Piece("val", document.name, document.blocks, True)
        if self.val is not None:
            for document, _ in self._walk(self.val, self._val_documents):
                yield Piece("val", document.name, document.blocks, True)

    @staticmethod
    def _walk(corpus: Corpus, surveyed: list[Survey]) -> Iterator[tuple[Document, Survey]]:
        """The documents as they were surveyed; those that are read to their end are compared with it."""
        for document, known in zip_longest(corpus, surveyed):
            if document is None or known is None:
                raise UserError("The files of data.files changed while they were read; start again when complete.")
            yield Document(document.name, _compared(document, known)), known

    def training_names(self) -> list[str]:
        """Names of the training documents that have text, in the order of their tokens; opens all files."""
        return [piece.name for piece in self if piece.side == "train" and any(piece.blocks)]

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(document.size for document in [*self._documents, *self._val_documents])

    @property
    def skipped(self) -> dict[str, int]:
        """Files and rows that were passed over, by reason."""
        both = self.corpus.skipped + (self.val.skipped if self.val else Counter())
        return {reason: number for reason, number in both.items() if number}

    @property
    def notes(self) -> list[str]:
        """How files were read that could be read in two ways."""
        return list(dict.fromkeys([*self.corpus.notes, *(self.val.notes if self.val else [])]))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every text, its order and its side."""
        every = hashlib.sha256(repr(self.split.cut).encode())
        for document in self._documents:
            every.update(document.digest + (b"v" if document.digest in self.split.held_out else b"t"))
        for document in self._val_documents:
            every.update(document.digest)
        return every.hexdigest()


def _compared(document: Document, known: Survey) -> Iterator[str]:
    """The blocks of a document. Raises UserError at its end when it is not the one that was surveyed."""
    found = Sum()
    yield from found.of(document.blocks)
    if found.result() != known:
        raise UserError(f"'{document.name}' changed while it was read; start again when it is complete.")


def _half(blocks: Iterable[str], cut: int, first: bool) -> Iterator[str]:
    """The first `cut` characters of a text, or those behind them."""
    left = cut
    for block in blocks:
        part, left = (block[:left] if first else block[left:]), max(0, left - len(block))
        if part:
            yield part
        if first and not left:
            return
