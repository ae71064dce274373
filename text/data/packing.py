"""Conversations packed whole into rows of equal length, with the loss on the answers only."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.losses import IGNORED
from ...core.training.data import Draw
from ...core.work import progress
from ..tokenizer import Tokenizer
from .chat import ChatTemplate, Conversation, read_conversations
from .corpus import digest

PADDING = -1
"""Number of the document that fills a row up; attention keeps documents apart, and nothing of this one is scored."""


@dataclass
class Chats:
    """Conversations as tokens, one behind the other.

    tokens: int32 `[tokens]`.
    answers: bool `[tokens]`, what is learned.
    borders: int64 `[conversations + 1]`.
    bytes: UTF-8 bytes of the answers.
    cut: conversations that were longer than a row and lost their end.
    """

    tokens: np.ndarray
    answers: np.ndarray
    borders: np.ndarray
    bytes: int
    cut: int

    def __len__(self) -> int:
        return len(self.borders) - 1

    @property
    def targets(self) -> int:
        """Tokens that are scored; the first token of a conversation never is."""
        return int(self.answers.sum())


def split(
    conversations: list[Conversation], fraction: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """To train and to validate on; equal conversations land on the same side, whatever their order in the files.

    Raises:
        UserError: fewer than two distinct conversations.
    """
    by_content: dict[bytes, list[Conversation]] = {}
    for conversation in conversations:
        by_content.setdefault(digest(repr(conversation.messages)), []).append(conversation)
    if len(by_content) < 2:
        raise UserError(f"data.chats holds {len(by_content)} distinct conversations, but must hold at least 2.")
    order = np.random.default_rng(seed).permutation(len(by_content))
    keys = sorted(by_content)
    held = {keys[i] for i in order[: min(max(1, round(fraction * len(keys))), len(keys) - 1)]}
    train = [c for key, group in by_content.items() if key not in held for c in group]
    return train, [c for key, group in by_content.items() if key in held for c in group]


def tokenise(conversations: Iterable[Conversation], template: ChatTemplate, context: int, what: str) -> Chats:
    """All conversations as tokens. Raises UserError when none has an answer within `context` tokens."""
    several = list(conversations)
    tokens, answers, lengths, size, cut = [], [], [], 0, 0
    with progress(what, len(several), "conversations") as advance:
        for conversation in several:
            ids, scored = template.encode(conversation)
            scored[:1] = False
            cut += len(ids) > context + 1
            ids, scored = ids[: context + 1], scored[: context + 1]
            if scored.any():
                tokens.append(ids.astype(np.int32))
                answers.append(scored)
                lengths.append(len(ids))
                size += len(template.tokenizer.decode(ids[scored]).encode())
            advance(1)
    if not tokens:
        raise UserError(
            f"No conversation has an answer within {context} tokens; raise --data.context, or look at the files."
        )
    borders = np.concatenate([[0], np.cumsum(lengths)])
    return Chats(np.concatenate(tokens), np.concatenate(answers), borders, size, cut)


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


@dataclass
class ChatSides:
    """The rows to train and to validate on, and how they are described."""

    train: ChatRows
    val: ChatRows

    @classmethod
    def read(cls, files: list[str], fraction: float, seed: int, tokenizer: Tokenizer, context: int) -> ChatSides:
        """Read, split, tokenise and pack. Gives a tokenizer without a chat template the plain one, to be saved with
        it.
        """
        template = ChatTemplate(tokenizer)
        sides = split(list(read_conversations(files)), fraction, seed)
        names = ("Reading conversations", "Reading held-out ones")
        chats = [tokenise(side, template, context, name) for side, name in zip(sides, names)]
        tokenizer.chat_template = template.source
        return cls(*(ChatRows(side, context) for side in chats))

    def describe(self) -> str:
        """One line."""
        f = self.figures()
        cut = f", {f['cut']:,} cut at the context" if f["cut"] else ""
        return (
            f"{f['chats_train']:,} conversations to train and {f['chats_val']:,} to validate on, "
            f"{f['targets_train']:,} and {f['targets_val']:,} tokens of answers, packed into {f['rows_train']:,} rows "
            f"({f['filled']:.0%} full){cut}"
        )

    def figures(self) -> dict[str, Any]:
        """Conversations, tokens of answers and rows of both sides."""
        sides = {"train": self.train, "val": self.val}
        counts = {f"chats_{side}": len(rows.chats) for side, rows in sides.items()}
        counts |= {f"targets_{side}": rows.chats.targets for side, rows in sides.items()}
        counts |= {f"rows_{side}": len(rows) for side, rows in sides.items()}
        used = len(self.train.chats.tokens) - len(self.train.chats)
        cut = self.train.chats.cut + self.val.chats.cut
        return counts | {"cut": cut, "filled": used / (len(self.train) * self.train.context)}


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
