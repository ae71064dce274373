"""Choosing mixers by name, letter and options; a kind of one's own; what else of the product meets them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from triune.core.adapt.lora import LoRAConfig, add_lora, lora_layers, merge_lora
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.mixers.cache import KeyValueCache
from triune.core.mixers.options import KINDS
from triune.core.mixers.recurrent import Bidirectional, RecurrentMixer, Row, State
from triune.core.mixers.registry import _MAKERS, register_mixer
from triune.core.packed import pack
from triune.core.rotary import RotaryConfig
from triune.core.training.groups import parameter_groups, places
from triune.core.training.optimizers import OptimizerConfig
from triune.core.transformer import Transformer

CONFIG = TransformerConfig(dim=32, depth=4, heads=2, causal=True, ffn_dim=32)
SMALL = {"mamba2": {"state": 4}, "mamba": {"state": 4}}
RECURRENT = [name for name in KINDS if name != "attention"]


def of(name: str, **more: Any) -> TransformerConfig:
    return replace(CONFIG, mixer=name, mixer_options={name: SMALL.get(name, {})}, **more)


def test_a_pattern_a_list_and_a_name_mean_the_same() -> None:
    letters, names = replace(CONFIG, mixer="MAMM"), replace(CONFIG, mixer=["mamba2", "attention", "M", "mamba2"])
    assert letters.resolved() == names.resolved()
    assert [letters.mixer_at(layer) for layer in range(4)] == ["mamba2", "attention", "mamba2", "mamba2"]
    assert replace(CONFIG, mixer="DDDD").resolved() == replace(CONFIG, mixer="gated_delta").resolved()
    assert replace(CONFIG, mixer="AAAA").resolved() == CONFIG.resolved()


def test_a_pattern_builds_what_it_says() -> None:
    kinds = [type(block.attn).__name__ for block in Transformer(replace(CONFIG, mixer="AMDG")).blocks]
    assert kinds == ["Attention", "Mamba2", "GatedDelta", "RGLRU"]


def test_letters_are_one_a_kind() -> None:
    letters = [kind.letter for kind in KINDS.values()]
    assert len(set(letters)) == len(letters)
    assert set(KINDS) == set(_MAKERS)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"mixer": "MMA"}, r"mixer is 'MMA', 3 letters, but must have one for each of 4 layers"),
        ({"mixer": ["mamba2"]}, r"mixer is a list of 1, but must have one for each of 4 layers"),
        ({"mixer": "MXMM"}, r"mixer has 'X' in the pattern MXMM, but must be made of A attention, .*M mamba2"),
        ({"mixer": "manba2"}, r"mixer is 'manba2' \(did you mean 'mamba2'\?\), but must be one of attention"),
        ({"mixer": ["A", "A", "A", "mambo"]}, r"mixer has 'mambo' in the list of 4"),
        ({"mixer": 3}, r"mixer is 3, but must be text or a list"),
        ({"mixer": ""}, r"mixer is '', but must be one of"),
        ({"mixer_options": {"mamba2": {}}}, r"mixer_options is 'mamba2', but must be for a kind that a layer has"),
        ({"mixer_options": {"attention": {"conv": 4}}}, r"mixer_options.attention has 'conv', but it has none"),
        (
            {"mixer": "lstm", "mixer_options": {"lstm": {"state": 4}}},
            r"mixer_options.lstm has 'state'.*, but its options are conv, conv_bias, bias, width",
        ),
        ({"mixer": "gru", "mixer_options": {"gru": 4}}, r"mixer_options is {'gru': 4}, but must be a mapping"),
        (
            {"mixer": "mamba2", "mixer_options": {"mamba2": {"conv": 1}}},
            r"mixer_options.mamba2.conv is 1, but must be 0, or at least 2",
        ),
        (
            {"mixer": "mamba2", "mixer_options": {"mamba2": {"state": 0}}},
            r"mixer_options.mamba2.state is 0, but must be a positive integer",
        ),
        (
            {"mixer": "mamba2", "mixer_options": {"mamba2": {"state": True}}},
            r"mixer_options.mamba2.state is True, but must be a positive integer",
        ),
        (
            {"mixer": "mamba2", "mixer_options": {"mamba2": {"width": 24}}},
            r"mixer_options.mamba2.width is 24, but must be a divisor of expand · dim \(64\)",
        ),
        (
            {"mixer": "mamba2", "mixer_options": {"mamba2": {"groups": 3}}},
            r"mixer_options.mamba2.groups is 3, but must be a divisor of the number of heads \(4\)",
        ),
        (
            {"mixer": "rglru", "mixer_options": {"rglru": {"width": 31}}},
            r"mixer_options.rglru.width is 31, but must be a multiple of heads \(2\)",
        ),
        (
            {"mixer": "mamba", "mixer_options": {"mamba": {"inner_norm": 1}}},
            r"mixer_options.mamba.inner_norm is 1, but must be true or false",
        ),
        ({"mixer": "mamba2", "window": 8}, r"window is 8, but must be None, because no layer has the mixer attention"),
        ({"mixer": "mamba2", "attention_softcap": 8.0}, r"attention_softcap is 8.0, but must be None"),
        ({"mixer": "MMMA", "window": [8, None, None, 8]}, r"window is .*, but must be null for layer 0, whose mixer"),
        (
            {"mixer": "MMMA", "rotary": [None, RotaryConfig(), None, RotaryConfig()]},
            r"rotary is .*, but must be null for layer 1, whose mixer",
        ),
    ],
)  # fmt: skip
def test_what_the_config_refuses(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        replace(CONFIG, **values)


def test_a_bias_is_for_attention_only() -> None:
    model, bias = Transformer(of("retention")), torch.zeros(1, 1, 5, 5)
    with pytest.raises(UserError, match="A bias between tokens was given, but a recurrent mixer has no scores"):
        model(torch.randn(1, 5, 32), bias=bias)
    with pytest.raises(UserError, match="A bias between tokens was given"):
        Transformer(of("retention", causal=False))(torch.randn(1, 5, 32), bias=bias)


def test_a_cache_of_another_model_is_refused() -> None:
    cache = KeyValueCache(of("lstm"))
    Transformer(of("lstm"))(torch.randn(1, 5, 32), cache=cache)
    with pytest.raises(UserError, match="The cache was made for another config"):
        Transformer(of("gru"))(torch.randn(1, 5, 32), cache=cache)
    assert cache.length == 5


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("causal", [True, False])
def test_saved_and_loaded(name: str, causal: bool, tmp_path: Path) -> None:
    model, x = Transformer(of(name, causal=causal)).eval(), torch.randn(2, 9, 32)
    model.save_pretrained(tmp_path)
    again = Transformer.from_pretrained(tmp_path).eval()
    assert again.config == model.config
    assert again.config.mixer_options.get(name, {}).items() >= SMALL.get(name, {}).items()
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("name", RECURRENT)
def test_made_on_no_device(name: str) -> None:
    """As when weights follow from a file."""
    with torch.device("meta"):
        model = Transformer(of(name, causal=False))
    real = Transformer(of(name, causal=False))
    model.load_state_dict(real.state_dict(), assign=True)
    x = torch.randn(1, 6, 32)
    assert torch.equal(model(x), real(x))


@pytest.mark.parametrize("name", RECURRENT)
def test_vectors_are_neither_orthogonalised_nor_decayed(name: str) -> None:
    model = Transformer(of(name, causal=False))
    found = places(model)
    for parameter, p in model.named_parameters():
        last = parameter.rsplit(".", 1)[-1]
        if last in ("a_log", "dt_bias", "d", "decay", "gate_bias", "norm_weight", "bias"):
            assert found[parameter].role == "vectors", parameter
        elif p.ndim == 2:
            assert found[parameter].role == "matrices", parameter
    for group in parameter_groups(model, OptimizerConfig(name="muon")):
        if group["algorithm"] == "muon":
            assert all(p.ndim == 2 for p in group["params"])
    assert any(place.role == "vectors" for place in found.values())


def test_a_decay_of_two_axes_is_a_vector() -> None:
    """Mamba's is `[channels, state]`, which looks like a matrix."""
    model = Transformer(of("mamba"))
    assert places(model)["blocks.0.attn.a_log"].role == "vectors"
    assert model.blocks[0].attn.a_log.ndim == 2


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("padded", [False, True])
def test_lora_changes_what_it_adapts_and_merges(name: str, padded: bool) -> None:
    torch.manual_seed(0)
    model, x = Transformer(of(name)).eval(), torch.randn(2, 9, 32)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[0, :3] = not padded
    before = model(x, valid=valid if padded else None)
    add_lora(model, LoRAConfig(rank=2, targets=["blocks.*.attn.*"]))
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_b, std=0.3)
    adapted = model(x, valid=valid if padded else None)
    assert not torch.allclose(adapted, before, atol=1e-2)
    (adapted * torch.randn_like(adapted)).sum().backward()
    assert all(layer.lora_a.grad is not None and layer.lora_a.grad.any() for _, layer in lora_layers(model))
    merge_lora(model)
    assert_close(model(x, valid=valid if padded else None), adapted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", RECURRENT)
@torch.no_grad()
def test_compressed_weights(name: str) -> None:
    torch.manual_seed(0)
    model, x = Transformer(of(name)).eval(), torch.randn(2, 9, 32)
    whole = model(x)
    pack(model, "int8")
    assert (model(x) - whole).norm() < 0.05 * whole.norm()


@pytest.mark.parametrize("name", RECURRENT)
def test_autocast_and_bfloat16(name: str) -> None:
    """Sums over many tokens stay in float32: outputs differ by the rounding of the products only."""
    torch.manual_seed(0)
    model, x = Transformer(of(name)), torch.randn(2, 70, 32)
    whole = model(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert (y - whole).norm() < 0.03 * whole.norm()
    (y.float() * torch.randn(y.shape)).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    with torch.no_grad():
        half = model.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert (half.float() - whole).norm() < 0.06 * whole.norm()


@dataclass(frozen=True)
class MeanOptions:
    """Options of the test's own mixer."""

    gain: float = 1.0


class Mean(RecurrentMixer):
    """The mean of the tokens so far."""

    def __init__(self, config: TransformerConfig, options: MeanOptions) -> None:
        super().__init__()
        self.out = nn.Linear(config.dim, config.dim)
        self.gain = options.gain

    def mix(self, x: torch.Tensor, row: Row, state: State) -> torch.Tensor:
        count = torch.arange(1, x.shape[1] + 1)[:, None]
        return self.out(self.gain * x.cumsum(1) / count)


@pytest.fixture
def mean() -> Iterator[None]:
    register_mixer("mean", lambda config, layer, options: Mean(config, options), MeanOptions, "Z")
    yield
    del KINDS["mean"], _MAKERS["mean"]


@pytest.mark.usefixtures("mean")
def test_a_mixer_of_ones_own(tmp_path: Path) -> None:
    config = replace(CONFIG, mixer="ZAZZ", mixer_options={"mean": {"gain": 2.0}})
    model = Transformer(config)
    assert isinstance(model.blocks[0].attn, Mean)
    assert model.blocks[0].attn.gain == 2.0
    assert isinstance(Transformer(replace(config, causal=False)).blocks[3].attn, Bidirectional)
    model.save_pretrained(tmp_path)
    assert torch.equal(Transformer.from_pretrained(tmp_path)(torch.ones(1, 3, 32)), model(torch.ones(1, 3, 32)))
    KINDS.pop("mean"), _MAKERS.pop("mean")
    with pytest.raises(UserError, match="mixer has 'mean' in the list of 4, but must be made of A attention"):
        Transformer.from_pretrained(tmp_path)
    register_mixer("mean", lambda config, layer, options: Mean(config, options), MeanOptions, "Z")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "attention"}, "'attention' is taken by a kind of triune"),
        ({"name": "My mixer"}, "'My mixer', but must be lower-case letters"),
        ({"name": "mine", "letter": "A"}, "The letter 'A' of mixer 'mine' is taken by 'attention'"),
        ({"name": "mine", "letter": "AB"}, "is 'AB', but must be one capital letter"),
    ],
)
def test_what_the_registry_refuses(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        register_mixer(make=lambda config, layer, options: Mean(config, options), **arguments)


@pytest.mark.usefixtures("mean")
def test_a_mixer_that_needs_the_whole_sequence_cannot_be_causal() -> None:
    register_mixer("mean", lambda config, layer, options: Mean(config, options), MeanOptions, "Z", direction="both")
    with pytest.raises(UserError, match="mixer is 'mean', but must be one that can be causal, because causal is true"):
        replace(CONFIG, mixer="mean")
    assert isinstance(Transformer(replace(CONFIG, mixer="mean", causal=False)).blocks[0].attn, Mean)


@pytest.mark.parametrize("name", RECURRENT)
def test_configs_of_the_same_function_are_equal(name: str) -> None:
    """Positions and scales of attention say nothing where there is none."""
    config = of(name)
    assert config.canonical() == replace(config, position="none", mixer=[name] * 4).canonical()
    assert config.canonical() != CONFIG.canonical()
    assert config.canonical() == config.canonical().canonical()
    hybrid = replace(CONFIG, mixer=["attention", name, name, "attention"], window=8)
    apart = replace(hybrid, window=[8, None, None, 8], rotary=[RotaryConfig(), None, None, RotaryConfig()])
    assert hybrid.canonical() == apart.canonical()
    assert hybrid.canonical() != replace(hybrid, position="none").canonical()
