"""Conversations packed whole into rows of equal length, with the loss on the answers only."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.losses import IGNORED
from ...core.training.data import Draw
from ..tokenizer import Tokenizer
from .chat import Sample

PADDING = -1
"""Number of the document that fills a row up; attention keeps documents apart, and nothing of this one is scored."""


@dataclass
class Chats:
    """Samples of conversations as tokens, one behind the other.

    tokens: int32 `[tokens]`.
    answers: bool `[tokens]`, what is learned.
    borders: int64 `[samples + 1]`.
    bytes: UTF-8 bytes of the answers.
    cut: samples that were longer than a row and lost a part of their answers.
    beyond: samples that were left out, because no answer begins within a row.
    kept: int64 `[samples]`, which of those that came in each of them is.
    """

    tokens: np.ndarray
    answers: np.ndarray
    borders: np.ndarray
    bytes: int
    cut: int
    beyond: int
    kept: np.ndarray

    def __len__(self) -> int:
        return len(self.borders) - 1

    @property
    def targets(self) -> int:
        """Tokens that are scored; the first token of a sample never is."""
        return int(self.answers.sum())


def join(samples: Iterable[Sample], tokenizer: Tokenizer, context: int) -> Chats:
    """Samples as arrays, cut at `context` tokens and the target behind them; those without an answer there are left
    out."""
    tokens, answers, numbers, size, cut, beyond = [], [], [], 0, 0, 0
    for number, (ids, scored) in enumerate(samples):
        scored = scored.copy()
        scored[:1] = False
        ids, kept, lost = ids[: context + 1], scored[: context + 1], scored[context + 1 :]
        if not kept.any():
            beyond += 1
            continue
        cut += bool(lost.any())
        numbers.append(number)
        tokens.append(ids.astype(np.int32))
        answers.append(kept)
        size += len(tokenizer.decode(ids[kept]).encode())
    borders = np.cumsum([0, *map(len, tokens)])
    nothing = np.zeros(0, dtype=np.int32)
    return Chats(
        np.concatenate([nothing, *tokens]), np.concatenate([nothing.astype(bool), *answers]), borders, size, cut,
        beyond, np.array(numbers, dtype=np.int64),
    )  # fmt: skip


def pack(lengths: np.ndarray, context: int) -> list[list[int]]:
    """Rows of `context` tokens that hold whole conversations: the longest first, each into the fullest row it fits.

    A conversation of n tokens fills n - 1 positions, since its last token is only a target.
    """
    room: list[tuple[int, int]] = []  # (free positions, row), sorted
    rows: list[list[int]] = []
    for index in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[index]) - 1
        at = bisect.bisect_left(room, (need, -1))
        free, row = room.pop(at) if at < len(room) else (context, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        bisect.insort(room, (free - need, row))
    return rows


class ChatRows:
    """Batches of packed conversations: `rows[draw]`, as `TextData` describes them.

    Args:
        chats: the conversations.
        context: tokens of a row.
    """

    def __init__(self, chats: Chats, context: int) -> None:
        self.chats, self.context = chats, context
        self.rows = pack(np.diff(chats.borders), context)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        shape = (len(draw.indices), self.context)
        batch: dict[str, Any] = {
            "tokens": np.zeros(shape, dtype=np.int64),
            "targets": np.full(shape, IGNORED, dtype=np.int64),
            "documents": np.full(shape, PADDING, dtype=np.int64),
        }
        for slot, row in enumerate(draw.indices.tolist()):
            if row >= 0:
                self._fill(batch, slot, self.rows[row])
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _fill(self, batch: dict[str, Any], slot: int, conversations: list[int]) -> None:
        at = 0
        for number, index in enumerate(conversations):
            first, last = self.chats.borders[index : index + 2]
            here, size = slice(at, at + last - first - 1), last - first - 1
            batch["tokens"][slot, here] = self.chats.tokens[first : last - 1]
            wanted = self.chats.tokens[first + 1 : last]
            batch["targets"][slot, here] = np.where(self.chats.answers[first + 1 : last], wanted, IGNORED)
            batch["documents"][slot, here] = number
            at += size
