"""Block and Transformer: the one core of all three tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .again import run_again
from .checkpoints.saved import SavedModel
from .config import TransformerConfig
from .experts import Experts, balance_loss, make_ffn
from .initialise import make_blocks, start_blocks
from .inputs import check_inputs, check_patterns, check_vectors
from .layers import Branch, Norm
from .masks import AttentionMask
from .mixers.attention import Attention
from .mixers.base import Call, LayerState
from .mixers.cache import KeyValueCache
from .mixers.registry import make_mixer
from .positions import default_positions, make_positions


class Block(nn.Module):
    """One layer, with the residual sums where `config.placement` puts the norms:

        pre        x + attn(norm1(x))            then  x + ffn(norm2(x))
        post       close1(x + attn(x))           then  close2(x + ffn(x))
        branch     x + norm(attn(x))             then  x + norm(ffn(x))
        sandwich   x + norm(attn(norm1(x)))      then  x + norm(ffn(norm2(x)))
        parallel   x + attn(norm1(x)) + ffn(norm2(x)), or with `shared_norm` ffn(norm1(x))

    Norms that a placement does not have are identities. `branch1` and `branch2` hold the sandwich norm, the layer
    scale, dropout and stochastic depth of the residual branches.
    """

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()

        def norm(present: bool) -> nn.Module:
            return Norm(config.dim, config, narrow=config.residual_fp32) if present else nn.Identity()

        before, after = config.placement in ("pre", "sandwich"), config.placement == "post"
        self.parallel, self.shared = config.parallel, config.shared_norm
        self.norm1, self.close1 = norm(before and (config.first_norm or layer > 0)), norm(after)
        self.attn = make_mixer(config, layer)
        self.branch1 = Branch(config, layer)
        self.cross = None
        if config.cross_attention:
            self.norm_cross, self.close_cross = norm(before), norm(after)
            self.cross = Attention(config, layer, cross=True)
            self.branch_cross = Branch(config, layer)
        feeds = config.ffn_at(layer) != "none"
        self.norm2, self.close2 = norm(feeds and before and not self.shared), norm(feeds and after)
        self.ffn = make_ffn(config, layer) if feeds else None
        self.branch2 = Branch(config, layer) if feeds else None

    def forward(
        self, x: Tensor, prepared: tuple[Any, ...], states: tuple[LayerState, ...] = (), memory: Tensor | None = None,
        memory_prepared: tuple[Any, ...] = (), valid: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """`[batch, tokens, dim]` -> `[batch, tokens, dim]`.

        Args:
            x: `[batch, tokens, dim]`.
            prepared: what `attn.prepare` returned.
            states: what `start` returned, when there is a cache.
            memory: `[batch, memory tokens, dim]`, for `cross_attention`.
            memory_prepared: what `cross.prepare` returned.
            valid: bool `[batch, tokens]`, True for real tokens.
        """
        state, of_memory = (*states, None, None)[:2]
        normed = self.norm1(x)
        attended = self.branch1(self.attn(normed, *prepared, cache=state))
        if self.parallel:
            return x + attended + self._feed(normed if self.shared else x, valid)
        x = self.close1(x + attended)
        if self.cross is not None:
            read = self.cross(self.norm_cross(x), *memory_prepared, cache=of_memory, memory=memory)
            x = self.close_cross(x + self.branch_cross(read))
        return self.close2(x + self._feed(x, valid))

    def _feed(self, x: Tensor, valid: Tensor | None) -> Tensor | float:
        """What the feed-forward adds."""
        if self.ffn is None or self.branch2 is None:
            return 0.0
        x = self.norm2(x)
        return self.branch2(self.ffn(x, valid) if isinstance(self.ffn, Experts) else self.ffn(x))

    def start(self, capacity: int) -> tuple[LayerState, ...]:
        """The empty states of this layer: of its mixer, then of its cross-attention."""
        return tuple(mixer.start(capacity) for mixer in (self.attn, self.cross) if mixer is not None)


class Transformer(SavedModel, config=TransformerConfig, entry="transformer"):
    """Token vectors in, token vectors out; what they mean is the caller's business.

    >>> model = Transformer(TransformerConfig(dim=64, depth=2, heads=4))
    >>> model(torch.randn(8, 100, 64)).shape
    torch.Size([8, 100, 64])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config = config.resolved()
        self.checkpointing = False
        """Whether training computes each block again in its backward pass, in the place of keeping what it made."""
        self.positions = make_positions(config)
        self.input_norm = Norm(config.dim, config) if config.input_norm else nn.Identity()
        make = partial(Block, config)
        self.blocks = make_blocks(make, config.depth)
        self.final_norm = Norm(config.dim, config) if config.final_norm else nn.Identity()
        start_blocks(self.blocks, make, config)

    def forward(
        self, x: Tensor, *, valid: Tensor | None = None, documents: Tensor | None = None,
        bias: Tensor | Sequence[Tensor] | None = None, positions: Tensor | None = None, memory: Tensor | None = None,
        memory_valid: Tensor | None = None, cache: KeyValueCache | None = None, prefix: Tensor | None = None,
        global_tokens: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Runs all blocks.

        Args:
            x: `[batch, tokens, dim]`.
            valid: bool `[batch, tokens]`, True for real tokens.
            documents: int `[batch, tokens]`, a token attends only within its own document.
            bias: float `[batch or 1, heads or 1, tokens, keys]`, added to the scaled scores of every layer, or one of
                these for each layer (BEiT).
            positions: `[tokens]` or `[batch, tokens]`; with two rotary axes `[..., tokens, 2]`. By default tokens are
                counted from 0, for added tables within each document and from the first real token.
            memory: `[batch, memory tokens, dim]`, what a decoder with `cross_attention` reads.
            memory_valid: bool `[batch, memory tokens]`, True for real tokens.
            cache: keys and values of the tokens before `x`; `x` holds only the new ones and is added to it.
            prefix: bool `[batch, tokens]`, tokens that see each other in both directions although `causal`; behind a
                cache they belong to its first call.
            global_tokens: bool `[batch, tokens]`, tokens that see all, and that all see, where windows or blocks limit.

        Returns:
            `[batch, tokens, dim]`, after the final norm.
        """
        config, past = self.config, 0
        check_vectors(config, x)
        (batch, tokens), new = x.shape[:2], valid
        if cache is not None:
            cache.begin(self, self.blocks, batch, documents, prefix, global_tokens)
            past = cache.length
            memory, memory_valid = cache.with_memory(memory, memory_valid)
        check_inputs(config, x, past + tokens, valid, documents, bias, positions, memory, memory_valid)
        check_patterns(config, x, prefix, global_tokens)
        if cache is not None:
            valid = cache.with_past(valid, batch, tokens, x.device)
        # A weight of zero does not hide what is no number, so padding is zero from the start.
        x, read = _hide(x, new), None if memory is None else _hide(memory, memory_valid)
        shared = bias if isinstance(bias, Tensor) else None
        mask = AttentionMask(config.causal, None, documents, valid, shared, prefix=prefix, global_tokens=global_tokens)
        if positions is None:
            positions = default_positions(config, self.positions, mask.segments(), past, tokens, x.device)
        if self.positions is not None:
            x = x + self.positions(positions).to(x.dtype)
        x = self.input_norm(x)
        if self.training and config.dropout:
            x = F.dropout(x, config.dropout)

        call = Call(mask, positions, tokens, past + tokens, x.dtype, x.device)
        prepared = self._prepare("attn", call, None if isinstance(bias, Tensor) else bias)
        of_memory: list[tuple[Any, ...]] = []
        if read is not None:
            over = replace(call, mask=AttentionMask(valid=memory_valid, cross=True), keys=read.shape[1])
            of_memory = self._prepare("cross", over)
        dtype = x.dtype
        if config.residual_fp32:
            x = x.to(torch.promote_types(dtype, torch.float32))
        block: Any
        again = self.checkpointing and torch.is_grad_enabled() and cache is None
        for layer, block in enumerate(self.blocks):
            states = () if cache is None else cache.states[layer]
            cross = of_memory[layer] if of_memory else ()
            inputs = (x, prepared[layer], states, read, cross, new)
            x = run_again(block, *inputs) if again else block(*inputs)
        if cache is not None:
            cache.commit(tokens, batch, valid, memory, memory_valid)
        x = self.final_norm(x)
        return x.to(dtype) if config.residual_fp32 else x

    def losses(self) -> dict[str, Tensor]:
        """What training adds to the loss, of the last call alone: `balance` of experts with a `loss_weight`."""
        loss = balance_loss(self)
        return {} if loss is None else {"balance": loss}

    def _prepare(self, name: str, call: Call, biases: Sequence[Tensor] | None = None) -> list[tuple[Any, ...]]:
        """What the mixer called `name` of each layer prepares: once for each distinct key, unless each layer has a bias
        of its own.
        """
        mixers = [getattr(block, name) for block in self.blocks]
        if biases is not None:
            calls = (replace(call, mask=replace(call.mask, bias=bias)) for bias in biases)
            return [mixer.prepare(each) for mixer, each in zip(mixers, calls, strict=True)]
        found = {mixer.key: mixer.prepare(call) for mixer in {mixer.key: mixer for mixer in mixers}.values()}
        return [found[mixer.key] for mixer in mixers]


def _hide(x: Tensor, valid: Tensor | None) -> Tensor:
    """`x` with zeros where `valid` is False."""
    return x if valid is None else x.masked_fill(~valid[..., None], 0.0)
