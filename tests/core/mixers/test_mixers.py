"""Every mixer in a model: the same function whole, behind a cache, padded, packed, selected, in both directions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from triune.core.config import TransformerConfig
from triune.core.mixers.cache import KeyValueCache
from triune.core.mixers.options import KINDS
from triune.core.transformer import Transformer

RECURRENT = [name for name in KINDS if name != "attention"]
CONFIG = TransformerConfig(dim=16, depth=2, heads=2, causal=True, ffn_dim=16, norm="rmsnorm", position="none")
TOKENS = 13


def settings(name: str, conv: int | None = None) -> dict[str, Any]:
    small = {"state": 4} if name in ("mamba2", "mamba") else {}
    return {"mixer": name, "mixer_options": {name: small | ({} if conv is None else {"conv": conv})}}


def build(config: TransformerConfig) -> Transformer:
    """A model whose parameters are all of a size that shows in the output."""
    torch.manual_seed(0)
    model = Transformer(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval()


PAIRS = [(name, conv) for name in RECURRENT for conv in (0, 3) if conv or name != "convolution"]


@pytest.fixture(params=PAIRS, ids=lambda p: f"{p[0]}-conv{p[1]}")
def config(request: pytest.FixtureRequest) -> TransformerConfig:
    return replace(CONFIG, **settings(*request.param))


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, TOKENS, 16, dtype=torch.float64)


@pytest.mark.parametrize("parts", [[1] * TOKENS, [6, 7], [1, 5, 1, 6]], ids=str)
@torch.no_grad()
def test_a_cache_gives_what_the_whole_gives(config: TransformerConfig, x: Tensor, parts: list[int]) -> None:
    model, cache = build(config), None
    cache = KeyValueCache(model.config)
    pieces = [model(piece, cache=cache) for piece in x.split(parts, dim=1)]
    assert_close(torch.cat(pieces, dim=1), model(x))


@torch.no_grad()
def test_a_token_does_not_reach_those_before_it(config: TransformerConfig, x: Tensor) -> None:
    model = build(config)
    changed = x.clone()
    changed[:, 7:] += 1.0
    assert_close(model(changed)[:, :7], model(x)[:, :7], rtol=0, atol=1e-14)
    assert not torch.allclose(model(changed)[:, 12], model(x)[:, 12])
    first = x.clone()
    first[:, 0] += 1.0
    assert not torch.allclose(model(first)[:, 4], model(x)[:, 4]), "the state carries nothing on"


@pytest.mark.parametrize("where", ["left", "right", "between"])
@torch.no_grad()
def test_padding_changes_nothing(config: TransformerConfig, x: Tensor, where: str) -> None:
    """Also when a cache goes on after it."""
    model = build(config)
    valid = torch.ones(2, TOKENS, dtype=torch.bool)
    valid[1, {"left": slice(0, 4), "right": slice(9, 13), "between": slice(3, 7)}[where]] = False
    poisoned = x.masked_fill(~valid[..., None], 1e3)
    cache = KeyValueCache(model.config)
    y = model(poisoned, valid=valid, cache=cache)
    alone = torch.cat([x[1:][:, valid[1]], x[1:, :2]], dim=1)
    expected = model(alone)[0]
    assert_close(y[1, valid[1]], expected[:9])
    assert_close(y[0], model(x[:1])[0])
    assert_close(model(x[:, :2], cache=cache)[1], expected[9:])
    assert_close(model(poisoned, valid=valid)[1, valid[1]], expected[:9])


@torch.no_grad()
def test_padding_in_calls_behind_a_cache(config: TransformerConfig, x: Tensor) -> None:
    """A batch of chats: each turn is padded on its left; one row has nothing to say at first."""
    model, cache = build(config), KeyValueCache(CONFIG.__class__(**vars(config)))
    valid = torch.ones(2, TOKENS, dtype=torch.bool)
    valid[1, :6] = False
    valid[0, 6:9] = False
    pieces = [
        model(piece, valid=real, cache=cache)
        for piece, real in zip(x.split([6, 7], dim=1), valid.split([6, 7], dim=1), strict=True)
    ]
    y = torch.cat(pieces, dim=1)
    for row in range(2):
        assert_close(y[row, valid[row]], model(x[row : row + 1, valid[row]])[0])


@torch.no_grad()
def test_documents_are_as_alone(config: TransformerConfig, x: Tensor) -> None:
    model = build(config)
    documents = torch.zeros(2, TOKENS, dtype=torch.long)
    documents[0, 4:] = 1
    documents[0, 5:] = 2
    documents[1, 9:] = 3
    valid = torch.ones(2, TOKENS, dtype=torch.bool)
    valid[1, :2] = valid[1, 11:] = False
    y = model(x, documents=documents, valid=valid)
    for row, part in [(0, slice(0, 4)), (0, slice(4, 5)), (0, slice(5, 13)), (1, slice(2, 9)), (1, slice(9, 11))]:
        assert_close(y[row, part], model(x[row : row + 1, part])[0])


@torch.no_grad()
def test_selected_rows_go_on_alone(config: TransformerConfig, x: Tensor) -> None:
    model, cache = build(config), KeyValueCache(config)
    model(x[:, :8], cache=cache)
    cache.select(torch.tensor([1, 1, 0]))
    y = model(x[[1, 1, 0], 8:], cache=cache)
    assert_close(y, model(x)[[1, 1, 0], 8:])


@torch.no_grad()
def test_the_cache_has_a_constant_size(config: TransformerConfig, x: Tensor) -> None:
    model, cache = build(config), KeyValueCache(config)

    def size() -> int:
        return sum(t.numel() for state in (states[0] for states in cache.states) for t in state.tensors.values())

    model(x, cache=cache)
    before = size()
    for _ in range(3):
        model(x, cache=cache)
    assert size() == before > 0


@torch.no_grad()
def test_both_directions_within_the_real_tokens(config: TransformerConfig, x: Tensor) -> None:
    model = build(replace(config, causal=False))
    y = model(x)
    turned = model.blocks[0].attn
    assert not torch.equal(next(turned.forth.parameters()), next(turned.back.parameters()))
    last = x.clone()
    last[:, -1] += 1.0
    assert not torch.allclose(model(last)[:, 9], y[:, 9]), "the end does not reach what is before it"
    valid = torch.ones(2, TOKENS, dtype=torch.bool)
    valid[1, :2] = valid[1, 9:] = False
    documents = torch.zeros(2, TOKENS, dtype=torch.long)
    documents[:, 5:] = 1
    packed = model(x.masked_fill(~valid[..., None], 1e3), valid=valid, documents=documents)
    for row, part in [(0, slice(0, 5)), (0, slice(5, 13)), (1, slice(2, 5)), (1, slice(5, 9))]:
        assert_close(packed[row, part], model(x[row : row + 1, part])[0])


@torch.no_grad()
def test_reversing_the_input_and_the_directions_reverses_the_output(x: Tensor) -> None:
    model = build(replace(CONFIG, causal=False, **settings("gated_delta")))
    y = model(x)
    for block in model.blocks:
        block.attn.forth, block.attn.back = block.attn.back, block.attn.forth
    assert_close(model(x.flip(1)).flip(1), y)


def test_gradients_reach_every_parameter(config: TransformerConfig, x: Tensor) -> None:
    """With padding and documents, where some tokens are hidden from the recurrence."""
    model = build(config).train()
    valid = torch.ones(2, TOKENS, dtype=torch.bool)
    valid[1, :3] = False
    documents = torch.zeros(2, TOKENS, dtype=torch.long)
    documents[:, 6:] = 1
    model(x, valid=valid, documents=documents)[valid].square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", ["mamba2", "mamba", "gated_delta"])
def test_step_sizes_start_between_a_thousandth_and_a_tenth(name: str) -> None:
    """A bias of zero, which a generic start leaves there, would make them 0.69."""
    torch.manual_seed(0)
    model = Transformer(replace(CONFIG, dim=256, heads=32, mixer=name))
    steps = torch.cat([F.softplus(block.attn.dt_bias) for block in model.blocks])
    assert steps.min() >= 0.999e-3
    assert steps.max() <= 0.1001
    assert steps.log().mean().item() == pytest.approx(math.log(0.01), abs=0.5)


def test_decays_start_as_published() -> None:
    torch.manual_seed(0)
    wide = replace(CONFIG, dim=256, heads=32)

    def mixer(name: str) -> Any:
        return Transformer(replace(wide, mixer=name)).blocks[0].attn

    a = mixer("mamba2").a_log.exp()
    assert a.min() >= 1
    assert a.max() <= 16
    assert a.std() > 3, "not all alike"
    mamba = mixer("mamba")
    assert_close(mamba.a_log.exp(), torch.arange(1.0, 17.0).expand(512, 16))
    assert mamba.step.weight.abs().max() <= 16**-0.5
    assert (mamba.d == 1).all()
    assert mixer("gated_delta").a_log.exp().max() <= 16
    base = torch.exp(-F.softplus(mixer("rglru").decay))
    assert base.min() >= 0.9
    assert base.max() <= 0.9991


@pytest.mark.parametrize(("name", "gates"), [("lstm", 4), ("gru", 3)])
def test_recurrent_networks_start_fair(name: str, gates: int) -> None:
    cell = Transformer(replace(CONFIG, mixer=name)).blocks[0].attn
    for gate in cell.recurrent.weight.chunk(gates):
        assert_close(gate @ gate.T, torch.eye(16))
    bias = cell.input.bias + cell.recurrent.bias
    forget = bias.chunk(gates)[1] if name == "lstm" else bias[:0]
    assert (forget == 1).all()
    assert bias.sum() == forget.numel()


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_the_kernel_equals_the_cell(name: str, x: Tensor) -> None:
    from triune.core.mixers.recurrent import Row, State

    mixer = build(replace(CONFIG, mixer=name)).blocks[0].attn
    state, zeros = State(), torch.zeros(2, 16, dtype=torch.float64)
    y = mixer.mix(x, Row(), state)
    state.commit()
    h, last = mixer.reference(x, (zeros,) * len(mixer.memories), Row())
    assert_close(y, mixer.out(h))
    for ours, name in zip(last, mixer.memories, strict=True):
        assert_close(ours, state.get(name))
