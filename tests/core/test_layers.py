"""Norms, feed-forwards, gains and stochastic depth."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triune.core.config import TransformerConfig
from triune.core.layers import Branch, FeedForward, Norm, activation, drop_path, rms_norm

F64 = torch.float64
X = torch.linspace(-4, 4, 101, dtype=F64)

ACTIVATIONS = {
    "gelu": nn.GELU(),
    "geglu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "geglu_tanh": nn.GELU(approximate="tanh"),
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "relu": nn.ReLU(),
    "relu2": lambda x: x.clamp_min(0) ** 2,
    "silu": nn.SiLU(),
    "swiglu": nn.SiLU(),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation(kind: str) -> None:
    torch.testing.assert_close(activation(kind, X), ACTIVATIONS[kind](X), atol=1e-14, rtol=0)
    torch.testing.assert_close(activation(kind, X.clone(), reuse=True), activation(kind, X), atol=1e-14, rtol=0)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_feed_forward(kind: str) -> None:
    torch.manual_seed(0)
    ffn = FeedForward(TransformerConfig(dim=6, heads=1, ffn=kind, ffn_dim=10)).double()  # pyright: ignore[reportArgumentType]
    x = torch.randn(2, 3, 6, dtype=F64)

    def linear(layer: nn.Linear, x: Tensor) -> Tensor:
        return x @ layer.weight.T + layer.bias

    hidden = linear(ffn.up, x)
    act = ACTIVATIONS[kind]
    hidden = act(linear(ffn.gate, x)) * hidden if "glu" in kind else act(hidden)
    assert (ffn.gate is not None) == ("glu" in kind)
    torch.testing.assert_close(ffn(x), linear(ffn.down, hidden), atol=1e-14, rtol=0)
    before = x.clone()
    with torch.no_grad():  # which overwrites what nobody sees
        torch.testing.assert_close(ffn(x), linear(ffn.down, hidden), atol=1e-14, rtol=0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_hooks_see_what_the_layers_returned(kind: str, everywhere: bool) -> None:
    torch.manual_seed(0)
    ffn = FeedForward(TransformerConfig(dim=6, heads=1, ffn=kind))  # pyright: ignore[reportArgumentType]
    x = torch.randn(2, 3, 6)
    layer, seen = ffn.up if ffn.gate is None else ffn.gate, []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        if module is layer:
            seen.append(output)

    handle = nn.modules.module.register_module_forward_hook(keep) if everywhere else layer.register_forward_hook(keep)
    with handle, torch.no_grad():
        ffn(x)
        torch.testing.assert_close(seen[0], layer.forward(x))


def test_feed_forward_inner_norm_comes_before_the_output_projection() -> None:
    torch.manual_seed(0)
    config = TransformerConfig(dim=6, heads=1, ffn="swiglu", ffn_dim=10, inner_norm=["ffn"])
    ffn, x = FeedForward(config).double(), torch.randn(2, 3, 6, dtype=F64)
    hidden = nn.functional.silu(ffn.gate(x)) * ffn.up(x)
    expected = ffn.down(nn.functional.layer_norm(hidden, (10,)))
    torch.testing.assert_close(ffn(x), expected, atol=1e-14, rtol=0)


def norm_and_input(**config: object) -> tuple[Norm, Tensor]:
    torch.manual_seed(0)
    norm = Norm(8, TransformerConfig(norm_eps=1e-3, **config)).double()  # pyright: ignore[reportArgumentType]
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm, torch.randn(4, 5, 8, dtype=F64)


def test_layer_norm() -> None:
    norm, x = norm_and_input()
    theirs = nn.LayerNorm(8, eps=1e-3, dtype=F64)
    theirs.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x), theirs(x), atol=1e-14, rtol=0)
    without_bias, _ = norm_and_input(norm_bias=False)
    assert list(without_bias.state_dict()) == ["weight"]
    expected = nn.functional.layer_norm(x, (8,), without_bias.weight, None, 1e-3)
    torch.testing.assert_close(without_bias(x), expected, atol=1e-14, rtol=0)


def test_rms_norm() -> None:
    norm, x = norm_and_input(norm="rmsnorm")
    assert list(norm.state_dict()) == ["weight"]
    theirs = nn.RMSNorm(8, eps=1e-3, dtype=F64)
    theirs.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x), theirs(x), atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6, 0.0])
def test_own_rms_norm_equals_torch_in_value_and_gradient(scale: float) -> None:
    torch.manual_seed(0)
    for dtype, tolerance in ((torch.float32, 2e-6), (F64, 1e-14)):
        x = (torch.randn(3, 4, 16, dtype=dtype) * scale).requires_grad_()
        weight = torch.randn(16, dtype=dtype, requires_grad=True)
        cotangent = torch.randn(3, 4, 16, dtype=dtype)
        mine, theirs = rms_norm(x, weight, 1e-5), nn.functional.rms_norm(x, (16,), weight, 1e-5)
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)
        grads = [torch.autograd.grad(y, [x, weight], cotangent) for y in (mine, theirs)]
        size = max(grads[1][0].abs().max().item(), 1.0)
        torch.testing.assert_close(grads[0][0] / size, grads[1][0] / size, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(grads[0][1], grads[1][1], atol=8 * tolerance, rtol=tolerance)


def test_offset_norm_stores_the_gain_minus_one() -> None:
    fresh = Norm(8, TransformerConfig(norm="rmsnorm", norm_weight="offset"))
    assert fresh.weight is not None
    assert fresh.weight.abs().max() == 0
    norm, x = norm_and_input(norm="rmsnorm", norm_weight="offset")
    assert norm.weight is not None
    expected = nn.functional.rms_norm(x, (8,), norm.weight + 1, 1e-3)
    torch.testing.assert_close(norm(x), expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norm_without_parameters(kind: str) -> None:
    norm, x = norm_and_input(norm=kind, norm_weight="none")
    assert not list(norm.parameters())
    y = norm(x)
    mean = y.mean(-1).abs().max()
    assert mean < 1e-14 if kind == "layernorm" else mean > 0.1
    torch.testing.assert_close(y.square().mean(-1), torch.ones(4, 5, dtype=F64), atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norm_keeps_the_dtype_of_its_input(kind: str) -> None:
    norm = Norm(8, TransformerConfig(norm=kind))  # pyright: ignore[reportArgumentType]
    assert norm(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_drop_path_drops_whole_examples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = drop_path(torch.ones(20_000, 3, 2), 0.25)
    dropped = out[:, 0, 0] == 0
    assert torch.equal(out, torch.where(dropped, 0.0, 1 / 0.75)[:, None, None].expand_as(out))
    assert abs(dropped.float().mean() - 0.25) < 0.01
    assert abs(out.mean() - 1) < 0.015


def test_stochastic_depth_grows_over_the_layers_and_rests_in_eval() -> None:
    config = TransformerConfig(depth=5, stochastic_depth=0.4, dim=4, heads=1)
    branches = [Branch(config, layer) for layer in range(5)]
    assert [round(b.skip, 6) for b in branches] == [0.0, 0.1, 0.2, 0.3, 0.4]
    x = torch.ones(64, 2, 4)
    assert (branches[4](x) == 0).any()
    assert torch.equal(branches[4].eval()(x), x)
    assert Branch(TransformerConfig(depth=1, stochastic_depth=0.4), 0).skip == 0


def test_branch_gain_norm_and_dropout() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 8)
    gain = Branch(TransformerConfig(dim=8, layer_scale=0.1), 0)
    assert [name for name, _ in gain.named_parameters()] == ["scale"]
    torch.testing.assert_close(gain(x), 0.1 * x)
    sandwich = Branch(TransformerConfig(dim=8, placement="sandwich", layer_scale=2.0), 0)
    torch.testing.assert_close(sandwich(x), 2 * nn.functional.layer_norm(x, (8,)))
    dropout = Branch(TransformerConfig(dim=8, dropout=0.5), 0)
    assert (dropout(x) == 0).any()
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # PyTorch's own, in forward mode
@pytest.mark.parametrize("weighted", [False, True])
def test_rms_norm_has_second_derivatives_and_forward_mode(weighted):
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True) if weighted else None
    inputs = (x, weight) if weighted else (x,)

    def ours(x, weight=None):
        return rms_norm(x, weight, 1e-5)

    assert torch.autograd.gradcheck(ours, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(ours, inputs)
    hessians = [
        torch.autograd.functional.hessian(lambda x, f=f: f(x, (8,), weight, 1e-5).pow(3).sum(), x.detach())
        for f in (lambda x, _, weight, eps: rms_norm(x, weight, eps), F.rms_norm)
    ]
    assert torch.allclose(*hessians, atol=1e-12)


def test_rms_norm_under_function_transforms():
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    per_row = torch.func.vmap(torch.func.grad(lambda row: rms_norm(row, None, 1e-5).pow(3).sum()))(x.detach())
    (whole,) = torch.autograd.grad(rms_norm(x, None, 1e-5).pow(3).sum(), x)
    assert torch.allclose(per_row, whole)
