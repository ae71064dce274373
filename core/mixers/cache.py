"""Keys and values of the tokens seen so far, for generation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..config import TransformerConfig
from ..errors import UserError
from .base import LayerState


def _inference() -> bool:
    """Whether inference mode is on; a compiled model, which cannot ask, stays in the mode it began with."""
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


class LayerCache:
    """Keys and values of one layer, `[batch, kv_heads, tokens, head_dim]` each.

    Storage for `capacity` tokens doubles when it is full, so appending costs no copy of the past on average. A layer
    with a window keeps only the `window - 1` tokens that a later query can still see. Where gradients are recorded
    nothing is written in place, and each call copies.
    """

    def __init__(self, window: int | None = None, capacity: int = 64) -> None:
        self.window = window
        self.capacity = capacity if window is None else min(capacity, 2 * window)
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.start = self.end = 0
        self._pending: tuple[Tensor, Tensor, int, int] | None = None
        self.inputs: Tensor | None = None
        """The last inputs of a short convolution, `[batch, kernel - 1, channels]`."""
        self.new_inputs: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds keys and values of new tokens, which count after `commit`; returns those that the new queries may need,
        oldest first.
        """
        start, new = self.start, k.shape[2]
        if self.window is not None:
            start = max(start, self.end - (self.window - 1))
        kept = self.end - start
        if torch.is_grad_enabled():
            keys, values = (x if old is None else torch.cat([old, x], dim=2) for old, x in self._held(start, k, v))
            start = 0
        else:
            keys, values, start = self._room(start, k, v)
            keys[:, :, start + kept : start + kept + new] = k
            values[:, :, start + kept : start + kept + new] = v
        end = start + kept + new
        self._pending = keys, values, start, end
        return keys[:, :, start:end], values[:, :, start:end]

    def commit(self) -> None:
        """Lets the tokens of the last `append` count."""
        if self._pending is not None:
            self.keys, self.values, self.start, self.end = self._pending
            self._pending = None
        if self.new_inputs is not None:
            self.inputs, self.new_inputs = self.new_inputs, None

    def _held(self, start: int, k: Tensor, v: Tensor) -> list[tuple[Tensor | None, Tensor]]:
        if self.keys is None or self.values is None:
            return [(None, k), (None, v)]
        return [(old[:, :, start : self.end], new) for old, new in ((self.keys, k), (self.values, v))]

    def _room(self, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Storage with room for the new tokens, and where in it the kept ones begin."""
        kept, new = self.end - start, k.shape[2]
        old = None if self.keys is None or self.values is None else (self.keys, self.values)
        if old is not None and self.end + new <= old[0].shape[2]:
            return *old, start
        capacity = max((1 if old is None else 2) * (kept + new), self.capacity)
        keys, values = (x.new_empty(*x.shape[:2], capacity, x.shape[3]) for x in (k, v))
        if old is not None:
            keys[:, :, :kept] = old[0][:, :, start : self.end]
            values[:, :, :kept] = old[1][:, :, start : self.end]
        return keys, values, 0

    def copy(self) -> None:
        """Holds copies, which are of use in the mode they are made in."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.clone(), self.values.clone()
        self.inputs = None if self.inputs is None else self.inputs.clone()

    def select(self, rows: Tensor) -> None:
        """Keeps the batch rows with these indices, int `[rows]`: finished ones are dropped."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]
        self.inputs = None if self.inputs is None else self.inputs[rows]


class MemoryCache:
    """Keys and values of the memory that a cross-attention reads: computed in the first call, used in all later."""

    def __init__(self) -> None:
        self.held: tuple[Tensor, Tensor] | None = None
        self._pending: tuple[Tensor, Tensor] | None = None

    def of(self, memory: Tensor | None, project: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The keys and values of the memory, from `project` when there are none yet."""
        if self.held is None:
            assert memory is not None, "the first call gives the memory"
            self._pending = project(memory)
            return self._pending
        return self.held

    def commit(self) -> None:
        """Lets the memory of the first call count."""
        self.held, self._pending = self._pending or self.held, None

    def copy(self) -> None:
        """Holds copies, which are of use in the mode they are made in."""
        if self.held is not None:
            self.held = self.held[0].clone(), self.held[1].clone()

    def select(self, rows: Tensor) -> None:
        """Keeps the batch rows with these indices, int `[rows]`."""
        if self.held is not None:
            self.held = self.held[0][rows], self.held[1][rows]


class KeyValueCache:
    """The cache of a whole `Transformer`: the states of its layers and the padding of all tokens so far.

    Pass the same object to successive calls of the model; each call gives only the new tokens. `valid` is bool
    `[batch, tokens so far]`, needed when prompts of different lengths are padded on the left. A call that fails leaves
    the cache as it was. The memory of a cross-attention belongs to the first call; later ones may leave it out.

    Args:
        config: of the model.
        capacity: tokens for which there is room at first: known from the start, it saves the growing.
    """

    def __init__(self, config: TransformerConfig, capacity: int = 64) -> None:
        self.config, self.capacity = config.resolved(), capacity
        self.states: list[tuple[LayerState, ...]] = []
        self.valid: Tensor | None = None
        self.memory: tuple[Tensor, Tensor | None] | None = None
        self.length, self.batch = 0, None
        self._model: Any = None
        self._inference = False

    def begin(
        self, model: Any, blocks: Iterable[Any], batch: int, documents: Tensor | None = None,
        prefix: Tensor | None = None, global_tokens: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Makes the states in the first call of `model`.

        Raises:
            UserError: the model is not causal, documents or global tokens are given, or a prefix after the first call;
                or the cache belongs to another model or holds another number of rows.
        """
        if not model.config.causal:
            raise UserError(
                "A cache needs a causal model: without causal, earlier tokens would have to see the new ones."
            )
        if documents is not None:
            raise UserError("documents and a cache cannot be used together: generation continues one text a row.")
        if global_tokens is not None:
            raise UserError(
                "global_tokens and a cache cannot be used together: which tokens are global must be known of all; "
                "the first blocks of a text are, with sparse.first."
            )
        if prefix is not None and self.length:
            raise UserError(
                f"prefix was given behind a cache of {self.length} tokens, which have not seen it; give the whole "
                "prefix in the first call."
            )
        if self.config != model.config:
            raise UserError("The cache was made for another config than that of this model; make one with its config.")
        if self.length == 0:
            self._model, self.states = id(model), [block.start(self.capacity) for block in blocks]
            return
        if self._model != id(model):
            raise UserError("The cache holds the tokens of another model; make one for each model.")
        if self.batch != batch:
            raise UserError(
                f"x has {batch} rows, but the cache holds {self.batch}; give one new token or more to each row of the "
                "cache, and drop finished rows with its select."
            )
        if self._inference and not _inference():
            # What inference mode made can neither be written to nor take part in gradients outside of it.
            for states in self.states:
                for state in states:
                    state.copy()
            self._inference = False

    def with_past(self, valid: Tensor | None, batch: int, tokens: int, device: torch.device) -> Tensor | None:
        """Which tokens of the past and of the new ones are real, bool `[batch, all tokens]`; None if all are."""
        if valid is None and self.valid is None:
            return None
        past, new = self.valid, valid
        if past is None:
            past = torch.ones(batch, self.length, dtype=torch.bool, device=device)
        if new is None:
            new = torch.ones(batch, tokens, dtype=torch.bool, device=device)
        return torch.cat([past, new], dim=1)

    def with_memory(self, memory: Tensor | None, valid: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The memory of the first call and its valid tokens.

        Raises:
            UserError: another memory is given than that of the first call.
        """
        if self.memory is None:
            return memory, valid
        for new, held, name in ((memory, self.memory[0], "memory"), (valid, self.memory[1], "memory_valid")):
            if new is not None and new is not held and (held is None or not torch.equal(new, held)):
                raise UserError(f"{name} is another than in the first call with this cache; make a new cache for it.")
        return self.memory

    def commit(self, tokens: int, batch: int, valid: Tensor | None, memory: Tensor | None, mask: Tensor | None) -> None:
        """Lets a call that ran to its end count: `tokens` new ones, `valid` of all, the memory and its `mask`."""
        for states in self.states:
            for state in states:
                state.commit()
        self.length, self.batch, self.valid, self._inference = self.length + tokens, batch, valid, _inference()
        self.memory = None if memory is None else (memory, mask)

    def select(self, rows: Tensor) -> None:
        """Keeps the batch rows with these indices, int `[rows]`."""
        for states in self.states:
            for state in states:
                state.select(rows)
        self.batch = len(rows) if self.length else None
        if self.valid is not None:
            self.valid = self.valid[rows]
        if self.memory is not None:
            memory, valid = self.memory
            self.memory = memory[rows], None if valid is None else valid[rows]
