"""Conversations as a model's chat template writes them: what it is asked, what it is to answer, both as tokens."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ...core.errors import UserError
from ..specials import DEFAULT, FOR_TOOLS
from ..tokenizer import Tokenizer
from .messages import ANSWERS, USUAL_ROLES, Conversation, Message
from .rendering import BEGIN, END, Refused, Renderer

PLAIN = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + (eos_token or '') + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""For tokenizers without a template of their own: `user: …` and `assistant: …`, each ended by the end-of-text token."""
ANYTHING = "\ufdd2"
"""Stands for an answer that is not known yet."""
THOUGHT = "</think>"
SAFE_STARTS = ("\n", ".\n", ":", ". ", "a\n", "\n\n", "0", "a")
"""Texts to encode an answer behind, when the tokenizer joins it with what really stands before it."""


class Sample(NamedTuple):
    """A text to train on.

    tokens: int64 `[tokens]`.
    answers: bool `[tokens]`, what is learned.
    """

    tokens: np.ndarray
    answers: np.ndarray


class ChatTemplate:
    """How a model writes conversations: a Jinja template as Hugging Face's tokenizers keep it, run in a process of its
    own.

    Args:
        tokenizer: its `chat_template` is used; `PLAIN` when it has none.

    Raises:
        UserError: none of its templates is the default one, or it reads special tokens as their letters.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.templates and not tokenizer.chat_template:
            raise UserError(
                f"The tokenizer has chat templates called {', '.join(tokenizer.templates)}, but none called {DEFAULT}, "
                "so it is not known which is meant; write one of them to chat_template.jinja beside it."
            )
        if tokenizer.split:
            raise UserError(
                "The tokenizer has split_special_tokens = true, which makes plain text of the tokens in its chat "
                "template; set it to false in tokenizer_config.json."
            )
        self.tokenizer = tokenizer
        self.source: str = tokenizer.chat_template or PLAIN
        self.is_plain = not tokenizer.chat_template
        self._renderer = Renderer(self.source)

    # -- training -----------------------------------------------------------------------------------------------------

    def samples(self, conversation: Conversation) -> list[Sample]:
        """What is learned from a conversation; every answer stands behind exactly the tokens that `ask` gives in use.

        One sample holds all answers as long as the tokens of each question begin with all that came before. Where the
        template or the tokenizer writes earlier turns differently once later ones follow (thoughts that are left out,
        tokens that join over the border), a new sample begins, with the whole conversation so far before its answer.

        Raises:
            UserError: a message holds a special token, which would be taken for the end of a turn, or something that
                the template leaves out.
        """
        self._check(conversation)
        samples: list[Sample] = []
        for turn in conversation.answers:
            prompt, answer = self._turn(conversation, turn)
            asked = self._ids(prompt)
            said, learned = self._behind(prompt, asked, answer)
            before = samples.pop() if samples and _begins(asked, samples[-1].tokens) else None
            known = np.zeros(len(asked), dtype=bool)
            if before is not None:
                known[: len(before.answers)] = before.answers
            samples.append(Sample(np.concatenate([asked, said]), np.concatenate([known, learned])))
        return samples

    def _turn(self, conversation: Conversation, turn: int) -> tuple[str, str]:
        """The text before an answer, and the answer with the token that ends it, its marks within."""
        messages, tools = conversation.messages, conversation.tools
        thinks = bool(self._thought(messages[turn]))
        prompt = self.prompt(messages[:turn], tools, thinks)
        marked = self.render(messages[: turn + 1], False, tools, thinks)
        whole = _unmarked(marked)
        message = messages[turn]
        visible = message["content"].rsplit(THOUGHT, 1)[-1].strip()
        if whole.startswith(prompt):
            answer = _behind_characters(marked, len(prompt))
            if visible not in _unmarked(answer):
                raise self._drops(conversation.name, turn, "this answer")
            if not self._thought(message) or self._thought(message) in _unmarked(answer):
                return prompt, self._ended(answer)
        if not self._thought(message) or visible not in whole:
            raise UserError(
                f"{conversation.name}: the chat template writes the question before message {turn + 1} differently "
                "once it is answered, so the answer cannot be told apart; remove the row, or use another template."
            )
        if THOUGHT not in self.source:
            raise self._drops(conversation.name, turn, "the thoughts of this answer")
        # The template leaves out thoughts that were written, although it asks for them: they are put back.
        prompt = _unmarked(self.render(messages[:turn], True, tools, True))
        content = message["content"]
        if "reasoning_content" in message:
            content = f"<think>\n{message['reasoning_content']}\n{THOUGHT}\n\n{content}"
        joined = next((n for n in range(min(len(prompt), len(content)), 0, -1) if prompt.endswith(content[:n])), 0)
        tail = whole[whole.rindex(visible) + len(visible) :]
        return prompt, self._ended(content[joined:].rstrip() + tail)

    def _ended(self, answer: str) -> str:
        """An answer up to the last special token in it, at which generation ends; else without its last line ends."""
        ends = [answer.rfind(token) + len(token) for token in self._specials if token in answer]
        if not ends:
            return answer.rstrip("\n" + END) + (END if answer.rstrip("\n").endswith(END) else "")
        return answer[: max(ends)] + (END if answer[: max(ends)].count(BEGIN) > answer[: max(ends)].count(END) else "")

    def _behind(self, prompt: str, asked: np.ndarray, answer: str) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of an answer as the model writes them behind `asked`, and which of them are learned."""
        text = _unmarked(answer)
        for start, known in [(prompt, asked), *((start, self._ids(start)) for start in SAFE_STARTS)]:
            encoding = self._encode(start + text)
            ids = np.array(encoding.ids, dtype=np.int64)
            if _begins(ids, known) and (len(known) == len(ids) or encoding.offsets[len(known)][0] >= len(start)):
                offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[len(known) :] - len(start)
                return ids[len(known) :], _learned(answer, offsets)
        encoding = self._encode(text)
        return np.array(encoding.ids, dtype=np.int64), _learned(answer, np.array(encoding.offsets).reshape(-1, 2))

    # -- use ----------------------------------------------------------------------------------------------------------

    def prompt(self, messages: list[Message], tools: list[Any] | None = None, thinks: bool = False) -> str:
        """The text after which the model answers, the same in training and in use.

        It is what the template gives with `add_generation_prompt`; of that only what really stands before an answer,
        where a template announces answers otherwise than it writes them (DeepSeek's opening `<think>`).
        """
        asked = _unmarked(self.render(messages, True, tools, thinks))
        answer: Message = {"role": ANSWERS, "content": ANYTHING}
        if thinks:
            answer["reasoning_content"] = ANYTHING
        try:
            answered = _unmarked(self.render([*messages, answer], False, tools, thinks))
        except UserError:
            return asked
        if answered.startswith(asked) or thinks:
            return asked
        common = _common([asked, answered])
        if messages and messages[-1]["content"].strip() not in common:
            raise UserError(
                "The chat template leaves out the question once it is answered, so answers cannot be told apart; use a "
                "model with another template."
            )
        return common

    def ask(self, messages: list[Message] | str, tools: list[Any] | None = None, thinks: bool = False) -> np.ndarray:
        """The tokens int64 `[tokens]` after which the model answers a question, or the last of several `messages`.

        Raises:
            UserError: see `samples`.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        self._check(Conversation("The prompt", messages, tools=tools))
        return self._ids(self.prompt(messages, tools, thinks))

    def announced(self, messages: list[Message]) -> np.ndarray:
        """The tokens int64 `[tokens]` of transformers' `apply_chat_template(…, add_generation_prompt=True)`, also where
        `prompt` leaves an announcement out that does not stand before an answer."""
        return self._ids(_unmarked(self.render(messages, True)))

    def lead(self, messages: list[Message], thinks: bool = False) -> str:
        """What the template writes between `prompt` and the answer itself, such as a space."""
        prompt = self.prompt(messages, None, thinks)
        answer: Message = {"role": ANSWERS, "content": ANYTHING}
        try:
            answered = _unmarked(self.render([*messages, answer], False, None, thinks))
        except UserError:
            return ""
        before, found, _ = answered[len(prompt) :].partition(ANYTHING)
        return before if found and answered.startswith(prompt) else ""

    def render(
        self, messages: list[Message], answer: bool = False, tools: list[Any] | None = None, thinks: bool = False
    ) -> str:
        """The text of a conversation, with marks around what the template says that the model writes; with `answer` up
        to where the model shall begin to write."""
        names: dict[str, Any] = {"enable_thinking": thinks, "tools": tools or None, "documents": None}
        names |= {"bos_token": "", "eos_token": ""} | self.tokenizer.names
        if self.is_plain and self.tokenizer.eos_id is not None:
            names["eos_token"] = self.tokenizer.backend.id_to_token(self.tokenizer.eos_id)
        try:
            # Two names of the same, of which some templates read one and some the other, as in transformers.
            known = [m | {"thinking": m["reasoning_content"]} if "reasoning_content" in m else m for m in messages]
            source = self._source(tools)
            return self._renderer.render(source, messages=known, add_generation_prompt=answer, **names)
        except Refused as error:
            raise UserError(f"The chat template of the tokenizer refuses these messages ({error}).") from None

    # -- parts --------------------------------------------------------------------------------------------------------

    def _source(self, tools: list[Any] | None) -> str:
        """The template that is used: one of its own where functions are described, if there is one."""
        return self.tokenizer.templates.get(FOR_TOOLS, self.source) if tools else self.source

    def _check(self, conversation: Conversation) -> None:
        """What a template leaves out without a word, or takes for something else, is refused."""
        for number, message in enumerate(conversation.messages, 1):
            where, texts = f"{conversation.name}, message {number},", [message["content"]]
            texts += [message[key] for key in ("reasoning_content",) if isinstance(message.get(key), str)]
            for text in texts:
                found = next((token for token in [*self._specials, BEGIN, END, ANYTHING] if token in text), None)
                if found:
                    raise UserError(
                        f"{where} holds the special token '{found}', where it would end the turn; take it out."
                    )
            role = message["role"]
            if role not in USUAL_ROLES and not any(f"{quote}{role}{quote}" in self.source for quote in "'\""):
                raise UserError(
                    f"{where} has the role '{role}', which is none of {', '.join(USUAL_ROLES)} and does not stand in "
                    "the chat template; change it."
                )
            if message.get("tool_calls") and "tool_calls" not in self._source(conversation.tools):
                raise self._drops(conversation.name, number - 1, "calls of functions")
        if conversation.tools and "tools" not in self._source(conversation.tools):
            raise self._drops(conversation.name, 0, "`tools`")

    def _drops(self, name: str, turn: int, what: str) -> UserError:
        return UserError(
            f"{name}, message {turn + 1}: the chat template leaves out {what}; remove the row, or use a model whose "
            "template writes them."
        )

    @staticmethod
    def _thought(message: Message) -> str:
        """What an answer says before it is given."""
        if message.get("reasoning_content"):
            return str(message["reasoning_content"]).strip()
        before, found, _ = message["content"].rpartition(THOUGHT)
        return before.replace("<think>", "").strip() if found else ""

    def _ids(self, text: str) -> np.ndarray:
        return np.array(self._encode(text).ids, dtype=np.int64)

    def _encode(self, text: str) -> Any:
        """With the template's special tokens as such, unlike `Tokenizer.encode`."""
        backend = self.tokenizer.backend
        backend.encode_special_tokens = False
        try:
            return backend.encode(text, add_special_tokens=False)
        finally:
            backend.encode_special_tokens = True

    @cached_property
    def _specials(self) -> list[str]:
        return [
            str(token.content) for token in self.tokenizer.backend.get_added_tokens_decoder().values() if token.special
        ]


def _common(texts: list[str]) -> str:
    """The letters that all texts begin with."""
    count = 0
    for letters in zip(*texts):
        if len(set(letters)) > 1:
            break
        count += 1
    return texts[0][:count]


def _begins(tokens: np.ndarray, start: np.ndarray) -> bool:
    return len(tokens) >= len(start) and bool((tokens[: len(start)] == start).all())


def _unmarked(text: str) -> str:
    return text.replace(BEGIN, "").replace(END, "")


def _behind_characters(marked: str, count: int) -> str:
    """A marked text without its first `count` characters, which do not count the marks; a mark that is open stays."""
    at = seen = 0
    while at < len(marked) and (seen < count or marked[at] in (BEGIN, END)):
        seen += marked[at] not in (BEGIN, END)
        at += 1
    inside = marked[:at].count(BEGIN) > marked[:at].count(END)
    return (BEGIN if inside else "") + marked[at:]


def _learned(marked: str, offsets: np.ndarray) -> np.ndarray:
    """Which tokens lie within marks, bool `[tokens]`; all of them where there are no marks. Offsets `[tokens, 2]`."""
    if BEGIN not in marked:
        return np.ones(len(offsets), dtype=bool)
    inside, depth = [], 0
    for character in marked:
        if character in (BEGIN, END):
            depth += 1 if character == BEGIN else -1
        else:
            inside.append(depth > 0)
    count = np.concatenate([[0], np.cumsum(inside)])
    starts, ends = np.clip(offsets, 0, len(inside)).T
    # Some post-processors take spaces off the offsets, all of a token that is a space: it begins where the last ended.
    starts = np.minimum(starts, np.concatenate([[0], ends[:-1]]))
    return count[ends] > count[starts]
