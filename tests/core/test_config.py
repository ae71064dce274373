"""A config is checked where it is made and survives JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.rotary import RotaryConfig

IMPOSSIBLE = [
    ({"dim": 65, "heads": 4}, "dim is 65", "divisible by heads (4)"),
    ({"dim": 65, "heads": 4}, "dim is 65", "64 or 68"),
    ({"dim": 3, "heads": 4}, "dim is 3", "try 4"),
    ({"dim": 0}, "dim is 0", "a positive integer"),
    ({"dim": 64.0}, "dim is 64.0", "an integer"),
    ({"depth": -1}, "depth is -1", "a positive integer"),
    ({"heads": 0}, "heads is 0", "a positive integer"),
    ({"context": 0}, "context is 0", "a positive integer"),
    ({"heads": 4, "kv_heads": 3}, "kv_heads is 3", "a divisor of heads (4)"),
    ({"kv_heads": 0}, "kv_heads is 0", "a positive integer or null"),
    ({"kv_heads": "2"}, "kv_heads is '2'", "an integer or null"),
    ({"head_dim": 0}, "head_dim is 0", "a positive integer"),
    ({"head_dim": 2.5}, "head_dim is 2.5", "an integer"),
    ({"ffn_dim": -8}, "ffn_dim is -8", "a positive integer"),
    ({"ffn_dim": 10.5}, "ffn_dim is 10.5", "an integer"),
    ({"norm_eps": 0.0}, "norm_eps is 0.0", "positive"),
    ({"attention_scale": 0.0}, "attention_scale is 0.0", "positive"),
    ({"attention_scale": -1.0}, "attention_scale is -1.0", "positive"),
    ({"depth": 10**18}, "depth is 1000000000000000000", "at most 10,000"),
    ({"dropout": 1.0}, "dropout is 1.0", "in [0, 1)"),
    ({"attention_dropout": -0.1}, "attention_dropout is -0.1", "in [0, 1)"),
    ({"stochastic_depth": 1.5}, "stochastic_depth is 1.5", "in [0, 1)"),
    ({"attention_softcap": 0.0}, "attention_softcap is 0.0", "positive or null"),
    ({"attention_softcap": 50.0, "attention_dropout": 0.1}, "attention_dropout is 0.1", "0 with attention_softcap"),
    ({"dim": 63, "heads": 3, "position": "sinusoidal"}, "dim is 63", "even for sinusoidal"),
    ({"position": "rotery"}, "position is 'rotery' (did you mean 'rotary'?)", "none, learned, sinusoidal, rotary"),
    ({"norm": "rms"}, "norm is 'rms'", "layernorm, rmsnorm"),
    ({"norm_weight": "no"}, "norm_weight is 'no'", "plain, offset, none"),
    ({"placement": "prenorm"}, "placement is 'prenorm'", "pre, post, branch, sandwich"),
    ({"qk_norm": "heads"}, "qk_norm is 'heads' (did you mean 'head'?)", "none, head, per_head, full"),
    ({"ffn": "swigelu"}, "ffn is 'swigelu' (did you mean 'swiglu'?)", "relu2"),
    ({"init_residual": "one"}, "init_residual is 'one'", "scaled, zero"),
    ({"init_std": 0.0}, "init_std is 0.0", "positive or null"),
    ({"init_std": -0.1}, "init_std is -0.1", "positive or null"),
    ({"inner_norm": ["atention"]}, "inner_norm is 'atention' (did you mean 'attention'?)", "attention, ffn"),
    ({"bias": ["q", "o"]}, "bias is 'o'", "q, k, v, out, gate, up, down"),
    ({"parallel": True, "placement": "post"}, "placement is 'post'", "pre when parallel"),
    ({"parallel": True, "placement": "sandwich"}, "placement is 'sandwich'", "pre when parallel"),
    ({"parallel": True, "cross_attention": True}, "cross_attention is True", "false when parallel"),
    ({"window": 0}, "window is 0", "positive number of tokens or null"),
    ({"window": 2.5}, "window is 2.5", "an integer"),
    ({"depth": 2, "window": [4, -1]}, "window is -1", "positive number of tokens or null"),
    ({"depth": 3, "window": [4, None]}, "window is [4, None]", "one for each of 3 layers"),
    ({"depth": 3, "rotary": [None]}, "rotary is [None]", "one for each of 3 layers"),
    ({"dim": 12, "heads": 4}, "head_dim is 3", "multiple of 2 for rotary"),
    ({"head_dim": 6, "rotary": RotaryConfig(axes=2)}, "head_dim is 6", "multiple of 4 for rotary"),
    ({"head_dim": 10, "rotary": RotaryConfig(fraction=0.5)}, "head_dim is 10", "rotated part (5) is a multiple of 2"),
    ({"head_dim": 8, "rotary": RotaryConfig(fraction=0.1)}, "head_dim is 8", "rotated part (0)"),
    ({"head_dim": 2, "rotary": RotaryConfig(scaling="ntk", factor=2.0)}, "head_dim is 2", "ntk"),
]


@pytest.mark.parametrize(("values", "names", "allowed"), IMPOSSIBLE, ids=[str(case[0]) for case in IMPOSSIBLE])
def test_impossible_combination_names_field_value_and_what_is_allowed(values: dict, names: str, allowed: str) -> None:
    with pytest.raises(UserError) as error:
        TransformerConfig(**values)
    assert isinstance(error.value, ValueError)
    assert names in str(error.value)
    assert allowed in str(error.value)


ROTARY_IMPOSSIBLE = [
    ({"base": 0.0}, "rotary.base is 0.0", "positive"),
    ({"fraction": 0.0}, "rotary.fraction is 0.0", "in (0, 1]"),
    ({"fraction": 1.5}, "rotary.fraction is 1.5", "in (0, 1]"),
    ({"axes": 3}, "rotary.axes is 3", "1 or 2"),
    ({"scaling": "yarm"}, "rotary.scaling is 'yarm' (did you mean 'yarn'?)", "none, linear, ntk, llama3, yarn"),
    ({"scaling": "linear", "factor": 0.5}, "rotary.factor is 0.5", "at least 1"),
    ({"scaling": "llama3", "factor": 8.0}, "rotary.original_context is None", "the trained context in tokens"),
    ({"scaling": "yarn", "factor": 8.0}, "rotary.original_context is None", "the trained context in tokens"),
    (
        {"scaling": "llama3", "factor": 8.0, "original_context": 64, "high_frequency_factor": 1.0},
        "rotary.high_frequency_factor is 1.0", "above rotary.low_frequency_factor (1.0)",
    ),
    (
        {"scaling": "yarn", "factor": 8.0, "original_context": 64, "beta_slow": 40.0},
        "rotary.beta_fast is 32.0", "above rotary.beta_slow (40.0)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "names", "allowed"), ROTARY_IMPOSSIBLE, ids=[c[1] for c in ROTARY_IMPOSSIBLE])
def test_impossible_rotary_setting(values: dict, names: str, allowed: str) -> None:
    with pytest.raises(UserError) as error:
        RotaryConfig(**values)
    assert names in str(error.value)
    assert allowed in str(error.value)


ROUND_TRIPS = [
    TransformerConfig(),
    TransformerConfig(dim=96, heads=6, kv_heads=2, head_dim=32, ffn="geglu", bias=["q", "k", "v"], layer_scale=0.1),
    TransformerConfig(
        dim=32, depth=3, heads=2, window=[4, None, 7],
        rotary=[RotaryConfig(base=1e6), None, RotaryConfig(scaling="yarn", factor=4.0, original_context=128)],
    ),
    TransformerConfig(dim=32, depth=2, heads=2, rotary=RotaryConfig(axes=2, interleaved=True), inner_norm=["ffn"]),
    TransformerConfig(placement="post", position="sinusoidal", cross_attention=True, window=9, causal=True),
]  # fmt: skip


@pytest.mark.parametrize("config", ROUND_TRIPS)
def test_round_trip_through_json(config: TransformerConfig) -> None:
    text = json.dumps(config.to_dict())
    again = TransformerConfig.from_dict(json.loads(text))
    assert again == config
    assert json.dumps(again.to_dict()) == text


def test_resolved_replaces_what_is_computed() -> None:
    values = TransformerConfig(dim=60, heads=5, ffn="swiglu").resolved().to_dict()
    assert (values["kv_heads"], values["head_dim"], values["ffn_dim"], values["final_norm"]) == (5, 12, 160, True)
    assert TransformerConfig(dim=60, heads=5).resolved().ffn_dim == 240
    assert TransformerConfig(placement="post").resolved().final_norm is False
    assert TransformerConfig(placement="post", final_norm=True).resolved().final_norm is True
    given = TransformerConfig(dim=60, heads=6, kv_heads=2, head_dim=8, ffn_dim=7, final_norm=False)
    assert given.resolved() == given


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dimm": 3}, "Unknown key 'transformer.dimm' (did you mean 'dim'?)"),
        ({"n_heads": 3}, "(did you mean 'heads'?)"),
        ({"rotary": {"bases": 3.0}}, "Unknown key 'transformer.rotary.bases' (did you mean 'base'?)"),
        ({"rotary": [{"axis": 2}]}, "Unknown key 'transformer.rotary.axis' (did you mean 'axes'?)"),
        ({"zzzz": 1}, "Unknown key 'transformer.zzzz'; known keys are dim, depth, heads"),
        ([], "transformer is a list, but must be a mapping"),
        (None, "transformer is a NoneType, but must be a mapping"),
    ],
)
def test_unknown_key_names_the_nearest(values: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        TransformerConfig.from_dict(values)
    assert message in str(error.value)


def test_layers_read_their_own_entry() -> None:
    fast, slow = RotaryConfig(base=100.0), RotaryConfig(base=1e6)
    config = TransformerConfig(dim=32, depth=3, heads=2, window=[4, None, 2], rotary=[fast, None, slow])
    assert [config.window_at(i) for i in range(3)] == [4, None, 2]
    assert [config.rotary_at(i) for i in range(3)] == [fast, None, slow]
    assert TransformerConfig(position="learned").rotary_at(0) is None
    assert TransformerConfig(window=5).window_at(3) == 5


def test_bias_choices() -> None:
    assert all(TransformerConfig(bias=True).has_bias(name) for name in ("q", "down"))
    assert not any(TransformerConfig(bias=False).has_bias(name) for name in ("q", "down"))
    some = TransformerConfig(bias=["q", "v"])
    assert [some.has_bias(n) for n in ("q", "k", "v", "out")] == [True, False, True, False]


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TransformerConfig().dim = 3  # pyright: ignore[reportAttributeAccessIssue]


SAME_FUNCTION = [
    (
        {"dropout": 0.1, "attention_dropout": 0.2, "stochastic_depth": 0.3, "init_std": None, "init_residual": "zero"},
        {},
    ),
    ({"attention_scale": 0.25}, {}),  # of heads of 16 channels
    ({"kv_heads": 4, "head_dim": 16, "ffn_dim": 256, "final_norm": True}, {}),
    ({"window": [None, None]}, {}),
    ({"window": [7, 7]}, {"window": 7}),
    ({"bias": ["q", "k", "v", "out", "up", "down"]}, {}),  # without a gate
    ({"norm": "rmsnorm", "norm_weight": "none"}, {"norm": "rmsnorm"}),
    ({"norm": "rmsnorm", "norm_bias": False}, {"norm": "rmsnorm"}),
    ({"layer_scale": 0.1}, {"layer_scale": 1e-5}),
    ({"inner_norm": ["ffn", "attention"]}, {"inner_norm": ["attention", "ffn"]}),
    ({"context": 77}, {}),
    ({"position": "none", "rotary": RotaryConfig(base=7)}, {"position": "none"}),
    ({"rotary": [None, None]}, {"position": "none"}),
    ({"rotary": [RotaryConfig(), RotaryConfig(factor=3)]}, {}),
    ({"rotary": RotaryConfig(fraction=0.51)}, {"rotary": RotaryConfig(fraction=0.5)}),
    ({"rotary": RotaryConfig(scaling="linear", original_context=5)}, {}),
    (
        {"rotary": RotaryConfig(scaling="yarn", factor=4, original_context=8, attention_factor=None)},
        {"rotary": RotaryConfig(scaling="yarn", factor=4, original_context=8, attention_factor=0.1 * math.log(4) + 1)},
    ),
]
OTHER_FUNCTION = [
    {"attention_scale": 1.0}, {"window": 7}, {"window": [7, None]}, {"bias": False}, {"norm_bias": False},
    {"ffn": "relu"}, {"norm_weight": "none"}, {"layer_scale": 1.0}, {"position": "learned"},
    {"rotary": RotaryConfig(base=7)},
    {"rotary": [RotaryConfig(), None]}, {"rotary": RotaryConfig(scaling="ntk", factor=2)}, {"causal": True},
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME_FUNCTION)
def test_the_same_function_has_one_canonical_form(one: dict, other: dict) -> None:
    def made(more: dict) -> TransformerConfig:
        return TransformerConfig(dim=64, depth=2, heads=4, **more).canonical()

    assert made(one) == made(other)
    assert made(one).canonical() == made(one)


@pytest.mark.parametrize("other", OTHER_FUNCTION)
def test_another_function_has_another_canonical_form(other: dict) -> None:
    plain = TransformerConfig(dim=64, depth=2, heads=4)
    assert TransformerConfig(dim=64, depth=2, heads=4, **other).canonical() != plain.canonical()
