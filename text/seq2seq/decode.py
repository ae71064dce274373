"""Writing targets with a cache, in which the keys and values of the source stay as the first step made them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.mixers.cache import KeyValueCache
from .model import EncoderDecoder


def pad(texts: list[list[int]], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Texts as int `[batch, longest]`, padded on the right by 0, and bool `valid`, True for real tokens."""
    longest = max(map(len, texts))
    lengths = torch.tensor([len(text) for text in texts], device=device)
    tokens = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=device)
    return tokens, torch.arange(longest, device=device) < lengths[:, None]


@torch.inference_mode()
def greedy(model: EncoderDecoder, sources: list[list[int]], most: int, use_cache: bool = True) -> list[list[int]]:
    """The likeliest token at every step, until `end`.

    Args:
        model: in evaluation mode.
        sources: token ids, at least one each.
        most: tokens of a target at most; what is longer is cut there.
        use_cache: without it every step computes all tokens anew, for comparison.

    Returns:
        Targets without `end`.
    """
    device, end = model.head.weight.device, model.config.end
    source, valid = pad(sources, device)
    memory = model.encode(source, valid)
    cache = KeyValueCache(model.decoder.config, min(most, 64)) if use_cache else None
    tokens = torch.full((len(sources), 1), end, device=device)
    rows = torch.arange(len(sources), device=device)  # those that are not finished
    found: list[list[int]] = [[] for _ in sources]
    for _ in range(most):
        hidden = model.decode(tokens if cache is None else tokens[:, -1:], memory, valid, cache)
        chosen = model.head(hidden[:, -1]).argmax(-1)
        keep = (chosen != end).nonzero()[:, 0]
        for row, token in zip(rows[keep].tolist(), chosen[keep].tolist(), strict=True):
            found[row].append(token)
        if not len(keep):
            break
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        if len(keep) < len(rows):
            rows, tokens, memory, valid = rows[keep], tokens[keep], memory[keep], valid[keep]
            if cache is not None:
                cache.select(keep)
    return found


@torch.inference_mode()
def beam(
    model: EncoderDecoder, source: list[int], most: int, beams: int, penalty: float = 0.6
) -> list[tuple[list[int], float]]:
    """The best targets of one source by beam search, the best first, each with its log-probability in nats.

    Args:
        model: in evaluation mode.
        source: token ids.
        most: tokens of a target at most; a beam that has not ended there is left out, unless none has.
        beams: targets that are followed at each step.
        penalty: log-probabilities are divided by ((5 + length) / 6) ** penalty to compare lengths (Wu et al. 2016).
    """
    if beams < 1:
        raise UserError(f"beams is {beams}, but must be at least 1; 1 is greedy.")
    device, end = model.head.weight.device, model.config.end
    tokens, valid = pad([source], device)
    memory = model.encode(tokens, valid)
    cache = KeyValueCache(model.decoder.config, min(most, 64))
    live: list[tuple[list[int], float]] = [([], 0.0)]
    done: list[tuple[list[int], float]] = []

    def value(entry: tuple[list[int], float]) -> float:
        return entry[1] / ((6 + len(entry[0])) / 6) ** penalty  # the end is a token, too

    for _ in range(most):
        last = torch.tensor([[text[-1] if text else end] for text, _ in live], device=device)
        logits = model.head(model.decode(last, memory, valid, cache)[:, -1]).double()
        chances = logits.log_softmax(-1) + torch.tensor([score for _, score in live], device=device)[:, None]
        best = chances.flatten().topk(min(2 * beams, chances.numel()))
        grown, parents = [], []
        for score, at in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            parent, token = divmod(at, chances.shape[1])
            if token == end:
                done.append((live[parent][0], score))
            elif len(grown) < beams:
                grown.append(([*live[parent][0], token], score))
                parents.append(parent)
        live = grown
        done = sorted(done, key=value, reverse=True)[:beams]
        # No live beam can become better than its present value divided by the largest length.
        bound = max((score / ((6 + most) / 6) ** penalty for _, score in live), default=-float("inf"))
        if not live or (len(done) == beams and value(done[-1]) >= bound):
            break
        chosen = torch.tensor(parents, device=device)
        cache.select(chosen)
        memory, valid = memory[chosen], valid[chosen]
    return done or live[:1]
