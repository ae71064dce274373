"""Titans' memory: beside autograd, the delta rule and its token loop; its forms with attention in whole models."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.mixers.cache import KeyValueCache
from triune.core.mixers.delta_scan import reference_delta_scan
from triune.core.mixers.recurrent import Row, State
from triune.core.mixers.titans_memory import Gates, Memory, memory_scan, recall, reference_memory_scan
from triune.core.transformer import Transformer

BATCH, TOKENS, HEADS = 2, 19, 3


def inputs(layers: int, seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    shape = (BATCH, TOKENS, HEADS)
    widths = {1: (4, 5), 2: (4, 6, 5), 3: (4, 6, 7, 5)}[layers]
    weights = tuple(0.5 * torch.randn(HEADS, a, b, dtype=torch.float64) for a, b in pairwise(widths))
    q, k = (F.normalize(torch.randn(*shape, 4, dtype=torch.float64), dim=-1) for _ in range(2))
    gates = Gates(
        0.2 * torch.rand(shape, dtype=torch.float64), F.logsigmoid(torch.randn(shape, dtype=torch.float64)),
        F.logsigmoid(2 + torch.randn(shape, dtype=torch.float64)),
    )  # fmt: skip
    v = torch.randn(*shape, 5, dtype=torch.float64)
    return {"q": q, "k": k, "v": v, "gates": gates, "weights": weights}


@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_a_linear_memory_without_momentum_and_forgetting_is_the_delta_rule(chunk: int) -> None:
    given = inputs(1)
    step, zero = given["gates"].step, torch.zeros(1, HEADS, 4, 5, dtype=torch.float64)
    memory = Memory.start((zero[0],), BATCH)
    y, _ = memory_scan(given["q"], given["k"], given["v"], Gates(step), memory, chunk=chunk)
    expected, _ = reference_delta_scan(given["q"], given["k"], given["v"], step, torch.zeros_like(step))
    if chunk == 1:
        assert (y - expected).abs().max() < 1e-12
    else:  # the gradients of a chunk are taken at one memory
        assert (y - expected).abs().max() > 1e-3
        assert (y[:, 0] - expected[:, 0]).abs().max() < 1e-12


def curvature(weights: list[Tensor], k: Tensor) -> Tensor:
    """Σ_l |h_l|² Π |D W|², with the derivative of SiLU from autograd."""
    h, total, reach = k, [], [torch.ones_like(k)]  # reach[l]: squared slopes of SiLU behind layer l, from 1 on
    for w in weights:
        total.append(h.square().sum())
        z = h @ w
        h = F.silu(z)
        leaf = z.detach().requires_grad_()
        reach.append(torch.autograd.grad(F.silu(leaf).sum(), leaf)[0].square())
    found, factor = torch.zeros((), dtype=k.dtype), torch.ones((), dtype=k.dtype)
    for layer in range(len(weights) - 1, -1, -1):
        found = found + total[layer] * factor
        factor = factor * (reach[layer] * weights[layer].square().sum(1)).sum()
    return found


@pytest.mark.parametrize("layers", [1, 2])
def test_the_bound_is_the_size_of_the_derivative(layers: int) -> None:
    given = inputs(layers)
    weights = tuple(w[0] for w in given["weights"])
    k = given["k"][0, 0, 0]
    leaves = tuple(w.clone().requires_grad_() for w in weights)
    rows = [torch.autograd.grad(y, leaves, retain_graph=True) for y in recall(leaves, k[None])[2][0]]
    exact = torch.stack([g.square().sum() for row in rows for g in row]).sum()
    # |h|² |∂M/∂z|² of a layer is the squared norm of its part of J; the last layer's has |h|² once in each row.
    again = (weights[-1].shape[1] - 1) * recall(weights, k[None])[0][-1].square().sum()
    assert_close(curvature(list(weights), k), exact - again)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("bounded", [False, True])
def test_the_memory_takes_gradient_steps(layers: int, chunk: int, bounded: bool) -> None:
    """Beside a loop in which autograd computes the gradients."""
    given = inputs(layers)
    gates: Gates = replace(given["gates"], bounded=bounded)
    assert gates.log_momentum is not None and gates.log_keep is not None
    y, _ = memory_scan(given["q"], given["k"], given["v"], gates, Memory.start(given["weights"], BATCH), chunk=chunk)
    for b in range(BATCH):
        for h in range(HEADS):
            now = [w[h].clone() for w in given["weights"]]
            surprise, before = [torch.zeros_like(w) for w in now], now
            for t in range(TOKENS):
                before = [w.detach().requires_grad_() for w in now] if t % chunk == 0 else before
                said = recall(tuple(before), given["k"][b, t, None, h])[2]
                loss = 0.5 * (said - given["v"][b, t, None, h]).square().sum()
                gradients = torch.autograd.grad(loss, before)
                eta, keep, theta = gates.log_momentum[b, t, h].exp(), gates.log_keep[b, t, h].exp(), gates.step[b, t, h]
                if bounded:
                    size = curvature([w.detach() for w in before], given["k"][b, t, h])
                    theta = theta / max(1.0, float(chunk * size / (1 - eta)))
                surprise = [eta * s - theta * g for s, g in zip(surprise, gradients)]
                now = [keep * w.detach() + s for w, s in zip(now, surprise)]
                expected = recall(tuple(now), given["q"][b, t, None, h])[2][0]
                assert (y[b, t, h] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("forget", [True, False])
def test_chunks_are_the_token_loop_in_value_and_gradient(layers: int, momentum: bool, forget: bool) -> None:
    given = inputs(layers)
    full: Gates = given["gates"]
    count = torch.tensor([TOKENS, 7])
    real = (torch.arange(TOKENS) < count[:, None])[..., None, None]
    found = []
    for scan in (memory_scan, reference_memory_scan):
        leaves = [given[n].clone().requires_grad_() for n in "qkv"]
        logs = [x.clone().requires_grad_() for x in (full.step, full.log_momentum, full.log_keep) if x is not None]
        weights = [w.clone().requires_grad_() for w in given["weights"]]
        gates = Gates(logs[0], logs[1] if momentum else None, logs[2] if forget else None)
        y, memory = scan(*leaves, gates, Memory.start(tuple(weights), BATCH), count, 4)
        loss = (y * real).sin().sum() + sum(w.sin().sum() for w in memory.now)
        gradients = torch.autograd.grad(loss, [*leaves, *logs, *weights], allow_unused=True)
        found.append([(y * real), *memory.now, memory.inside, *(g for g in gradients if g is not None)])
    for one, two in zip(*found, strict=True):
        assert_close(one, two)


def test_a_bounded_linear_memory_is_still_the_delta_rule() -> None:
    given = inputs(1)
    step = given["gates"].step
    memory = Memory.start((torch.zeros(HEADS, 4, 5, dtype=torch.float64),), BATCH)
    y, _ = memory_scan(given["q"], given["k"], given["v"], Gates(step, bounded=True), memory, chunk=1)
    expected, _ = reference_delta_scan(given["q"], given["k"], given["v"], step, torch.zeros_like(step))
    assert (y - expected).abs().max() < 1e-12


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("eta", [None, 0.5, 0.99])
@pytest.mark.parametrize("alike", [False, True])
def test_bounded_steps_near_one_do_not_diverge(layers: int, eta: float | None, alike: bool) -> None:
    """Random tokens, or one and the same key, whose steps all ask for the same correction."""
    torch.manual_seed(0)
    widths = (8, *[16] * (layers - 1), 8)
    weights = tuple(a**-0.5 * torch.randn(1, a, b) for a, b in pairwise(widths))
    k = F.normalize(torch.randn(1, 1 if alike else 2000, 1, 8), dim=-1).expand(-1, 2000, -1, -1)
    v, step = torch.randn(1, 2000, 1, 8), torch.full((1, 2000, 1), 0.99)
    momentum = None if eta is None else torch.full_like(step, eta).log()
    free, bound = (
        memory_scan(k, k, v, Gates(step, momentum, None, bounded), Memory.start(weights, 1))[0].abs().max()
        for bounded in (False, True)
    )
    assert bound < 20, "as large as the values, up to their sum over a short past"
    if layers > 1 or alike or eta == 0.99:
        assert not free < 1e3, "what the bound is for"


FORMS = ("memory", "layer", "gate", "context")
CONFIG = TransformerConfig(dim=16, depth=2, heads=2, causal=True, ffn_dim=16, norm="rmsnorm", position="none")


def build(form: str, layers: int = 1, **more: Any) -> Transformer:
    torch.manual_seed(0)
    options = {"form": form, "layers": layers, "chunk": 4, "conv": 3} | more
    options |= {"window": 5} if form in ("layer", "gate") else {}
    model = Transformer(replace(CONFIG, mixer="titans", mixer_options={"titans": options})).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 13, 16, dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_in_a_model(form: str, layers: int, x: Tensor) -> None:
    """Behind a cache in parts of any size, packed, padded on the left and then continued, and causal."""
    model = build(form, layers)
    whole = model(x)
    for parts in ([1] * 13, [6, 7], [1, 5, 1, 6]):
        cache = KeyValueCache(model.config)
        assert_close(torch.cat([model(p, cache=cache) for p in x.split(parts, dim=1)], dim=1), whole)
    documents = torch.tensor([[0] * 6 + [1] * 7, [0] * 2 + [1] * 9 + [2] * 2])
    packed = model(x, documents=documents)
    assert_close(packed[0, 6:], model(x[:1, 6:])[0])
    assert_close(packed[1, 2:11], model(x[1:, 2:11])[0])
    valid = torch.arange(10) >= torch.tensor([0, 3])[:, None]
    cache = KeyValueCache(model.config)
    first = model(x[:, :10], valid=valid, cache=cache)
    rest = torch.cat([model(p, cache=cache) for p in x[:, 10:].split([2, 1], dim=1)], dim=1)
    alone = model(x[1:, 3:])
    assert_close(torch.cat([first[1:, 3:], rest[1:]], dim=1), alone)
    assert_close(rest[:1], whole[:1, 10:])
    changed = x.clone()
    changed[:, 7:] += 1.0
    assert_close(model(changed)[:, :7], whole[:, :7])
    early = x.clone()
    early[:, 0] += 1.0
    assert not torch.allclose(model(early)[:, 12], whole[:, 12]), "nothing is carried far"


@pytest.mark.parametrize("form", FORMS)
def test_everything_learns(form: str, x: Tensor) -> None:
    model = build(form, layers=2).train()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert bool((parameter.grad != 0).any()), name


def test_the_start_of_a_linear_memory_is_empty() -> None:
    config = replace(CONFIG, mixer="titans", mixer_options={"titans": {"layers": 2}})
    block = Transformer(config).blocks[0]
    memory = block.attn.memory  # type: ignore[union-attr]
    assert bool((memory.start[-1] == 0).all()) and 0.2 < memory.start[0].std() * memory.start[0].shape[1] ** 0.5 < 1.5
    assert bool((memory.momentum.bias == -2).all()) and bool((memory.forget.bias == -6).all())


@torch.no_grad()
def test_at_its_start_a_token_finds_what_followed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of random tokens the second half repeats the first: the memory's answer is nearest to the value of the next."""
    torch.manual_seed(0)
    config = replace(CONFIG, dim=64, heads=1, depth=1, mixer="titans", mixer_options={"titans": {}}, init_std=None)
    block = Transformer(config).blocks[0]
    memory, seen = block.attn.memory, {}  # type: ignore[union-attr]
    monkeypatch.setattr(memory, "_said", lambda y, x: seen.update(y=y) or x)
    x = torch.randn(1, 24, 64).repeat(1, 2, 1)
    read = memory._read(x, Row(), {}, learn=True)
    block.attn.mix(x, Row(), State())  # type: ignore[union-attr]
    v = F.normalize(read[2][0, :, 0], dim=-1)
    nearest = (F.normalize(seen["y"][0, 24:47, 0], dim=-1) @ v[1:25].T).argmax(1)
    assert (nearest == torch.arange(23)).float().mean() > 0.5, "by chance 0.04"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"form": "mac"}, "titans.form is 'mac', but must be one of memory, layer, gate, context"),
        ({"window": 8}, "titans.window is 8, but must be left out with form memory"),
        ({"form": "context", "window": 8}, "titans.window is 8, but must be left out with form context"),
        ({"persistent": 2}, "titans.persistent is 2, but must be left out with form memory"),
        ({"hidden": 8}, "titans.hidden is 8, but must be left out with one layer"),
        ({"layers": 0}, "titans.layers is 0, but must be a positive integer"),
        ({"chunk": "4"}, "titans.chunk is '4', but must be a positive integer"),
    ],
)
def test_what_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        replace(CONFIG, mixer="titans", mixer_options={"titans": options})
