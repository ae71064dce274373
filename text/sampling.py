"""Choosing the next token, and generating with a cache."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.checks import check_types
from ..core.compiled import eager
from ..core.errors import UserError
from ..core.mixers.cache import KeyValueCache
from .decode import Decoder, unfit
from .lookup import Lookup
from .model import LanguageModel

COLDEST = 1e-30
"""Lower temperatures draw what this one does: the likeliest token, or one of those that are exactly as likely."""
LARGEST_SEED = 2**63 - 1
FEW_SHAPES = (2,)
"""Numbers of guesses for which a compiled step is made, beside none and all of them."""
PROMPT = 1024
"""Tokens of a prompt that are read at once."""


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
        check_types(self)
        checks = {
            "temperature": (self.temperature >= 0, "0 (greedy) or a positive number"),
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
    lookup: int = 0,
    decoder: Decoder | None = None,
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
        lookup: tokens that are guessed at once from the text so far, and read together; the chances of what is drawn
            are the same (see `lookup.py`). Prompts are then continued one after the other.
        decoder: runs the steps behind the prompts; None keeps a cache that grows.

    Yields:
        The new token of each unfinished prompt, by the prompt's number. `send` a set of numbers to finish those.

    Raises:
        UserError: an empty prompt, a seed outside its range, or a model that cannot look ahead.
    """
    if empty := [str(n) for n, prompt in enumerate(prompts, start=1) if not prompt]:
        raise UserError(f"Prompt {', '.join(empty)} is empty; give some text to continue.")
    check_seed(seed)
    config, device = config or SamplingConfig(), next(model.parameters()).device
    rows = [
        Row(n, list(prompt), None if seed is None else torch.Generator().manual_seed(seed + n))
        for n, prompt in enumerate(prompts)
    ]
    if lookup:
        if why := unfit(model):  # whatever the decoder was made for
            raise UserError(f"lookup is {lookup}, but the model has {why}; leave it out.")
        decoder = decoder or Decoder(model)
        for row in rows:
            yield from _looking_ahead(Views(model, [row], device, use_cache, decoder, lookup), max_tokens, config, ends)
        return
    views = Views(model, rows, device, use_cache, decoder)
    for step in range(max_tokens):
        logits = views.logits(max_tokens - step)[:, -1]
        chosen = draw(logits, config, [row.generator for row in views.live]).tolist()
        for row, token in zip(views.live, chosen, strict=True):
            row.tokens.append(token)
        stopped = (yield {row.number: row.tokens[-1] for row in views.live}) or set()
        keep = [at for at, row in enumerate(views.live) if row.tokens[-1] not in ends and row.number not in stopped]
        if not keep:
            return
        views.select(keep)


def _looking_ahead(
    views: Views, max_tokens: int, config: SamplingConfig, ends: Collection[int]
) -> Generator[dict[int, int], set[int] | None, None]:
    """Continues one prompt, several tokens a forward pass where guesses are right."""
    (row,) = views.rows
    known, left = Lookup(row.tokens, views.lookup), max_tokens
    while left:
        guesses = known.guess(min(left - 1, views.room()))
        logits = views.logits(left, guesses)
        guesses, right = guesses[: logits.shape[1] - 1], 0
        for place in range(len(guesses) + 1):
            (token,) = draw(logits[:, place], config, [row.generator]).tolist()
            row.tokens.append(token)
            known.add(token)
            left -= 1
            stopped = yield {row.number: token}
            if token in ends or stopped:
                return
            if place == len(guesses) or token != guesses[place]:
                break
            right += 1
        views.keep(right)
        known.learn(len(guesses), right)


@dataclass
class Row:
    """A text that grows: its number, its tokens, where its draws come from, and its first token in view, which stays
    where it was when others join; None before it was read for the first time.
    """

    number: int
    tokens: list[int]
    generator: torch.Generator | None
    start: int | None = None


class Views:
    """What the model sees of each row, and the cache of it.

    Each row slides by its own length, as it would alone. The cache holds the views of all rows side by side, so it is
    built anew when one of them slides, or when it has no room. A decoder has a fixed number of rows: finished ones stay
    in it, and what becomes of them is not looked at.
    """

    def __init__(
        self, model: LanguageModel, rows: list[Row], device: torch.device, use_cache: bool,
        decoder: Decoder | None = None, lookup: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.rows, self.device, self.use_cache = model, rows, device, use_cache
        self.live = list(rows)
        self.decoder, self.lookup = decoder, lookup
        self.context = model.config.transformer.context
        self._cache: KeyValueCache | None = None
        self._free = 0
        for row in rows:
            if row.start is None:
                row.start = max(0, len(row.tokens) - self.context)

    def logits(self, steps_left: int, guesses: Sequence[int] = ()) -> Tensor:
        """Logits behind the last tokens of the live rows and behind each guess, `[rows, 1 + guesses, vocabulary]`; of
        the last tokens alone where the cache is built anew.
        """
        for row in self.live:
            assert row.start is not None
            if len(row.tokens) - row.start > self.context:
                row.start, self._cache = len(row.tokens) - max(self.context // 2, 1), None
            now = len(row.tokens) - row.start
            if self.model.config.transformer.rerotates(now - 1, now):
                self._cache = None
        if self._cache is None or self._free == 0:
            hidden = self._read(steps_left)
            return self.model.logits(hidden[:, -1:])[self._places()]
        last = [row.tokens[-1:] for row in self.rows]
        self._free -= 1
        if self.decoder is None:
            tokens = torch.tensor(last, device=self.device)
            return self.model.logits(self.model.hidden(tokens, cache=self._cache)[:, -1:])
        filled = [0] * (self._shape(len(guesses)) - len(guesses))
        tokens = torch.tensor([[*ids, *guesses, *filled] for ids in last], device=self.device)
        found = self.decoder.step(tokens)
        self.decoder.length -= tokens.shape[1] - 1
        return found[self._places(), : 1 + len(guesses)]

    def _shape(self, guesses: int) -> int:
        """Guesses that are read for so many: a compiled step is made for its shapes, so that it has three."""
        assert self.decoder is not None
        if not self.decoder.compiled or guesses == 0:
            return guesses
        return next((size for size in FEW_SHAPES if guesses <= size <= self.lookup), self.lookup)

    def _read(self, steps_left: int) -> Tensor:
        """Reads all that is in view, in a new cache; vectors `[rows, tokens, dim]` of the last block at least."""
        tokens, valid = left_pad([row.tokens[row.start :][-self.context :] for row in self.rows], self.device)
        count = tokens.shape[1]
        capacity = min(count + steps_left, self.context)
        self._cache = KeyValueCache(self.model.transformer.config, capacity) if self.use_cache else None
        self._free = capacity - count
        # Compiled blocks are for the many steps of one token; a text of its own length is not worth their compilation.
        with nullcontext() if count == 1 else eager():
            hidden = read_in_blocks(self.model, tokens, valid, self._cache)
        if self.decoder is not None and self._cache is not None:
            self.decoder.begin(self._cache, self._free + self.lookup + 1)
        return hidden

    def room(self) -> int:
        """Guesses that fit into the context."""
        return max(0, min(self.lookup, self._free - 1))

    def keep(self, right: int) -> None:
        """Lets as many guesses of the last call count."""
        if right and self.decoder is not None:
            self.decoder.length += right
            self._free -= right

    def _places(self) -> list[int]:
        return [self.rows.index(row) for row in self.live]

    def select(self, keep: list[int]) -> None:
        """Goes on with the live rows at these places only."""
        if len(keep) == len(self.live):
            return
        self.live = [self.live[at] for at in keep]
        if self.decoder is not None:
            return
        self.rows = self.live
        if self._cache is not None:
            self._cache.select(torch.tensor(keep, device=self.device))


def read_in_blocks(model: LanguageModel, tokens: Tensor, valid: Tensor | None, cache: KeyValueCache | None) -> Tensor:
    """Reads a text into an empty cache, a block of `PROMPT` tokens after the other, so that what lies between the
    layers needs no more room than a block; returns the vectors of the last one, `[rows, tokens, dim]`.

    Args:
        model: a language model.
        tokens: int `[rows, tokens]`.
        valid: bool, True for real tokens; None if all are.
        cache: an empty one; None reads all at once.
    """
    count = tokens.shape[1]
    grows = any(model.config.transformer.rerotates(n, count) for n in range(PROMPT, count, PROMPT))
    if cache is None or count <= PROMPT or grows:
        return model.hidden(tokens, valid=valid, cache=cache)
    hidden = torch.empty(0)
    for start in range(0, count, PROMPT):
        part = slice(start, start + PROMPT)
        hidden = model.hidden(tokens[:, part], valid=None if valid is None else valid[:, part], cache=cache)
    return hidden
