"""Weights beside effects: what attention says a token reads, and what the answer loses when nobody can read it.

Attention weights say where values are read from, not what they do to the answer (Jain and Wallace 2019; Serrano and
Smith 2019). So every map of weights is shown beside a map of effects, with the rank correlation of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..mixers.attention import Attention
from ..work import progress
from .edit import lens
from .points import check_heads, transformer_of
from .stream import stream_attention

Answers = Callable[[int], Tensor]
"""Runs the model on one input, copied so many times; returns log-probabilities `[copies, places, classes]`."""

Scope = tuple[int, int | None] | None
"""A layer and a head, a whole layer (no head), or None: the whole model."""


def rollout(layers: Sequence[Tensor]) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020, section 3): the product of 0.5·A + 0.5·I over the layers, first to
    last.

    `layers` are weights averaged over heads, `[batch, tokens, tokens]` each. Row i of the result says how much of each
    input token the mixing alone would carry to output token i.
    """
    total = torch.eye(layers[0].shape[-1], device=layers[0].device).expand_as(layers[0])
    for weights in layers:
        total = 0.5 * (weights @ total + total)
    return total


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two tensors of one shape; NaN when one of them is constant."""

    def ranks(x: Tensor) -> Tensor:
        _, inverse, counts = x.flatten().unique(return_inverse=True, return_counts=True)
        return (counts.cumsum(0) - (counts - 1) / 2)[inverse].double()  # equal values share their mean rank

    if a.numel() < 2:
        return float("nan")
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def attention_layers(model: nn.Module) -> list[int]:
    """The numbers of the layers that attend. Raises UserError where there is none."""
    blocks: Any = transformer_of(model).blocks
    found = [layer for layer, block in enumerate(blocks) if isinstance(block.attn, Attention)]
    if not found:
        raise UserError("No layer of this model attends, so there are no weights to show; ask for `depth` or `patch`.")
    return found


def layer_weights(model: nn.Module, run: Callable[[], Any], scope: Scope = None) -> Tensor:
    """What each token reads of each other, by attention: float32 `[batch, tokens, tokens]`, rows sum to 1.

    Of one head its weights, of one layer their mean over heads. Of the whole model the rollout over all layers, or of a
    causal one the mean over layers: there a rollout of many layers says that all is read from the first token, at which
    heads without anything to read look.
    """
    transformer = transformer_of(model)
    layers = attention_layers(model)
    wanted = [
        torch.arange(transformer.config.heads if layer in layers else 0) for layer in range(len(transformer.blocks))
    ]
    if scope is not None:
        layer, head = scope
        check_heads(model, layer, [] if head is None else [head])
        if layer not in layers:
            raise UserError(f"Layer {layer} has no attention; layers with attention are {', '.join(map(str, layers))}.")
        only = wanted[layer] if head is None else torch.tensor([head])
        wanted = [only if other == layer else torch.arange(0) for other in range(len(wanted))]
    seen: dict[int, Tensor] = {}
    stream_attention(transformer, run, lambda layer, maps: seen.update({layer: maps.mean(1)}), wanted)
    found = [seen[layer] for layer in sorted(seen)]
    if scope is not None:
        return found[0]
    return torch.stack(found).mean(0) if transformer.config.causal else rollout(found)


@torch.no_grad()
def hidden_tokens(
    model: nn.Module, answers: Answers, tokens: int, chosen: Sequence[int] | None = None, scope: Scope = None,
    group: int = 8, apart: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """How far the answer at each place moves when no other token sees token k: nats, float64 `[tokens, places]`.

    All edges from other queries to k are cut, in all layers (or in the layer or head of `scope`), and the effect is the
    Kullback-Leibler divergence of the answer from that of the whole model. Token k itself goes on as before.

    Args:
        model: in evaluation mode, with attention in all layers that mix tokens.
        answers: runs it; copies of one input, no padding.
        tokens: of that input.
        chosen: which k to hide, all by default; the rows of others are NaN.
        scope: where to cut.
        group: tokens hidden in one pass.
        apart: from the answers of the whole model and the others to how far they are apart, `[..., places]`; by default
            the divergence.
    """
    apart = apart or kl_divergence
    layers = attention_layers(model) if scope is None else [scope[0]]
    causal, heads = transformer_of(model).config.causal, transformer_of(model).config.heads
    whole = answers(1)[0].double()  # [places, classes]
    effects = torch.full((tokens, len(whole)), float("nan"), dtype=torch.float64)
    numbers = list(range(tokens)) if chosen is None else list(chosen)
    if causal and tokens - 1 in numbers:  # nobody sees the last token of a causal model but itself
        effects[tokens - 1] = 0
        numbers.remove(tokens - 1)
    if any(transformer_of(model).config.window_at(layer) == 1 for layer in layers):
        raise UserError("A layer has a window of one token, so no other token is seen there; name another layer.")
    parts = [numbers[at : at + group] for at in range(0, len(numbers), group)]
    with progress("hiding tokens", len(parts), "passes") as step:
        for part in parts:
            edges = torch.zeros(len(part), heads, tokens, tokens, dtype=torch.bool)
            one = slice(None) if scope is None or scope[1] is None else scope[1]
            for row, key in enumerate(part):
                edges[row, one, :, key] = True
                edges[row, :, key, key] = False
            with lens(model, cut=dict.fromkeys(layers, edges)):
                found = answers(len(part)).double()
            effects[part] = apart(whole, found).cpu()
            step(1)
    return effects


def kl_divergence(whole: Tensor, found: Tensor) -> Tensor:
    """Kullback-Leibler divergence in nats of log-probabilities `[..., classes]` -> `[...]`."""
    # A class of no chance counts nothing: 0 · (-inf + inf) is NaN.
    return (whole.exp() * (whole - found)).nan_to_num(nan=0.0).sum(-1).clamp(min=0)


def agreement(weights: Tensor, effects: Tensor) -> float:
    """Spearman's rank correlation of what places read `[places, tokens]` and what moves them `[places, tokens]`: the
    median over places with at least five tokens of which both are known; NaN without any.
    """
    found = []
    for row, effect in zip(weights.double(), effects):
        known = ~(row.isnan() | effect.isnan())
        if int(known.sum()) >= 5 and (r := rank_correlation(row[known], effect[known])) == r:
            found.append(r)
    return float(torch.tensor(found).median()) if found else float("nan")
