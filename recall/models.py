"""The small models that are compared: an embedding, mixers without feed-forward layers between them, a linear head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.config import TransformerConfig
from ..core.errors import UserError
from ..core.mixers import options as mixers
from ..core.mixers.cache import KeyValueCache, LayerCache
from ..core.positions import LearnedPositions
from ..core.transformer import Transformer

SHORT = {"softmax": "attention", "ssd": "mamba2"}
"""Further names of kinds of mixer."""


@dataclass(frozen=True)
class Choice:
    """What `--mixer` names.

    Args:
        name: as it was given.
        layers: the kind of mixer of each layer.
        window: of the attention layers in tokens, or None.
    """

    name: str
    layers: tuple[str, ...]
    window: int | None = None

    @property
    def hybrid(self) -> bool:
        """Attention without a window in some of the layers, something else in others."""
        return "attention" in self.layers and len(set(self.layers)) > 1 and self.window is None


def choose(name: str, depth: int) -> Choice:
    """The mixers that a name stands for.

    Args:
        name: a kind of core/mixers/options.py or of `register_mixer`; `softmax` or `ssd`; `window:16` for attention
            with a window; or a pattern with a letter for each layer, such as MMMA, which also says the depth.
        depth: number of layers of everything but a pattern.

    Raises:
        UserError: the name means nothing.
    """
    kind, colon, number = name.partition(":")
    if kind == "window":
        if not (number.isascii() and number.isdigit() and int(number)):
            raise UserError(
                f"mixer is '{name}', but the window must be a positive number of tokens, such as window:16."
            )
        return Choice(name, ("attention",) * depth, int(number))
    if colon:
        raise UserError(f"mixer is '{name}', but only window takes a number; give --state for the size of a state.")
    kind = SHORT.get(kind, kind)
    if kind in mixers.KINDS or not kind.isupper():
        if kind not in mixers.KINDS:
            known = ", ".join([*SHORT, "window:TOKENS", *mixers.KINDS])
            raise UserError(f"mixer is '{name}', but must be one of {known}, or a pattern such as MMMA.")
        return Choice(name, (kind,) * depth)
    return Choice(name, tuple(mixers.expand(kind, len(kind))))


def sized(kind: str, state: int) -> dict[str, Any]:
    """The option of a kind that sets how much it remembers; empty where it has none."""
    fields = mixers.KINDS[kind].options.__dataclass_fields__
    return next(({name: state} for name in ("state", "width") if name in fields), {})


class Nothing(nn.Module):
    """In place of a feed-forward layer: adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Recaller(nn.Module):
    """Int `[batch, tokens]` -> logits `[batch, tokens, vocab]`.

    One head a layer, no feed-forward layers, a table of positions only where a layer is attention (the protocol of
    Zoology). Linear layers start with a deviation that suits their width: with 0.02, as GPT-2 has it, models of
    width 64 do not learn to recall within the steps. Positions start as large as tokens: with a deviation of 0.02 the
    first layer hears the tokens alone, and lags are learned late (a KL divergence of 0.21 after 1,200 steps).

    Args:
        choice: the mixers.
        vocab: number of tokens.
        length: of the longest row in tokens.
        dim: width of the token vectors.
        state: size of the state of mixers that have such an option (`sized`); None means their own.
    """

    def __init__(self, choice: Choice, vocab: int, length: int, dim: int = 64, state: int | None = None) -> None:
        super().__init__()
        kinds = list(dict.fromkeys(choice.layers))
        options = {} if state is None else {k: found for k in kinds if (found := sized(k, state))}
        attention = "attention" in kinds
        config = TransformerConfig(
            dim=dim, depth=len(choice.layers), heads=1, causal=True, mixer=list(choice.layers), mixer_options=options,
            window=choice.window, position="learned" if attention else "none", context=length,
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
        return self.head(self.transformer(self.embed(tokens), cache=cache))


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
