"""Positions that work inside the attention: biases by distance, trained frequencies, tables over registers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.layers import FeedForward
from triune.core.mixers.attention import Attention
from triune.core.positions import LearnedRotary, rotate
from triune.core.rotary import RotaryConfig
from triune.core.training.groups import places
from triune.core.transformer import Transformer
from triune.vision.model import VisionTransformer, VisionTransformerConfig
from triune.vision.positions import RelativeBias, grid_coordinates


def model(core: dict[str, Any], **options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    transformer = TransformerConfig(**{"dim": 16, "depth": 2, "heads": 2, "position": "none"} | core)
    config = VisionTransformerConfig(
        **{"image_size": [8, 12], "patch_size": 4, "classes": 3, "transformer": transformer} | options
    )
    found = VisionTransformer(config)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return found.eval()


def reference_relative_bias(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Entry by entry: `[1, heads, tokens, tokens]`."""
    (rows, columns), heads = grid, table.shape[1]
    places = [None, *((row, column) for row in range(rows) for column in range(columns))]
    found = torch.zeros(1, heads, len(places), len(places))
    tokens, by_distance = table[-3:], table[:-3].unflatten(0, (2 * rows - 1, 2 * columns - 1))
    for i, query in enumerate(places):
        for j, key in enumerate(places):
            if query is not None and key is not None:
                found[0, :, i, j] = by_distance[query[0] - key[0] + rows - 1, query[1] - key[1] + columns - 1]
            else:
                found[0, :, i, j] = tokens[2 if query is key else 0 if query is None else 1]
    return found


def test_biases_by_distance_are_those_of_the_definition_with_gradients() -> None:
    grid, layers = (2, 3), RelativeBias((2, 3), 2, 3)
    with torch.no_grad():
        for table in layers.tables:
            table.normal_()
    found, weight = layers(grid), torch.randn(1, 2, 7, 7)
    assert isinstance(found, list) and len(found) == 3
    for table, bias in zip(layers.tables, found, strict=True):
        other = table.detach().clone().requires_grad_()
        expected = reference_relative_bias(other, grid)
        assert torch.equal(bias, expected)
        (bias * weight).sum().backward()
        (expected * weight).sum().backward()
        torch.testing.assert_close(table.grad, other.grad)
    with pytest.raises(UserError, match="3×2 patches, but the biases of this model are for 2×3"):
        layers((3, 2))


def test_each_layer_gets_its_bias() -> None:
    torch.manual_seed(0)
    core = Transformer(TransformerConfig(dim=16, depth=2, heads=2, position="none")).eval()
    x, biases = torch.randn(2, 5, 16), [torch.randn(1, 2, 5, 5), torch.randn(1, 2, 5, 5)]
    expected = x
    for block, bias in zip(core.blocks, biases, strict=True):  # a core of one layer with that bias
        alone = Transformer(TransformerConfig(dim=16, depth=1, heads=2, position="none", final_norm=False)).eval()
        alone.blocks[0] = block
        expected = alone(expected, bias=bias)
    torch.testing.assert_close(core(x, bias=biases), core.final_norm(expected))
    torch.testing.assert_close(core(x, bias=[biases[0]] * 2), core(x, bias=biases[0]))
    assert float((core(x, bias=biases) - core(x, bias=biases[::-1])).detach().abs().max()) > 1e-3
    with pytest.raises(UserError, match="bias is 1 tensors, but must be one, or one for each of 2 layers"):
        core(x, bias=biases[:1])
    with pytest.raises(UserError, match=r"bias is float32 \[1, 2, 5, 4\]"):
        core(x, bias=[biases[0], biases[1][..., :4]])


@pytest.mark.parametrize("interleaved", [False, True])
def test_trained_frequencies_turn_each_head_by_its_own_angles(interleaved: bool) -> None:
    config = RotaryConfig(base=10.0, axes=2, learned=True, interleaved=interleaved)
    rotary, x = LearnedRotary(config, 3, 8), torch.randn(2, 3, 6, 8)
    with torch.no_grad():
        rotary.rate.normal_()
    places = grid_coordinates((2, 3), (2, 3), "count")
    found = rotate(x, rotary(places, x.dtype), interleaved)
    expected = torch.zeros_like(x)
    for head in range(3):
        for token, (row, column) in enumerate(places.tolist()):
            for pair in range(4):
                angle = row * rotary.rate[0, head, pair] + column * rotary.rate[1, head, pair]
                a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 4)
                first, second = x[:, head, token, a], x[:, head, token, b]
                expected[:, head, token, a] = first * angle.cos() - second * angle.sin()
                expected[:, head, token, b] = second * angle.cos() + first * angle.sin()
    torch.testing.assert_close(found, expected)
    found.square().mul(torch.randn_like(x)).sum().backward()
    assert rotary.rate.grad is not None and float(rotary.rate.grad.abs().min()) > 0


def test_trained_frequencies_start_as_turned_axes_and_are_no_matrices() -> None:
    config = TransformerConfig(dim=16, depth=2, heads=2, rotary=RotaryConfig(axes=2, learned=True, base=10.0))
    core = Transformer(config)
    first, second = (block.attn for block in core.blocks)
    assert isinstance(first, Attention) and isinstance(second, Attention)
    assert first.key != second.key  # nothing is shared
    assert isinstance(first.rotary, LearnedRotary)
    along, across = first.rotary.rate.detach().unbind(0)
    torch.testing.assert_close(along.hypot(across)[0], torch.tensor([1.0, 10**-0.5] * 2))
    found = places(core)
    assert found["blocks.0.attn.rotary.rate"].role == "vectors"
    for options, reason in (
        ({"rotary": RotaryConfig(axes=2, learned=True), "kv_heads": 1}, "kv_heads is 1, but must be heads"),
    ):
        with pytest.raises(UserError, match=reason):
            TransformerConfig(**{"dim": 16, "heads": 2} | options)
    with pytest.raises(UserError, match=r"rotary\.axes is 1, but must be 2 with rotary\.learned"):
        RotaryConfig(learned=True)


@pytest.mark.parametrize(
    ("core", "options"),
    [
        ({}, {"relative_bias": "layers"}),
        ({}, {"relative_bias": "shared", "position": "none"}),
        ({"position": "rotary", "rotary": RotaryConfig(axes=2, learned=True)}, {"rotary_coordinates": "count"}),
        ({"norm": "rmsnorm", "ffn": "reglu"}, {"patch_norm": True, "pool": "mean", "registers": 1}),
        ({}, {"registers": 2, "position_covers_registers": True, "pool": "mean", "pool_prefix": True}),
        ({}, {"pool": "attention", "pool_heads": 4, "pool_ffn": "relu", "pool_ffn_dim": 9, "pool_prefix": True}),
    ],
)
def test_models_are_written_and_read_and_every_weight_matters(
    core: dict[str, Any], options: dict[str, Any], tmp_path: Any
) -> None:
    ours, x = model(core, **options), torch.randn(2, 3, 8, 12)
    ours.save_pretrained(tmp_path)
    assert torch.equal(VisionTransformer.from_pretrained(tmp_path).eval()(x), ours(x))
    ours(x).square().sum().backward()
    still = [name for name, p in ours.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in still if not name.endswith("k.bias")] == []


def test_a_table_that_covers_registers_is_added_to_them() -> None:
    ours = model({}, registers=2, position_covers_registers=True)
    tokens = ours.embed(torch.zeros(1, 3, 8, 12))
    assert ours.positions is not None and ours.class_token is not None and ours.registers is not None
    table = ours.positions.table  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(tokens[0, 0], ours.class_token[0, 0] + table[0])
    torch.testing.assert_close(tokens[0, 1:3], ours.registers[0] + table[1:3])
    torch.testing.assert_close(tokens[0, 3:], ours.patch_embed.bias + table[3:])


def test_columns_first_and_an_offset() -> None:
    ours = model(
        {"position": "rotary", "rotary": RotaryConfig(axes=2)}, rotary_columns_first=True, rotary_offset=1.0,
        rotary_coordinates="count",
    )  # fmt: skip
    found = ours.rotary_positions((2, 3), torch.device("cpu"))
    assert found is not None
    assert found.tolist() == [[0, 0], [1, 1], [2, 1], [3, 1], [1, 2], [2, 2], [3, 2]]


def test_a_gated_relu() -> None:
    torch.manual_seed(0)
    ffn = FeedForward(TransformerConfig(dim=8, heads=2, ffn="reglu", ffn_dim=6))
    assert ffn.gate is not None
    x = torch.randn(3, 8, requires_grad=True)
    y = ffn.down(torch.clamp(ffn.gate(x), min=0) * ffn.up(x))
    torch.testing.assert_close(ffn(x), y)
    torch.testing.assert_close(torch.autograd.grad(ffn(x).sum(), x), torch.autograd.grad(y.sum(), x))
    with torch.inference_mode():
        torch.testing.assert_close(ffn(x), y)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"relative_bias": "layers", "registers": 1}, "needs a class_token and no registers"),
        ({"relative_bias": "both"}, "relative_bias is 'both'"),
        ({"pool_heads": 2}, "need pool attention, but pool is 'class'"),
        ({"pool_prefix": True}, "pool_prefix needs pool mean or attention"),
        ({"position_covers_registers": True, "position_covers_class": False}, "set both"),
    ],
)
def test_settings_that_do_not_fit_together(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        model({}, **options)
