"""Conversations prepared for training: read, split, tokenised and packed, with the loss on the answers only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from ...core.errors import UserError
from ...core.training.data import InOrder, Order, Shuffled
from ...core.work import progress
from ..tokenizer import Tokenizer
from .chat import ChatTemplate, Sample
from .corpus import survey
from .messages import Conversation, read_conversations
from .packing import ChatRows, join
from .prepared import Place
from .split import SIDES, Side

OnError = Literal["stop", "skip"]
MOST_ERRORS = 20
"""So many rows that cannot be used, and nothing else, are not a few bad rows but another kind of file."""

SHOWN = 3
"""Reasons that fit into a sentence."""


class Usable(NamedTuple):
    """A conversation and what is learned from it."""

    conversation: Conversation
    samples: list[Sample]


class Rejected(NamedTuple):
    """Rows that cannot be used: how many there are, of how many, and the first reasons."""

    number: int
    rows: int
    reasons: list[str]


def usable(
    conversations: Iterable[Conversation | UserError], template: ChatTemplate, on_error: OnError
) -> tuple[list[Usable], Rejected]:
    """Conversations as tokens, and the rows that cannot be.

    Raises:
        UserError: there are such rows and `on_error` is "stop", or hardly anything else.
    """
    found: list[Usable] = []
    reasons: list[str] = []
    count = 0
    with progress("Reading conversations", 0, "conversations") as advance:
        for conversation in conversations:
            try:
                if isinstance(conversation, UserError):
                    raise conversation
                found.append(Usable(conversation, template.samples(conversation)))
            except UserError as error:
                count += 1
                reasons += [str(error).rstrip(".")] if len(reasons) < MOST_ERRORS else []
            if count >= MOST_ERRORS and (on_error == "stop" or not found):
                break
            advance(1)
    rejected = Rejected(count, count + len(found), reasons)
    if count and (on_error == "stop" or not found):
        raise _refusal(rejected, on_error)
    return found, rejected


def _refusal(rejected: Rejected, on_error: OnError) -> UserError:
    most = "at least " if rejected.number >= MOST_ERRORS else ""
    rest = rejected.number - len(rejected.reasons[:SHOWN])
    more = f"; and {most}{rest:,} more" if rest else ""
    hint = "--data.on_error skip leaves them out" if on_error == "stop" else "no row is left"
    if rejected.number == 1:
        return UserError(f"{rejected.reasons[0]}; {hint.replace('them', 'it')}.")
    reasons = "; ".join(rejected.reasons[:SHOWN])
    return UserError(
        f"{most}{rejected.number:,} of the first {rejected.rows:,} rows cannot be used: {reasons}{more}; {hint}."
    )


def split(several: list[Usable], fraction: float, seed: int) -> tuple[list[Usable], list[Usable]]:
    """To train and to validate on; equal conversations land on the same side, whatever their order in the files.

    Raises:
        UserError: fewer than two distinct conversations.
    """
    by_content: dict[bytes, list[Usable]] = {}
    for one in several:
        by_content.setdefault(survey([repr(one.conversation.messages)]).digest, []).append(one)
    if len(by_content) < 2:
        raise UserError(
            f"data.chats holds {len(by_content)} distinct conversation{'s' * (len(by_content) != 1)}, but must hold at "
            "least 2: one to train on and one to validate on; give more."
        )
    order = np.random.default_rng(seed).permutation(len(by_content))
    keys = sorted(by_content)
    held = {keys[i] for i in order[: min(max(1, round(fraction * len(keys))), len(keys) - 1)]}
    train = [one for key, group in by_content.items() if key not in held for one in group]
    return train, [one for key, group in by_content.items() if key in held for one in group]


class PreparedChats:
    """Conversations as packed rows; see `Prepared` for what the attributes and methods mean.

    Args:
        sides: the rows of each side.
        conversations: how many conversations each side has.
        tokenizer: what made the tokens.
        rejected: the rows that could not be used.
        titles: name of the conversation of each training sample.

    Raises:
        UserError: a side has no answer within a row.
    """

    def __init__(
        self, sides: dict[Side, ChatRows], conversations: dict[Side, int], tokenizer: Tokenizer, rejected: Rejected,
        titles: list[str],
    ) -> None:  # fmt: skip
        self.titles = titles
        self.kept: list[bytes] = []
        self.sides, self.conversations, self.tokenizer, self.rejected = sides, conversations, tokenizer, rejected
        for side, rows in sides.items():
            if not len(rows):
                raise UserError(
                    f"No conversation {'to train' if side == 'train' else 'to validate'} on has an answer within "
                    f"{rows.context:,} tokens; raise --data.context, or look at the files with triune text check."
                )
        self.val_bytes, self.val_targets = sides["val"].chats.bytes, sides["val"].chats.targets
        self.identity: str | int = len(sides["train"])

    @classmethod
    def read(
        cls, files: list[str], columns: Mapping[str, str] | None, on_error: OnError, fraction: float, seed: int,
        tokenizer: Tokenizer, context: int,
    ) -> PreparedChats:  # fmt: skip
        """Reads, splits, tokenises and packs. The tokenizer gets what is saved with it: the plain template where it has
        none, and the tokens that end an answer, so that generation stops there.
        """
        template = ChatTemplate(tokenizer)
        found, rejected = usable(read_conversations(files, columns), template, on_error)
        parts = dict(zip(SIDES, split(found, fraction, seed), strict=True))
        tokenizer.chat_template = template.source
        if (
            template.is_plain
            and tokenizer.eos_id is not None
            and (end := tokenizer.backend.id_to_token(tokenizer.eos_id))
        ):
            tokenizer.names["eos_token"] = end
        tokenizer.add_ends(token for one in found for sample in one.samples for token in _last_tokens(sample))
        sides: dict[Side, ChatRows] = {
            side: ChatRows(join((sample for one in several for sample in one.samples), tokenizer, context), context)
            for side, several in parts.items()
        }
        titles = [one.conversation.name for one in parts["train"] for _ in one.samples]
        made = cls(sides, {side: len(several) for side, several in parts.items()}, tokenizer, rejected, titles)
        made.kept = [repr(one.conversation.messages).encode("utf-8", "surrogatepass") for one in parts["val"]]
        return made

    def held_out(self) -> list[bytes]:
        return self.kept

    def learned(self) -> list[bytes]:
        chats = self.sides["train"].chats
        return [array.tobytes() for array in (chats.tokens, chats.answers, chats.borders)]

    def describe(self) -> str:
        c = self.counts()
        parts = [
            f"{c['chats_train']:,} conversations to train and {c['chats_val']:,} to validate on, "
            f"{c['targets_train']:,} and {c['targets_val']:,} tokens of answers, packed into {c['rows_train']:,} rows "
            f"({c['filled']:.0%} full)"
        ]
        context = self.sides["train"].context
        if c["beyond"]:
            parts.append(f"{c['beyond']:,} left out, whose answers begin beyond {context:,} tokens")
        if c["cut"]:
            parts.append(f"{c['cut']:,} cut within an answer at {context:,} tokens")
        if c["unusable"]:
            reasons = "; ".join(self.rejected.reasons[:SHOWN]) + "; …" * (c["unusable"] > SHOWN)
            parts.append(f"{c['unusable']:,} rows cannot be used ({reasons})")
        return ", ".join(parts)

    def counts(self) -> dict[str, Any]:
        counts = {f"chats_{side}": number for side, number in self.conversations.items()}
        counts |= {f"targets_{side}": rows.chats.targets for side, rows in self.sides.items()}
        counts |= {f"rows_{side}": len(rows) for side, rows in self.sides.items()}
        train = self.sides["train"]
        filled = (len(train.chats.tokens) - len(train.chats)) / (len(train) * train.context)
        lost = {name: sum(getattr(rows.chats, name) for rows in self.sides.values()) for name in ("cut", "beyond")}
        return {
            **counts, **lost, "unusable": self.rejected.number, "filled": filled,
            "vocabulary": self.tokenizer.vocab_size,
        }  # fmt: skip

    def batches(self, side: Side) -> ChatRows:
        return self.sides[side]

    def names(self, taken: np.ndarray) -> list[str]:
        rows = self.sides["train"]
        found = [self.titles[rows.chats.kept[sample]] for row in taken.tolist() for sample in rows.rows[row]]
        return list(dict.fromkeys(found))

    def training_order(self, place: Place, seed: int, position: Callable[[], int | None]) -> Order:
        rows, wanted = self.sides["train"], place.batch_size * place.world
        if len(rows) < wanted:
            raise UserError(
                f"The conversations fill {len(rows):,} rows of {rows.context:,} tokens, fewer than one batch of "
                f"{wanted:,}; lower --data.batch_size or --data.context."
            )
        return Shuffled(len(rows), *place, seed, position)

    def validation_order(self, place: Place) -> Order:
        return InOrder(len(self.sides["val"]), *place)


def _last_tokens(sample: Sample) -> list[int]:
    """The last token of each answer."""
    following = np.append(sample.answers[1:], False)
    return sample.tokens[sample.answers & ~following].tolist()
