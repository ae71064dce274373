"""Block and Transformer: the one core of all three tasks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import native as checkpoint
from .config import TransformerConfig
from .errors import UserError
from .initialise import initialise
from .layers import Branch, FeedForward, Norm
from .masks import AttentionMask, positions_in_segments
from .mixers.attention import Attention
from .mixers.cache import KeyValueCache, LayerCache
from .mixers.kernels import Plan, plan
from .positions import LearnedPositions, Rotary, Rotation, SinusoidalPositions


class Block(nn.Module):
    """One layer, with the residual sums where `config.placement` puts the norms:

        pre        x + attn(norm1(x))            then  x + ffn(norm2(x))
        post       close1(x + attn(x))           then  close2(x + ffn(x))
        sandwich   x + norm(attn(norm1(x)))      then  x + norm(ffn(norm2(x)))
        parallel   x + attn(norm1(x)) + ffn(norm2(x))

    Norms that a placement does not have are identities. `branch1` and `branch2` hold the sandwich norm, the layer
    scale, dropout and stochastic depth of the residual branches.
    """

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()

        def norm(present: bool) -> nn.Module:
            return Norm(config.dim, config) if present else nn.Identity()

        before, after = config.placement != "post", config.placement == "post"
        self.parallel = config.parallel
        self.norm1, self.close1 = norm(before), norm(after)
        self.attn = Attention(config, layer)
        self.branch1 = Branch(config, layer)
        self.cross = None
        if config.cross_attention:
            self.norm_cross, self.close_cross = norm(before), norm(after)
            self.cross = Attention(replace(config, position="none"), layer)
            self.branch_cross = Branch(config, layer)
        self.norm2, self.close2 = norm(before), norm(after)
        self.ffn = FeedForward(config)
        self.branch2 = Branch(config, layer)

    def forward(
        self, x: Tensor, plan: Plan, rotation: Rotation | None = None, cache: LayerCache | None = None,
        memory: Tensor | None = None, memory_plan: Plan | None = None,
    ) -> Tensor:  # fmt: skip
        """`[batch, tokens, dim]` -> `[batch, tokens, dim]`."""
        attended = self.branch1(self.attn(self.norm1(x), plan, rotation, cache))
        if self.parallel:
            return x + attended + self.branch2(self.ffn(self.norm2(x)))
        x = self.close1(x + attended)
        if self.cross is not None:
            if memory is None or memory_plan is None:
                raise UserError("This model has cross_attention: give it memory=[batch, memory tokens, dim].")
            x = self.close_cross(x + self.branch_cross(self.cross(self.norm_cross(x), memory_plan, memory=memory)))
        return self.close2(x + self.branch2(self.ffn(self.norm2(x))))


class Transformer(nn.Module):
    """Token vectors in, token vectors out; what they mean is the caller's business.

    >>> model = Transformer(TransformerConfig(dim=64, depth=2, heads=4))
    >>> model(torch.randn(8, 100, 64)).shape
    torch.Size([8, 100, 64])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config = config.resolved()
        self.positions: nn.Module | None = None
        if config.position == "learned":
            self.positions = LearnedPositions(config.context, config.dim)
        elif config.position == "sinusoidal":
            self.positions = SinusoidalPositions(config.dim)
        rotary = {config.rotary_at(layer) for layer in range(config.depth)} - {None}
        self._rotary = {r: Rotary(r, config.head_dim or 0) for r in rotary if r is not None}
        self.input_norm = Norm(config.dim, config) if config.input_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.final_norm = Norm(config.dim, config) if config.final_norm else nn.Identity()
        for block in self.blocks:
            initialise(block, config)

    def forward(
        self, x: Tensor, *, valid: Tensor | None = None, documents: Tensor | None = None, bias: Tensor | None = None,
        positions: Tensor | None = None, memory: Tensor | None = None, memory_valid: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:  # fmt: skip
        """Run all blocks.

        Args:
            x: `[batch, tokens, dim]`.
            valid: bool `[batch, tokens]`, True for real tokens.
            documents: int `[batch, tokens]`, a token attends only within its own document.
            bias: float `[batch or 1, heads or 1, tokens, keys]`, added to the scaled scores of every layer.
            positions: `[tokens]` or `[batch, tokens]`; with two rotary axes `[..., tokens, 2]`. By default tokens are
                counted from 0, for added tables within each document and from the first real token.
            memory: `[batch, memory tokens, dim]`, what a decoder with `cross_attention` reads.
            memory_valid: bool `[batch, memory tokens]`, True for real tokens.
            cache: keys and values of the tokens before `x`; `x` holds only the new ones and is added to it.

        Returns:
            `[batch, tokens, dim]`, after the final norm.
        """
        config, tokens, past = self.config, x.shape[1], 0
        if x.shape[-1] != config.dim:
            raise UserError(f"The input has {x.shape[-1]} channels {tuple(x.shape)}, but dim is {config.dim}.")
        if cache is not None and not config.causal:
            raise UserError(
                "A cache needs a causal model: without causal, earlier tokens would have to see the new ones."
            )
        if cache is not None and documents is not None:
            raise UserError("documents and a cache cannot be used together: generation continues one text a row.")
        if memory is not None and not config.cross_attention:
            raise UserError("memory was given, but this model has no cross_attention to read it.")
        if cache is not None:
            past, valid = cache.length, cache.extend(x.shape[0], tokens, valid, x.device)
        mask = AttentionMask(causal=config.causal, documents=documents, valid=valid, bias=bias)
        if positions is None:
            positions = self._default_positions(mask, past, tokens, x.device)
        if self.positions is not None:
            x = x + self.positions(positions).to(x.dtype)
        x = self.input_norm(x)
        if self.training and config.dropout:
            x = F.dropout(x, config.dropout)

        plans = self._plans(mask, tokens, past + tokens, x.device)
        rotations = {r: rotary(positions, x.dtype) for r, rotary in self._rotary.items()}
        memory_plan = None
        if memory is not None:
            memory_mask = AttentionMask(valid=memory_valid, cross=True)
            memory_plan = plan(memory_mask, tokens, memory.shape[1], x.device, config.attention_softcap)
        for layer, block in enumerate(self.blocks):
            rotary = config.rotary_at(layer)
            x = block(
                x, plans[config.window_at(layer)], None if rotary is None else rotations[rotary],
                None if cache is None else cache.layers[layer], memory, memory_plan,
            )  # fmt: skip
        return self.final_norm(x)

    def _default_positions(self, mask: AttentionMask, past: int, tokens: int, device: torch.device) -> Tensor:
        segments = mask.segments()
        if isinstance(self.positions, LearnedPositions):
            self.positions.check(past + tokens)
        if self.positions is not None and segments is not None:
            return positions_in_segments(segments)[:, past:]
        if self.config.position == "rotary" and any(r.axes == 2 for r in self._rotary):
            raise UserError(
                "Rotary positions with two axes need positions=[tokens, 2], the row and column of each token."
            )
        return torch.arange(past, past + tokens, device=device)

    def _plans(self, mask: AttentionMask, tokens: int, keys: int, device: torch.device) -> dict[int | None, Plan]:
        """One plan for each distinct window of the layers."""
        plans: dict[int | None, Plan] = {}
        dropout = self.config.attention_dropout if self.training else 0.0
        for window in {self.config.window_at(layer) for layer in range(self.config.depth)}:
            # Behind a cache, a layer with a window holds only the keys that the new queries may see.
            held = keys if window is None else min(keys, window - 1 + tokens)
            near = mask if held == keys else replace(mask, **_last(mask, held))
            near = replace(near, window=window)
            plans[window] = plan(near, tokens, held, device, self.config.attention_softcap, dropout)
        return plans

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` into `folder`, atomically."""
        checkpoint.save(folder, "Transformer", {"transformer": self.config.to_dict()}, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Transformer:
        """Load what `save_pretrained` wrote. Raises UserError when files are missing or do not fit."""
        config = checkpoint.load_config(Path(folder), "Transformer")
        model = cls(TransformerConfig.from_dict(config.get("transformer")))
        checkpoint.load_weights(model, Path(folder))
        return model


def _last(mask: AttentionMask, keys: int) -> dict[str, Tensor | None]:
    """The parts of a mask that speak of keys, cut to the last `keys`."""
    return {
        "documents": None if mask.documents is None else mask.documents[:, -keys:],
        "valid": None if mask.valid is None else mask.valid[:, -keys:],
        "bias": None if mask.bias is None else mask.bias[..., -keys:],
    }
