"""Conversations with a trained model: who said what so far, and the next answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from ..core.files import MAX_JSON_BYTES, parse_json, read_bytes

if TYPE_CHECKING:
    from .data.messages import Message
    from .tokenizer import Tokenizer


class Talk:
    """A conversation that grows by questions and answers.

    Args:
        tokenizer: its chat template is used.
        start: what was said before: a system message, earlier turns.
        thinks: the model may think before it answers, where its template knows that.
    """

    def __init__(self, tokenizer: Tokenizer, start: list[Message], thinks: bool = False) -> None:
        from .data.chat import ChatTemplate

        self.template, self.messages, self.thinks = ChatTemplate(tokenizer), list(start), thinks
        self._mentioned = False

    def ask(self, question: str | None, before: list[Message] | None = None) -> tuple[list[int], str]:
        """Adds a question (None: the last message is one) to what was said, or to `before`; returns the tokens of all,
        and what the template writes between them and an answer."""
        said = self.messages if before is None else before
        messages = said if question is None else [*said, {"role": "user", "content": question}]
        ids = self.template.ask(messages, thinks=self.thinks).tolist()
        if self.thinks and ids == self.template.ask(messages).tolist():
            raise UserError("--think is given, but changes nothing in the chat template of this model; leave it out.")
        self._mention_thoughts(messages)
        self.messages = messages
        return ids, self.template.lead(messages, self.thinks)

    def _mention_thoughts(self, messages: list[Message]) -> None:
        """Says once that the model answers without thinking where its template would let it think."""
        if not (self.thinks or self._mentioned) and self.template.prompt(messages, None, True) != self.template.prompt(
            messages
        ):
            print("note: The template lets this model think before it answers; --think does so.", file=sys.stderr)
        self._mentioned = True

    def answered(self, answer: str) -> None:
        """Adds the answer to the last question."""
        self.messages = [*self.messages, {"role": "assistant", "content": answer}]


def start_of(system: str | None, conversation: Path | None) -> list[Message]:
    """The messages before the first question: those of a file, and a system message before them.

    The file holds a JSON list of messages, or an object with `messages` as in a row of --data.chats.

    Raises:
        UserError: the file is no conversation, or brings a system message as well.
    """
    from .data.messages import read_messages

    messages: list[Message] = []
    if conversation is not None:
        value = parse_json(read_bytes(conversation, MAX_JSON_BYTES), f"'{conversation}'")
        messages = read_messages(value, f"'{conversation}'")
    if system is None:
        return messages
    if messages and messages[0]["role"] == "system":
        raise UserError(f"--system is given, but '{conversation}' begins with a system message; keep one of them.")
    return [{"role": "system", "content": system}, *messages]


def questions() -> Iterator[str]:
    """What a person types, or the lines of standard input: one question a line, until the end of the input."""
    terminal = sys.stdin.isatty()
    if terminal:
        print("Type a question, and Ctrl-D to end.", file=sys.stderr)
    while True:
        if terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise UserError(f"The standard input is not UTF-8 text ({error.reason}); convert it.") from None
        if not line:
            return
        if line.strip():
            yield line.strip()


def as_json(messages: list[Any]) -> str:
    """Messages as they are read again by --conversation."""
    return json.dumps(messages, ensure_ascii=False, indent=2)
