"""Choosing the next token, and generating with a cache."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UserError
from ..core.mixers.cache import KeyValueCache
from .model import LanguageModel


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
            "temperature": (self.temperature >= 0, "0 (greedy) or a positive number"),
            "top_k": (self.top_k is None or self.top_k >= 1, "at least 1"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (self.min_p is None or 0 <= self.min_p < 1, "at least 0 and below 1"),
        }
        for name, (fine, allowed) in checks.items():
            if not fine:
                raise UserError(f"{name} is {getattr(self, name)}, but must be {allowed}.")


def filter_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Scaled logits with the tokens that may not be drawn at -inf. `[batch, vocabulary]` -> same; temperature > 0."""
    logits = logits.float() / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        least = logits.topk(config.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if config.top_p is not None and config.top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        chance = ordered.softmax(dim=-1)
        # A token goes when those before it already reach p, so the most likely one always stays.
        beyond = chance.cumsum(dim=-1) - chance >= config.top_p
        logits = logits.masked_fill(beyond.scatter(1, index, beyond), -torch.inf)
    if config.min_p:
        chance = logits.softmax(dim=-1)
        logits = logits.masked_fill(chance < config.min_p * chance.amax(dim=-1, keepdim=True), -torch.inf)
    return logits


def draw(logits: Tensor, config: SamplingConfig, generators: list[torch.Generator] | None = None) -> Tensor:
    """Next token of each row, int `[batch]`. A row draws from its own generator, so its text does not depend on the
    batch.
    """
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    chance = filter_logits(logits, config).softmax(dim=-1).cpu()
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
    """Continue a batch of prompts, one step at a time.

    The model never sees more tokens than the context it was trained with: when the text outgrows it, generation goes
    on from the last half, with and without the cache alike.

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
        UserError: an empty prompt.
    """
    if empty := [str(n) for n, prompt in enumerate(prompts, start=1) if not prompt]:
        raise UserError(f"Prompt {', '.join(empty)} is empty; give some text to continue.")
    config, device, context = (
        config or SamplingConfig(),
        next(model.parameters()).device,
        model.config.transformer.context,
    )
    tokens, valid = left_pad(prompts, device)
    live = list(range(len(prompts)))
    generators = None if seed is None else [torch.Generator().manual_seed(seed + n) for n in live]
    start, cache = max(0, tokens.shape[1] - context), None
    for step in range(max_tokens):
        if tokens.shape[1] - start > context:
            start, cache = tokens.shape[1] - max(context // 2, 1), None
        if cache is None:
            longest = min(tokens.shape[1] - start + max_tokens - step, context)
            cache = KeyValueCache(model.transformer.config, longest + 1) if use_cache else None
            new, new_valid = tokens[:, start:], None if valid is None else valid[:, start:]
        else:
            new, new_valid = tokens[:, -1:], None
        # Compiled blocks are for the many steps of one token; a text of its own length is not worth their compilation.
        with nullcontext() if new.shape[1] == 1 else torch.compiler.set_stance("force_eager"):
            hidden = model.hidden(new, valid=new_valid, cache=cache)
        chosen = draw(model.logits(hidden[:, -1]), config, generators)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        valid = None if valid is None else F.pad(valid, (0, 1), value=True)
        ids = dict(zip(live, chosen.tolist(), strict=True))
        stopped = (yield ids) or set()
        keep = [row for row, n in enumerate(live) if ids[n] not in ends and n not in stopped]
        if not keep:
            return
        if len(keep) < len(live):
            live, rows = [live[row] for row in keep], torch.tensor(keep, device=device)
            tokens, valid = tokens[rows], None if valid is None else valid[rows]
            generators = None if generators is None else [generators[row] for row in keep]
            if cache is not None:
                cache.select(rows)
