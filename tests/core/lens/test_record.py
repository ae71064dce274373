"""Attention weights recorded beside the fused kernels."""

from __future__ import annotations

import pytest
import torch

from triune.core import Transformer, TransformerConfig, record_attention
from triune.core.mixers.kernels import force_kernel

CONFIG = TransformerConfig(dim=32, depth=2, heads=4, kv_heads=2, causal=True, qk_norm="head")


def test_recorded_weights_are_those_of_the_layer():
    torch.manual_seed(0)
    model, x = Transformer(CONFIG).eval(), torch.randn(2, 9, 32)
    values = {}
    for layer, block in enumerate(model.blocks):
        block.attn.v.register_forward_hook(lambda m, i, out, n=layer: values.update({("v", n): out}))
        block.attn.out.register_forward_pre_hook(lambda m, args, n=layer: values.update({("z", n): args[0]}))
    plain = model(x)
    with record_attention(model, lambda name, weights: weights) as seen:
        assert torch.equal(model(x), plain)
    assert list(seen) == ["blocks.0.attn", "blocks.1.attn"]
    for layer, weights in enumerate(seen.values()):
        v = values["v", layer].unflatten(-1, (2, 8)).transpose(1, 2).repeat_interleave(2, dim=1)
        assert torch.allclose((weights @ v).transpose(1, 2).flatten(2), values["z", layer], atol=1e-6)
        assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 9))
        assert weights.triu(1).abs().max() == 0


def test_nothing_stays_behind():
    model, x = Transformer(CONFIG), torch.randn(1, 4, 32)
    with pytest.raises(ValueError, match="stop"), record_attention(model, lambda name, weights: weights):
        raise ValueError("stop")
    assert not any(m._forward_pre_hooks for m in model.modules())
    with force_kernel("reference"):
        model(x)


@pytest.mark.slow
def test_compiled_blocks_are_recorded_too():
    model, x = Transformer(CONFIG).eval(), torch.randn(2, 9, 32)
    for block in model.blocks:
        block.compile()
    with torch.no_grad():
        model(x)
        with record_attention(model, lambda name, weights: weights.mean()) as seen:
            model(x)
    assert len(seen) == 2
