"""Attention weights recorded beside the fused kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from triune.core import KeyValueCache, Transformer, TransformerConfig, record_attention
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
    assert not any("mix" in vars(module) for module in model.modules())
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


VALID = torch.arange(40) >= torch.tensor([0, 13])[:, None]
DOCUMENTS = torch.arange(40).div(7, rounding_mode="floor").expand(2, -1)
CASES = {
    "banded": ({"window": 4}, {}),
    "banded documents": ({"window": 4}, {"documents": DOCUMENTS}),
    "padding": ({}, {"valid": VALID}),
    "bias": ({}, {"bias": torch.randn(1, 4, 40, 40)}),
    "soft cap": ({"attention_softcap": 2.0, "window": 9}, {"valid": VALID}),
    "both directions": ({"causal": False, "window": 5}, {"documents": DOCUMENTS}),
    "cross": ({"cross_attention": True}, {"memory": torch.randn(2, 7, 32), "memory_valid": VALID[:, 10:17]}),
}


def heads_of(weights: Tensor, v: Tensor) -> Tensor:
    """What the recorded weights and the values make: the input of `out`."""
    kv = v.unflatten(-1, (-1, 8)).transpose(1, 2).repeat_interleave(2, dim=1)
    return (weights @ kv).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("case", CASES)
def test_weights_of_every_kernel_give_the_output_of_the_layer(case: str) -> None:
    torch.manual_seed(0)
    values, call = CASES[case]
    config = {"dim": 32, "depth": 1, "heads": 4, "kv_heads": 2, "causal": True, "init_std": 0.4}
    model, x, seen_layers = Transformer(TransformerConfig(**config | values)).eval(), torch.randn(2, 40, 32), {}
    attn = model.blocks[0].cross if "cross" in case else model.blocks[0].attn
    attn.v.register_forward_hook(lambda m, args, out: seen_layers.update(v=out))
    attn.out.register_forward_pre_hook(lambda m, args: seen_layers.update(z=args[0]))
    with torch.no_grad(), record_attention(model, lambda name, weights: weights) as seen:
        model(x, **call)
    weights = seen["blocks.0.cross" if "cross" in case else "blocks.0.attn"]
    found = heads_of(weights, seen_layers["v"])
    assert torch.allclose(found, seen_layers["z"], atol=1e-5)
    assert weights.sum(-1).sub(1).abs().max() < 1e-5


@pytest.mark.parametrize("window", [None, 3])
def test_weights_behind_a_cache_are_rows_of_those_without(window: int | None) -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(dim=32, depth=2, heads=4, causal=True, window=window, init_std=0.4)).eval()
    x, cache = torch.randn(2, 9, 32), KeyValueCache(model.config)
    with torch.no_grad(), record_attention(model, lambda name, weights: weights) as whole:
        model(x)
    with torch.no_grad(), record_attention(model, lambda name, weights: weights) as seen:
        model(x[:, :6], cache=cache)
        model(x[:, 6:8], cache=cache)
    for name, weights in seen.items():
        keys = weights.shape[-1]
        assert keys == (8 if window is None else 4)
        assert torch.allclose(weights, whole[name][:, :, 6:8, 8 - keys : 8], atol=1e-6)


def test_a_recording_within_a_recording_leaves_the_outer_one_in_place():
    model, x = Transformer(CONFIG).eval(), torch.randn(1, 4, 32)
    with record_attention(model, lambda name, weights: weights) as outer:
        with record_attention(model, lambda name, weights: weights) as inner:
            model(x)
        outer.clear()
        model(x)
    assert outer.keys() == inner.keys() == {"blocks.0.attn", "blocks.1.attn"}
    assert not any("mix" in vars(module) for module in model.modules())
