"""One step of generation as one graph of fixed shapes, from the embedding to the logits.

A cache that grows gives each step other shapes, so only parts of a model can be compiled, and a few hundred small calls
of a step wait for Python. Here keys and values lie in storage of a fixed size, the place of the new ones is a number in
a tensor, and how much of the storage is read is a size that the graph leaves open: every step is the same program.
Stepping back is free: what was written beyond a place is overwritten, which is what looking ahead (`lookup.py`) needs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.experts import Experts
from ..core.masks import AttentionMask
from ..core.mixers.attention import Attention
from ..core.mixers.cache import KeyValueCache, LayerCache
from ..core.mixers.kernels import Plan
from ..core.positions import Rotary
from .model import LanguageModel

MASK = AttentionMask(causal=True)
STEP = 256
"""Storage grows in steps of so many tokens: each size is a graph of its own."""


def unfit(model: LanguageModel) -> str:
    """Why the steps of a model cannot go back or be one graph, in words; empty where they can."""
    core = model.transformer
    for block in core.blocks:
        attn = block.attn
        if not isinstance(attn, Attention):
            return f"a layer of the kind {type(attn).__name__}, whose state cannot step back"
        if attn.conv is not None or attn.sparse is not None or attn.globally is not None:
            return "short convolutions, blocks of tokens or global projections"
        if attn.rotary is not None and (not isinstance(attn.rotary, Rotary) or attn.rotary.config.grows):
            return "rotary positions that depend on the length of a text"
    return ""


class _Storage(LayerCache):
    """Keys and values of one layer in storage of a fixed size, `[batch, kv_heads, capacity, head_dim]` each."""

    def __init__(self, like: Tensor, capacity: int) -> None:
        super().__init__()
        shape = (like.shape[0], like.shape[1], capacity, like.shape[3])
        # Zeros: what is hidden by a mask must still be a number.
        self.k, self.v = like.new_zeros(shape), like.new_zeros(shape)
        self.slots: Tensor | None = None
        self.filled = capacity

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes new ones at `slots`, int `[tokens]`; returns the first `filled`."""
        assert self.slots is not None
        self.k.index_copy_(2, self.slots, k)
        self.v.index_copy_(2, self.slots, v)
        return self.k[:, :, : self.filled], self.v[:, :, : self.filled]


class Decoder:
    """Steps behind a prompt.

    Args:
        model: in evaluation mode, with attention in all layers; see `unfit`. A compiled decoder does not see what is
            changed in it afterwards, but for the values of its weights.
        compiled: each step is one compiled graph, else it runs operation by operation.

    Raises:
        UserError: the model has a layer that cannot be run so.
    """

    def __init__(self, model: LanguageModel, compiled: bool = False) -> None:
        if why := unfit(model):
            raise UserError(f"The model has {why}; leave out --lookup and --compile.")
        self.model, self.length, self.compiled = model, 0, compiled
        self._storage: list[_Storage] = []
        self._first: Tensor | None = None
        mixed = any(isinstance(module, Experts) for module in model.modules())  # their sizes depend on the data
        self._graph = compiled and not mixed
        self._graphs: dict[Any, Callable[..., Tensor]] = {}

    @property
    def capacity(self) -> int:
        """Tokens for which there is room."""
        return self._storage[0].k.shape[2] if self._storage else 0

    def begin(self, cache: KeyValueCache, room: int) -> None:
        """Takes over the keys and values of a prompt.

        Args:
            cache: what reading the prompt left, of one row or several padded on the left.
            room: tokens that may follow.
        """
        held: list[LayerCache] = [states[0] for states in cache.states]  # type: ignore[misc]
        self.length = cache.length
        # One more than can be filled: a graph for fewer keys than there is room for serves for all numbers of them.
        capacity = -(-(cache.length + room + 1) // STEP) * STEP
        like = held[0].keys
        assert like is not None
        old = self._storage[0].k if self._storage else None
        if old is None or old.shape[2] < capacity or old.shape[:2] != like.shape[:2] or old.dtype != like.dtype:
            self._storage = [_Storage(state.keys, capacity) for state in held if state.keys is not None]
        for state, storage in zip(held, self._storage, strict=True):
            assert state.keys is not None and state.values is not None
            begin = cache.length - (state.end - state.start)  # a layer with a window forgot what it cannot see
            for new, kept in ((storage.k, state.keys), (storage.v, state.values)):
                new[:, :, begin : cache.length] = kept[:, :, state.start : state.end]
        self._first = None if cache.valid is None else cache.valid.int().argmax(dim=1)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits `[batch, tokens, vocabulary]` behind each of the new tokens, int `[batch, tokens]`, which count from
        then on; set `length` back to undo some.
        """
        new = tokens.shape[1]
        if self.length + new >= self.capacity:
            raise UserError(
                f"There is room for {self.capacity - 1} tokens, but {self.length + new} are needed; begin anew."
            )
        keys = torch.arange(self.length + new, device=tokens.device)
        slots = torch.arange(self.length, self.length + new, device=tokens.device)
        logits = (self._compiled(tokens, keys) if self._graph else self._step)(tokens, slots, keys, self._first)
        self.length += new
        return logits

    def _compiled(self, tokens: Tensor, keys: Tensor) -> Callable[..., Tensor]:
        """The graph for the shapes of storage and `tokens`, and any number of keys.

        It is chosen here by what a graph depends on, so that each step is spared the checks of all modules and weights
        (a tenth of the time of a small model). These checks are dropped for good, so each graph has code of its own,
        which neither another decoder nor another shape can meet.
        """
        torch._dynamo.mark_dynamic(keys, 0)
        storage = self._storage[0].k
        key = (*storage.shape, storage.dtype, *tokens.shape, self._first is None)
        if key not in self._graphs:
            step = type(self)._step
            own = MethodType(FunctionType(step.__code__.replace(), step.__globals__), self)
            options: Any = {"guard_filter_fn": _of_state}
            self._graphs[key] = torch.compile(own, fullgraph=True, dynamic=False, options=options)
        return self._graphs[key]

    def _step(self, tokens: Tensor, slots: Tensor, keys: Tensor, first: Tensor | None) -> Tensor:
        model, core = self.model, self.model.transformer
        x = model.embed(tokens)
        if core.positions is not None:
            # What fills up a round of guesses may lie beyond the last position.
            places = slots if first is None else slots - first[:, None]
            places = places.clamp(0, core.config.context - 1)
            x = x + core.positions(places).to(x.dtype)
        x = core.input_norm(x)
        prepared = {attn.key: self._prepare(attn, slots, keys, first, x.dtype) for attn in self._mixers().values()}
        block: Any
        for block, storage in zip(core.blocks, self._storage, strict=True):
            storage.slots, storage.filled = slots, len(keys)
            x = block(x, prepared[block.attn.key], (storage,))
        return model.logits(model.leave(core.final_norm(x)))

    def _mixers(self) -> dict[Any, Attention]:
        """One mixer for each distinct key."""
        return {block.attn.key: block.attn for block in self.model.transformer.blocks}  # type: ignore[union-attr]

    def _prepare(
        self, attn: Attention, slots: Tensor, keys: Tensor, first: Tensor | None, dtype: torch.dtype
    ) -> tuple[Any, ...]:
        """As `Attention.prepare`, for storage of which a part is filled: without a compiler, each token as if alone."""
        rotation = None if attn.rotary is None else attn.rotary(slots, dtype)
        if not self.compiled and first is None:
            # Sums in another order would decide between tokens that are almost equally likely.
            ends = range(self.length + 1, self.length + 1 + len(slots))
            spans = [(0 if attn.window is None else max(0, end - attn.window), end) for end in ends]
            return Plan("alone", "guesses", MASK, softcap=attn.softcap, spans=spans), rotation, None, None
        if len(slots) == 1 and first is None and attn.window is None:
            kernel = "sdpa" if attn.softcap is None else "reference"
            return Plan(kernel, "one token, which sees all", MASK, softcap=attn.softcap), rotation, None, None
        distance = slots[:, None] - keys
        allowed = distance >= 0
        if attn.window is not None:
            allowed = allowed & (distance < attn.window)
        allowed = allowed[None] if first is None else allowed[None] & (keys >= first[:, None, None])
        kernel = "masked" if attn.softcap is None else "reference"
        plan = Plan(kernel, "what is filled of a storage", MASK, allowed=allowed[:, None], softcap=attn.softcap)
        return plan, rotation, None, None


def _of_state(guards: Any) -> list[bool]:
    """Which of a graph's checks are kept: those of PyTorch's own state and of the number of keys."""
    return [guard.guard_type in ("SHAPE_ENV", "GLOBAL_STATE", "GRAD_MODE") for guard in guards]
