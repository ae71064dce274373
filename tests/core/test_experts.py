"""Mixtures of experts against a loop over all experts, and against transformers' blocks."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triune.core.adapt.lora import LoRAConfig, add_lora
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.expert_options import ExpertsConfig
from triune.core.experts import Experts, balance_experts, reference_experts, routers, sorted_experts, utilisation
from triune.core.grouped import StackedLinear, grouped_linear, reference_grouped_linear
from triune.core.layers import FeedForward
from triune.core.mixers.cache import KeyValueCache
from triune.core.packed import pack
from triune.core.training.groups import build_optimizer, describe_groups, parameter_groups
from triune.core.training.optimizers import OptimizerConfig
from triune.core.training.run.flops import count_step
from triune.core.transformer import Transformer

F64 = torch.float64
CONFIG = TransformerConfig(
    dim=16, depth=2, heads=2, causal=True, ffn="swiglu", ffn_dim=24, init_std=0.3, bias=False, position="none",
    experts=ExpertsConfig(count=4, active=2),
)  # fmt: skip


def config(**changes: Any) -> TransformerConfig:
    """`CONFIG` with other settings of the experts; those of the model have `model_` before their names."""
    outer = {name.removeprefix("model_"): changes.pop(name) for name in list(changes) if name.startswith("model_")}
    assert CONFIG.experts is not None
    return replace(CONFIG, experts=replace(CONFIG.experts, **changes), **outer)


def layer(**changes: Any) -> Experts:
    torch.manual_seed(0)
    found = Transformer(config(**changes)).double().blocks[0].ffn
    assert isinstance(found, Experts)
    return found


# --- the operator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[3, 0, 4, 1], [0, 0, 8, 0], [8, 0, 0, 0], [2, 2, 2, 2]])
def test_grouped_linear(sizes: list[int]) -> None:
    torch.manual_seed(0)
    ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
    x, weight = torch.randn(8, 5, dtype=F64, requires_grad=True), torch.randn(4, 3, 5, dtype=F64, requires_grad=True)
    torch.testing.assert_close(grouped_linear(x, weight, ends), reference_grouped_linear(x, weight, ends))
    grad = torch.randn(8, 3, dtype=F64)
    found = torch.autograd.grad(grouped_linear(x, weight, ends), (x, weight), grad)
    expected = torch.autograd.grad(reference_grouped_linear(x, weight, ends), (x, weight), grad)
    torch.testing.assert_close(found, expected)
    torch.autograd.gradgradcheck(lambda a, b: grouped_linear(a, b, ends), (x, weight))
    torch.library.opcheck(torch.ops.triune.grouped_linear.default, (x, weight, ends))


# --- the fast form against the loop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("active", [1, 2, 4])
@pytest.mark.parametrize(("ffn", "bias"), [("swiglu", False), ("gelu", True), ("geglu", ["up", "down"])])
def test_sorted_tokens_equal_a_loop_over_all_experts(active: int, ffn: Any, bias: Any) -> None:
    experts = layer(active=active, model_ffn=ffn, model_bias=bias).experts
    for p in experts.parameters():
        nn.init.normal_(p)
    x = torch.randn(7, 16, dtype=F64, requires_grad=True)
    weights = torch.rand(7, active, dtype=F64, requires_grad=True)
    chosen = torch.rand(7, 4).topk(active).indices
    inputs, grad = (x, weights, *experts.parameters()), torch.randn(7, 16, dtype=F64)
    found, expected = (f(experts, x, weights, chosen) for f in (sorted_experts, reference_experts))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), atol=1e-12, rtol=1e-10
    )


def test_an_expert_without_tokens_has_no_gradient_and_none_is_dropped() -> None:
    ffn = layer(active=1)
    with torch.no_grad():
        ffn.router.weight.zero_()
        ffn.router.weight[2] = 1.0
    x = torch.rand(1, 50, 16, dtype=F64)  # positive: all 50 tokens choose expert 2
    y = ffn(x)
    torch.testing.assert_close(y, ffn.experts.one(2, x))
    y.sum().backward()
    used = ffn.experts.up.weight.grad.abs().amax((1, 2))  # type: ignore[union-attr]
    assert (used > 0).tolist() == [False, False, True, False]


# --- against other people's software --------------------------------------------------------------------------------


def originals() -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    from transformers import JambaConfig, MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig, Qwen3NextConfig
    from transformers.models.jamba.modeling_jamba import JambaSparseMoeBlock
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextSparseMoeBlock

    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_experts_per_tok": 2}
    qwen: dict[str, Any] = size | {"moe_intermediate_size": 24, "num_experts": 4}
    shared: dict[str, Any] = {"shared_expert_intermediate_size": 40}
    return {
        "mixtral": (MixtralSparseMoeBlock(MixtralConfig(**size, num_local_experts=4)), {}),
        "jamba": (JambaSparseMoeBlock(JambaConfig(**size, num_experts=4)), {"renormalise": False}),
        "qwen3": (Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(**qwen, norm_topk_prob=True)), {}),
        "qwen3 plain": (
            Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(**qwen, norm_topk_prob=False)), {"renormalise": False},
        ),
        "qwen2": (
            Qwen2MoeSparseMoeBlock(Qwen2MoeConfig(**qwen, **shared, norm_topk_prob=False)),
            {"renormalise": False, "shared": 40, "shared_gate": True},
        ),
        "qwen3 next": (
            Qwen3NextSparseMoeBlock(Qwen3NextConfig(**qwen, **shared, norm_topk_prob=True)),
            {"shared": 40, "shared_gate": True},
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["mixtral", "jamba", "qwen3", "qwen3 plain", "qwen2", "qwen3 next"])
def test_value_and_gradient_of_the_originals(name: str) -> None:
    torch.manual_seed(0)
    block, settings = originals()[name]
    theirs = {n: nn.init.normal_(p, std=0.3) for n, p in block.double().named_parameters()}
    ours = layer(**settings)
    gate, up = theirs["experts.gate_up_proj"].detach().chunk(2, dim=1)
    state = {"experts.gate.weight": gate, "experts.up.weight": up, "experts.down.weight": theirs["experts.down_proj"]}
    state["router.weight"] = theirs.get("router.weight", theirs.get("gate.weight", torch.empty(0)))
    for part in ("gate", "up", "down") if "shared" in settings else ():
        state[f"shared.{part}.weight"] = theirs[f"shared_expert.{part}_proj.weight"]
    if "shared_gate" in settings:
        state["shared_gate.weight"] = theirs["shared_expert_gate.weight"]
    ours.load_state_dict(state | {"router.balance": torch.zeros(4)})
    x = torch.randn(2, 9, 16, dtype=F64, requires_grad=True)
    expected, found = block(x), ours(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-6)  # their router computes in float32
    grad = torch.randn_like(found)
    wanted = torch.autograd.grad(expected, [x, theirs["experts.down_proj"]], grad)
    got = torch.autograd.grad(found, [x, ours.experts.down.weight], grad)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_is_that_of_transformers(padded: bool) -> None:
    """Theirs is for a balanced choice the number of active experts, ours 1."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    ffn = layer(loss_weight=0.5)
    x = torch.randn(3, 6, 16, dtype=F64)
    valid = torch.arange(6) < torch.tensor([[6], [2], [4]]) if padded else None
    ffn(x, valid)
    logits = (x @ ffn.router.weight.T).flatten(0, 1)
    expected = load_balancing_loss_func((logits,), 4, 2, None if valid is None else valid.long())
    assert isinstance(expected, Tensor) and ffn.router.loss is not None
    torch.testing.assert_close(ffn.router.loss.float(), 0.5 * expected.float() / 2)
    (gradient,) = torch.autograd.grad(ffn.router.loss, ffn.router.weight)
    (theirs,) = torch.autograd.grad(0.25 * expected, ffn.router.weight)
    torch.testing.assert_close(gradient, theirs, atol=1e-7, rtol=1e-5)


# --- balance --------------------------------------------------------------------------------------------------------


def test_sigmoid_scores_and_a_bias_that_only_the_choice_sees() -> None:
    router = layer(score="sigmoid").router
    assert router.balance is not None
    router.balance.copy_(torch.tensor([0.0, 5.0, 0.0, 5.0]))
    x = torch.randn(6, 16, dtype=F64)
    weights, chosen = router(x)
    assert (chosen.sort().values == torch.tensor([1, 3])).all()
    scores = (x @ router.weight.T).sigmoid().gather(1, chosen)
    torch.testing.assert_close(weights, scores / scores.sum(1, keepdim=True))


def test_the_bias_moves_towards_the_mean_load_without_padding() -> None:
    model = Transformer(config(bias_rate=0.01, active=1)).train()
    x, valid = torch.randn(2, 8, 16), torch.arange(8) < torch.tensor([[8], [3]])
    model(x, valid=valid)
    model(x, valid=valid)  # two micro-batches are one step
    loads = [router.load.clone() for router in routers(model)]
    assert [int(load.sum()) for load in loads] == [22, 22]
    balance_experts(model, torch.tensor(True))  # a step that was left out
    assert all((router.balance == 0).all() and (router.load == 0).all() for router in routers(model))
    model(x, valid=valid)
    balance_experts(model, torch.tensor(False))
    for router, load in zip(routers(model), loads, strict=True):
        torch.testing.assert_close(router.balance, 0.01 * torch.sign(load.mean() - load))
        torch.testing.assert_close(router.share, load / load.sum())
    peak = max(float(load.max() / load.sum()) * 4 for load in loads)
    idle = max(float((load == 0).float().mean()) for load in loads)
    assert utilisation(model) == {"expert_peak": pytest.approx(peak), "expert_idle": pytest.approx(idle)}
    model.eval()(x)
    assert all((router.load == 0).all() for router in routers(model))


@pytest.mark.parametrize("how", [{"bias_rate": 0.02}, {"bias_rate": 0.0, "loss_weight": 1.0}])
def test_balancing_evens_the_experts_out(how: dict[str, float]) -> None:
    torch.manual_seed(0)
    ffn = layer(active=1, **how)
    x = torch.randn(4, 64, 16, dtype=F64) + 0.5  # a common part that one expert answers to
    peaks = []
    for _ in range(60):
        ffn(x)
        if ffn.router.loss is not None:
            (grad,) = torch.autograd.grad(ffn.router.loss, ffn.router.weight)
            with torch.no_grad():
                ffn.router.weight -= grad
        balance_experts(ffn)
        peaks.append(utilisation(ffn)["expert_peak"])
    assert peaks[0] > 1.5
    assert peaks[-1] < 1.2


def test_losses_are_those_of_the_last_call_alone() -> None:
    model = Transformer(config(loss_weight=0.1))
    x = torch.randn(2, 5, 16)
    model(x)
    first = model.losses()["balance"]
    model(x)
    assert list(model.losses()) == ["balance"]
    torch.testing.assert_close(model.losses()["balance"], first)
    torch.testing.assert_close(first, torch.stack([router.loss for router in routers(model)]).mean())  # type: ignore[arg-type]
    copy.deepcopy(model)(x)  # what belongs to a graph is not copied
    model.eval()(x)
    assert model.losses() == {}
    assert Transformer(config()).losses() == {}


# --- in a model -----------------------------------------------------------------------------------------------------


def test_layers_with_and_without() -> None:
    model = Transformer(config(layers=[2], model_depth=3, model_ffn=["swiglu", "none", "swiglu"]))
    kinds = [type(block.ffn) for block in model.blocks]
    assert kinds == [FeedForward, type(None), Experts]
    assert not [name for name in model.state_dict() if name.startswith(("blocks.1.norm2", "blocks.1.ffn"))]
    named = [n.removeprefix("blocks.2.ffn.") for n in model.state_dict() if n.startswith("blocks.2.ffn.")]
    experts = [f"experts.{part}.weight" for part in ("gate", "up", "down")]
    assert named == ["router.weight", "router.balance", *experts]
    x = torch.randn(2, 5, 16)
    block = model.blocks[1]
    whole, seen = [], []
    block.register_forward_hook(lambda m, args, out: whole.append((args[0], out)))
    block.branch1.register_forward_hook(lambda m, args, out: seen.append(out))
    model(x)
    torch.testing.assert_close(whole[0][1], whole[0][0] + seen[0])


@pytest.mark.parametrize("placement", ["pre", "post", "branch", "sandwich"])
def test_a_block_without_feed_forward_in_every_placement(placement: Any) -> None:
    kinds = replace(CONFIG, experts=None, placement=placement, ffn="none", layer_scale=0.1)
    model = Transformer(kinds)
    model(torch.randn(2, 5, 16)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    Transformer(replace(kinds, placement="pre", parallel=True))(torch.randn(2, 5, 16))


@pytest.mark.parametrize("bias_rate", [0.0, 0.1])
def test_a_cache_gives_what_the_whole_text_gives(bias_rate: float) -> None:
    model = Transformer(config(bias_rate=bias_rate, score="sigmoid")).double().eval()
    for router in routers(model):
        if router.balance is not None:
            nn.init.normal_(router.balance)
    x = torch.randn(2, 7, 16, dtype=F64)
    valid = torch.arange(7) >= torch.tensor([[0], [2]])
    cache = KeyValueCache(model.config)
    parts = [model(x[:, a:b], valid=valid[:, a:b], cache=cache) for a, b in ((0, 4), (4, 5), (5, 7))]
    torch.testing.assert_close(torch.cat(parts, 1)[valid], model(x, valid=valid)[valid])


def test_saved_and_read_again(tmp_path: Path) -> None:
    model = Transformer(config(shared=8, shared_gate=True, layers=[1])).eval()
    for router in routers(model):
        assert router.balance is not None
        nn.init.normal_(router.balance)
    model.save_pretrained(tmp_path)
    again = Transformer.from_pretrained(tmp_path).eval()
    x = torch.randn(2, 5, 16)
    assert torch.equal(again(x), model(x))
    assert again.config == model.config
    assert TransformerConfig.from_dict(model.config.to_dict()) == model.config


def test_compiled_in_one_graph() -> None:
    model, x = Transformer(config(loss_weight=0.1, shared=8)), torch.randn(2, 6, 16)
    expected = model(x)
    loss = model.losses()["balance"]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(x)
    found = compiled(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model.losses()["balance"], loss)
    assert all(int(router.load.sum()) == 3 * 24 for router in routers(model))


def test_exported_as_a_loop_over_all_experts() -> None:
    model, x = Transformer(config()).eval(), torch.randn(2, 6, 16)
    program = torch.export.export(model, (x,))
    assert not [node for node in program.graph.nodes if "triune" in str(node.target)]
    torch.testing.assert_close(program.module()(x), model(x))


def test_each_expert_starts_like_a_plain_layer() -> None:
    torch.manual_seed(0)
    big = config(model_dim=128, model_ffn_dim=256, model_init_std=None, model_heads=4)
    model, plain = Transformer(big), Transformer(replace(big, experts=None))
    for name in ("gate", "up", "down"):
        stack = model.get_parameter(f"blocks.0.ffn.experts.{name}.weight")
        expected = plain.get_parameter(f"blocks.0.ffn.{name}.weight").std()
        torch.testing.assert_close(stack.std((1, 2)), expected.expand(4), rtol=0.02, atol=0)
        assert not torch.equal(stack[0], stack[1])


def test_muon_trains_each_expert_by_itself() -> None:
    class Toy(nn.Module):
        def __init__(self, stacked: bool) -> None:
            super().__init__()
            layers = [StackedLinear(3, 6, 4), StackedLinear(3, 4, 6)]
            single = [nn.Linear(6, 4) for _ in range(3)] + [nn.Linear(4, 6) for _ in range(3)]
            self.blocks = nn.ModuleList([nn.ModuleList(layers if stacked else single)])

    torch.manual_seed(0)
    one, many = Toy(True), Toy(False)
    stacks = [p for p in one.parameters() if p.ndim == 3]
    matrices = [p for p in many.parameters() if p.ndim == 2]
    for p, parts in ((stacks[0], matrices[:3]), (stacks[1], matrices[3:])):
        p.grad = torch.randn_like(p)
        for index, part in enumerate(parts):
            part.data, part.grad = p.data[index].clone(), p.grad[index].clone()
    for model in (one, many):
        build_optimizer(model, OptimizerConfig()).step()
    for p, parts in ((stacks[0], matrices[:3]), (stacks[1], matrices[3:])):
        torch.testing.assert_close(p.data, torch.stack([part.data for part in parts]), atol=1e-6, rtol=1e-5)


def test_roles_of_the_parameters() -> None:
    model = Transformer(config(model_bias=True, shared=8, shared_gate=True))
    rows = {row.group: row for row in describe_groups(parameter_groups(model, OptimizerConfig()))}
    assert set(rows) == {"matrices", "vectors"}
    vectors = sum(p.numel() for name, p in model.named_parameters() if name.endswith("bias") or "norm" in name)
    assert rows["vectors"].parameters == vectors


def test_only_what_tokens_read_is_counted() -> None:
    class Step(nn.Module):
        def __init__(self, config: TransformerConfig) -> None:
            super().__init__()
            self.transformer = Transformer(config)

        def loss(self, x: Tensor) -> Tensor:
            return self.transformer(x).square().sum()

    x = torch.randn(2, 32, 16)
    dense = count_step(Step(replace(CONFIG, experts=None, ffn_dim=48)), x)
    router = 6 * 2 * 4 * 16 * 64  # forward and backward, both layers
    step = Step(config(dim=24, active=2))
    assert count_step(step, x) == dense + router
    assert count_step(Step(config(dim=24, active=2, count=8)), x) == dense + 2 * router
    assert all(not router.load.any() for router in routers(step))  # counting leaves no trace
    step.transformer(x)


# --- equal configs, and mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"loss_weight": 0.3}, {"bias_rate": 0.5}, {"dim": 24}, {"layers": [1, 0]}, {"model_ffn": ["swiglu"] * 2}],
)
def test_equal_functions_are_equal_in_canonical_form(changes: dict[str, Any]) -> None:
    assert config(**changes).canonical() == CONFIG.canonical()


@pytest.mark.parametrize("changes", [{"bias_rate": 0.0}, {"dim": 25}, {"layers": [1]}, {"renormalise": False}])
def test_other_functions_are_not(changes: dict[str, Any]) -> None:
    assert config(**changes).canonical() != CONFIG.canonical()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"active": 5}, r"^experts\.active is 5, but must be from 1 to experts\.count \(4\)\.$"),
        ({"active": 0}, r"^experts\.active is 0, but must be from 1 to"),
        ({"count": 0}, r"^experts\.count is 0, but must be a positive integer\.$"),
        ({"dim": -1}, r"^experts\.dim is -1, but must be a positive integer or null\.$"),
        ({"shared": -1}, r"^experts\.shared is -1, but must be at least 0\.$"),
        ({"shared_gate": True}, r"^experts\.shared_gate is True, but must be false without a shared expert"),
        ({"score": "tanh"}, r"^experts\.score is 'tanh', but must be one of softmax, sigmoid\.$"),
        ({"bias_rate": 1.5}, r"^experts\.bias_rate is 1\.5, but must be at least 0 and below 1\.$"),
        ({"layers": [2]}, r"^experts\.layers is \[2\], but must be numbers of layers from 0 to 1\.$"),
        ({"layers": [0, 0]}, r"^experts\.layers is \[0, 0\], but must be without a number twice\.$"),
        ({"layers": []}, r"^experts\.layers is \[\], but must be such that a layer has experts"),
        ({"layers": [0], "model_ffn": ["none", "gelu"]}, r"^experts\.layers is \[0\], but must be without layer 0"),
        ({"model_ffn": "none"}, r"^experts\.layers is None, but must be such that a layer has experts"),
        ({"model_inner_norm": ["ffn"]}, r"^inner_norm is \['ffn'\], but must be without ffn where a layer has experts"),
        ({"model_ffn": ["gelu"]}, r"^ffn is \['gelu'\], but must be one entry for all or one for each of 2 layers\.$"),
        ({"model_ffn": ["gelu", "gelo"]}, r"^ffn is 'gelo' \(did you mean 'gelu'\?\), but must be one of gelu"),
        ({"model_ffn": ["gelu", "swiglu"], "model_ffn_dim": None}, r"^ffn_dim is None, but must be given"),
    ],
)  # fmt: skip
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**changes)


def test_an_unknown_setting_of_a_file() -> None:
    with pytest.raises(UserError, match=r"Unknown key 'transformer\.experts\.activ' \(did you mean 'active'\?\)"):
        TransformerConfig.from_dict({"experts": {"activ": 2}})


def test_adapters_and_packed_weights_are_refused() -> None:
    model = Transformer(config(layers=[1]))
    with pytest.raises(
        UserError, match=r"^lora\.targets names 'gate', which in blocks\.1\.ffn\.experts\.gate.*q, k, v, out"
    ):
        add_lora(model, LoRAConfig(rank=2))
    named = add_lora(model, LoRAConfig(rank=2, targets=["q", "blocks.0.ffn.up"]))
    assert named == ["blocks.0.attn.q", "blocks.0.ffn.up", "blocks.1.attn.q"]
    with pytest.raises(UserError, match=r"^Weights of int8 are for linear layers, and this model has experts"):
        pack(Transformer(config()), "int8")
