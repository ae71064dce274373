"""Keys and values of the tokens seen so far, for generation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..config import TransformerConfig
from ..errors import UserError
from .base import LayerState


class LayerCache:
    """Keys and values of one layer, `[batch, kv_heads, tokens, head_dim]` each.

    Storage for `capacity` tokens doubles when it is full, so appending costs no copy of the past on average. A layer
    with a window keeps only the `window - 1` tokens that a later query can still see.
    """

    def __init__(self, window: int | None = None, capacity: int = 64) -> None:
        self.window = window
        self.capacity = capacity if window is None else min(capacity, 2 * window)
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.start = self.end = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens; return those that the new queries may need, oldest first."""
        if self.window is not None:
            self.start = max(self.start, self.end - (self.window - 1))
        self._reserve(k, v)
        assert self.keys is not None and self.values is not None
        new = slice(self.end, self.end + k.shape[2])
        self.keys[:, :, new], self.values[:, :, new] = k, v
        self.end = new.stop
        return self.keys[:, :, self.start : self.end], self.values[:, :, self.start : self.end]

    def _reserve(self, k: Tensor, v: Tensor) -> None:
        needed, kept = k.shape[2], self.end - self.start
        if self.keys is not None and self.end + needed <= self.keys.shape[2]:
            return
        capacity = max((1 if self.keys is None else 2) * (kept + needed), self.capacity)
        keys, values = (x.new_empty(*x.shape[:2], capacity, x.shape[3]) for x in (k, v))
        if self.keys is not None and self.values is not None:
            keys[:, :, :kept] = self.keys[:, :, self.start : self.end]
            values[:, :, :kept] = self.values[:, :, self.start : self.end]
        self.keys, self.values, self.start, self.end = keys, values, 0, kept

    def commit(self) -> None:
        """What was appended counts already."""

    def select(self, rows: Tensor) -> None:
        """Keep the batch rows with these indices, int `[rows]`: finished ones are dropped."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


class KeyValueCache:
    """The cache of a whole `Transformer`: the state of each layer and the padding of all tokens so far.

    Pass the same object to successive calls of the model; each call gives only the new tokens. `valid` is bool
    `[batch, tokens so far]`, needed when prompts of different lengths are padded on the left. `capacity` is the number
    of tokens for which there is room at first: known from the start, it saves the growing.
    """

    def __init__(self, config: TransformerConfig, capacity: int = 64) -> None:
        self.config, self.capacity = config.resolved(), capacity
        self.states: list[LayerState] = []  # of the layers, made in the first call
        self.valid: Tensor | None = None
        self.length = 0

    def begin(self, config: TransformerConfig, mixers: Iterable[Any]) -> None:
        """Make the states of the layers in the first call.

        Raises:
            UserError: the cache was made for another model.
        """
        if config is not self.config and config != self.config:
            raise UserError("The cache was made for another config than that of this model; make one with its config.")
        self.config = config
        if not self.states:
            self.states = [mixer.start(self.capacity) for mixer in mixers]

    def commit(self) -> None:
        """Let what the layers wrote count, after the last of them."""
        for state in self.states:
            state.commit()

    def extend(self, batch: int, tokens: int, valid: Tensor | None, device: torch.device) -> Tensor | None:
        """Record `tokens` new ones and return the padding of all, bool `[batch, length]`, or None if none is padded."""
        if valid is not None or self.valid is not None:
            past = self.valid
            if past is None:
                past = torch.ones(batch, self.length, dtype=torch.bool, device=device)
            new = torch.ones(batch, tokens, dtype=torch.bool, device=device) if valid is None else valid
            self.valid = torch.cat([past, new], dim=1)
        self.length += tokens
        return self.valid

    def select(self, rows: Tensor) -> None:
        """Keep the batch rows with these indices, int `[rows]`."""
        for state in self.states:
            state.select(rows)
        if self.valid is not None:
            self.valid = self.valid[rows]
