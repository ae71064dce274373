"""Conversations: rows of JSON in, one text by the model's chat template, and which part of it are the answers."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...core.errors import UserError
from ...core.files import open_regular, parse_json
from ..tokenizer import Tokenizer
from .corpus import MAX_ROW_BYTES
from .rendering import Refused, Renderer

PLAIN = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + (eos_token or '') + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""For tokenizers without a template of their own: `user: …` and `assistant: …`, each ended by the end-of-text token."""

ANSWERS = "assistant"
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
"""Names of other data sets for the usual roles."""

Message = dict[str, str]


class Conversation(NamedTuple):
    """Messages `{"role", "content"}` and where they came from, `file:row`."""

    name: str
    messages: list[Message]


def read_conversations(files: list[str]) -> Iterator[Conversation]:
    """The conversations of JSON-lines files (.jsonl, .jsonl.gz), one in each row.

    A row holds `messages` (role, content), `conversations` (from, value), `prompt` and `completion` (or `response`), or
    `instruction` (with `input`) and `output`.

    Raises:
        UserError: a file is missing or damaged, or a row is none of these; names file and row.
    """
    for file in files:
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"data.chats names '{file}', which is no file; give files of JSON rows (.jsonl).")
        try:
            with open_regular(path) as rows:
                for number, line in enumerate(iter(lambda r=rows: r.readline(MAX_ROW_BYTES), b""), 1):
                    if line.strip():
                        yield Conversation(f"{file}:{number}", _messages(line, f"{file}, row {number}"))
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"'{file}' cannot be read ({error}); is it a .jsonl file?") from None


def _messages(line: bytes, where: str) -> list[Message]:
    row = parse_json(line, where)
    if not isinstance(row, Mapping):
        raise UserError(f"{where} holds a {type(row).__name__}, but must hold an object with `messages`.")
    if isinstance(row.get("messages"), list):
        found = [(m.get("role"), m.get("content")) for m in row["messages"] if isinstance(m, Mapping)]
    elif isinstance(row.get("conversations"), list):
        found = [(m.get("from"), m.get("value")) for m in row["conversations"] if isinstance(m, Mapping)]
    elif "prompt" in row and ("completion" in row or "response" in row):
        found = [("user", row["prompt"]), (ANSWERS, row.get("completion", row.get("response")))]
    elif "instruction" in row and "output" in row:
        given = f"\n\n{row['input']}" if row.get("input") else ""
        found = [("user", f"{row['instruction']}{given}"), (ANSWERS, row["output"])]
    else:
        raise UserError(
            f"{where} has {', '.join(map(str, list(row)[:6])) or 'nothing'}, but must have `messages` (role, content), "
            "`conversations` (from, value), `prompt` and `completion`, or `instruction` and `output`."
        )
    messages = [{"role": ROLES.get(str(role), str(role)), "content": _text(content, where)} for role, content in found]
    if not any(m["role"] == ANSWERS and m["content"].strip() for m in messages):
        raise UserError(f"{where} has no answer (role {ANSWERS}), so there is nothing to learn; remove the row.")
    return messages


def _text(content: Any, where: str) -> str:
    if isinstance(content, list):  # parts, of which only text has a meaning here
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    if not isinstance(content, str):
        raise UserError(f"{where} has a message whose content is a {type(content).__name__}, but must be a text.")
    return content


class ChatTemplate:
    """How a model writes conversations: a Jinja template as Hugging Face's tokenizers keep it (see `rendering`).

    Args:
        tokenizer: its `chat_template` is used; `PLAIN` when it has none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.source: str = tokenizer.chat_template or PLAIN
        self.is_plain = not tokenizer.chat_template
        self._renderer = Renderer(self.source)

    def render(self, messages: list[Message], answer: bool = False) -> str:
        """The text of a conversation; with `answer` up to where the model shall begin to write."""
        backend, eos = self.tokenizer.backend, self.tokenizer.eos_id
        first = self.tokenizer.beginning
        names = {
            "eos_token": "" if eos is None else backend.id_to_token(eos),
            "bos_token": backend.id_to_token(first[0]) if first else "",
        }
        try:
            return self._renderer.render(messages=messages, add_generation_prompt=answer, **names)
        except Refused as error:
            raise UserError(f"The chat template of the tokenizer refuses these messages ({error}).") from None

    def encode(self, conversation: Conversation) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int64 `[tokens]` as Hugging Face's `apply_chat_template` gives them, and bool `[tokens]`: the answers.

        An answer reaches from behind what announces it to the end of its message, the end-of-turn token included.

        Raises:
            UserError: a message holds a special token, which would be taken for the end of a turn, or the template
                rewrites earlier turns, so that answers cannot be told apart.
        """
        self._refuse_specials(conversation)
        text = self.render(conversation.messages)
        spans = list(self._answers(conversation, text))
        encoding = self._encode(text)
        starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
        answers = np.zeros(len(starts), dtype=bool)
        for start, end in spans:
            answers |= (starts >= start) & (starts < end)
        return np.array(encoding.ids, dtype=np.int64), answers

    def ask(self, question: str) -> np.ndarray:
        """The tokens after which the model answers a user's `question`. Raises UserError as `encode` does."""
        conversation = Conversation("The prompt", [{"role": "user", "content": question}])
        self._refuse_specials(conversation)
        return np.array(self._encode(self.render(conversation.messages, answer=True)).ids, dtype=np.int64)

    def _refuse_specials(self, conversation: Conversation) -> None:
        for message in conversation.messages:
            if found := next((token for token in self._specials if token in message["content"]), None):
                raise UserError(
                    f"{conversation.name} holds the special token '{found}' in a message, where it would end the turn; "
                    "take it out."
                )

    def _encode(self, text: str) -> Any:
        """With the template's special tokens as such, unlike `Tokenizer.encode`."""
        backend = self.tokenizer.backend
        backend.encode_special_tokens = False
        try:
            return backend.encode(text, add_special_tokens=False)
        finally:
            backend.encode_special_tokens = True

    def _answers(self, conversation: Conversation, text: str) -> Iterator[tuple[int, int]]:
        """First and last character of each answer."""
        messages = conversation.messages
        for turn, message in enumerate(messages):
            if message["role"] != ANSWERS:
                continue
            before, after = self.render(messages[:turn], answer=True), self.render(messages[: turn + 1])
            if not (text.startswith(after.rstrip()) and after.startswith(before)):
                raise UserError(
                    f"The chat template writes earlier turns of {conversation.name} differently once later ones "
                    "follow, so the answers cannot be told apart; cut the conversation at its first answer."
                )
            yield len(before), len(after.rstrip("\n"))

    @cached_property
    def _specials(self) -> list[str]:
        return [
            str(token.content) for token in self.tokenizer.backend.get_added_tokens_decoder().values() if token.special
        ]
