"""What `Transformer.forward` may be given: shapes and types, checked where they enter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import TransformerConfig
from .errors import UserError


def describe(tensor: Tensor) -> str:
    """Type and shape of a tensor, such as `int64 [2, 5]`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _require(condition: bool, name: str, tensor: Tensor, allowed: str) -> None:
    if not condition:
        raise UserError(f"{name} is {describe(tensor)}, but must be {allowed}.")


def check_vectors(config: TransformerConfig, x: Tensor) -> None:
    """Raises UserError unless `x` is float `[batch, tokens, dim]`."""
    fits = x.dim() == 3 and x.shape[-1] == config.dim and x.shape[1] > 0 and x.is_floating_point()
    _require(fits, "x", x, f"float [batch, tokens, {config.dim}] (dim is {config.dim})")


def check_tokens(tokens: Tensor, name: str = "tokens", like: Tensor | None = None) -> None:
    """Raises UserError unless `tokens` are int `[batch, tokens]`, of the shape of `like` where it is given."""
    fits = tokens.dim() == 2 and tokens.dtype in (torch.int64, torch.int32)
    fits = fits and (like is None or tokens.shape == like.shape)
    shape = "[batch, tokens]" if like is None else list(like.shape)
    _require(fits, name, tokens, f"int64 {shape}; .long() makes them of other whole numbers")


def check_inputs(
    config: TransformerConfig, x: Tensor, keys: int, valid: Tensor | None, documents: Tensor | None,
    bias: Tensor | Sequence[Tensor] | None, positions: Tensor | None, memory: Tensor | None,
    memory_valid: Tensor | None,
) -> None:  # fmt: skip
    """Raises UserError unless everything that comes with `x` fits it, and `keys` tokens in all."""
    biases = [bias] if isinstance(bias, Tensor) else list(bias or ())
    if not isinstance(bias, Tensor | None) and len(biases) != config.depth:
        raise UserError(f"bias is {len(biases)} tensors, but must be one, or one for each of {config.depth} layers.")
    for each in biases or [None]:
        _check_masks(config, x, keys, valid, documents, each)
    _check_positions(config, x, positions)
    _check_memory(config, x, memory, memory_valid)


def check_patterns(config: TransformerConfig, x: Tensor, prefix: Tensor | None, global_tokens: Tensor | None) -> None:
    """Raises UserError unless they are flags of the tokens of `x` that change what some layer sees."""
    batch, tokens = x.shape[:2]
    for name, flags in (("prefix", prefix), ("global_tokens", global_tokens)):
        if flags is not None:
            fits = flags.dtype == torch.bool and flags.shape == (batch, tokens)
            _require(fits, name, flags, f"bool [{batch}, {tokens}], True for its tokens")
    if prefix is not None:
        if not config.causal:
            raise UserError("prefix was given, but this model is not causal: all its tokens see all; leave it out.")
        config.require_attention("a prefix, whose tokens see later ones")
    limited = config.sparse is not None or any(config.window_at(layer) is not None for layer in range(config.depth))
    if global_tokens is not None and not limited:
        raise UserError("global_tokens was given, but no layer has a window or sparse blocks; leave it out.")


def _check_masks(
    config: TransformerConfig, x: Tensor, keys: int, valid: Tensor | None, documents: Tensor | None,
    bias: Tensor | None,
) -> None:  # fmt: skip
    batch, tokens = x.shape[:2]
    if valid is not None:
        fits = valid.dtype == torch.bool and valid.shape == (batch, tokens)
        _require(fits, "valid", valid, f"bool [{batch}, {tokens}], True for real tokens; .bool() makes one of numbers")
    if documents is not None:
        whole = not documents.is_floating_point() and documents.dtype != torch.bool
        fits = whole and documents.shape == (batch, tokens)
        _require(fits, "documents", documents, f"int [{batch}, {tokens}], the document of each token")
    if bias is not None:
        heads = config.heads
        fits = bias.dim() == 4 and bias.shape[2:] == (tokens, keys) and bias.is_floating_point()
        fits = fits and bias.shape[0] in (1, batch) and bias.shape[1] in (1, heads)
        _require(fits, "bias", bias, f"float [{batch} or 1, {heads} or 1, {tokens}, {keys}]")


def _check_positions(config: TransformerConfig, x: Tensor, positions: Tensor | None) -> None:
    if positions is None:
        return
    if config.position == "none":
        raise UserError('positions were given, but this model has none (position is "none"); leave them out.')
    batch, tokens = x.shape[:2]
    kinds = [r for r in map(config.rotary_at, range(config.depth)) if r is not None]
    axes = [2] if kinds and kinds[0].axes == 2 else []
    shapes = [torch.Size([*rows, tokens, *axes]) for rows in ([], [1], [batch])]
    fits = positions.shape in shapes and positions.dtype != torch.bool
    if config.position == "learned":
        fits = fits and not positions.is_floating_point()
    last = ", 2" if axes else ""
    allowed = f"{'int' if config.position == 'learned' else 'numbers'} [{tokens}{last}] or [{batch}, {tokens}{last}]"
    _require(fits, "positions", positions, allowed)
    # Elsewhere than on a CPU the program would wait for the device.
    if config.position == "learned" and positions.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = positions[(positions < 0) | (positions >= config.context)]
        if wrong.numel():
            raise UserError(
                f"positions hold {int(wrong[0])}, but must be 0 to {config.context - 1}: the learned table has context "
                f"= {config.context} rows."
            )


def _check_memory(config: TransformerConfig, x: Tensor, memory: Tensor | None, valid: Tensor | None) -> None:
    if not config.cross_attention:
        for name, given in (("memory", memory), ("memory_valid", valid)):
            if given is not None:
                raise UserError(f"{name} was given, but this model has no cross_attention to read it.")
        return
    batch = x.shape[0]
    if memory is None:
        raise UserError("This model has cross_attention: give it memory=[batch, memory tokens, dim].")
    fits = memory.dim() == 3 and memory.shape[::2] == (batch, config.dim) and memory.shape[1] > 0
    _require(fits and memory.is_floating_point(), "memory", memory, f"float [{batch}, memory tokens, {config.dim}]")
    if valid is not None:
        fits = valid.dtype == torch.bool and valid.shape == memory.shape[:2]
        _require(fits, "memory_valid", valid, f"bool {list(memory.shape[:2])}, True for real tokens")
