"""Low-rank adaptation of linear layers."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from triune.core import Transformer, TransformerConfig, UserError, record_attention
from triune.core.adapt.lora import (
    FACTORS,
    LoRAConfig,
    LoRALinear,
    add_lora,
    lora_layers,
    lora_state,
    merge_lora,
    merged_state,
)
from triune.core.config import Linears

CONFIG = TransformerConfig(dim=32, depth=2, heads=4, kv_heads=2, ffn="swiglu", causal=True)


def model_with(config: LoRAConfig | None = None, moved: bool = False) -> tuple[Transformer, Transformer]:
    """A model and the same model adapted; `moved` gives the factors values as training would."""
    torch.manual_seed(0)
    base = Transformer(CONFIG).eval()
    adapted = deepcopy(base)
    add_lora(adapted, config or LoRAConfig())
    if moved:
        move(adapted)
    return base, adapted


def move(model: nn.Module) -> None:
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_b, std=0.05)


X = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1))


def test_nothing_changes_at_first():
    base, adapted = model_with()
    assert torch.equal(adapted(X), base(X))
    names = [name for name, _ in lora_layers(adapted)]
    assert len(names) == 2 * len(Linears)
    assert "blocks.1.ffn.gate" in names


def test_the_parameters_are_the_very_ones_of_the_base():
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    before = dict(model.named_parameters())
    add_lora(model, LoRAConfig())
    after = dict(model.named_parameters())
    assert all(after[name] is p for name, p in before.items())
    assert {name for name in after if name not in before} == set(lora_state(model))
    # A base checkpoint lacks the factors, and nothing else.
    missing, unexpected = model.load_state_dict(Transformer(CONFIG).state_dict(), strict=False)
    assert set(missing) == set(lora_state(model))
    assert unexpected == []


def test_the_forward_is_the_formula():
    torch.manual_seed(0)
    base = nn.Linear(5, 7)
    layer = LoRALinear(base, rank=3, scale=0.5)
    nn.init.normal_(layer.lora_b)
    x = torch.randn(4, 5)
    expected = base(x) + 0.5 * x @ layer.lora_a.T @ layer.lora_b.T
    assert torch.allclose(layer(x), expected, atol=1e-6)
    assert layer.lora_a.shape == (3, 5)
    assert layer.lora_b.shape == (7, 3)
    assert 0.5 * 5**-0.5 < layer.lora_a.abs().max() <= 5**-0.5  # the authors' start


def test_only_the_factors_get_gradients_and_they_are_those_of_the_whole_weight():
    base, adapted = model_with(moved=True)
    adapted(X).square().sum().backward()
    with_gradient = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert with_gradient == set(lora_state(adapted))
    merge_lora(whole := deepcopy(adapted))
    whole.requires_grad_(True)(X).square().sum().backward()
    for name, layer in lora_layers(adapted):
        gradient = whole.get_submodule(name).weight.grad
        assert torch.allclose(layer.lora_b.grad, 2 * gradient @ layer.lora_a.T, rtol=1e-3, atol=1e-4)
        assert torch.allclose(layer.lora_a.grad, 2 * layer.lora_b.T @ gradient, rtol=1e-3, atol=1e-4)
    assert base.blocks[0].attn.q.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_merged_equals_unmerged(dtype):
    base, adapted = model_with(moved=True)
    base, adapted, x = base.to(dtype), adapted.to(dtype), X.to(dtype)
    out = adapted(x)
    assert not torch.allclose(out, base(x), atol=0.05)
    state = merged_state(adapted)
    assert state.keys() == base.state_dict().keys()
    merge_lora(adapted)
    assert type(adapted.blocks[0].attn.q) is nn.Linear
    atol = {torch.float32: 2e-6, torch.bfloat16: 0.1, torch.float64: 1e-14}[dtype]
    assert torch.allclose(adapted(x), out, atol=atol)
    assert all(torch.equal(state[name], tensor) for name, tensor in adapted.state_dict().items())
    base.load_state_dict(state)
    assert torch.equal(base(x), adapted(x))


def test_code_that_reads_the_weight_sees_the_adapted_one():
    _, adapted = model_with(moved=True)
    layer = adapted.blocks[0].attn.q
    x = torch.randn(3, 32, requires_grad=True)
    assert torch.allclose(nn.functional.linear(x, layer.weight, layer.bias), layer(x), atol=1e-6)
    layer.weight.sum().backward()
    assert layer.lora_a.grad is not None
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (32, 32)


def test_dropout_acts_on_the_factors_in_training_only():
    _, adapted = model_with(LoRAConfig(dropout=0.5), moved=True)
    assert torch.equal(adapted(X), adapted(X))
    torch.manual_seed(0)
    first = adapted.train()(X)
    assert not torch.allclose(first, adapted(X))
    # Only the factors: without their product nothing is random.
    for _, layer in lora_layers(adapted):
        nn.init.zeros_(layer.lora_b)
    assert torch.equal(adapted(X), adapted(X))


def test_targets_by_name_and_by_pattern():
    def names(*targets: str) -> list[str]:
        return [name for name, _ in lora_layers(model_with(LoRAConfig(targets=list(targets)))[1])]

    assert names("q", "v") == [f"blocks.{i}.attn.{x}" for i in (0, 1) for x in "qv"]
    assert names("blocks.1.*") == [f"blocks.1.{x}" for x in ("attn.q", "attn.k", "attn.v", "attn.out")] + [
        f"blocks.1.ffn.{x}" for x in ("gate", "up", "down")
    ]
    assert names("blocks.0.ffn.up") == ["blocks.0.ffn.up"]


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["qq"], "'qq'.*no linear layer"),
        (["blocks.0.attn.qu"], r"did you mean 'blocks\.0\.attn\.q'"),
        (["blocks.7.*"], "no linear layer"),
    ],
)
def test_a_target_that_is_not_there(targets, says):
    with pytest.raises(UserError, match=says):
        add_lora(Transformer(CONFIG), LoRAConfig(targets=targets))


def test_a_gate_that_a_model_lacks_is_only_wrong_alone():
    plain = TransformerConfig(dim=32, depth=1, heads=4)
    assert len(add_lora(Transformer(plain), LoRAConfig())) == 6
    with pytest.raises(UserError, match="gate"):
        add_lora(Transformer(plain), LoRAConfig(targets=["gate"]))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"targets": []}, "targets is empty"),
    ],
)
def test_values_outside_their_range(values, says):
    with pytest.raises(UserError, match=says):
        LoRAConfig(**values)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(8, 8)})])
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks[0]["q"](self.embedding(tokens)))


def test_a_tied_head_stays_tied_and_cannot_be_adapted():
    model = Tied()
    with pytest.raises(UserError, match="tied"):
        add_lora(model, LoRAConfig(targets=["head"]))
    assert model.embedding.weight.requires_grad, "a refused model is as it was"
    add_lora(model, LoRAConfig())
    merge_lora(model)
    assert model.head.weight is model.embedding.weight


def test_kept_parameters_train_and_get_no_factors():
    model = Tied()
    model.head = nn.Linear(8, 3)
    assert add_lora(model, LoRAConfig(targets=["*"]), keep=lambda name: name.startswith("head.")) == ["blocks.0.q"]
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "head.weight",
        "head.bias",
        *(f"blocks.0.q.{factor}" for factor in FACTORS),
    }


def test_a_copy_is_independent():
    _, adapted = model_with(moved=True)
    copy = deepcopy(adapted)
    assert torch.equal(copy(X), adapted(X))
    nn.init.zeros_(copy.blocks[0].attn.q.lora_b)
    assert not torch.equal(copy(X), adapted(X))
    assert copy.blocks[0].attn.q.base_weight is not adapted.blocks[0].attn.q.base_weight


def test_attention_is_recorded_as_the_adapted_model_computes_it():
    _, adapted = model_with(moved=True)
    merge_lora(merged := deepcopy(adapted))
    seen = []
    for model in (adapted, merged):
        with record_attention(model, lambda name, weights: weights) as weights:
            model(X)
        seen.append(weights)
    assert all(torch.allclose(seen[0][name], seen[1][name], atol=1e-6) for name in seen[1])


def test_compiled_blocks_compute_the_same():
    _, adapted = model_with(moved=True)
    expected, compiled = adapted(X), deepcopy(adapted)
    for block in compiled.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    out = compiled(X)
    assert torch.allclose(out, expected, atol=1e-6)
    expected.sum().backward()
    out.sum().backward()
    for (_, a), (_, b) in zip(lora_layers(adapted), lora_layers(compiled), strict=True):
        assert torch.allclose(a.lora_b.grad, b.lora_b.grad, atol=1e-5)


@pytest.mark.parametrize(("options", "scale"), [({}, 2.0), ({"rank": 16}, 2.0), ({"rank": 4, "alpha": 2.0}, 0.5)])
def test_the_scale_is_alpha_over_rank_and_by_default_two(options: dict[str, float], scale: float) -> None:
    model = Transformer(CONFIG)
    add_lora(model, LoRAConfig(**options))  # type: ignore[arg-type]
    assert {module.scale for module in model.modules() if isinstance(module, LoRALinear)} == {scale}
