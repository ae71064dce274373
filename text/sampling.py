"""Choosing the next token, and generating with a cache."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.mixers.cache import KeyValueCache
from .model import LanguageModel

COLDEST = 1e-30
"""Lower temperatures draw what this one does: the likeliest token, or one of those that are exactly as likely."""
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn from the logits. The limits apply in the order given here.

    Args:
        temperature: logits are divided by it; 0 always takes the most likely token.
        top_k: keep the k most likely tokens.
        top_p: keep the smallest set of tokens whose chances sum to at least p (Holtzman et al. 2020).
        min_p: keep tokens at least p times as likely as the most likely one (Nguyen et al. 2024).
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0 <= self.temperature < math.inf, "0 (greedy) or a positive number"),
            "top_k": (self.top_k is None or self.top_k >= 1, "at least 1"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (self.min_p is None or 0 <= self.min_p < 1, "at least 0 and below 1"),
        }
        for name, (fine, allowed) in checks.items():
            if not fine:
                raise UserError(f"{name} is {getattr(self, name)}, but must be {allowed}; change it.")


def check_seed(seed: int | None) -> None:
    """Raises UserError when a generator cannot begin with `seed`."""
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed is {seed}, but must be 0 to {LARGEST_SEED} (2^63 - 1); give another.")


def filter_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Scaled logits with the tokens that may not be drawn at -inf. `[batch, vocabulary]` -> same; temperature > 0.

    Among equally likely tokens those of lower number come first, as with `argmax`. The result is float64, in which no
    logit overflows at any temperature.
    """
    logits = logits.double() / max(config.temperature, COLDEST)
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        least = logits.topk(config.top_k, dim=-1).values[:, -1:]
        above, equal = logits > least, logits == least
        room = config.top_k - above.sum(dim=-1, keepdim=True)
        logits = logits.masked_fill(~(above | (equal & (equal.cumsum(dim=-1) <= room))), -torch.inf)
    if config.top_p is not None and config.top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True, stable=True)
        chance = ordered.softmax(dim=-1)
        # A token goes when those before it already reach p, so the most likely one always stays.
        beyond = chance.cumsum(dim=-1) - chance >= config.top_p
        logits = logits.masked_fill(beyond.scatter(1, index, beyond), -torch.inf)
    if config.min_p:
        chance = logits.softmax(dim=-1)
        logits = logits.masked_fill(chance < config.min_p * chance.amax(dim=-1, keepdim=True), -torch.inf)
    return logits


def draw(logits: Tensor, config: SamplingConfig, generators: Sequence[torch.Generator | None] | None = None) -> Tensor:
    """Next token of each row, int `[batch]`. A row draws from its own generator, so its text does not depend on the
    batch.
    """
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    chance = filter_logits(logits, config).softmax(dim=-1).float().cpu()
    rows = [
        torch.multinomial(row, 1, generator=None if generators is None else generators[i])
        for i, row in enumerate(chance)
    ]
    return torch.cat(rows).to(logits.device)


def left_pad(prompts: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Prompts as one tensor int `[batch, longest]` and `valid`, bool, True for real tokens; None if none is
    padded.
    """
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    if all(len(p) == longest for p in prompts):
        return tokens, None
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    return tokens, torch.arange(longest, device=device) >= (longest - lengths)[:, None]


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: list[list[int]],
    max_tokens: int,
    config: SamplingConfig | None = None,
    seed: int | None = None,
    ends: Collection[int] = (),
    use_cache: bool = True,
) -> Generator[dict[int, int], set[int] | None, None]:
    """Continues a batch of prompts, one step at a time.

    The model never sees more tokens than the context it was trained with: when a text outgrows it, generation goes on
    from its last half, with and without the cache, alone and in a batch alike.

    Args:
        model: in evaluation mode.
        prompts: token ids of each prompt, at least one each.
        max_tokens: new tokens at most, of each prompt.
        config: how tokens are drawn.
        seed: row i draws with seed + i; None draws anew each time.
        ends: tokens that finish the row that draws one; the token itself is given out.
        use_cache: keep keys and values; without, each step recomputes all that is in view (slow, for comparison).

    Yields:
        The new token of each unfinished prompt, by the prompt's number. `send` a set of numbers to finish those.

    Raises:
        UserError: an empty prompt, or a seed outside its range.
    """
    if empty := [str(n) for n, prompt in enumerate(prompts, start=1) if not prompt]:
        raise UserError(f"Prompt {', '.join(empty)} is empty; give some text to continue.")
    check_seed(seed)
    config, device = config or SamplingConfig(), next(model.parameters()).device
    live = [
        _Row(n, list(prompt), None if seed is None else torch.Generator().manual_seed(seed + n))
        for n, prompt in enumerate(prompts)
    ]
    views = _Views(model, live, device, use_cache)
    for step in range(max_tokens):
        hidden = views.hidden(max_tokens - step)
        chosen = draw(model.logits(hidden[:, -1]), config, [row.generator for row in views.rows]).tolist()
        for row, token in zip(views.rows, chosen, strict=True):
            row.tokens.append(token)
        stopped = (yield {row.number: row.tokens[-1] for row in views.rows}) or set()
        keep = [at for at, row in enumerate(views.rows) if row.tokens[-1] not in ends and row.number not in stopped]
        if not keep:
            return
        views.select(keep)


@dataclass
class _Row:
    """A text that grows: its number, its tokens, where its draws come from, and its first token in view."""

    number: int
    tokens: list[int]
    generator: torch.Generator | None
    start: int = 0


class _Views:
    """What the model sees of each row, and the cache of it.

    Each row slides by its own length, as it would alone. The cache holds the views of all rows side by side, so it is
    built anew when one of them slides, or when it has no room.
    """

    def __init__(self, model: LanguageModel, rows: list[_Row], device: torch.device, use_cache: bool) -> None:
        self.model, self.rows, self.device, self.use_cache = model, rows, device, use_cache
        self.context = model.config.transformer.context
        self._cache: KeyValueCache | None = None
        self._free = 0
        for row in rows:
            row.start = max(0, len(row.tokens) - self.context)

    def hidden(self, steps_left: int) -> Tensor:
        """Vectors of the last tokens, `[rows, tokens, dim]`, of which the last one counts."""
        for row in self.rows:
            if len(row.tokens) - row.start > self.context:
                row.start, self._cache = len(row.tokens) - max(self.context // 2, 1), None
            now = len(row.tokens) - row.start
            if self.model.config.transformer.rerotates(now - 1, now):
                self._cache = None
        if self._cache is None or self._free == 0:
            tokens, valid = left_pad([row.tokens[row.start :] for row in self.rows], self.device)
            capacity = min(tokens.shape[1] + steps_left, self.context)
            self._cache = KeyValueCache(self.model.transformer.config, capacity) if self.use_cache else None
            self._free = capacity - tokens.shape[1]
        else:
            tokens, valid = torch.tensor([row.tokens[-1:] for row in self.rows], device=self.device), None
            self._free -= 1
        # Compiled blocks are for the many steps of one token; a text of its own length is not worth their compilation.
        with nullcontext() if tokens.shape[1] == 1 else torch.compiler.set_stance("force_eager"):
            return self.model.hidden(tokens, valid=valid, cache=self._cache)

    def select(self, keep: list[int]) -> None:
        """Goes on with the rows at these places only."""
        if len(keep) < len(self.rows):
            self.rows = [self.rows[at] for at in keep]
            if self._cache is not None:
                self._cache.select(torch.tensor(keep, device=self.device))
