"""Ranges of the numbers in a `TransformerConfig`, and what its patterns of attention need. No torch at import."""

from __future__ import annotations

from typing import Any

from .checks import check, counts


def check_numbers(config: Any) -> None:
    """Raises UserError for a size, share or factor of a `TransformerConfig` outside its range."""
    for name in ("kv_heads", "head_dim", "ffn_dim"):
        value = getattr(config, name)
        check(value is None or counts(value), name, value, "a positive integer or null")
    if config.kv_heads is not None:
        check(config.heads % config.kv_heads == 0, "kv_heads", config.kv_heads, f"a divisor of heads ({config.heads})")
    check(config.norm_eps > 0, "norm_eps", config.norm_eps, "positive")
    check(config.residual_scale > 0, "residual_scale", config.residual_scale, "positive")
    if config.residual_fp32:
        what = "with residual_fp32, where each sub-layer begins with a norm of its own"
        check(config.placement == "pre", "placement", config.placement, f"pre {what}")
        check(config.norm_weight != "none", "norm_weight", config.norm_weight, f"plain or offset {what}")
        check(config.first_norm, "first_norm", config.first_norm, f"true {what}")
    offset, learned = config.position_offset, config.position == "learned"
    check(offset >= 0, "position_offset", offset, "at least 0")
    check(offset == 0 or learned, "position_offset", offset, f"0 with position {config.position}, which has no table")
    scale = config.attention_scale
    check(scale is None or scale > 0, "attention_scale", scale, "positive or null")
    check(config.layer_scale is None or config.layer_scale > 0, "layer_scale", config.layer_scale, "positive or null")
    check(config.init_std is None or config.init_std > 0, "init_std", config.init_std, "positive or null")
    size = config.short_convolution
    check(size == 0 or size >= 2, "short_convolution", size, "0, or at least 2 tokens")
    for name in ("dropout", "attention_dropout", "stochastic_depth"):
        check(0 <= getattr(config, name) < 1, name, getattr(config, name), "in [0, 1)")
    if config.attention_softcap is not None:
        check(config.attention_softcap > 0, "attention_softcap", config.attention_softcap, "positive or null")
        check(config.attention_dropout == 0, "attention_dropout", config.attention_dropout, "0 with attention_softcap")
    if config.position == "sinusoidal":
        check(config.dim % 2 == 0, "dim", config.dim, "even for sinusoidal positions")


def check_patterns(config: Any) -> None:
    """Raises UserError where windows, blocks and global tokens of a `TransformerConfig` do not go together."""
    windows = [config.window_at(layer) for layer in range(config.depth) if config.mixer_at(layer) == "attention"]
    if config.sparse is not None:
        check(not any(windows), "window", config.window, "null with sparse, which says what is near")
        for name in ("last", "whole"):
            value = getattr(config.sparse, name)
            check(value == 0 or not config.causal, f"sparse.{name}", value, "0 with causal")
    if config.global_projections:
        allowed = "given for each layer with global_projections, which are for tokens that see beyond it"
        check(all(windows), "window", config.window, allowed)
        cap = config.attention_softcap
        check(cap is None, "attention_softcap", cap, "null with global_projections")
