"""Plain text prepared for training: tokenised once into a cache, read in windows of equal length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import UserError
from ...core.training.data import Order
from ..tokenizer import Tokenizer
from .corpus import Corpus
from .prepared import Place
from .split import Side, Sides
from .tokens import TokenArray, make_tokenizer, tokenise
from .windows import ShuffledWindows, Windows, WindowsInOrder, training_windows

READ_AGAIN = 1 << 30
"""Bytes of text that are read once more to name documents in a message."""


class PreparedDocuments:
    """Documents as token arrays; see `Prepared` for what the attributes and methods mean.

    Args:
        sides: the documents with their sides.
        arrays: their tokens.
        tokenizer: what made them.
        context: tokens of a window.

    Raises:
        UserError: one side is too short.
    """

    def __init__(self, sides: Sides, arrays: dict[Side, TokenArray], tokenizer: Tokenizer, context: int) -> None:
        self.sides, self.arrays, self.tokenizer, self.context = sides, arrays, tokenizer, context
        self.val_bytes = arrays["val"].bytes - arrays["val"].first_bytes
        self.val_targets = arrays["val"].tokens - arrays["val"].documents
        self.identity: str | int = arrays["train"].folder.name
        self._check_lengths()

    @classmethod
    def read(
        cls, corpus: Corpus, val: Corpus | None, fraction: float, seed: int,
        tokenizer: Tokenizer | None, kind: str | None, vocab_size: int, context: int, cache: Path,
    ) -> PreparedDocuments:  # fmt: skip
        """Surveys, splits and tokenises; where `tokenizer` is None, makes the one called `kind`."""
        sides = Sides(corpus, val, fraction, seed)
        if tokenizer is None:
            tokenizer = make_tokenizer(kind or "bpe", vocab_size, sides, cache)
        return cls(sides, tokenise(sides, tokenizer, cache), tokenizer, context)

    def held_out(self) -> list[bytes]:
        return [*self.sides.split.held_out, repr(self.sides.split.cut).encode()]

    def learned(self) -> None:
        return None

    def _check_lengths(self) -> None:
        train, val = self.arrays["train"].tokens, self.arrays["val"].tokens
        if train <= self.context:
            raise UserError(
                f"The training text has {train:,} tokens, fewer than one window of {self.context:,} and the token "
                "behind it; lower --data.context or give more text."
            )
        if val < 2:
            raise UserError(
                f"The validation text has {val} tokens, which leaves nothing to predict; raise --data.val_fraction or "
                "give more text."
            )

    def describe(self) -> str:
        c = self.counts()
        documents = c["documents_train"] + c["documents_val"] if c["documents_train"] > 1 else 1
        parts = [
            f"{documents:,} document{'s' if documents > 1 else ''}",
            f"{c['tokens_train']:,} tokens to train and {c['tokens_val']:,} to validate on",
            f"vocabulary {c['vocabulary']:,}",
        ]
        if c["duplicates"]:
            parts.append(f"{c['duplicates']:,} duplicates kept on one side")
        if c["skipped"]:
            parts.append("skipped " + ", ".join(f"{count:,} {why}" for why, count in c["skipped"].items()))
        return ", ".join([*parts, *self.sides.notes])

    def counts(self) -> dict[str, Any]:
        counts = {
            f"{what}_{side}": getattr(array, what)
            for what in ("documents", "bytes", "tokens")
            for side, array in self.arrays.items()
        }
        return {
            **counts,
            "vocabulary": self.tokenizer.vocab_size,
            "duplicates": self.sides.split.duplicates,
            "skipped": self.sides.skipped,
            "cache": str(self.arrays["train"].folder),
        }

    def batches(self, side: Side) -> Windows:
        # The same keys on both sides, so that a compiled model sees one form of batch.
        packed = any(array.documents > 1 for array in self.arrays.values())
        return Windows(self.arrays[side], self.context, packed)

    def names(self, taken: np.ndarray) -> list[str]:
        """See `Prepared`; reads the files again, but for their numbers where these are large."""
        borders = self.arrays["train"].open()[1]
        first = np.searchsorted(borders, taken, side="right") - 1
        last = np.searchsorted(borders, taken + self.context, side="right") - 1
        wanted = sorted({number for a, b in zip(first, last, strict=True) for number in range(a, b + 1)})
        known = self.sides.training_names() if self.sides.bytes <= READ_AGAIN else []
        return [known[n] if n < len(known) else f"document {n + 1:,} of the training text" for n in wanted]

    def training_order(self, place: Place, seed: int, position: Any) -> Order:
        array, wanted = self.arrays["train"], place.batch_size * place.world
        windows = training_windows(array.tokens, self.context)
        if windows < wanted:
            devices = f" on {place.world} devices" if place.world > 1 else ""
            raise UserError(
                f"The training text ({array.tokens:,} tokens) fills {windows:,} windows of {self.context:,}, fewer "
                f"than one batch of {place.batch_size:,}{devices}; lower --data.batch_size or --data.context."
            )
        return ShuffledWindows(array.tokens, self.context, *place, seed, position)

    def validation_order(self, place: Place) -> Order:
        return WindowsInOrder(self.arrays["val"].tokens, self.context, *place)
