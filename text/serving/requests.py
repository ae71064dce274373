"""What a client may ask for: the fields of a request, checked, as a `Job`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...core.errors import UserError
from ..data.messages import read_messages
from ..sampling import LARGEST_SEED, SamplingConfig
from ..tokenizer import Tokenizer

MOST_STOPS, MOST_CHOICES, MOST_PROMPTS = 16, 8, 64
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "repetition_penalty": (1, None),
    "best_of": (1, None),
    "logprobs": (False, None),
    "top_logprobs": (0, None),
    "logit_bias": ({}, None),
    "echo": (False, None),
    "suffix": ("", None),
    "tools": ([], None),
    "tool_choice": ("none", None),
    "response_format": ({"type": "text"}, None),
}
"""Fields that are not offered, and the values with which they change nothing."""
PASSED = ("user", "metadata", "store", "service_tier", "parallel_tool_calls")
"""Fields that say nothing about the answer."""
USED = (
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p",
    "stop", "seed", "n", "stream", "stream_options",
)  # fmt: skip


class Refusal(Exception):
    """What a client did wrong: one sentence and the status of the answer."""

    def __init__(self, message: str, status: int = 400, field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.field = status, field


@dataclass(frozen=True)
class Limits:
    """What one client, and all together, may take.

    Args:
        tokens: new ones of one answer at most.
        waiting: answers that are written or wait at the same time.
        batch: answers that are written together.
        body: bytes of a request.
    """

    tokens: int = 1024
    waiting: int = 32
    batch: int = 8
    body: int = 1 << 20


@dataclass(frozen=True)
class Job:
    """One answer that is wanted.

    Args:
        ids: the prompt.
        lead: what a chat template writes before an answer.
        tokens: new ones at most.
        config: how they are drawn.
        seed: where the draws begin.
        stops: texts to end before.
    """

    ids: list[int]
    lead: str
    tokens: int
    config: SamplingConfig
    seed: int | None
    stops: list[str]


@dataclass(frozen=True)
class Asked:
    """A request: its jobs, and how the answer is given."""

    jobs: list[Job]
    stream: bool
    usage: bool
    """A last event of a stream says how many tokens there were."""


def _typed(body: Mapping[str, Any], name: str, kinds: tuple[type, ...], what: str, otherwise: Any = None) -> Any:
    value = body.get(name)
    if value is None:
        return otherwise
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise Refusal(f"{name} is {_shown(value)}, but must be {what}.", field=name)
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _whole(body: Mapping[str, Any], name: str, least: int, most: int, otherwise: Any) -> Any:
    value = _typed(body, name, (int,), f"a whole number from {least} to {most:,}", otherwise)
    if value is not None and not least <= value <= most:
        raise Refusal(f"{name} is {value}, but must be a whole number from {least} to {most:,}.", field=name)
    return value


def _number(body: Mapping[str, Any], name: str, otherwise: float | None) -> float | None:
    value = _typed(body, name, (int, float), "a number", otherwise)
    if value is not None and not math.isfinite(value):
        raise Refusal(f"{name} is {value}, but must be a finite number.", field=name)
    return value


def check_fields(body: Any, model: str) -> Mapping[str, Any]:
    """The fields of a request. Raises Refusal for one that is not offered, and for another model."""
    if not isinstance(body, Mapping):
        raise Refusal("The request must be a JSON object.")
    for name, value in body.items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise Refusal(f"{name} is {_shown(value)}, but is not offered here; leave it out.", field=name)
        if name not in NEUTRAL and name not in PASSED and name not in USED:
            raise Refusal(f"{name!r} is no field of a request here; leave it out.", field=name)
    asked = _typed(body, "model", (str,), "a name", model)
    if asked != model:
        raise Refusal(f"model is {asked!r}, but this server has {model!r} alone.", 404, "model")
    return body


def read_request(
    body: Any, chat: bool, model: str, tokenizer: Tokenizer, context: int, limits: Limits,
    ask: Callable[[list[Any]], tuple[list[int], str]], begin: Callable[[str], list[int]],
) -> Asked:  # fmt: skip
    """What a client asks for.

    Args:
        body: parsed JSON.
        chat: `messages` are answered, else a `prompt` is continued.
        model: the name of the model that is served.
        tokenizer: of the model.
        context: tokens that it sees at most.
        limits: of the server.
        ask: the tokens of a conversation, and what stands before an answer.
        begin: the tokens of a text.

    Raises:
        Refusal: with one sentence.
    """
    fields = check_fields(body, model)
    odd = "prompt" if chat else "messages"
    if odd in fields:
        raise Refusal(f"{odd} belongs to the other address (/v1/completions or /v1/chat/completions).", field=odd)
    prompts = [_conversation(fields, ask)] if chat else [(ids, "") for ids in _prompts(fields, tokenizer, begin)]
    config, seed, stops = _drawing(fields)
    count = _whole(fields, "n", 1, MOST_CHOICES, 1)
    jobs = []
    for ids, lead in prompts:
        if len(ids) >= context:
            raise Refusal(f"The prompt has {len(ids):,} tokens, but the context is {context:,}; shorten it.")
        tokens = _most(fields, min(limits.tokens, context - len(ids)), len(ids), context, limits)
        for choice in range(count):
            own = None if seed is None else (seed + choice) % (LARGEST_SEED + 1)
            jobs.append(Job(ids, lead, tokens, config, own, stops))
    stream = _typed(fields, "stream", (bool,), "true or false", False)
    options = _typed(fields, "stream_options", (dict,), "an object", {})
    return Asked(jobs, stream, bool(options.get("include_usage")))


def _most(fields: Mapping[str, Any], room: int, used: int, context: int, limits: Limits) -> int:
    name = "max_completion_tokens" if fields.get("max_completion_tokens") is not None else "max_tokens"
    wanted = _whole(fields, name, 1, limits.tokens, None)
    if wanted is not None and used + wanted > context:
        raise Refusal(
            f"{name} is {wanted:,} behind a prompt of {used:,} tokens, but the context is {context:,}; ask for at most "
            f"{context - used:,}.",
            field=name,
        )
    return room if wanted is None else wanted


def _drawing(fields: Mapping[str, Any]) -> tuple[SamplingConfig, int | None, list[str]]:
    temperature = _number(fields, "temperature", 1.0)
    try:
        config = SamplingConfig(
            1.0 if temperature is None else temperature, _whole(fields, "top_k", 1, 1 << 30, None),
            _number(fields, "top_p", None), _number(fields, "min_p", None),
        )  # fmt: skip
    except UserError as error:
        raise Refusal(str(error)) from None
    stops = _typed(fields, "stop", (str, list), "a text or a list of texts", [])
    stops = [stops] if isinstance(stops, str) else stops
    if len(stops) > MOST_STOPS or not all(isinstance(stop, str) and stop for stop in stops):
        raise Refusal(f"stop must be a text or a list of up to {MOST_STOPS} texts that are not empty.", field="stop")
    return config, _whole(fields, "seed", 0, LARGEST_SEED, None), stops


def _conversation(
    fields: Mapping[str, Any], ask: Callable[[list[Any]], tuple[list[int], str]]
) -> tuple[list[int], str]:
    try:
        return ask(read_messages(_typed(fields, "messages", (list,), "a list of messages", []), "messages"))
    except UserError as error:
        raise Refusal(str(error), field="messages") from None


def _prompts(fields: Mapping[str, Any], tokenizer: Tokenizer, begin: Callable[[str], list[int]]) -> list[list[int]]:
    given = _typed(fields, "prompt", (str, list), "a text, tokens, or a list of these", "")
    several = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    if len(several) > MOST_PROMPTS:
        raise Refusal(f"prompt has {len(several)} texts, but may have {MOST_PROMPTS}.", field="prompt")
    found = []
    for prompt in several:
        if isinstance(prompt, str):
            try:
                found.append(begin(prompt))
            except UserError as error:
                raise Refusal(str(error), field="prompt") from None
            continue
        numbers = isinstance(prompt, list) and all(
            isinstance(i, int) and not isinstance(i, bool) and 0 <= i < tokenizer.vocab_size for i in prompt
        )
        if not numbers or not prompt:
            raise Refusal(
                f"prompt holds {_shown(prompt)}, but must hold texts, or numbers of tokens from 0 to "
                f"{tokenizer.vocab_size - 1:,}.",
                field="prompt",
            )
        found.append(list(prompt))
    return found
