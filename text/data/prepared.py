"""What each kind of text data offers to the data module, once its files are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...core.training.data import Order, Source
from ..tokenizer import Tokenizer
from .split import Side


class Place(NamedTuple):
    """Which part of every global batch a process takes: `batch_size` examples, the part `rank` of `world`."""

    batch_size: int
    rank: int
    world: int


class Prepared(Protocol):
    """Both sides of a data set as tokens.

    Attributes:
        tokenizer: what made the tokens.
        val_targets: tokens that validation scores.
        val_bytes: UTF-8 bytes of their text.
        identity: changes when the order of training would; compared on resume.
    """

    tokenizer: Tokenizer
    val_targets: int
    val_bytes: int
    identity: str | int

    def describe(self) -> str:
        """One line about the data."""
        ...

    def counts(self) -> dict[str, Any]:
        """Numbers of what there is on both sides, and of what was left out."""
        ...

    def held_out(self) -> list[bytes]:
        """What each document or conversation of the validation side is."""
        ...

    def learned(self) -> list[bytes] | None:
        """What is trained on, in its order; None where `identity` says it."""
        ...

    def batches(self, side: Side) -> Source:
        """What makes a batch of a draw."""
        ...

    def names(self, taken: np.ndarray) -> list[str]:
        """Documents or conversations that a training draw takes, by name."""
        ...

    def training_order(self, place: Place, seed: int, position: Callable[[], int | None]) -> Order:
        """The draws of training. Raises UserError when the data do not fill one batch."""
        ...

    def validation_order(self, place: Place) -> Order:
        """The draws that score the whole validation side once."""
        ...
