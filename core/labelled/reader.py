"""From what a person gives (a text, a sequence, the path of an image) to what a model reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

MULTIPLE = 32
"""Widths of batches are multiples of this, so that a compiled model sees few shapes."""


class Reader(ABC):
    """Reads inputs one by one; what is wrong with one concerns that one alone."""

    what: ClassVar[str] = "input"
    """What an input is, for messages."""
    parts: ClassVar[str] = "tokens"
    """What of an input has a label each, for messages."""
    between: ClassVar[str | None] = ""
    """What stands between the labels of an input's parts in a text; None where they are always a list."""

    def __init__(self) -> None:
        self.cut = 0
        """Inputs of which only the beginning is read."""

    def accept(self, megapixels: float) -> None:
        """Reads images of up to so many megapixels from now on. Raises UserError where inputs are no images."""
        raise UserError(f"--max_megapixels is {megapixels:g}, but each input is a {self.what}; leave it out.")

    @abstractmethod
    def one(self, cell: str, name: str, beside: Path) -> Any:
        """What the model gets of one input.

        Args:
            cell: as it was given.
            name: what messages call it.
            beside: the folder that a relative path starts from.

        Raises:
            UserError: it cannot be read.
        """

    def read(self, cells: Sequence[str], names: Sequence[str], beside: Path) -> list[Any | UserError]:
        """What the model gets of each input, or what is wrong with it."""
        found: list[Any | UserError] = []
        for cell, name in zip(cells, names):
            try:
                found.append(self.one(cell, name, beside))
            except UserError as error:
                found.append(error)
        return found

    @abstractmethod
    def batch(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """What `LabelledModel.tokens` takes, of some of what `one` gives."""

    def size(self, sample: Any) -> int:
        """What a batch is put together by: inputs of about one size."""
        return 1

    def empty(self) -> Any:
        """What fills a batch up."""
        raise NotImplementedError(f"{type(self).__name__} has no empty input.")

    def places(self, sample: Any) -> np.ndarray:
        """The token that has the label of each part that is read, int64 `[parts]`, special ones counted; -1 for a part
        without any token.
        """
        raise UserError(f"A target of kind tag is not known for a {self.what}; take another kind.")

    def whole(self, cell: str, sample: Any) -> int:
        """Parts of an input that have a label each, what is cut off included. Raises UserError where none has."""
        raise UserError(f"A target of kind tag is not known for a {self.what}; take another kind.")

    def labels(self, found: Any, cell: str, beside: Path) -> np.ndarray:
        """The labels of the parts of an input, `[parts]`, of what `Target.values` has for its row.

        Raises:
            UserError: they do not fit the input.
        """
        return np.asarray(found)

    def arranged(self, values: list[Any], sample: Any) -> list[Any]:
        """Answers to the parts of an input in the form in which a table holds them."""
        return values

    def for_tags(self) -> Reader:
        """What reads the same inputs for labels of their parts."""
        return self

    def plain(self, cell: str, sample: Any) -> np.ndarray | None:
        """Numbers of an input that no model has made, for a baseline: float32 of one length; None without any."""
        return None

    def content(self, cell: str, beside: Path) -> bytes:
        """What stands for the content of an input, to know it again."""
        path = beside / Path(cell).expanduser() if len(cell) < 4096 and "\0" not in cell else None
        try:
            found = path.stat() if path is not None else None
        except OSError:  # the input is no path
            found = None
        return cell.encode() + (f"\0{found.st_size} {found.st_mtime_ns}".encode() if found else b"")

    def settings(self) -> str:
        """What stands for the reader, beside the weights of the model that it reads for."""
        return type(self).__name__

    def notes(self) -> list[str]:
        """What was left out of the inputs read so far, each a sentence without its full stop."""
        return []


class TokenReader(Reader):
    """Reads sequences of tokens: int64 `[tokens]` of each, the special ones around it included.

    Args:
        context: tokens of an input that are read.
    """

    PAD: ClassVar[int] = 0

    def __init__(self, context: int) -> None:
        super().__init__()
        self.context = context

    def size(self, sample: Any) -> int:
        return len(sample)

    def empty(self) -> Any:
        return np.zeros(0, np.int64)

    @property
    def widest(self) -> int:
        """Tokens of the longest input, with the special ones: a table of positions may end there."""
        return self.context

    def batch(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        return side_by_side(samples, self.PAD, self.widest)

    def tokens_of(self, sample: Any) -> np.ndarray | None:
        """The tokens that make up a sample, int64 `[tokens]`; None where it holds more than them."""
        return sample

    def of_tokens(self, tokens: np.ndarray) -> Any:
        """The sample of what `tokens_of` gave."""
        return tokens

    def settings(self) -> str:
        return f"{super().settings()} {self.context}"

    def notes(self) -> list[str]:
        if not self.cut:
            return []
        return [f"inputs longer than the model's {self.context:,} tokens, whose end is not read: {self.cut:,}"]


def side_by_side(sequences: Sequence[np.ndarray], pad: int, widest: int) -> dict[str, Tensor]:
    """Sequences as one batch: `tokens` int64 `[batch, tokens]` and `valid` bool, True for real ones. The width is a
    multiple of `MULTIPLE`, at least one, or `widest` where that is less.
    """
    longest = max(map(len, sequences))
    width = max(longest, min(max(1, -(-longest // MULTIPLE)) * MULTIPLE, widest))
    lengths = torch.tensor([len(tokens) for tokens in sequences])
    found = torch.full((len(sequences), width), pad, dtype=torch.int64)
    for row, tokens in zip(found, sequences):
        row[: len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
    return {"tokens": found, "valid": torch.arange(width) < lengths[:, None]}
