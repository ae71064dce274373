"""How likely a model holds continuations of texts to be, in batches of about one length.

`reference_log_likelihoods` is the plain form, one continuation at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.work import progress
from .model import LanguageModel
from .tokenizer import Tokenizer

MOST_TOKENS = 8192
"""Tokens of a batch, padding included."""
MOST_LOGITS = 1 << 26
"""Logits that are in memory at a time."""

Pair = tuple[list[int], list[int]]
"""Tokens of a context, at least one, and of what continues it."""


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation.

    Args:
        nats: the sum of the logarithms of the probabilities of its tokens.
        greedy: whether each of them is the most likely one.
    """

    nats: float
    greedy: bool


def inputs_of(pair: Pair, context: int) -> tuple[list[int], list[int]]:
    """What the model reads, at most `context` tokens, its beginning cut off, and what its last tokens predict."""
    before, after = pair
    return (before + after)[-(context + 1) :][:-1], after


def check(pairs: Sequence[Pair], context: int) -> int:
    """How many contexts are cut at their beginning. Raises UserError for a continuation that is too long, or empty."""
    for number, (before, after) in enumerate(pairs, 1):
        if not before or not after:
            raise UserError(f"Continuation {number} or its context is empty; give each at least one token.")
        if len(after) > context:
            raise UserError(
                f"Continuation {number} has {len(after):,} tokens, but the model reads at most {context:,}; shorten it."
            )
    return sum(len(before) + len(after) > context + 1 for before, after in pairs)


@torch.inference_mode()
def reference_log_likelihoods(model: LanguageModel, pairs: Sequence[Pair]) -> list[Likelihood]:
    """As `log_likelihoods`, one at a time."""
    found = []
    for pair in pairs:
        tokens, after = inputs_of(pair, model.config.transformer.context)
        logits = model(torch.tensor([tokens], device=_device(model)))[0, -len(after) :].float()
        held = logits.log_softmax(dim=-1)[torch.arange(len(after)), torch.tensor(after)]
        found.append(Likelihood(float(held.double().sum()), logits.argmax(dim=-1).tolist() == after))
    return found


@torch.inference_mode()
def log_likelihoods(
    model: LanguageModel, pairs: Sequence[Pair], batch_size: int = 64, label: str = "scoring"
) -> list[Likelihood]:
    """The likelihood of each continuation after its context.

    Continuations that the model reads the same tokens for (answers of one token to one question) are read once. What
    does not fit into the context of the model is cut at the beginning.

    Args:
        model: causal, in evaluation mode.
        pairs: contexts and continuations; see `check`.
        batch_size: inputs of a batch, at most.
        label: of the progress bar.
    """
    config = model.config.transformer
    same: dict[tuple[int, ...], list[int]] = {}
    for number, pair in enumerate(pairs):
        same.setdefault(tuple(inputs_of(pair, config.context)[0]), []).append(number)
    found: dict[int, Likelihood] = {}
    with progress(label, len(pairs), "continuations") as advance:
        for some in _batches(model, list(same), batch_size):
            numbers = [number for tokens in some for number in same[tokens]]
            rows = [row for row, tokens in enumerate(some) for _ in same[tokens]]
            hidden = model.hidden(_padded(some, _device(model)))
            for span in _spans([len(pairs[number][1]) for number in numbers], model.config.vocab_size):
                chosen = [(numbers[i], rows[i]) for i in span]
                found |= _of_hidden(model, hidden, some, chosen, pairs)
            advance(len(numbers))
    return [found[number] for number in range(len(pairs))]


def _device(model: LanguageModel) -> torch.device:
    return next(model.parameters()).device


def _batches(model: LanguageModel, inputs: list[tuple[int, ...]], batch_size: int) -> Iterator[list[tuple[int, ...]]]:
    """Inputs of about one length together, the longest first, so that what does not fit is known at once."""
    config, order = model.config.transformer, sorted(inputs, key=lambda tokens: (-len(tokens), tokens))
    while order:
        longest = len(order[0])
        most = max(1, min(batch_size, MOST_TOKENS // longest))
        some = order[:most]
        if config.rerotates(len(some[-1]), longest):  # rotations that depend on the length of the whole input
            some = [tokens for tokens in some if len(tokens) == longest]
        yield some
        order = order[len(some) :]


def _padded(rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    """int64 `[batch, tokens]`, padded behind, where a causal model looks from nowhere."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)


def _spans(lengths: list[int], vocab_size: int) -> Iterator[list[int]]:
    """Numbers of continuations whose logits are in memory together."""
    span: list[int] = []
    held = 0
    for number, length in enumerate(lengths):
        if span and (held + length) * vocab_size > MOST_LOGITS:
            yield span
            span, held = [], 0
        span.append(number)
        held += length
    if span:
        yield span


def _of_hidden(
    model: LanguageModel, hidden: Tensor, read: Sequence[tuple[int, ...]], chosen: list[tuple[int, int]],
    pairs: Sequence[Pair],
) -> dict[int, Likelihood]:  # fmt: skip
    """Of some continuations, by number, from vectors `[batch, tokens, dim]` of what was read."""
    vectors, targets = [], []
    for number, row in chosen:
        after, end = pairs[number][1], len(read[row])
        vectors.append(hidden[row, end - len(after) : end])
        targets += after
    logits = model.logits(torch.cat(vectors)).float()
    wanted = torch.tensor(targets, device=logits.device)
    nats = logits.log_softmax(dim=-1).gather(1, wanted[:, None])[:, 0].double().cpu()
    right = (logits.argmax(dim=-1) == wanted).cpu()
    lengths = [len(part) for part in vectors]
    parts = zip(chosen, nats.split(lengths), right.split(lengths), strict=True)
    return {number: Likelihood(float(one.sum()), bool(hit.all())) for (number, _), one, hit in parts}


def first_token(tokenizer: Tokenizer) -> int:
    """What stands before a text that is scored from its first token on: the token that begins texts, else the one that
    ends them. Raises UserError for a tokenizer without either.
    """
    if tokenizer.beginning:
        return tokenizer.beginning[-1]
    if tokenizer.eos_id is None:
        raise UserError("This tokenizer has no token that begins or ends texts, so whole texts cannot be scored.")
    return tokenizer.eos_id


def windows(tokens: list[int], first: int, context: int) -> list[Pair]:
    """A text as pairs in which each token is predicted once, from as many before it as the model can read.

    All pairs but the first read `context` tokens and predict those that no pair before did: the last pair of a long
    text may predict few tokens, each from many.
    """
    head = tokens[:context]
    found: list[Pair] = [([first], head)] if head else []
    for start in range(context, len(tokens), context):
        after = tokens[start : start + context]
        end = start + len(after)
        found.append((tokens[end - context - 1 : start], after))
    return found
