"""Linear layers with 8 and 4 bits: exact where the weights lie on the steps, close elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from triune.core.config import TransformerConfig
from triune.core.packed import GROUP, PackedLinear, pack
from triune.core.transformer import Transformer


def linear(inputs: int, outputs: int, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (576, 192), (96, 16)])
@pytest.mark.parametrize("rows", [(1,), (3, 7), (2, 1, 5)])
def test_close_to_the_original(kind, inputs, outputs, rows):
    layer = linear(inputs, outputs)
    packed, x = PackedLinear(layer, kind), torch.randn(*rows, inputs)
    with torch.inference_mode():
        expected, found = layer(x), packed(x)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    # 16 steps over the range of 32 uniform numbers have an error of about range / 15 / sqrt(12).
    limit = {"int8": 0.02, "int4": 0.1}[kind]
    assert (found - expected).norm() / expected.norm() < limit


def test_weights_on_the_steps_come_out_exactly():
    layer = linear(64, 32, bias=False)
    steps = torch.randint(0, 16, (32, 64 // GROUP, GROUP))
    steps[..., 0], steps[..., 1] = 0, 15
    scale = 2.0 ** torch.randint(-3, 3, (32, 64 // GROUP, 1))
    with torch.no_grad():
        layer.weight.copy_(((steps - 7) * scale).flatten(1))
    x = torch.randint(-4, 5, (3, 64)).float()
    exact = layer(x)
    assert torch.equal(PackedLinear(layer, "int4")(x), exact.bfloat16().float())


def test_widths_that_are_no_multiples():
    """The kernels read groups of 32 inputs; beyond the end they would read other memory."""
    for kind, inputs, outputs, stored in (
        ("int4", 341, 128, "int4"), ("int4", 56, 32, "int4"), ("int4", 128, 20, "int8"), ("int8", 341, 67, "int8"),
        ("int8", 1, 1, "int8"),
    ):  # fmt: skip
        layer = linear(inputs, outputs)
        packed, x = PackedLinear(layer, kind), torch.randn(2, inputs)
        assert packed.kind == stored
        assert (packed(x) - layer(x)).norm() / layer(x).norm() < (0.02 if stored == "int8" else 0.1)


def test_constant_and_zero_weights():
    for value in (0.0, 0.5):
        for kind in ("int8", "int4"):
            layer = linear(64, 16)
            nn.init.constant_(layer.weight, value)
            x = torch.ones(1, 64)
            assert torch.allclose(PackedLinear(layer, kind)(x), layer(x), rtol=0.01, atol=1e-3)


def test_a_whole_transformer():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(dim=64, depth=2, heads=4, causal=True, ffn="swiglu", ffn_dim=96)).eval()
    x = torch.randn(2, 9, 64)
    with torch.inference_mode():
        expected = model(x)
        assert pack(model, "int4") is model
        found = model(x)
    assert not any(type(module) is nn.Linear for module in model.modules())
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 2 * 4  # q, k, v and gate, up as one
    assert 0 < (found - expected).norm() / expected.norm() < 0.1


@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_one_input_are_those_packed_one_by_one(bias):
    """Also when the calls come in another order, for another input in between, or for a part only."""
    torch.manual_seed(0)
    attn = Transformer(TransformerConfig(dim=64, depth=1, heads=4, kv_heads=2, bias=bias)).blocks[0].attn
    alone = {name: PackedLinear(getattr(attn, name), "int4") for name in "qkv"}
    pack(attn, "int4")
    x, y = torch.randn(1, 5, 64), torch.randn(1, 5, 64)
    with torch.inference_mode():
        for name, inputs in (("q", x), ("k", x), ("v", x), ("v", y), ("q", x), ("q", y), ("q", y), ("k", y), ("q", x)):
            torch.testing.assert_close(getattr(attn, name)(inputs), alone[name](inputs), rtol=0, atol=0)
