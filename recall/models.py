"""The small models that are compared: an embedding, mixers without feed-forward layers between them, a linear head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.config import TransformerConfig
from ..core.mixers.cache import KeyValueCache, LayerCache
from ..core.positions import LearnedPositions
from ..core.transformer import Transformer
from .names import Choice, sized


class Nothing(nn.Module):
    """In place of a feed-forward layer: adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Recaller(nn.Module):
    """Int `[batch, tokens]` -> logits `[batch, tokens, vocab]`.

    One head a layer, no feed-forward layers, positions only where all layers are attention (the protocol of Zoology; a
    hybrid reads the order of tokens by its other layers, as Jamba does). Linear layers start with a deviation that
    suits their width: with 0.02, as GPT-2 has it, models of width 64 do not learn to recall within the steps. Tables of
    positions start as large as tokens: with 0.02 the first layer hears the tokens alone.

    Args:
        choice: the mixers.
        vocab: number of tokens.
        length: of the longest row in tokens.
        dim: width of the token vectors.
        state: size of the state of mixers that have such an option (`sized`); None means their own.
        position: how attention is told positions.
    """

    def __init__(
        self, choice: Choice, vocab: int, length: int, dim: int = 64, state: int | None = None,
        position: str = "learned",
    ) -> None:  # fmt: skip
        super().__init__()
        kinds, options = list(dict.fromkeys(choice.layers)), dict(choice.options)
        for kind in kinds if state is not None else []:
            options[kind] = options.get(kind, {}) | sized(kind, state)
        alone = kinds == ["attention"]
        config = TransformerConfig(
            dim=dim, depth=len(choice.layers), heads=1, causal=True, mixer=list(choice.layers), mixer_options=options,
            window=choice.window, position=position if alone else "none", context=length,
            init_std=None,
        )  # fmt: skip
        self.embed = nn.Embedding(vocab, dim)
        self.transformer = Transformer(config)
        for block in self.transformer.blocks:
            block.norm2, block.ffn = nn.Identity(), Nothing()
        if isinstance(self.transformer.positions, LearnedPositions):
            nn.init.normal_(self.transformer.positions.weight)
        self.head = nn.Linear(dim, vocab)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        return self.head(self.hidden(tokens, cache))

    def hidden(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """What the head reads: int `[batch, tokens]` -> `[batch, tokens, dim]`."""
        return self.transformer(self.embed(tokens), cache=cache)


@torch.no_grad()
def state_bytes(model: Recaller, length: int) -> int:
    """Bytes that generation must keep of one row after `length` tokens."""
    cache = KeyValueCache(model.transformer.config)
    model.eval()(torch.zeros(1, length, dtype=torch.long), cache)
    return state_bytes_of(cache)


def state_bytes_of(cache: KeyValueCache) -> int:
    """Bytes that a cache holds of the tokens so far, without the room that it keeps for others."""
    return sum(_bytes(state) for states in cache.states for state in states)


def _bytes(state: Any) -> int:
    if isinstance(state, LayerCache):
        kept = state.end - state.start if state.window is None else min(state.end - state.start, state.window - 1)
        held = [x[:, :, :kept] for x in (state.keys, state.values) if x is not None]
        held += [] if state.inputs is None else [state.inputs]
    else:
        held = [x for x in getattr(state, "tensors", vars(state)).values() if isinstance(x, Tensor)]
    return sum(x.numel() * x.element_size() for x in held)
