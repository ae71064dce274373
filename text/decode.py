"""One step of generation as one graph of fixed shapes, from the embedding to the logits.

A cache that grows gives each step other shapes, so only parts of a model can be compiled, and a few hundred small calls
of a step wait for Python. Here keys and values lie in storage of a fixed size, the place of the new ones is a number in
a tensor, and how much of the storage is read is a size that the graph leaves open: every step is the same program.
With attention alone stepping back is free: what was written beyond a place is overwritten, which is what looking ahead
(`lookup.py`) needs. Recurrent layers keep their state in tensors that stay where they are, and cannot step back.
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
from ..core.mixers.base import Mixer
from ..core.mixers.cache import KeyValueCache, LayerCache
from ..core.mixers.kernels import Plan
from ..core.mixers.recurrent import RecurrentMixer, Row, State
from ..core.mixers.titans import Titans
from ..core.positions import Rotary
from .model import LanguageModel

MASK = AttentionMask(causal=True)
STEP = 256
"""Storage grows in steps of so many tokens: each size is a graph of its own."""
GRAPHS = 64
"""Graphs that are kept; then the oldest makes room."""


def unfit(model: LanguageModel, back: bool = True) -> str:
    """Why a decoder cannot run the steps of a model, in words; empty where it can.

    Args:
        model: of any mixers.
        back: whether it must be able to step back, as look-up does.
    """
    mixers: list[Any] = [block.attn for block in model.transformer.blocks]
    for mixer in mixers:
        if isinstance(mixer, Attention):
            if mixer.sparse is not None or mixer.globally is not None:
                return "blocks of tokens or global projections"
            if back and mixer.conv is not None:
                return "short convolutions, whose state cannot step back"
            if mixer.rotary is not None and (not isinstance(mixer.rotary, Rotary) or mixer.rotary.config.grows):
                return "rotary positions that depend on the length of a text"
        elif back:
            return f"a layer of the kind {type(mixer).__name__}, whose state cannot step back"
        elif not isinstance(mixer, RecurrentMixer) or isinstance(mixer, Titans):
            return f"a layer of the kind {type(mixer).__name__}, whose steps are no single graph"
    if not all(isinstance(mixer, Attention) for mixer in mixers) and _mixes(model):
        return "experts beside a recurrent layer"
    return ""


def _mixes(model: LanguageModel) -> bool:
    """Whether there are experts: how many tokens one of them reads depends on the data."""
    return any(isinstance(module, Experts) for module in model.modules())


class _Storage(LayerCache):
    """Keys and values of one layer in storage of a fixed size, `[batch, kv_heads, capacity, head_dim]` each."""

    def __init__(self, like: Tensor | None, capacity: int) -> None:
        super().__init__()
        assert like is not None, "the prompt was read"
        shape = (like.shape[0], like.shape[1], capacity, like.shape[3])
        # Zeros: what is hidden by a mask must still be a number.
        self.k, self.v = like.new_zeros(shape), like.new_zeros(shape)
        self.slots: Tensor | None = None
        self.filled = capacity

    def take(self, state: LayerCache, length: int) -> None:
        """Takes over what a prompt of `length` tokens left."""
        assert state.keys is not None and state.values is not None
        begin = length - (state.end - state.start)  # a layer with a window forgot what it cannot see
        for new, kept in ((self.k, state.keys), (self.v, state.values)):
            new[:, :, begin:length] = kept[:, :, state.start : state.end]
        self.inputs = None if state.inputs is None else state.inputs.clone()

    def settle(self) -> None:
        """Keeps the inputs of a short convolution; keys and values were written where they belong."""
        if self.new_inputs is not None:
            assert self.inputs is not None
            self.inputs.copy_(self.new_inputs)
            self.new_inputs = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes new ones at `slots`, int `[tokens]`; returns the first `filled`."""
        assert self.slots is not None
        self.k.index_copy_(2, self.slots, k)
        self.v.index_copy_(2, self.slots, v)
        return self.k[:, :, : self.filled], self.v[:, :, : self.filled]


class _Memory(State):
    """The state of a recurrent layer in tensors that stay where they are."""

    def __init__(self, like: State) -> None:
        super().__init__()
        self.tensors = {name: tensor.clone() for name, tensor in like.tensors.items()}

    def take(self, state: State, length: int) -> None:
        """Takes over what a prompt of `length` tokens left."""
        for name, tensor in state.tensors.items():
            self.tensors[name].copy_(tensor)

    def settle(self) -> None:
        """Keeps what a step wrote."""
        for name, tensor in self._pending.items():
            self.tensors[name].copy_(tensor)
        self._pending = {}


class Decoder:
    """Steps behind a prompt.

    Args:
        model: in evaluation mode; see `unfit`. A compiled decoder does not see what is changed in it afterwards, but
            for the values of its weights.
        compiled: each step is one compiled graph, else it runs operation by operation.
        back: whether steps must be undone, by setting `length` back: not where a layer keeps a sum of what it read.

    Raises:
        UserError: the model has a layer that cannot be run so.
    """

    def __init__(self, model: LanguageModel, compiled: bool = False, back: bool = True) -> None:
        if why := unfit(model, back):
            raise UserError(f"The model has {why}; leave out --lookup and --compile.")
        self.model, self.length, self.compiled, self.capacity = model, 0, compiled, 0
        self._storage: list[_Storage | _Memory] = []
        self._like: list[Any] = []
        self._first: Tensor | None = None
        self._graph = compiled and not _mixes(model)
        self._graphs: dict[Any, Callable[..., Tensor]] = {}

    def begin(self, cache: KeyValueCache, room: int) -> None:
        """Takes over what a prompt left.

        Args:
            cache: of one row or several padded on the left.
            room: tokens that may follow.
        """
        held: list[Any] = [states[0] for states in cache.states]
        self.length = cache.length
        # One more than can be filled: a graph for fewer keys than there is room for serves for all numbers of them.
        capacity = -(-(cache.length + room + 1) // STEP) * STEP
        like = [_shapes(state) for state in held]
        if capacity > self.capacity or like != self._like:
            self.capacity, self._like = capacity, like
            self._storage = [
                _Storage(state.keys, capacity) if isinstance(state, LayerCache) else _Memory(state) for state in held
            ]
        for state, storage in zip(held, self._storage, strict=True):
            storage.take(state, cache.length)
        self._first = None if cache.valid is None else cache.valid.int().argmax(dim=1)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits `[batch, tokens, vocabulary]` behind each of the new tokens, int `[batch, tokens]`, which count from
        then on; set `length` back to undo some.
        """
        tokens = tokens.long().contiguous()  # a graph does not look whether they are
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
        key = (self.capacity, *self._like, *tokens.shape, self._first is None)
        if key not in self._graphs:
            if len(self._graphs) == GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
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
        dtype = x.dtype
        prepared = {mixer.key: self._prepare(mixer, slots, keys, first, dtype) for mixer in self._mixers().values()}
        if core.config.residual_fp32:
            x = x.to(torch.promote_types(dtype, torch.float32))
        block: Any
        for block, storage in zip(core.blocks, self._storage, strict=True):
            if isinstance(storage, _Storage):
                storage.slots, storage.filled = slots, len(keys)
            x = block(x, prepared[block.attn.key], (storage,))
            storage.settle()
        return model.logits(model.leave(core.final_norm(x).to(dtype)))

    def _mixers(self) -> dict[Any, Mixer]:
        """One mixer for each distinct key."""
        return {block.attn.key: block.attn for block in self.model.transformer.blocks}  # type: ignore[union-attr]

    def _prepare(
        self, mixer: Mixer, slots: Tensor, keys: Tensor, first: Tensor | None, dtype: torch.dtype
    ) -> tuple[Any, ...]:
        """As `prepare` of the mixer, for storage of which a part is filled. New tokens are all real."""
        if not isinstance(mixer, Attention):
            return (Row(),)
        row = None if mixer.conv is None else Row()
        plan = self._plan(mixer, slots, keys, first)
        return plan, None if mixer.rotary is None else mixer.rotary(slots, dtype), row, None

    def _plan(self, attn: Attention, slots: Tensor, keys: Tensor, first: Tensor | None) -> Plan:
        """The kernel, and which keys each token sees: without a compiler, each token as if alone."""
        if not self.compiled and first is None:
            # Sums in another order would decide between tokens that are almost equally likely.
            ends = range(self.length + 1, self.length + 1 + len(slots))
            spans = [(0 if attn.window is None else max(0, end - attn.window), end) for end in ends]
            return Plan("alone", "guesses", MASK, softcap=attn.softcap, spans=spans)
        if len(slots) == 1 and first is None and attn.window is None:
            kernel = "sdpa" if attn.softcap is None else "reference"
            return Plan(kernel, "one token, which sees all", MASK, softcap=attn.softcap)
        distance = slots[:, None] - keys
        allowed = distance >= 0
        if attn.window is not None:
            allowed = allowed & (distance < attn.window)
        allowed = allowed[None] if first is None else allowed[None] & (keys >= first[:, None, None])
        kernel = "masked" if attn.softcap is None else "reference"
        return Plan(kernel, "what is filled of a storage", MASK, allowed=allowed[:, None], softcap=attn.softcap)


def _shapes(state: Any) -> tuple[Any, ...]:
    """What decides whether the storage of a layer serves for another prompt: shapes, but for the tokens, and types."""
    if isinstance(state, LayerCache):
        assert state.keys is not None
        keys, inputs = state.keys, state.inputs
        return keys.shape[0], keys.shape[1], keys.shape[3], keys.dtype, None if inputs is None else inputs.shape
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in sorted(state.tensors.items()))


def _of_state(guards: Any) -> list[bool]:
    """Which of a graph's checks are kept: those of PyTorch's own state and of the number of keys."""
    return [guard.guard_type in ("SHAPE_ENV", "GLOBAL_STATE", "GRAD_MODE") for guard in guards]
